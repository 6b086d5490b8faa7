"""The factor U of an inverse Hessian, U^T U = A^-1, which says how later rows make up for a row's error."""

from __future__ import annotations

import numpy as np

from ..array import Array, array_module, to_numpy
from ..ops.engine.product import each, pieces

# Blocks of at most this size are factored on the host in float64, whatever library the rest belongs to.
_BASE = 128

# What is added to the damping after each attempt that fails, and where attempts end.
_STEP, _MOST = 0.01, 1.0

# A matrix is turned around in pieces of so many numbers.
_PIECE = 1 << 22


def inverse_factor(H: Array, damp: float) -> tuple[Array, float] | None:
    """U (K, K) float32, upper triangular, with U^T U = (H + damp mean(diag H) I)^-1, and the damping that worked.

    H     (K, K) float32, symmetric; not changed
    damp  grows by 0.01 as long as H is not positive definite; None where 1 does not suffice

    A, read backwards, is L L^T, and U is L^-1 read backwards: one Cholesky factorization and one inverse of a
    triangle, in one recursion that is mostly matrix products. U takes its own memory and no more.
    """
    xp = array_module(H)
    diagonal = xp.arange(len(H))
    mean = H[diagonal, diagonal].mean()
    while damp < _MOST:
        A = H[::-1, ::-1].copy()
        A[diagonal, diagonal] += np.float32(damp) * mean
        try:
            _invert_cholesky(A)
        except np.linalg.LinAlgError:
            del A  # as large as the one that the next attempt copies
            damp += _STEP
        else:
            _turn_around(A)
            return A, damp
    return None


def _turn_around(A: Array) -> None:
    """A becomes A[::-1, ::-1], in place: its numbers in reverse."""
    flat = A.reshape(-1)
    half = flat.size // 2
    for start in range(0, half, _PIECE):
        stop = min(start + _PIECE, half)
        left, right = slice(start, stop), slice(flat.size - stop, flat.size - start)
        kept = flat[left].copy()
        flat[left] = flat[right][::-1]
        flat[right] = kept[::-1]


def _invert_cholesky(A: Array) -> None:
    """A = L L^T becomes L^-1, zeros above the diagonal. Raises LinAlgError for an A that is not positive definite."""
    xp, n = array_module(A), len(A)
    if n <= _BASE:
        small = to_numpy(A).astype(np.float64)
        if not np.isfinite(small).all():
            raise np.linalg.LinAlgError("not finite")
        A[...] = xp.asarray(np.tril(np.linalg.inv(np.linalg.cholesky(small))).astype(np.float32))
        return
    half = (n // 2 + _BASE - 1) // _BASE * _BASE if n > 2 * _BASE else _BASE
    A11, A21, A22 = A[:half, :half], A[half:, :half], A[half:, half:]

    # Half of a triangle is zeros: each block is multiplied by the other half alone, and overwritten when no block to
    # come reads it.
    left, lower = pieces(half), pieces(n - half)

    def times_A11T(rows: slice) -> None:
        for own in reversed(left):
            A21[rows, own] = A21[rows, : own.stop] @ A11[own, : own.stop].T

    def subtract_square(rows: slice) -> None:
        A22[rows, : rows.stop] -= A21[rows] @ A21[: rows.stop].T  # nobody reads what is above the diagonal

    def times_A11(rows: slice) -> None:
        for own in left:
            A21[rows, own] = A21[rows, own.start :] @ A11[own.start :, own]

    def minus_A22_times(columns: slice) -> None:
        for own in reversed(lower):
            A21[own, columns] = -(A22[own, : own.stop] @ A21[: own.stop, columns])

    _invert_cholesky(A11)
    each(xp, times_A11T, lower)
    each(xp, subtract_square, lower)
    _invert_cholesky(A22)
    each(xp, times_A11, lower)
    each(xp, minus_A22_times, left)
    A[:half, half:] = 0
