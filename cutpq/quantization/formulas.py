"""The formulas of the layer solver, for NumPy and CuPy alike: rounding, and how its errors move to later rows."""

from __future__ import annotations

import numpy as np

from ..array import Array, array_module


def steps_on_grid(v: Array, scale: Array, low: Array, high: Array, out: Array) -> Array:
    """clip(round(v / scale), low, high): the steps of size `scale` from 0 to the nearest number of a grid.

    low, high  code - zero of the least and the largest code;  out  as v; returned
    """
    xp = array_module(v)
    xp.divide(v, scale, out=out)
    xp.rint(out, out=out)
    xp.maximum(out, low, out=out)
    return xp.minimum(out, high, out=out)


def round_rows(
    v: Array, coupling: Array, scales: Array, zeros: Array, group: Array, bits: int, before: Array | None = None
) -> tuple[Array, Array, Array]:
    """Round the rows of a block one after the other, each error moved to the rows that follow.

        code = clip(round(v[i] / scale) + zero, 0, 2**bits - 1);  q[i] = (code - zero) * scale
        e[i] = v[i] - q[i], or q[i] - before[i];  v[j] -= coupling[i, j] e[i] for j > i

    v         (R, N) float32, what the rows should be; changed in place
    coupling  (R, R) float32, of which the part above the diagonal counts
    scales, zeros  (G, N) float32;  group  (R,) int32, the group of each row
    before    None for GPTQ, whose coupling is U[i, j] / U[i, i] with U^T U the inverse of the Hessian (Frantar et al.,
              arXiv 2210.17323); for a sweep of coordinate descent the (R, N) that the rows were until now, with
              coupling A[i, j] / A[j, j] (QuantEase, arXiv 2309.01885)
    -> codes (R, N) uint8, q (R, N) float32, e (R, N) float32

    Halves are rounded to even. A product and a difference are rounded one by one, never fused: the kernel gives the
    same bits.
    """
    xp = array_module(v, coupling, scales, zeros, group, before)
    codes, q, e = xp.empty(v.shape, xp.uint8), xp.empty_like(v), xp.empty_like(v)
    moved = xp.empty_like(v)
    low, high = -zeros, np.float32(2**bits - 1) - zeros
    for i, g in enumerate(group.tolist()):
        later = slice(i + 1, None)
        row = steps_on_grid(v[i], scales[g], low[g], high[g], out=q[i])
        codes[i] = row + zeros[g]
        row += np.float32(0)  # not -0
        row *= scales[g]
        xp.subtract(*((v[i], row) if before is None else (row, before[i])), out=e[i])
        xp.multiply(coupling[i, later, None], e[i], out=moved[later])
        v[later] -= moved[later]
    return codes, q, e
