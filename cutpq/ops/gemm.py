"""Matrix products with quantized or plain weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeGuard

import numpy as np

from ..array import Array, aligned, array_module, bfloat16, ceil_div, check_array, round_to
from ..kernels import load as kernels
from ..kernels.config import Device, dtype_code
from ..kernels.workspace import workspace
from ..weights.pack import PackedWeight, pack, scales_are_exact, unpack
from ..weights.weight import PlainWeight, QuantWeight, Weight
from . import formulas as ref
from . import gemm_config
from .activation import activate
from .cublas import product, product_with_bias
from .dequant import dequantize_columns
from .engine import elementwise
from .engine.choice import uses_engine
from .engine.weight import EngineWeight

# What `prepare` may make of a weight.
Prepared = Weight | PackedWeight | EngineWeight


# The largest relative error with which a scale is rounded to float16: that of normal numbers, half a unit in the last
# place. A scale that float16 holds as a subnormal number, or not at all (above 65504), errs by more.
ROUNDED_SCALES = 2.0**-11


def matmul(x: Array, w: Prepared, *, activation: str | None = None, out: Array | None = None) -> Array:
    """y = act(x @ dequantize(w) + bias), rounded once; a plain weight is multiplied as it is.

    x    (M, K) float16, bfloat16 or float32, columns in the order of the weight's rows
    w    quantized, in any order of rows (the scale of row k is looked up at g_idx[k]), or plain, or what `prepare`
         makes of it; on a GPU prepare a weight once
    activation  one of formulas.ACTIVATIONS, or None; a product by cuBLAS is rounded to x's dtype before it
    out  (M, N) of x's dtype, or None to allocate it

    Weights are rounded to x's dtype before, quantized ones to float16 where x is float32. On a GPU the sums are
    float32. The same input gives the same bits on every run.

    Before a CUDA graph is captured, call this once on its stream, which makes room for partial sums. Graphs captured on
    one stream share that room: launch them one after the other.

    Raises TypeError for another dtype or for mixed NumPy and CuPy arrays, ValueError for shapes that do not fit.
    """
    if isinstance(w, EngineWeight):
        return _by_engine(x, w, activation, out)
    if out is None and (y := _by_kept_plan(x, w, activation, gated=False)) is not None:
        return y
    check_array("x", x, ("M", w.K), np.float16, bfloat16, np.float32)
    xp = array_module(x, _codes(w), out)
    shape = (x.shape[0], w.N)
    if out is not None:
        check_array("out", out, shape, x.dtype)
    if uses_engine(xp):
        return _by_engine(x, _engine_weight(w), activation, out)
    prepared = prepare(w, xp) if x.dtype != np.float32 else w
    if kernels.usable(xp) and isinstance(prepared, PackedWeight) and x.dtype != np.float32:
        y = xp.empty(shape, x.dtype) if out is None else out
        if y.size:
            _by_kernel(aligned(x), prepared, y, xp, activation)
        return y
    y = _by_reference(x, w)
    if activation is not None:
        y = ref.activate(activation, y)
    if out is None:
        return y
    out[...] = y
    return out


def gated_matmul(
    x: Array,
    w: Prepared,
    *,
    activation: str = "silu",
    side_by_side: bool = False,
    out: Array | None = None,
) -> Array:
    """y = act(x @ gate + its bias) * (x @ up + its bias); where one kernel computes it, it is rounded once.

    x    (M, K) float16, bfloat16 or float32
    w    interleave(gate, up), or what `prepare` makes of it
    activation  one of formulas.ACTIVATIONS
    side_by_side  w is [gate | up] instead; only the engine for NumPy arrays takes that
    out  (M, N / 2) of x's dtype, or None to allocate it

    The engine rounds once, too. The formulas and cuBLAS round gate and up to x's dtype first. Raises as matmul does.
    """
    if isinstance(w, EngineWeight):
        return _gated_by_engine(x, w, activation, side_by_side, out)
    if out is None and (y := _by_kept_plan(x, w, activation, gated=True)) is not None:
        return y
    check_array("x", x, ("M", w.K), np.float16, bfloat16, np.float32)
    xp = array_module(x, _codes(w), out)
    shape = (x.shape[0], w.N // 2)
    if out is not None:
        check_array("out", out, shape, x.dtype)
    if uses_engine(xp):
        return _gated_by_engine(x, _engine_weight(w), activation, side_by_side, out)
    y = xp.empty(shape, x.dtype) if out is None else out
    if y.size == 0:
        return y
    if side_by_side:
        raise ValueError("kernels and formulas take gate and up interleaved: interleave(gate, up)")
    prepared = prepare(w, xp) if x.dtype != np.float32 else w
    if is_one_kernel(prepared, len(x), x.dtype):
        _launch(aligned(x), prepared, y, xp, activation, gated=True)
        return y
    return activate(activation, matmul(x, prepared), gated=True, out=y)


def prepare(w: Prepared, xp: ModuleType, *, name: str | None = None) -> Prepared:
    """The weight among the arrays of xp, as `matmul` wants it there: in kernel order, or for NumPy's BLAS.

    name  the module's name, given where a weight is prepared once for many products: the kernels then get scales
          rounded to float16, with a warning that names the module and the largest relative error

    A weight without rows stays as it is, and the float64 formula multiplies it. So does a weight whose scales float16
    cannot hold exactly, if there is no name or if rounding errs by more than ROUNDED_SCALES (a warning says so).
    """
    if isinstance(w, (PackedWeight, EngineWeight)):
        return w
    w = w.to(xp)
    if uses_engine(xp):
        return EngineWeight(w)
    if isinstance(w, PlainWeight) or w.codes.size == 0 or not kernels.usable(xp):
        return w
    if scales_are_exact(w):
        return pack(w)
    return w if name is None else _pack_rounded(w, name)


def _pack_rounded(w: QuantWeight, name: str) -> Prepared:
    """The weight in kernel order with its scales rounded to float16, or as it is where that would err too much."""
    xp = array_module(w.scales)
    with np.errstate(over="ignore"):
        rounded = w.scales.astype(xp.float16)
    wide = w.scales.astype(xp.float64)
    errors = xp.abs(rounded.astype(xp.float64) - wide) / xp.maximum(xp.abs(wide), np.finfo(np.float64).tiny)
    error = float(errors.max())
    if error <= ROUNDED_SCALES:
        warnings.warn(
            f"{name}: some scales are no float16 numbers; kernels take them rounded, by at most {error:.1e} of each",
            stacklevel=3,
        )
        return pack(replace(w, scales=rounded))
    warnings.warn(
        f"{name}: some scales are far from float16 numbers (by {error:.1e}); its products go by the formula in "
        "float64, which is slow on a GPU",
        stacklevel=3,
    )
    return w


def _codes(w: Prepared) -> Array:
    if isinstance(w, PackedWeight):
        return w.words
    if isinstance(w, EngineWeight):
        w = w.source
    return w.weight if isinstance(w, PlainWeight) else w.codes


def _by_engine(x: np.ndarray, w: EngineWeight, activation: str | None, out: np.ndarray | None) -> np.ndarray:
    total = _engine_product(x, w)
    return _rounded(total if activation is None else elementwise.activate(activation, total), x, out)


def _gated_by_engine(
    x: np.ndarray, w: EngineWeight, activation: str, side_by_side: bool, out: np.ndarray | None
) -> np.ndarray:
    total = _engine_product(x, w)
    half = w.N // 2
    if side_by_side:
        gate, up = total[:, :half], total[:, half:]
    else:
        pairs = total.reshape(len(total), -1, 2, 8)
        gate, up = pairs[:, :, 0].reshape(-1, half), pairs[:, :, 1].reshape(-1, half)
    return _rounded(elementwise.activate(activation, gate, up), x, out)


def _engine_product(x: np.ndarray, w: EngineWeight) -> np.ndarray:
    """x @ w + bias in float32, of an x that is checked here."""
    check_array("x", x, ("M", w.K), np.float16, bfloat16, np.float32)
    array_module(x, _codes(w))
    return w.product(x)


def _rounded(total: np.ndarray, x: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """The float32 numbers `total` in x's dtype: in `out` where there is one."""
    y = round_to(total, x.dtype)
    if out is None:
        return y
    check_array("out", out, y.shape, x.dtype)
    array_module(y, out)
    out[...] = y
    return out


