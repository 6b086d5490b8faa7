"""The two ways in which compressed terms become a sum: who sends which wire to whom. Both end before the last decode.

The last step, decode_sum, is left to the caller, who may do it with what follows in one kernel. Everyone adds in rank
order in float32, and the owner of a share takes its sum from its own wire, as all others do.
"""

from __future__ import annotations

from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np

from ..array import Array, array_module, round_to
from ..codecs import launch
from ..codecs.codec import Codec
from .communicator import Communicator
from .sums import add


def oneshot(x: Array, comm: Communicator, codec: Codec) -> tuple[Array, int]:
    """(n,) -> every rank's wire (ranks, bytes), whose decoded sum is the result, and 1, the shares in each wire."""
    return comm.all_gather(encode(x, codec, 1)), 1


def twoshot(x: Array, comm: Communicator, codec: Codec) -> tuple[Array, int]:
    """(n,) -> the wires of the owners' sums one behind the other (1, bytes), and how many shares they are."""
    n = codec.padded(x.size)
    counts = codec.shares(n, comm.size)
    sizes = [codec.wire_bytes(count) for count in counts]
    mine = sizes[comm.rank]
    received = comm.all_to_all(encode(x, codec, comm.size), sizes, [mine] * comm.size)
    total = _sum_wire(received.reshape(comm.size, mine), codec, counts[comm.rank])
    return comm.all_gather(total, sizes).reshape(1, -1), comm.size


def encode(x: Array, codec: Codec, shares: int) -> Array:
    """(n,) -> the wires of its shares; x has whole blocks, so that no wire needs padding."""
    xp = array_module(x)
    if launch.takes(codec, xp, x.size):
        return launch.encode(x, codec, shares)
    pieces = split(padded(x, codec), codec.shares(codec.padded(x.size), shares))
    return xp.concatenate([codec.encode(piece) for piece in pieces])


def _sum_wire(wires: Array, codec: Codec, n: int) -> Array:
    """(ranks, bytes) -> (bytes,), the wire of the sum of n elements."""
    if launch.takes(codec, array_module(wires), n):
        return launch.decode_sum_encode(wires, codec, n)
    return codec.encode(decode_sum(wires, codec, n, 1))


def decode_sum(wires: Array, codec: Codec, n: int, shares: int, dtype: Any = np.float32) -> Array:
    """(ranks, bytes) -> (padded n,), the sum over ranks of their `shares` wires, decoded; rounded once to dtype."""
    counts = codec.shares(codec.padded(n), shares)
    sizes = [codec.wire_bytes(count) for count in counts]

    def decoded(of_rank: Array, out: Array) -> Array:
        for share, numbers in zip(split(of_rank, sizes), split(out, counts), strict=True):
            codec.decode(share, out=numbers)
        return out

    xp = array_module(wires)
    if len(wires) == 1 and dtype == np.float16:
        return decoded(wires[0], xp.empty(sum(counts), dtype))
    total = decoded(wires[0], xp.empty(sum(counts), xp.float32))
    term = xp.empty_like(total) if len(wires) > 1 else total
    return round_to(add(chain([total], (decoded(of_rank, term) for of_rank in wires[1:]))), dtype)


def flat(x: Array) -> Array:
    """x as one row of numbers: a view where x is contiguous."""
    return array_module(x).ascontiguousarray(x).reshape(-1)


def padded(x: Array, codec: Codec) -> Array:
    """x flat, padded by zeros to whole blocks; a view where x has whole blocks."""
    if codec.padded(x.size) == x.size:
        return flat(x)
    xp = array_module(x)
    padded_x = xp.zeros(codec.padded(x.size), x.dtype)
    padded_x[: x.size] = x.reshape(-1)
    return padded_x


def split(x: Array, sizes: list[int]) -> list[Array]:
    """Views of pieces of these sizes, one behind the other."""
    return [x[start:end] for start, end in pairwise(accumulate(sizes, initial=0))]
