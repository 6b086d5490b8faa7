"""What batched_product asks of cuBLAS, answered by a stand-in that reads column-major matrices at its pointers.

What this checks is leading dimensions, strides, transposes, types and bounds. How fast it is, only GPUs tell.
"""

import ctypes

import numpy as np
import pytest
from assertions import assert_exact

from cutpq.array import bfloat16, to_numpy
from cutpq.ops.cublas import batched_product, gemm_arguments, product, product_with_bias

TYPES = {0: np.dtype(np.float32), 2: np.dtype(np.float16), 14: bfloat16}  # cudaDataType_t


class Library:
    """The part of cuBLAS that is used."""

    def __init__(self, *arrays):
        """Only these may be touched: memory between the first and the last byte of each."""
        self.allowed = [np.lib.array_utils.byte_bounds(array) for array in arrays]

    def gemm_strided_batched_ex(
        self, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB,
        beta, C, Ctype, ldc, strideC, batchCount, computeType, algo,
    ):  # fmt: skip
        assert (computeType, algo) == (68, -1)
        assert (alpha.value, beta.value) == (1, 0)
        assert Atype == Btype
        assert Ctype in (0, Atype)
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
    Library(a, b, out).gemm_strided_batched_ex(*gemm_arguments(a, b, out))
    want = np.einsum("brk,bkc->brc", a.astype(np.float64), b.astype(np.float64)).astype(out.dtype)
    assert_exact(np.ascontiguousarray(out), want)
    by_numpy = np.full_like(out, np.nan)
    batched_product(a, b, by_numpy)
    assert_exact(by_numpy, want)
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


@pytest.mark.parametrize("M, K, N", [(1, 24, 8), (3, 1, 8), (5, 16, 1), (1, 1, 1)])
def test_matrices_of_one_row_or_column(M, K, N) -> None:
    """Their strides say nothing of how far rows lie apart."""
    a, b = numbers(1, M, K), numbers(1, K, N)
    assert_product(a, b, np.zeros((1, M, N), np.float16))
    assert_product(a, numbers(1, N, K).swapaxes(1, 2), np.zeros((1, M, N), np.float16))


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32], ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("lies", ["in_rows", "in_columns", "apart_both_ways"])
def test_product_takes_weights_however_they_lie(xp, lies, dtype) -> None:
    x, wide = xp.asarray(numbers(3, 16, dtype=dtype)), xp.asarray(numbers(32, 48, dtype=dtype))
    weight = {"in_rows": wide[:16, :24], "in_columns": wide[:24, :16].T, "apart_both_ways": wide[::2, ::2]}[lies]
    y = xp.full((3, 40), np.nan, dtype)
    product(x, weight, y[:, 5:29])
    want = to_numpy(x).astype(np.float64) @ to_numpy(weight).astype(np.float64)
    assert_exact(to_numpy(y)[:, 5:29], want.astype(dtype))
    assert np.isnan(to_numpy(y)[:, :5].astype(np.float32)).all()
    assert np.isnan(to_numpy(y)[:, 29:].astype(np.float32)).all()


def test_a_bias_is_added_before_the_only_rounding(xp) -> None:
    """2048 + 0.75 + 0.75 is 2050 in float16; with a rounding after each of them it would be 2048."""
    x, weight = xp.asarray([[2048, 0.75]], np.float16), xp.ones((2, 8), np.float16)
    y = xp.empty((1, 8), np.float16)
    product_with_bias(x, weight, xp.full(8, 0.75, np.float32), y)
    assert_exact(to_numpy(y), np.full((1, 8), 2050, np.float16))


def test_the_stand_in_refuses_what_lies_outside():
    a, b, out = numbers(2, 4, 16), numbers(2, 16, 8), np.zeros((2, 4, 8), np.float32)
    with pytest.raises(AssertionError, match="outside of the arrays"):
        Library(a, b[:1], out).gemm_strided_batched_ex(*gemm_arguments(a, b, out))
