"""Scales and zero points of groups of rows: from the extremes, or searched for the least weighted error."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..array import Array, array_module
from . import formulas

SCALES = ("search", "minmax")

# A searched scale is one of so many fractions of that of the extremes: 1, 0.99, ... 0.21.
_FRACTIONS = [1 - i / 100 for i in range(80)]

# The search goes through a group in pieces of so many weights, which stay in the cache.
_PIECE = 1 << 16

# The least scale above zero that float16 has.
_SMALLEST = np.float32(2.0**-24)


def choose_scales(
    w: Array, bits: int, sym: bool, search_weight: Array | None = None, dtype: type = np.float16
) -> tuple[Array, Array]:
    """Scale and zero point of each column of a group.

    w              (rows, N) float32
    search_weight  None: the range is that of the extremes and of 0, symmetric to it where `sym`. Else (rows,): of
                   fractions of that range the one with the least sum of search_weight * error^2
    dtype          float16, to which scales are rounded before any code is chosen, or float32
    -> scales (N,) float32 above 0, zeros (N,) float32, whole numbers of 0 .. 2**bits - 1; 2**(bits-1) where `sym`
    """
    xp = array_module(w, search_weight)
    scales, zeros = xp.empty(w.shape[1], xp.float32), xp.empty(w.shape[1], xp.float32)
    for columns in _pieces(*w.shape):
        low, high = _extremes(w[:, columns], sym)
        best = _candidates(low, high, 1.0, bits, sym, dtype)[0]
        if search_weight is not None:
            best = _search(xp.ascontiguousarray(w[:, columns]), low, high, best, search_weight, bits, sym, dtype)
        scales[columns], zeros[columns] = best
    return scales, zeros


def stored(scales: Array, dtype: type) -> Array:
    """Scales as they are stored, rounded to `dtype` and above 0; float32."""
    xp = array_module(scales)
    return xp.maximum(scales.astype(dtype).astype(xp.float32), _SMALLEST)


def _pieces(rows: int, N: int) -> Iterator[slice]:
    step = max(1, _PIECE // rows)
    for n in range(0, N, step):
        yield slice(n, min(n + step, N))


def _extremes(w: Array, sym: bool) -> tuple[Array, Array]:
    """Least and largest number of each column and 0; -1 and 1 where all are 0."""
    xp = array_module(w)
    low, high = xp.minimum(w.min(axis=0), 0), xp.maximum(w.max(axis=0), 0)
    if sym:
        high = xp.maximum(-low, high)
        low = -high
    empty = high == low
    return xp.where(empty, np.float32(-1), low), xp.where(empty, np.float32(1), high)


def _candidates(
    low: Array, high: Array, fraction: float, bits: int, sym: bool, dtype: type
) -> list[tuple[Array, Array]]:
    """Scales and zero points for a fraction of the range; with 2 bits both integers beside the exact zero point."""
    xp = array_module(low, high)
    most, fraction = 2**bits - 1, np.float32(fraction)
    scale = stored(fraction * (high - low) / most, dtype)
    if sym:
        return [(scale, xp.full_like(scale, (most + 1) // 2))]
    exact = -fraction * low / scale
    zeros = [xp.floor(exact), xp.ceil(exact)] if bits == 2 and fraction != 1 else [xp.rint(exact)]
    return [(scale, xp.clip(zero, 0, most)) for zero in zeros]


def _search(
    w: Array, low: Array, high: Array, best: tuple[Array, Array], weight: Array, bits: int, sym: bool, dtype: type
) -> tuple[Array, Array]:
    """The candidate of each column with the least weighted squared error; the first of equal ones."""
    xp, most = array_module(w), np.float32(2**bits - 1)
    scales, zeros = best
    least = xp.full(w.shape[1], np.inf, xp.float32)
    error = xp.empty_like(w)
    for fraction in _FRACTIONS:
        for scale, zero in _candidates(low, high, fraction, bits, sym, dtype):
            formulas.steps_on_grid(w, scale, -zero, most - zero, out=error)
            error *= scale
            error -= w
            error *= error
            error *= weight[:, None]
            total = error.sum(axis=0)
            better = total < least
            xp.copyto(least, total, where=better)
            xp.copyto(scales, scale, where=better)
            xp.copyto(zeros, zero, where=better)
    return scales, zeros
