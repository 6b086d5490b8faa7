"""The sum that sends little over the cable between nodes: shares inside each node, then between nodes, then inside.

1. Inside a node each rank sends its numbers, share by share, to the owners: the first `lanes` ranks of the node, as
   many as the smallest node has. An owner adds its share in float32, in rank order, and rounds nothing.
2. The owners of the same share, one in each node, exchange what they have with the codec. In one shot each node's term
   is encoded once, and everyone adds in float32 in the order of nodes. In two shots each of them adds a part of the
   share: the other nodes' encoded terms in their order, and then its own, which stays as it is. The sum is encoded.
3. The owners pass the result on inside their node. On GPUs they pass wires, which every rank decodes in its
   kernel; with NumPy they decode first and pass numbers, so that a node decodes each share once. The bits are the same.

Without a codec step 2 rounds each node's sum to x's dtype, adds these in float32, and rounds once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..array import Array, array_module
from ..codecs.codec import Codec
from ..cost.nodes import choose_shots, lane_shares
from . import auto
from .communicator import Communicator, split
from .nodes import Groups, groups
from .sums import round_sum
from .wires import decode_sum, flat, oneshot, padded, twoshot_own_exact


def all_reduce(x: Array, comm: Communicator, codec: Codec | None) -> Array:
    """The sum of x over the ranks in x's dtype and shape, equal on all ranks bit for bit. The owners decode."""
    found = groups(comm)
    with _counted(comm, found):
        if codec is None:
            counts = [lane[0] for lane in lane_shares(x.size, found.nodes, None, "")]
            terms = _terms_inside(flat(x), counts, found)

            def make(total: Array) -> None:
                round_sum(terms, total)
                if found.owns_a_share:
                    total[...] = found.between.all_reduce(total)
        else:
            counts, wires, shares = _exchange(x, comm, codec, found)

            def make(total: Array) -> None:
                if total.size:
                    decode_sum(wires, codec, total.size, shares, x.dtype, out=total)

        gathered = found.inside.all_gather_made(make, _for_all(counts, found), x.dtype, array_module(x))
    return gathered[: x.size].reshape(x.shape)


def exchange(x: Array, comm: Communicator, codec: Codec) -> tuple[Array, int]:
    """(n,) -> wires (terms, bytes) whose decoded sum is the result, and the number of shares in each wire.

    As after wires.oneshot and wires.twoshot, every rank decodes all of them.
    """
    found = groups(comm)
    with _counted(comm, found):
        counts, wires, shares = _exchange(x, comm, codec, found)
        terms = len(wires)
        lanes = [terms * sum(map(codec.wire_bytes, codec.shares(count, shares))) for count in counts]
        gathered = found.inside.all_gather(wires.reshape(-1), _for_all(lanes, found))
        if terms == 1:
            return gathered.reshape(1, -1), shares * len(counts)
        by_lane = [piece.reshape(terms, -1) for piece in split(gathered, lanes)]
        return array_module(gathered).concatenate(by_lane, axis=1), shares * len(counts)


def _exchange(x: Array, comm: Communicator, codec: Codec, found: Groups) -> tuple[list[int], Array, int]:
    """Steps 1 and 2: elements of each lane, the wires of this rank's lane, (terms, bytes), and shares in each."""
    shots = _shots(x, comm, codec, found)
    counts = list(map(sum, lane_shares(codec.padded(x.size), found.nodes, codec, shots)))
    partial = _terms_inside(padded(x, codec), counts, found)
    terms, shares = (found.nodes.count, 1) if shots == "oneshot" else (1, found.nodes.count)
    if not found.owns_a_share:
        return counts, array_module(x).empty((terms, 0), np.uint8), shares
    wires, _ = (oneshot if shots == "oneshot" else twoshot_own_exact)(partial, found.between, codec)
    return counts, wires, shares


def _shots(x: Array, comm: Communicator, codec: Codec, found: Groups) -> str:
    """How nodes exchange shares: "oneshot" for two nodes, else what the cost model predicts to be quicker."""
    return "oneshot" if found.nodes.count == 2 else choose_shots(x.size, found.nodes, codec, auto.cable(comm))


def _terms_inside(x: Array, counts: list[int], found: Groups) -> Sequence[Array]:
    """(n,) -> the terms of this rank's share of the sum over its node, in rank order; empty where it owns none."""
    return found.inside.terms(x, _for_all(counts, found))


def _for_all(counts: list[int], found: Groups) -> list[int]:
    """The counts of the owners, and none for the other ranks of the node."""
    return counts + [0] * (found.inside.size - len(counts))


@contextmanager
def _counted(comm: Communicator, found: Groups) -> Iterator[None]:
    """Count what the groups send as sent by the communicator that they are parts of."""
    found.inside.reset_sent()
    found.between.reset_sent()
    yield
    comm.sent_bytes += found.inside.sent_bytes + found.between.sent_bytes
    comm.cable_bytes += found.between.sent_bytes
