"""Sums over ranks on this rank: float32, in rank order, whatever the backend."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..array import Array, array_module, to_float32

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
    widened = np.empty(min(_PIECE, total.size), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, total.size, _PIECE):
            piece = terms[:, start : start + _PIECE]
            sums = total[start : start + _PIECE]
            to_float32(piece[0], out=sums)
            for term in piece[1:]:
                sums += to_float32(term, out=widened[: term.size])
    return total
