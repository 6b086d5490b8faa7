"""What batched_product asks of cuBLAS, answered by a stand-in that reads column-major matrices at its pointers.

What this checks is leading dimensions, strides, transposes, types and bounds. How fast it is, only GPUs tell.
"""

import ctypes

import numpy as np
import pytest
from assertions import assert_exact

from cutpq.array import bfloat16
from cutpq.ops.batched_product import batched_product, call_cublas

HANDLE = 4711
TYPES = {0: np.dtype(np.float32), 2: np.dtype(np.float16), 14: bfloat16}  # cudaDataType_t


class Library:
    """The part of cupy.cuda.cublas that is used."""

    CUBLAS_OP_N, CUBLAS_OP_T = 0, 1
    CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT = 68, -1

    def __init__(self, *arrays):
        """Only these may be touched: memory between the first and the last byte of each."""
        self.allowed = [np.lib.array_utils.byte_bounds(array) for array in arrays]

    def gemmStridedBatchedEx(
        self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB,
        beta, C, Ctype, ldc, strideC, batchCount, computeType, algo,
    ):  # fmt: skip
        assert (handle, computeType, algo) == (HANDLE, 68, -1)
        scale = [ctypes.c_float.from_address(pointer).value for pointer in (alpha, beta)]
        assert scale == [1, 0]
        assert (Atype, Ctype) == (Btype, 0)
        for i in range(batchCount):
            a = self.matrix(A, Atype, i * strideA, lda, *((k, m) if transa else (m, k)))
            b = self.matrix(B, Btype, i * strideB, ldb, *((n, k) if transb else (k, n)))
            c = self.matrix(C, Ctype, i * strideC, ldc, m, n)
            a, b = (x.T if trans else x for x, trans in ((a, transa), (b, transb)))
            c[...] = a.astype(np.float32) @ b.astype(np.float32)

    def matrix(self, pointer, kind, first, leading, rows, columns):
        """(rows, columns), column after column."""
        assert leading >= rows
        dtype = TYPES[kind]
        start = pointer + first * dtype.itemsize
        nbytes = ((columns - 1) * leading + rows) * dtype.itemsize
        assert any(low <= start and start + nbytes <= high for low, high in self.allowed), "outside of the arrays"
        flat = np.frombuffer((ctypes.c_char * nbytes).from_address(start), dtype)
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), (dtype.itemsize, leading * dtype.itemsize))


def numbers(*shape, dtype=np.float16):
    """Small whole numbers: their sums are exact in any order."""
    return np.random.default_rng(shape).integers(-3, 4, shape).astype(dtype)


def assert_product(a, b, out):
    call_cublas(Library(a, b, out), HANDLE, a, b, out)
    product = np.einsum("brk,bkc->brc", a.astype(np.float64), b.astype(np.float64)).astype(out.dtype)
    assert_exact(np.ascontiguousarray(out), product)
    by_numpy = np.full_like(out, np.nan)
    batched_product(a, b, by_numpy)
    assert_exact(by_numpy, product)
    out[...] = 0
    assert not (out if out.base is None else out.base).any()  # nothing was written between the rows of a view


PAIRS, T, LENGTH, D = 6, 5, 24, 16


@pytest.mark.parametrize("dtype", [np.float16, bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("seen", [slice(0, 24), slice(0, 8), slice(8, 24)], ids=["all", "first", "last"])
@pytest.mark.parametrize("rows", [slice(0, 5), slice(1, 2), slice(2, 5)], ids=["all", "one", "last"])
def test_scores_are_queries_times_keys_where_they_lie_in_the_cache(rows, seen, dtype):
    q, keys = numbers(PAIRS, T, D, dtype=dtype), numbers(PAIRS, LENGTH, D, dtype=dtype)
    scores = np.full((PAIRS, rows.stop - rows.start, seen.stop - seen.start), np.nan, np.float32)
    assert_product(q[:, rows], keys[:, seen].swapaxes(1, 2), scores)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("seen", [slice(0, 24), slice(0, 8), slice(8, 24)], ids=["all", "first", "last"])
@pytest.mark.parametrize("rows", [slice(0, 5), slice(1, 2), slice(2, 5)], ids=["all", "one", "last"])
def test_results_are_probabilities_times_values_where_they_lie_in_the_cache(rows, seen, dtype):
    values = numbers(PAIRS, LENGTH, D, dtype=dtype)
    shares = numbers(PAIRS, rows.stop - rows.start, seen.stop - seen.start, dtype=dtype)
    out = np.zeros((PAIRS, T, D), np.float32)
    assert_product(shares, values[:, seen], out[:, rows])


def test_rows_may_be_apart() -> None:
    a, b = numbers(2, 4, 24)[:, :, 3:19], numbers(2, 16, 32)[:, :, 2:10]
    assert_product(a, b, np.zeros((2, 4, 20), np.float32)[:, :, 5:13])
    transposed = numbers(2, 8, 40)[:, :, 7:23].swapaxes(1, 2)
    assert_product(a, transposed, np.zeros((2, 9, 8), np.float32)[:, 1::2])


def test_the_stand_in_refuses_what_lies_outside():
    a, b, out = numbers(2, 4, 16), numbers(2, 16, 8), np.zeros((2, 4, 8), np.float32)
    with pytest.raises(AssertionError, match="outside of the arrays"):
        call_cublas(Library(a, b[:1], out), HANDLE, a, b, out)
