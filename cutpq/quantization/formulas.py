"""The formulas of the layer solver, for NumPy and CuPy alike: rounding, and how its errors move to later rows."""

from __future__ import annotations

from ..array import Array, array_module


def round_to_grid(v: Array, scales: Array, zeros: Array, bits: int) -> tuple[Array, Array]:
    """The nearest numbers that codes can say: code = clip(round(v / scale) + zero, 0, 2**bits - 1).

    v (..., N) float32, scales and zeros alike or broadcast to it, float32; halves are rounded to even
    -> code and (code - zero) * scale, both float32 of v's shape
    """
    xp = array_module(v)
    code = xp.clip(xp.rint(v / scales) + zeros, 0, 2**bits - 1)
    return code, (code - zeros) * scales


def round_rows(
    v: Array, coupling: Array, scales: Array, zeros: Array, group: Array, bits: int, before: Array | None = None
) -> tuple[Array, Array, Array]:
    """Round the rows of a block one after the other, each error moved to the rows that follow.

        q[i] = round_to_grid(v[i]);  e[i] = v[i] - q[i], or q[i] - before[i];  v[j] -= coupling[i, j] e[i] for j > i

    v         (R, N) float32, what the rows should be; changed in place
    coupling  (R, R) float32, of which the part above the diagonal counts
    scales, zeros  (G, N) float32;  group  (R,) int32, the group of each row
    before    None for GPTQ, whose coupling is U[i, j] / U[i, i] with U^T U the inverse of the Hessian (Frantar et al.,
              arXiv 2210.17323); for a sweep of coordinate descent the (R, N) that the rows were until now, with
              coupling A[i, j] / A[j, j] (QuantEase, arXiv 2309.01885)
    -> codes (R, N) uint8, q (R, N) float32, e (R, N) float32

    A product and a difference are rounded one by one, never fused: the kernel gives the same bits.
    """
    xp = array_module(v, coupling, scales, zeros, group, before)
    codes, q, e = xp.empty(v.shape, xp.uint8), xp.empty_like(v), xp.empty_like(v)
    for i, g in enumerate(group.tolist()):
        codes[i], q[i] = round_to_grid(v[i], scales[g], zeros[g], bits)
        e[i] = v[i] - q[i] if before is None else q[i] - before[i]
        v[i + 1 :] -= coupling[i, i + 1 :, None] * e[i]
    return codes, q, e
