"""Sums over ranks on this rank: float32, in rank order, whatever the backend."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..array import Array, array_module, spread_float16, to_float32

# Numbers of each term that are widened and added before the next ones, so that their sum stays in a core's cache.
_PIECE = 1 << 17


def add(terms: Iterable[Array]) -> Array:
    """The sum of float32 arrays from the first to the last, in place of the first."""
    rest = iter(terms)
    total = next(rest)
    with np.errstate(over="ignore", invalid="ignore"):  # sums may overflow to Inf, and Inf - Inf is NaN
        for term in rest:
            total += term
    return total


def add_rows(terms: Array) -> Array:
    """(ranks, n) float16, bfloat16 or float32 -> (n,) float32, the rows added from the first to the last.

    Float32 terms are changed: the sum is in place of the first.
    """
    if array_module(terms) is not np or terms.dtype != np.float16:
        return add(map(to_float32, terms))
    total = np.empty(terms.shape[1], np.float32)
    term = np.empty(min(_PIECE, total.size), np.float32)
    for start in range(0, total.size, _PIECE):
        piece = slice(start, start + _PIECE)
        _add_float16(terms[:, piece], total[piece], term[: total[piece].size])
    return total


def _add_float16(terms: np.ndarray, total: np.ndarray, term: np.ndarray) -> None:
    """total[:] = the sum of the rows of `terms` (ranks, n) float16; term (n,) float32 is overwritten.

    They are added 2^112 times smaller, as spread_float16 leaves them. The sum has the same bits: its subnormal numbers
    are multiples of 2^-136, which float32 has all of.
    """
    finite = spread_float16(terms[0], total)
    for row in terms[1:]:
        finite &= spread_float16(row, term)
        total += term
    total *= np.float32(2.0**112)
    if not finite:
        total[:] = add([row.astype(np.float32) for row in terms])
