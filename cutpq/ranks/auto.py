"""What `algo="auto"` means: the sum that the cost model predicts to be quickest on the link between the ranks.

The link is the one that CUTPQ_LINK names on rank 0, else the one that rank 0's GPU mostly has, else (NumPy) l4-pcie.
Between nodes it is the one that CUTPQ_BETWEEN names on rank 0, else eth-100g.
"""

from __future__ import annotations

import os
from weakref import WeakKeyDictionary

import numpy as np

from ..array import Array
from ..codecs.codec import Codec
from ..cost.all_reduce import choose_all_reduce
from ..cost.links import LINKS, Link
from ..cost.nodes import CABLES, Cable, Nodes, choose_over_nodes
from .communicator import Communicator

# For each communicator: its link and cable, and the (codec, algorithm) pairs that rank 0 has printed.
_links: WeakKeyDictionary[Communicator, tuple[Link, Cable]] = WeakKeyDictionary()
_printed: WeakKeyDictionary[Communicator, set[tuple[str, str]]] = WeakKeyDictionary()
# For each communicator: the algorithm for a sum of that size, dtype and codec.
_choices: WeakKeyDictionary[Communicator, dict[tuple[int, np.dtype, Codec | None], str]] = WeakKeyDictionary()


def choose(x: Array, comm: Communicator, codec: Codec | None) -> str:
    """The algorithm for this sum, the same on all ranks; rank 0 prints it once for each codec and choice.

    Without a codec it is "plain", or "hierarchical" for ranks on several nodes. The first call of a communicator is
    collective. Raises ValueError for an unknown CUTPQ_LINK or CUTPQ_BETWEEN.
    """
    known = _choices.setdefault(comm, {})
    key = (x.size, x.dtype, codec)
    if key not in known:
        known[key] = _choose(x, comm, codec)
    return known[key]


def _choose(x: Array, comm: Communicator, codec: Codec | None) -> str:
    nodes = Nodes.of(comm.node_of)
    if nodes.count > 1:
        algo, why = choose_over_nodes(x.size, x.dtype.itemsize, nodes, codec, link(comm), cable(comm))
    else:
        algo, why = choose_all_reduce(x.size, x.dtype.itemsize, comm.size, codec, link(comm))
    printed = _printed.setdefault(comm, set())
    name = codec.name if codec else "no codec"
    if comm.rank == 0 and (name, algo) not in printed:
        printed.add((name, algo))
        ranks = "1 rank" if comm.size == 1 else f"{comm.size} ranks"
        print(f"# cutpq: all_reduce of {x.nbytes} bytes on {ranks}, {name}: {algo} ({why})", flush=True)
    return algo


def link(comm: Communicator) -> Link:
    """The link inside nodes that predictions are for, rank 0's on all ranks; collective and raising as `choose` is."""
    return _link_and_cable(comm)[0]


def cable(comm: Communicator) -> Cable:
    """The cable between nodes that predictions are for; else as `link`."""
    return _link_and_cable(comm)[1]


def _link_and_cable(comm: Communicator) -> tuple[Link, Cable]:
    if comm not in _links:
        names = comm.bcast((_link_name(comm), _cable_name()) if comm.rank == 0 else None)
        _links[comm] = LINKS[names[0]], CABLES[names[1]]
    return _links[comm]


def _cable_name() -> str:
    name = os.environ.get("CUTPQ_BETWEEN") or "eth-100g"
    if name not in CABLES:
        raise ValueError(f"CUTPQ_BETWEEN={name!r} is not one of {', '.join(CABLES)}")
    return name


def _link_name(comm: Communicator) -> str:
    name = os.environ.get("CUTPQ_LINK")
    if name is not None and name not in LINKS:
        raise ValueError(f"CUTPQ_LINK={name!r} is not one of {', '.join(LINKS)}")
    if name is None and comm.xp is not np:
        gpu = comm.xp.cuda.runtime.getDeviceProperties(comm.device or 0)["name"].decode().lower()
        name = next((link.name for link in LINKS.values() if link.gpu in gpu), None)
    return name or "l4-pcie"