def _engine_weight(w: Prepared) -> EngineWeight:
    if isinstance(w, EngineWeight):
        return w
    return EngineWeight(unpack(w) if isinstance(w, PackedWeight) else w, once=True)


def _by_reference(x: Array, w: Weight | PackedWeight) -> Array:
    if isinstance(w, PlainWeight):
        return ref.gemm_plain(x, w.weight, w.bias) if array_module(x) is np else _by_library(x, w)
    q: QuantWeight = unpack(w) if isinstance(w, PackedWeight) else w
    return ref.gemm(x, q.codes, q.scales, q.zeros, q.g_idx, q.bias)


def _by_library(x: Array, w: PlainWeight) -> Array:
    """x @ w + bias by cuBLAS, summed in float32 and rounded once."""
    weight = w.as_dtype(x.dtype)
    y = array_module(x).empty((len(x), w.N), x.dtype)
    if w.bias is None:
        product(aligned(x), weight, y)
    else:
        product_with_bias(aligned(x), weight, w.bias, y)
    return y


def _by_kernel(x: Array, p: PackedWeight, y: Array, xp: ModuleType, activation: str | None) -> None:
    if is_one_kernel(p, len(x), x.dtype):
        _launch(x, p, y, xp, activation, gated=False)
        return
    _by_plain_products(x, p, y)
    if activation is not None:
        activate(activation, y, out=y)


def is_one_kernel(w: Prepared, M: int, dtype: np.dtype) -> TypeGuard[PackedWeight]:
    """Whether gemm_w4a16 multiplies M tokens of `dtype` by a prepared weight; otherwise cuBLAS does.

    The kernel copies 16 bytes of x and stores 16 bytes of y at a time: K and N must be multiples of 8.
    """
    if not isinstance(w, PackedWeight) or dtype == np.float32:
        return False
    xp = array_module(w.words)
    if not (w.N % 8 == 0 and w.K % 8 == 0 and kernels.usable(xp)):
        return False
    return gemm_config.dequant_from(kernels.device(xp)) > M


