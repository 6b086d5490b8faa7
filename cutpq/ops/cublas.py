"""Products of plain matrices by cuBLAS, called through ctypes.

CuPy's own functions have no batches of 16-bit matrices that are added up in float32, and they refuse a stream that is
being captured, which cuBLAS itself allows once it has been given memory to work in.
"""

from __future__ import annotations

import ctypes
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from ..array import Array, address, array_module, bfloat16
from ..kernels import load as kernels
from ..kernels.workspace import workspace

# cudaDataType_t, of CUDA's library_types.h
DATA_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 2, bfloat16: 14}

# Of cublas_api.h. The math mode forbids partial sums of 16 bits, so that a 16-bit result is rounded once.
OP_N, OP_T = 0, 1
COMPUTE_32F, GEMM_DEFAULT = 68, -1
DEFAULT_MATH, DISALLOW_REDUCED_PRECISION_REDUCTION = 0, 16

# What cuBLAS's documentation recommends for cublasSetWorkspace on compute capability 9.0 and on older ones.
WORKSPACE_BYTES, WORKSPACE_BYTES_BEFORE_90 = 32 << 20, 4 << 20

# cuBLAS reads the two factors of a product, of the sum and of what `out` held, from host memory.
ONE, ZERO = ctypes.c_float(1), ctypes.c_float(0)


def product(x: Array, weight: Array, out: Array) -> None:
    """out = x @ weight, added up in float32 and rounded once to out's dtype.

    x       (M, K) float16, bfloat16 or float32
    weight  (K, N) of x's dtype, or the transpose of an (N, K); copied where its neighbours lie apart both ways
    out     (M, N) of x's dtype or float32
    """
    if weight.itemsize not in weight.strides:
        weight = array_module(weight).ascontiguousarray(weight)
    batched_product(x[None], weight[None], out[None])


def product_with_bias(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """out = x @ weight + bias: added up in float32, and rounded once to out's dtype.

    x       (M, K) float16 or bfloat16
    weight  (K, N) of x's dtype, or the transpose of an (N, K)
    bias    (N,) of any float dtype
    out     (M, N) of x's dtype
    """
    xp = array_module(x, weight, bias, out)
    total = xp.empty(out.shape, xp.float32)
    product(x, weight, total)
    total += bias.astype(xp.float32, copy=False)
    out[...] = total.astype(out.dtype)


def batched_product(a: Array, b: Array, out: Array) -> None:
    """out[i] = a[i] @ b[i], added up in float32. Nothing is copied on a GPU.

    a    (n, R, K) float16, bfloat16 or float32
    b    (n, K, C) of a's dtype, or the transpose of such a matrix, as keys.swapaxes(1, 2)
    out  (n, R, C) float32 or a's dtype

    Neighbours in a row of a, out, and b or its transpose must be neighbours in memory; other strides are free. The
    first call on a stream allocates: make it before the stream is captured.
    """
    xp = array_module(a, b, out)
    if not out.size:
        return
    if xp is np:
        out[...] = np.matmul(a.astype(np.float32), b.astype(np.float32))
    else:
        _call(xp, gemm_arguments(a, b, out))


def gemm_arguments(a: Array, b: Array, out: Array) -> tuple[int | ctypes.c_float, ...]:
    """What cublasGemmStridedBatchedEx takes after its handle for `batched_product`.

    cuBLAS reads a row-major matrix as its transpose, so it is asked for out^T = b^T a^T.
    """
    batch, R, K = a.shape
    transposed = b.strides[2] != b.itemsize
    matrices = (b.swapaxes(1, 2) if transposed else b, a, out)
    # the stride of a single row says nothing, but cuBLAS wants one that is not too small
    leading = [max(array.strides[1] // array.itemsize, array.shape[2]) for array in matrices]
    strides = [array.strides[0] // array.itemsize for array in (b, a, out)]
    types = [DATA_TYPES[array.dtype] for array in (b, a, out)]
    return (
        OP_T if transposed else OP_N, OP_N, b.shape[2], R, K,
        ONE, address(b), types[0], leading[0], strides[0], address(a), types[1], leading[1], strides[1],
        ZERO, address(out), types[2], leading[2], strides[2],
        batch, COMPUTE_32F, GEMM_DEFAULT,
    )  # fmt: skip


def _call(xp: ModuleType, arguments: tuple[int | ctypes.c_float, ...]) -> None:
    """cublasGemmStridedBatchedEx on CuPy's current stream, with CuPy's handle, which belongs to this thread."""
    library, handle = _library(xp), xp.cuda.device.get_cublas_handle()
    nbytes = WORKSPACE_BYTES if kernels.device(xp).arch >= 90 else WORKSPACE_BYTES_BEFORE_90
    memory, _ = workspace(xp, nbytes // 4, 1)
    _check(library.cublasSetStream_v2(handle, xp.cuda.get_current_stream().ptr))
    _check(library.cublasSetWorkspace_v2(handle, address(memory), nbytes))
    _check(library.cublasSetMathMode(handle, DISALLOW_REDUCED_PRECISION_REDUCTION))
    status = library.cublasGemmStridedBatchedEx(handle, *arguments)
    _check(library.cublasSetMathMode(handle, DEFAULT_MATH))
    _check(status)


@cache
def _library(xp: ModuleType) -> ctypes.CDLL:
    """The cuBLAS that CuPy has loaded: the loader finds a library that is there by its name."""
    xp.cuda.device.get_cublas_handle()
    library = ctypes.CDLL(f"libcublas.so.{xp.cuda.runtime.runtimeGetVersion() // 1000}")
    pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
    library.cublasSetStream_v2.argtypes = [pointer, pointer]
    library.cublasSetWorkspace_v2.argtypes = [pointer, pointer, ctypes.c_size_t]
    library.cublasSetMathMode.argtypes = [pointer, i32]
    matrix: list[Any] = [pointer, i32, i32, i64]  # address, type, leading dimension, stride of the batch
    scale = ctypes.POINTER(ctypes.c_float)
    library.cublasGemmStridedBatchedEx.argtypes = [
        pointer, i32, i32, i32, i32, i32, scale, *matrix, *matrix, scale, *matrix, i32, i32, i32
    ]  # fmt: skip
    return library


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLAS refused a product: cublasStatus_t {status}, see cublas_api.h")
