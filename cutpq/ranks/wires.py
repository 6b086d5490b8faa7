"""The two ways in which compressed terms become a sum: who sends which wire to whom. Both end before the last decode.

The last step, decode_sum, is left to the caller, who may do it with what follows in one kernel. Everyone adds in rank
order in float32, and the owner of a share takes its sum from its own wire, as all others do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..array import Array, array_module, round_to
from ..codecs import engine, launch
from ..codecs.codec import Codec
from .communicator import Communicator, offsets, split
from .sums import add, add_rows, no_warnings, room, sum_of

Terms = Sequence[Array]  # (n,) each; what a rank brings is their sum in float32, or the only one of them


def oneshot(x: Terms, comm: Communicator, codec: Codec) -> tuple[Array, int]:
    """Every rank's wire (ranks, bytes), whose decoded sum is the result, and 1, the shares in each wire."""
    return comm.all_gather(encode(x, codec, 1)), 1


def twoshot(x: Terms, comm: Communicator, codec: Codec) -> tuple[Array, int]:
    """The wires of the owners' sums one behind the other (1, bytes), and how many shares they are."""
    n = codec.padded(x[0].size)
    counts = codec.shares(n, comm.size)
    sizes = [codec.wire_bytes(count) for count in counts]
    mine = sizes[comm.rank]
    received = comm.all_to_all(encode(x, codec, comm.size), sizes, [mine] * comm.size)
    total = _sum_wire(received.reshape(comm.size, mine), codec, counts[comm.rank])
    return comm.all_gather(total, sizes).reshape(1, -1), comm.size


def encode(x: Terms, codec: Codec, shares: int) -> Array:
    """The wires of the shares of x's sum; several terms have whole blocks, so that no wire needs padding."""
    xp, n = array_module(x[0]), x[0].size
    if len(x) > 1 and codec.in_pieces(xp):
        counts = codec.shares(n, shares)
        sizes = [codec.wire_bytes(count) for count in counts]
        wires = np.empty(sum(sizes), np.uint8)
        for first, count, wire in zip(offsets(counts), counts, split(wires, sizes), strict=True):
            terms = [term[first : first + count] for term in x]
            codec.encode_sum(lambda piece: sum_of([term[piece] for term in terms]), wire, count)  # noqa: B023
        return wires
    total = x[0] if len(x) == 1 else add_rows(x)
    if launch.takes(codec, xp, n):
        return launch.encode(total, codec, shares)
    pieces = split(padded(total, codec), codec.shares(codec.padded(n), shares))
    return xp.concatenate([codec.encode(piece) for piece in pieces])


def _sum_wire(wires: Array, codec: Codec, n: int) -> Array:
    """(ranks, bytes) -> (bytes,), the wire of the sum of n elements."""
    xp = array_module(wires)
    if launch.takes(codec, xp, n):
        return launch.decode_sum_encode(wires, codec, n)
    if codec.in_pieces(xp):
        total = np.empty(codec.wire_bytes(n), np.uint8)
        with no_warnings():
            codec.encode_sum(_sum_of_wires(wires, codec), total, n)
        return total
    return codec.encode(decode_sum(wires, codec, n, 1))


def _sum_of_wires(wires: Sequence[np.ndarray], codec: Codec) -> Callable[[slice], np.ndarray]:
    """read(piece) -> the sum in float32 of what the wires say, which lasts until this thread's next piece.

    The caller reads within no_warnings(), which for every piece anew would cost as much as a step.
    """
    readers = [codec.reader(wire) for wire in wires]

    def read(piece: slice) -> np.ndarray:
        total, term = room(piece.stop - piece.start)
        readers[0](piece, total)
        for decode in readers[1:]:
            decode(piece, term)
            total += term
        return total

    return read


def decode_sum(
    wires: Array, codec: Codec, n: int, shares: int, dtype: Any = np.float32, out: Array | None = None
) -> Array:
    """(ranks, bytes) -> (padded n,), the sum over ranks of their `shares` wires, decoded; rounded once to dtype."""
    counts = codec.shares(codec.padded(n), shares)
    sizes = [codec.wire_bytes(count) for count in counts]
    xp = array_module(wires)
    y = xp.empty(sum(counts), dtype) if out is None else out
    of_ranks = [split(of_rank, sizes) for of_rank in wires]
    for share, numbers in zip(zip(*of_ranks, strict=True), split(y, counts), strict=True):
        _decode_share(share, codec, numbers)
    return y


def _decode_share(wires: Sequence[Array], codec: Codec, out: Array) -> None:
    """out[:] = the sum of what the wires of one share say."""
    if len(wires) == 1 and out.dtype in (np.float16, np.float32):
        codec.decode(wires[0], out=out)
    elif codec.in_pieces(array_module(out)):
        read = _sum_of_wires(wires, codec)
        with no_warnings():
            for start in range(0, out.size, engine.PIECE):
                piece = slice(start, min(start + engine.PIECE, out.size))
                out[piece] = round_to(read(piece), out.dtype)
    else:
        total = array_module(out).empty(out.shape, np.float32)
        add([codec.decode(wire) for wire in wires], total)
        out[:] = round_to(total, out.dtype)


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
