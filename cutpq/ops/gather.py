"""Columns of activations in another order, on their own or as the output of RMSNorm."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ..array import Array, aligned, array_module, bfloat16, ceil_div, check_array, once_per_kind
from ..kernels import load as kernels
from ..kernels.config import Config, payload_code, weighted_row_bytes
from . import formulas as ref
from .engine import elementwise
from .engine.choice import uses_engine


@dataclass(frozen=True)
class GatherConfig(Config):
    """gather_columns."""

    THREADS: int = 128

    def grid(self, M: int, columns: int, sms: int) -> tuple[int, int]:
        """Columns first; rows over more blocks until every multiprocessor has four."""
        across = ceil_div(columns, 8 * self.THREADS)
        return across, max(1, min(M, ceil_div(4 * sms, across)))


@dataclass(frozen=True)
class RmsnormConfig(Config):
    """rmsnorm_gather: a block a row."""

    DTYPE: int
    THREADS: int = 256

    def smem_bytes(self, K: int) -> int:
        """Shared memory for a row of K."""
        return weighted_row_bytes(self.THREADS, K)


def gather_columns(x: Array, perm: Array, *, out: Array | None = None) -> Array:
    """y[m, j] = x[m, perm[j]].

    x     (M, K); 16-bit dtypes have a kernel, CuPy indexes the others
    perm  (columns,) int32, each 0 <= perm[j] < K; not checked, as that would wait for the GPU
    out   (M, columns) of x's dtype, or None to allocate it

    Raises TypeError for another dtype of perm, ValueError for shapes that do not fit.
    """
    _check_gather(x, perm)
    xp = array_module(x, out)
    (M, K), columns = x.shape, len(perm)
    if out is None and xp is np and not kernels.usable(xp):
        return elementwise.take(x, perm)
    y = xp.empty((M, columns), x.dtype) if out is None else check_array("out", out, (M, columns), x.dtype)
    if y.size == 0:
        return y
    if columns % 8 or x.dtype.itemsize != 2 or not kernels.usable(xp):
        y[...] = x[:, perm]
        return y
    _gather(xp, M, K, columns)(xp.ascontiguousarray(x).view(np.uint16), perm, y)
    return y


@once_per_kind
def _check_gather(x: Array, perm: Array) -> None:
    check_array("x", x, ("M", "K"))
    check_array("perm", perm, ("columns",), np.int32)
    array_module(x, perm)


@kernels.kept
def _gather(xp: ModuleType, M: int, K: int, columns: int) -> kernels.Launch:
    config = GatherConfig()
    grid = config.grid(M, columns, kernels.device(xp).sms)
    return kernels.load("gather_columns", config, xp).settled(grid, config.THREADS, M, K, columns)


def rmsnorm_gather(x: Array, weight: Array, perm: Array, epsilon: float = 1e-5, *, out: Array | None = None) -> Array:
    """y[m, j] = x[m, k] * weight[k] / sqrt(mean(x[m]^2) + epsilon) with k = perm[j]; rounded once.

    x       (M, K) float16, bfloat16 or float32; float32 takes the formula
    weight  (K,) of x's dtype, in the order of x
    perm    (K,) int32, each 0 <= perm[j] < K; not checked, as that would wait for the GPU
    out     (M, K) of x's dtype, or None to allocate it

    Deterministic. Raises TypeError for another dtype, ValueError for shapes that do not fit.
    """
    check_array("x", x, ("M", "K"), np.float16, bfloat16, np.float32)
    M, K = x.shape
    check_array("weight", weight, (K,), x.dtype)
    check_array("perm", perm, (K,), np.int32)
    xp = array_module(x, weight, perm, out)
    y = xp.empty_like(x) if out is None else check_array("out", out, (M, K), x.dtype)
    if y.size == 0:
        return y
    if uses_engine(xp):
        y[...] = elementwise.residual_norm(None, x, weight, perm, epsilon)
        return y
    config = RmsnormConfig(DTYPE=payload_code(x.dtype))
    has_kernel = kernels.usable(xp) and x.dtype != np.float32 and K % 8 == 0
    if not has_kernel or config.smem_bytes(K) > kernels.device(xp).smem_limit:
        y[...] = ref.rmsnorm(x, weight, epsilon)[:, perm]
        return y
    kernel = kernels.load("rmsnorm_gather", config, xp)
    kernel(
        (M,),
        config.THREADS,
        aligned(x),
        aligned(weight),
        perm,
        y,
        K,
        epsilon,
        smem_bytes=config.smem_bytes(K),
    )
    return y