def can_capture(w: Prepared) -> bool:
    """Whether products with a prepared weight can be captured: kernels and cuBLAS multiply it, not a formula."""
    return isinstance(w, PlainWeight) or (isinstance(w, PackedWeight) and w.N % 2 == 0)


def _by_plain_products(x: Array, p: PackedWeight, y: Array) -> None:
    """Dequantize gemm_config.dequant_columns at a time, and multiply by the library's GEMM; rounded once."""
    step = gemm_config.dequant_columns(p.K)
    for n in range(0, p.N, step):
        columns = slice(n, min(n + step, p.N))
        weight = _plain_columns(p, columns, x.dtype)
        if p.bias is None:
            product(x, weight, y[:, columns])
        else:
            product_with_bias(x, weight, p.bias[columns], y[:, columns])


def _plain_columns(p: PackedWeight, columns: slice, dtype: np.dtype) -> Array:
    if columns.stop % 2 == 0:
        return dequantize_columns(p, columns, dtype)
    q = unpack(p)
    return ref.dequant(q.codes[:, columns], q.scales[:, columns], q.zeros[:, columns], q.g_idx, dtype)


@dataclass(frozen=True)
class _Plan:
    """A launch of gemm_w4a16 on one weight: all but x, y and the workspace, checked and converted once.

    floats, counters  of the workspace
    check_x, check_y  what Kernel.check does for these two
    weights, sizes    arguments of the kernel, see gemm_w4a16.cu
    """

    kernel: kernels.Kernel
    grid: tuple[int, int, int]
    threads: int
    smem_bytes: int
    floats: int
    counters: int
    check_x: Callable[[Array], Array]
    check_y: Callable[[Array], Array]
    weights: tuple[Any, ...]
    sizes: tuple[Any, ...]


def _launch(x: Array, p: PackedWeight, y: Array, xp: ModuleType, activation: str | None, gated: bool) -> None:
    key = _kind(x, xp, activation, gated)
    plan = p.plans.get(key) if kernels.stays(xp) else None
    is_first = not p.plans  # the kernel before it may be the one that has packed this weight
    if plan is None:
        made = _make_plan(len(x), dtype_code(x.dtype), p, xp, activation, gated, kernels.device(xp))
        plan = p.plans[key] = made
    _launch_plan(plan, x, y, xp, is_first)


def _by_kept_plan(x: Array, w: Prepared, activation: str | None, gated: bool) -> Array | None:
    """The product by the plan of an earlier one of its kind, whose arguments were checked; None without a plan."""
    if not isinstance(w, PackedWeight) or not isinstance(x, type(w.words)):
        return None
    xp = array_module(x)
    plan = w.plans.get(_kind(x, xp, activation, gated)) if kernels.stays(xp) else None
    if plan is None:
        return None
    y = xp.empty((len(x), w.N // 2 if gated else w.N), x.dtype)
    _launch_plan(plan, aligned(x), y, xp)
    return y


def _kind(x: Array, xp: ModuleType, activation: str | None, gated: bool) -> tuple[Any, ...]:
    """What the plans of a weight are kept by."""
    return x.shape, x.dtype, activation, gated, kernels.device(xp)


def _launch_plan(plan: _Plan, x: Array, y: Array, xp: ModuleType, is_first: bool = False) -> None:
    partial_sums, arrivals = workspace(xp, plan.floats, plan.counters)
    arguments = (plan.check_x(x), *plan.weights, plan.check_y(y), partial_sums, arrivals, *plan.sizes)
    launch = plan.kernel.launch_in_order if is_first else plan.kernel.launch
    launch(plan.grid, plan.threads, arguments, plan.smem_bytes)


def _make_plan(
    M: int, dtype: int, p: PackedWeight, xp: ModuleType, activation: str | None, gated: bool, device: Device
) -> _Plan:
    problem = gemm_config.GemmProblem(
        M, p.padded_N, p.padded_K, dtype, p.scale_lookup, p.group_size, p.zero, activation, gated, p.bits
    )
    config, cuts = gemm_config.select_gemm(problem, device)
    kernel = kernels.load("gemm_w4a16", config, xp)
    columns, rows = ceil_div(p.padded_N, config.block_n), ceil_div(M, config.BLOCK_M)
    parts = rows * columns * cuts if cuts > 1 else 1
    return _Plan(
        kernel=kernel,
        grid=(rows, cuts, columns),
        threads=config.threads,
        smem_bytes=config.smem_bytes,
        floats=parts * config.tile_words * 4,
        counters=rows * columns,
        check_x=kernel.check_of("x"),
        check_y=kernel.check_of("y"),
        weights=kernel.check(1, p.words, p.scales, p.zeros, p.g_idx, p.bias),
        sizes=kernel.check(9, M, p.N, p.K, p.padded_N // 64, p.padded_K // 16),
    )
