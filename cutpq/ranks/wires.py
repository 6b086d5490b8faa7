"""The two ways in which compressed terms become a sum: who sends which wire to whom. Both end before the last decode.

The last step, decode_sum, is left to the caller, who may do it with what follows in one kernel. Everyone adds in rank
order in float32, and the owner of a share takes its sum from its own wire, as all others do. Of two shots there is a
second kind, for sums between nodes: there the owner's own term is added last, and is not encoded.
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
    counts, sizes = _shares(x, comm, codec)
    received = _to_owners(encode(x, codec, comm.size), sizes, comm)
    total = _sum_wire(received, codec, counts[comm.rank])
    return comm.all_gather(total, sizes).reshape(1, -1), comm.size


def twoshot_own_exact(x: Terms, comm: Communicator, codec: Codec) -> tuple[Array, int]:
    """As twoshot, but the owner of a share adds its own term as it is, to the sum of what the other ranks' wires say.

    x  terms of whole blocks, on two ranks or more
    """
    counts, sizes = _shares(x, comm, codec)
    first, count = sum(counts[: comm.rank]), counts[comm.rank]
    received = _to_owners(encode(x, codec, comm.size, but=comm.rank), sizes, comm)
    others = [wire for rank, wire in enumerate(received) if rank != comm.rank]
    total = _sum_wire_and_own(others, [term[first : first + count] for term in x], codec)
    return comm.all_gather(total, sizes).reshape(1, -1), comm.size


def _shares(x: Terms, comm: Communicator, codec: Codec) -> tuple[list[int], list[int]]:
    """Elements of each rank's share, and bytes of its wire."""
    counts = codec.shares(codec.padded(x[0].size), comm.size)
    return counts, [codec.wire_bytes(count) for count in counts]


def _to_owners(wires: Array, sizes: list[int], comm: Communicator) -> Array:
    """The wires of this rank's share from all ranks, (ranks, bytes)."""
    mine = sizes[comm.rank]
    return comm.all_to_all(wires, sizes, [mine] * comm.size).reshape(comm.size, mine)


def encode(x: Terms, codec: Codec, shares: int, but: int | None = None) -> Array:
    """The wires of the shares of x's sum; several terms have whole blocks, so that no wire needs padding.

    but  a share whose wire nobody reads, and which may hold any bytes
    """
    xp, n = array_module(x[0]), x[0].size
    if len(x) > 1 and codec.in_pieces(xp):
        counts = codec.shares(n, shares)
        sizes = [codec.wire_bytes(count) for count in counts]
        wires = np.empty(sum(sizes), np.uint8)
        for share, (first, count, wire) in enumerate(zip(offsets(counts), counts, split(wires, sizes), strict=True)):
            if share != but:
                codec.encode_sum(_sum_of([term[first : first + count] for term in x]), wire, count)
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
        return _encode_sum(_sum_of_wires(wires, codec), codec, n)
    return codec.encode(decode_sum(wires, codec, n, 1))


def _sum_wire_and_own(wires: Sequence[Array], own: Terms, codec: Codec) -> Array:
    """Wires (bytes,) and terms (n,) -> (bytes,), the wire of what the wires say, added up, plus the terms' sum."""
    xp, n = array_module(*wires, *own), own[0].size
    if codec.in_pieces(xp):
        of_wires = _sum_of_wires(wires, codec, np.empty(min(n, engine.PIECE), np.float32))
        of_own = _sum_of(own)

        def read(piece: slice) -> np.ndarray:
            total = of_wires(piece)
            total += of_own(piece)
            return total

        return _encode_sum(read, codec, n)
    if launch.takes(codec, xp, n):
        return launch.encode(launch.decode_sum(xp.stack(wires), codec, n, np.float32) + add_rows(own), codec)
    with no_warnings():
        return codec.encode(decode_sum(xp.stack(wires), codec, n, 1) + add_rows(own))


def _encode_sum(read: Callable[[slice], np.ndarray], codec: Codec, n: int) -> np.ndarray:
    """The wire of n numbers, whole blocks, that are read a piece at a time: see Codec.encode_sum."""
    wire = np.empty(codec.wire_bytes(n), np.uint8)
    with no_warnings():
        codec.encode_sum(read, wire, n)
    return wire


def _sum_of(terms: Terms) -> Callable[[slice], np.ndarray]:
    """read(piece) -> sums.sum_of these pieces."""
    return lambda piece: sum_of([term[piece] for term in terms])


def _sum_of_wires(
    wires: Sequence[np.ndarray], codec: Codec, into: np.ndarray | None = None
) -> Callable[[slice], np.ndarray]:
    """read(piece) -> the sum in float32 of what the wires say.

    into  float32 memory for the largest piece, unless the sum need only last until this thread's next sum of a piece

    The caller reads within no_warnings(), which for every piece anew would cost as much as a step.
    """
    readers = [codec.reader(wire) for wire in wires]

    def read(piece: slice) -> np.ndarray:
        total, term = room(piece.stop - piece.start)
        if into is not None:
            total = into[: total.size]
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
