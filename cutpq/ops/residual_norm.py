"""Residual, norm and permutation of columns in one pass: what follows a sum over the ranks in a transformer."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ..array import Array, address, aligned, array_module, bfloat16, ceil_div, check_array, to_float32
from ..kernels import load as kernels
from ..kernels.config import Config, payload_code, weighted_row_bytes
from . import formulas as ref
from .engine import elementwise
from .engine.choice import uses_engine


@dataclass(frozen=True)
class ResidualNormConfig(Config):
    """residual_norm: a block a row; CENTER for LayerNorm, else RMSNorm."""

    DTYPE: int
    CENTER: bool
    THREADS: int = 256

    def smem_bytes(self, K: int) -> int:
        """Shared memory: a float for every warp twice, and a row of K beside its weights, each 16-byte aligned."""
        return ceil_div(self.THREADS // 32 * 4, 16) * 16 + weighted_row_bytes(self.THREADS, K)


def residual_norm(
    total: Array | None,
    residual: Array,
    weight: Array,
    perm: Array,
    epsilon: float = 1e-5,
    *,
    bias: Array | None = None,
) -> Array:
    """residual += total, in place; returns y[m, j] = norm(residual[m])[perm[j]], rounded once.

    total     (M, K) float16, bfloat16 or float32, or None: then nothing is added
    residual  (M, K) of the same dtype; the sum is rounded to it before the norm
    weight    (K,) of it, in the column order of residual
    perm      (K,) int32, each 0 <= perm[j] < K; not checked, as that would wait for the GPU
    bias      (K,) of it, in the same order: with it the norm is LayerNorm, without it RMSNorm

    With RMSNorm the bits are those of the addition and rmsnorm_gather. Deterministic. Raises TypeError for another
    dtype, ValueError for shapes that do not fit.
    """
    check_operands(total, residual, weight, perm, bias)
    return of_checked(total, residual, weight, perm, epsilon, bias)


def check_operands(total: Array | None, residual: Array, weight: Array, perm: Array, bias: Array | None = None) -> None:
    """Raise TypeError or ValueError for arguments that residual_norm does not take."""
    check_array("residual", residual, ("M", "K"), np.float16, bfloat16, np.float32)
    dtype, K = residual.dtype, residual.shape[1]
    if total is not None:
        check_array("total", total, residual.shape, dtype)
    check_array("weight", weight, (K,), dtype)
    check_array("perm", perm, (K,), np.int32)
    if bias is not None:
        check_array("bias", bias, (K,), dtype)
    array_module(total, residual, weight, perm, bias)


def of_checked(
    total: Array | None, residual: Array, weight: Array, perm: Array, epsilon: float, bias: Array | None = None
) -> Array:
    """residual_norm of arguments that check_operands has seen: a sum over ranks checks them before it begins."""
    xp = array_module(residual)
    if uses_engine(xp):
        return elementwise.residual_norm(total, residual, weight, perm, epsilon, bias)
    writable = residual.flags.c_contiguous and address(residual) % 16 == 0  # by the kernel, in place
    launch = _launch(xp, *residual.shape, residual.dtype, bias is not None, epsilon) if writable else None
    if launch is None:
        return _by_formula(total, residual, weight, perm, epsilon, bias)
    y = xp.empty(residual.shape, residual.dtype)
    launch(
        None if total is None else aligned(total), residual, aligned(weight),
        None if bias is None else aligned(bias), perm, y,
    )  # fmt: skip
    return y


@kernels.kept
def _launch(xp: ModuleType, M: int, K: int, dtype: np.dtype, center: bool, epsilon: float) -> kernels.Launch | None:
    """The kernel's launch, or None where there is none: nothing to do, or a row does not fit shared memory."""
    if not kernels.usable(xp) or dtype == np.float32 or K % 8 or M * K == 0:
        return None
    config = ResidualNormConfig(payload_code(dtype), center)
    smem_bytes = config.smem_bytes(K)
    if smem_bytes > kernels.device(xp).smem_limit:
        return None
    kernel = kernels.load("residual_norm", config, xp)
    return kernel.settled((M,), config.THREADS, K, epsilon, smem_bytes=smem_bytes)


def _by_formula(
    total: Array | None, residual: Array, weight: Array, perm: Array, epsilon: float, bias: Array | None
) -> Array:
    if total is not None:
        residual[...] = (to_float32(residual) + to_float32(total)).astype(residual.dtype)
    if bias is None:
        return ref.rmsnorm(residual, weight, epsilon)[:, perm]
    return ref.layer_norm(residual, weight, bias, epsilon)[:, perm]
