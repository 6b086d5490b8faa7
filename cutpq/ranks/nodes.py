"""Which ranks share a machine, and the two kinds of groups that a hierarchical sum uses.

A node is a machine, or what CUTPQ_NODES says: "0,0,1,1" puts ranks 0 and 1 on one node and ranks 2 and 3 on another.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from ..cost.nodes import Nodes
from .communicator import Communicator


def parse(text: str, size: int) -> tuple[int, ...]:
    """The node of each of `size` ranks, as CUTPQ_NODES spells it: numbers from 0 on with commas between them.

    Raises ValueError where there is not one number >= 0 for each rank.
    """
    words = [word.strip() for word in text.split(",")]
    if len(words) != size or not all(word.isdecimal() and len(word) < 7 for word in words):
        raise ValueError(
            f"CUTPQ_NODES={text!r} must name a node for each of {size} ranks, as numbers >= 0 with commas between "
            f"them, such as {','.join(str(2 * rank // size) for rank in range(size))!r}"
        )
    return tuple(map(int, words))


@dataclass(frozen=True)
class Groups:
    """The groups of one rank. A rank whose number in its node is `nodes.lanes` or more has no peers in `between`.

    inside   the ranks of its node
    between  the ranks with the same number in their nodes, in the order of nodes
    """

    nodes: Nodes
    inside: Communicator
    between: Communicator

    @property
    def owns_a_share(self) -> bool:
        """Whether this rank exchanges a share with other nodes."""
        return self.inside.rank < self.nodes.lanes


_groups: WeakKeyDictionary[Communicator, Groups] = WeakKeyDictionary()


def groups(comm: Communicator) -> Groups:
    """The groups of this communicator's ranks, split when they are first asked for. Then it is collective."""
    if comm not in _groups:
        nodes = Nodes.of(comm.node_of)
        node, number = nodes.place(comm.rank)
        _groups[comm] = Groups(nodes, comm.split(node), comm.split(number))
    return _groups[comm]
