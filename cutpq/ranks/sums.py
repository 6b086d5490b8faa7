"""Sums over ranks on this rank: float32, in rank order, whatever the backend."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np

from ..array import Array, array_module, round_to, spread_float16, to_float32
from ..codecs import engine


class _Room(threading.local):
    """Each thread's memory for the sum of a piece and for a term of it, made once."""

    def __init__(self) -> None:
        self.total, self.term = np.empty(engine.PIECE, np.float32), np.empty(engine.PIECE, np.float32)


_room = _Room()


def room(size: int) -> tuple[np.ndarray, np.ndarray]:
    """This thread's memory for a sum of at most engine.PIECE numbers and for a term of it."""
    return _room.total[:size], _room.term[:size]


def add(terms: Sequence[Array], out: Array) -> None:
    """out[...] = the sum of terms of out's dtype, from the first to the last."""
    out[...] = terms[0]
    with no_warnings():
        for term in terms[1:]:
            out += term


def no_warnings() -> AbstractContextManager[None]:
    """Around additions: sums may overflow to Inf, and Inf - Inf is NaN."""
    return np.errstate(over="ignore", invalid="ignore")


def add_rows(terms: Sequence[Array]) -> Array:
    """Terms (n,) float16, bfloat16 or float32 of every rank -> (n,) float32, added from the first to the last."""
    total = array_module(terms[0]).empty(terms[0].shape, np.float32)
    for piece, numbers in sums_in_pieces(terms):
        total[piece] = numbers
    return total


def round_sum(terms: Sequence[Array], out: Array) -> None:
    """out[...] = add_rows(terms), rounded once to out's dtype."""
    for piece, numbers in sums_in_pieces(terms):
        out[piece] = round_to(numbers, out.dtype)


def sums_in_pieces(terms: Sequence[Array]) -> Iterator[tuple[slice, Array]]:
    """Pieces of add_rows(terms) and where they are; each lasts until the next one. CuPy arrays are one piece."""
    size = terms[0].size
    step = engine.PIECE if array_module(terms[0]) is np else max(size, 1)
    for start in range(0, size, step):
        piece = slice(start, min(start + step, size))
        yield piece, sum_of([term[piece] for term in terms])


def sum_of(terms: Sequence[Array]) -> Array:
    """add_rows of at most engine.PIECE numbers of each term; NumPy's result lasts until this thread's next piece."""
    xp = array_module(terms[0])
    if xp is not np or terms[0].dtype != np.float16:
        total = room(terms[0].size)[0] if xp is np else xp.empty(terms[0].shape, np.float32)
        add([to_float32(term) for term in terms], total)
        return total
    total, term = room(terms[0].size)
    _add_float16(terms, total, term)
    return total


def _add_float16(terms: Sequence[np.ndarray], total: np.ndarray, term: np.ndarray) -> None:
    """total[:] = the sum of terms (n,) float16; term (n,) float32 is overwritten.

    They are added 2^112 times smaller, as spread_float16 leaves them. The sum has the same bits: its subnormal numbers
    are multiples of 2^-136, which float32 has all of.
    """
    finite = spread_float16(terms[0], total)
    for row in terms[1:]:
        finite &= spread_float16(row, term)
        total += term
    total *= np.float32(2.0**112)
    if not finite:
        add([row.astype(np.float32) for row in terms], total)
