"""Weight-only quantized matrix product."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from . import configs, kernels, ref
from .array import Array, array_module, bfloat16, check_array
from .dequant import dequantize_columns
from .pack import PackedWeight, pack, unpack
from .weight import QuantWeight


def matmul(x: Array, w: QuantWeight | PackedWeight, *, out: Array | None = None) -> Array:
    """y = x @ dequantize(w) + bias, rounded once.

    x    (M, K) float16 or bfloat16, columns in the order of the weight's rows
    w    any order of rows: the scale of row k is looked up at g_idx[k]. A GPU wants a PackedWeight: a QuantWeight is
         packed anew in every call
    out  (M, N) of x's dtype, or None to allocate it

    On a GPU sums are taken in float32. The same input gives the same bits on every run. Raises TypeError for another
    dtype or for mixed NumPy and CuPy arrays, ValueError for shapes that do not fit.
    """
    check_array("x", x, ("M", w.K), np.float16, bfloat16)
    xp = array_module(x, w.words if isinstance(w, PackedWeight) else w.codes, out)
    shape = (x.shape[0], w.N)
    if out is not None:
        check_array("out", out, shape, x.dtype)
    if not kernels.usable(xp):
        y = _by_reference(x, w)
        if out is None:
            return y
        out[...] = y
        return out
    p = w if isinstance(w, PackedWeight) else pack(w)
    y = xp.empty(shape, x.dtype) if out is None else out
    if y.size:
        _launch(x, p, y, xp)
    return y


def _by_reference(x: Array, w: QuantWeight | PackedWeight) -> Array:
    w = unpack(w) if isinstance(w, PackedWeight) else w
    return ref.gemm(x, w.codes, w.scales, w.zeros, w.g_idx, w.bias)


def gated_matmul(x: Array, p: PackedWeight, *, out: Array | None = None) -> Array:
    """y = silu(x @ gate) * (x @ up) in one pass; p packed from the columns of both, see pack.interleave.

    x  (M, K) float16 or bfloat16;  y (M, N / 2), rounded once, where two products and `activate` round three times
    """
    check_array("x", x, ("M", p.K), np.float16, bfloat16)
    xp = array_module(x, p.words, out)
    shape = (x.shape[0], p.N // 2)
    y = xp.empty(shape, x.dtype) if out is None else check_array("out", out, shape, x.dtype)
    if y.size:
        _launch_fragments(x, p, y, xp, gated=True)
    return y


def _launch(x: Array, p: PackedWeight, y: Array, xp: ModuleType) -> None:
    fits_kernel = p.is_fragments and p.N % 8 == 0 and p.K % 8 == 0
    if fits_kernel and x.shape[0] < configs.DEQUANT_FROM:
        _launch_fragments(x, p, y, xp, gated=False)
    else:
        _by_plain_products(x, p, y, xp)


def _by_plain_products(x: Array, p: PackedWeight, y: Array, xp: ModuleType) -> None:
    """Many tokens: dequantize some columns at a time, few enough to stay in L2, and multiply by the library's GEMM."""
    step = configs.dequant_columns(p.K)
    for n in range(0, p.N, step):
        columns = slice(n, min(n + step, p.N))
        weight = _plain_columns(p, columns, x.dtype)
        product = xp.matmul(x.astype(xp.float32), weight.astype(xp.float32)) if xp is np else xp.matmul(x, weight)
        if p.bias is not None:
            product = product.astype(xp.float32) + p.bias[columns]
        y[:, columns] = product.astype(x.dtype)


def _plain_columns(p: PackedWeight, columns: slice, dtype: np.dtype) -> Array:
    if (columns.stop - columns.start) % 2 == 0 and columns.start % 2 == 0:
        return dequantize_columns(p, columns, dtype)
    w = unpack(p)
    return ref.dequant(w.codes[:, columns], w.scales[:, columns], w.zeros[:, columns], w.g_idx, dtype)


def _launch_fragments(x: Array, p: PackedWeight, y: Array, xp: ModuleType, gated: bool) -> None:
    device = kernels.device(xp)
    M, N, K = x.shape[0], p.N, p.K
    problem = configs.GemmProblem(
        M, p.padded_N, p.padded_K, configs.dtype_code(x.dtype), p.order, p.group_size, p.zero, gated
    )
    config, blocks = configs.select_gemm(problem, device)
    kernel = kernels.load("gemm_w4a16", config, xp)
    across, down = configs.ceil_div(p.padded_N, config.block_n), configs.ceil_div(M, config.BLOCK_M)
    partial_sums, arrivals = _workspace(xp, _stream(xp), down * blocks * 2 * config.tile_words * 4, down * across)
    kernel(
        (blocks, down), config.threads,
        x, p.words, p.scales, p.zeros, p.g_idx, p.bias, y, partial_sums, arrivals,
        M, N, K, p.padded_N // 64, p.padded_K // 16,
        smem_bytes=config.smem_bytes,
    )


def _stream(xp: ModuleType) -> int:
    """The current stream: work on another one may not share its workspace."""
    return 0 if xp is np else int(xp.cuda.get_current_stream().ptr)


_workspaces: dict[tuple[int, int], tuple[Array, Array]] = {}


def _workspace(xp: ModuleType, stream: int, floats: int, counters: int) -> tuple[Array, Array]:
    """Room for partial sums, and counters that are zero between launches. Kept, so that CUDA graphs may replay."""
    if xp is np:
        return xp.full(floats, xp.nan, xp.float32), xp.zeros(counters, xp.uint32)
    key = (xp.cuda.runtime.getDevice(), stream)
    sums, arrivals = _workspaces.get(key, (None, None))
    if sums is None or sums.size < floats:
        sums = xp.empty(floats, xp.float32)
    if arrivals is None or arrivals.size < counters:
        arrivals = xp.zeros(counters, xp.uint32)
    _workspaces[key] = sums, arrivals
    return sums, arrivals
