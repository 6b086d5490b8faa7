"""Products of a few rows, as decode makes them, by a BLAS's kernels for small matrices.

For a product of matrices a BLAS first copies both into an order of its own. With few rows to multiply, copying the
weights takes longer than the product. OpenBLAS has kernels that copy nothing; it takes them for small matrices where
the processor has AVX-512. So that the matrices are small, weights are cut into blocks of a few columns. Such a kernel
reads a block from its first row to its last, hence each block is stored in one piece. Measured on one core, the
products of 2 to 16 rows take a half to a quarter of the time.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

from ...array import ceil_div
from . import threads

# OpenBLAS takes such a kernel for up to so many multiplications, and has them for these processors: see its
# sgemm_small_kernel_permit_skylakex.c, and KERNEL.SKYLAKEX, which the other two include.
_MULTIPLICATIONS = 10**6
_TARGETS = ("SkylakeX", "Cooperlake", "SapphireRapids")

# Where the second matrix is transposed, as keys are in q k^T: at most so many numbers in the result, and at least so
# many terms in each.
_NUMBERS, _TERMS = 1200, 32

# Columns of a block: a kernel adds up so many at once, in four registers of AVX-512.
_WIDTH = 64

# With more rows copying the weights hardly counts. A single row is a vector, for which no BLAS copies a matrix.
_MOST_ROWS = 48


@cache
def has_kernels() -> bool:
    """Whether NumPy's BLAS has kernels for small matrices, as far as this module knows."""
    found = ThreadpoolController().select(internal_api="openblas").info()
    return any(library.get("architecture") in _TARGETS for library in found)


def takes(M: int) -> bool:
    """Whether M rows are multiplied by weights in blocks."""
    return 1 < M <= _MOST_ROWS and has_kernels()


def is_small(rows: int, terms: int, columns: int) -> bool:
    """Whether a kernel multiplies (rows, terms) by (terms, columns)."""
    return rows * terms * columns <= _MULTIPLICATIONS and has_kernels()


def is_small_transposed(rows: int, terms: int, columns: int) -> bool:
    """Whether a kernel multiplies (rows, terms) by the transpose of (columns, terms)."""
    return terms >= _TERMS and rows * columns <= _NUMBERS and is_small(rows, terms, columns)


def nbytes(K: int, N: int) -> int:
    """Bytes of a weight in blocks."""
    return 4 * K * ceil_div(N, _WIDTH) * _WIDTH


def in_blocks(w: np.ndarray) -> np.ndarray:
    """(K, N) -> (blocks, K, 64): columns of w, the last ones zeros where N is no multiple of 64."""
    K, N = w.shape
    blocks = np.empty((ceil_div(N, _WIDTH), K, _WIDTH), np.float32)
    whole = N // _WIDTH
    blocks[:whole] = w[:, : whole * _WIDTH].reshape(K, whole, _WIDTH).swapaxes(0, 1)
    if whole < len(blocks):
        blocks[whole] = 0
        blocks[whole, :, : N - whole * _WIDTH] = w[:, whole * _WIDTH :]
    return blocks


def product(x: np.ndarray, blocks: np.ndarray, parts: int) -> np.ndarray:
    """x (M, K) float32 @ the weight of these blocks: (M, N) float32, and the zeros that fill the last block.

    parts  threads that share the work
    """
    M, K = x.shape
    y = np.empty((M, len(blocks), _WIDTH), np.float32)
    step = _MULTIPLICATIONS // (M * _WIDTH)

    def work(some: slice) -> None:
        out = y[:, some].swapaxes(0, 1)
        np.matmul(x[:, :step], blocks[some, :step], out=out)
        for first in range(step, K, step):
            out += np.matmul(x[:, first : first + step], blocks[some, first : first + step])

    each = max(1, ceil_div(len(blocks), parts))
    threads.each(work, [slice(first, first + each) for first in range(0, len(blocks), each)])
    return y.reshape(M, -1)
