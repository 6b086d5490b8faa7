"""The one product of cuBLAS that CuPy has no function for: batches of 16-bit matrices, added up in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..array import Array, address, array_module, bfloat16

# cudaDataType_t, of CUDA's library_types.h
DATA_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 2, bfloat16: 14}


def batched_product(a: Array, b: Array, out: Array) -> None:
    """out[i] = a[i] @ b[i], added up in float32. Nothing is copied on a GPU.

    a    (n, R, K) float16 or bfloat16
    b    (n, K, C) of a's dtype, or the transpose of such a matrix, as keys.swapaxes(1, 2)
    out  (n, R, C) float32: with 16 bits cuBLAS may add parts of a sum in 16 bits

    Neighbours in a row of a, out, and b or its transpose must be neighbours in memory; other strides are free.
    """
    xp = array_module(a, b, out)
    if xp is np:
        out[...] = np.matmul(a.astype(np.float32), b.astype(np.float32))
    else:
        call_cublas(xp.cuda.cublas, xp.cuda.device.get_cublas_handle(), a, b, out)


def product_with_bias(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """out = x @ weight + bias: added up in float32, and rounded once to out's dtype.

    x       (M, K) float16 or bfloat16
    weight  (K, N) of x's dtype, or the transpose of an (N, K)
    bias    (N,) of any float dtype
    out     (M, N) of x's dtype
    """
    xp = array_module(x, weight, bias, out)
    total = xp.empty((1, *out.shape), xp.float32)
    batched_product(x[None], weight[None], total)
    total += bias.astype(xp.float32, copy=False)
    out[...] = total[0].astype(out.dtype)


def call_cublas(cublas: Any, handle: int, a: Array, b: Array, out: Array) -> None:
    """batched_product by CuPy's binding, on its current stream.

    cuBLAS reads a row-major matrix as its transpose, so it is asked for out^T = b^T a^T.
    """
    batch, R, K = a.shape
    transposed = b.strides[2] != b.itemsize
    leading = [array.strides[1] // array.itemsize for array in (b.swapaxes(1, 2) if transposed else b, a, out)]
    strides = [array.strides[0] // array.itemsize for array in (b, a, out)]
    types = [DATA_TYPES[array.dtype] for array in (b, a, out)]
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    cublas.gemmStridedBatchedEx(
        handle, cublas.CUBLAS_OP_T if transposed else cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_N, b.shape[2], R, K,
        one.ctypes.data, address(b), types[0], leading[0], strides[0], address(a), types[1], leading[1], strides[1],
        zero.ctypes.data, address(out), types[2], leading[2], strides[2],
        batch, cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
