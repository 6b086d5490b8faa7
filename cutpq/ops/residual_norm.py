"""Residual, norm and permutation of columns in one pass: what follows a sum over the ranks in a transformer."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ..array import Array, address, aligned, array_module, bfloat16, ceil_div, check_array, round_to, to_float32
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
    check_array("residual", residual, ("M", "K"), np.float16, bfloat16, np.float32)
    M, K = residual.shape
    if total is not None:
        check_array("total", total, (M, K), residual.dtype)
    check_array("weight", weight, (K,), residual.dtype)
    check_array("perm", perm, (K,), np.int32)
    if bias is not None:
        check_array("bias", bias, (K,), residual.dtype)
    xp = array_module(total, residual, weight, perm, bias)
    if uses_engine(xp):
        return _by_engine(total, residual, weight, perm, epsilon, bias)
    if not _has_kernel(residual, bias is not None, xp):
        return _by_formula(total, residual, weight, perm, epsilon, bias)
    y = xp.empty(residual.shape, residual.dtype)
    if y.size:
        config = ResidualNormConfig(payload_code(residual.dtype), bias is not None)
        kernel = kernels.load("residual_norm", config, xp)
        kernel(
            (M,), config.THREADS, None if total is None else aligned(total), residual, aligned(weight),
            None if bias is None else aligned(bias), perm, y, K, epsilon, smem_bytes=config.smem_bytes(K),
        )  # fmt: skip
    return y


def _has_kernel(residual: Array, center: bool, xp: ModuleType) -> bool:
    """The kernel writes into the residual: it must be contiguous and aligned, and a row must fit shared memory."""
    K = residual.shape[1]
    if not kernels.usable(xp) or residual.dtype == np.float32 or K % 8:
        return False
    if not residual.flags.c_contiguous or address(residual) % 16:
        return False
    return ResidualNormConfig(payload_code(residual.dtype), center).smem_bytes(K) <= kernels.device(xp).smem_limit


def _by_engine(
    total: Array | None, residual: Array, weight: Array, perm: Array, epsilon: float, bias: Array | None
) -> Array:
    if total is not None and residual.dtype == np.float32:
        residual += total
    elif total is not None:
        residual[...] = round_to(to_float32(residual) + to_float32(total), residual.dtype)
    y = elementwise.norm(to_float32(residual), to_float32(weight), None if bias is None else to_float32(bias), epsilon)
    return round_to(y.take(perm, axis=1), residual.dtype)


def _by_formula(
    total: Array | None, residual: Array, weight: Array, perm: Array, epsilon: float, bias: Array | None
) -> Array:
    if total is not None:
        residual[...] = (to_float32(residual) + to_float32(total)).astype(residual.dtype)
    if bias is None:
        return ref.rmsnorm(residual, weight, epsilon)[:, perm]
    return ref.layer_norm(residual, weight, bias, epsilon)[:, perm]
