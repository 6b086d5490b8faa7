"""Products in pieces of a fixed size, each by one thread: their bits depend neither on cores nor on ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType

import numpy as np

from ...array import Array, array_module
from . import threads

# Rows of a piece. A BLAS copies the other matrix for each piece, which for fewer rows would take part of the time.
_ROWS = 256

# Rows of a block of x^T x, half of which is the mirror image of the other and is not multiplied.
_GRAM_ROWS = 128


def product(a: Array, b: Array) -> Array:
    """a @ b, (M, K) and (K, N) float32; a CuPy product is one call."""
    if array_module(a, b) is not np:
        return a @ b
    y = np.empty((len(a), b.shape[1]), np.float32)

    def work(rows: slice) -> None:
        np.matmul(a[rows], b, out=y[rows])

    threads.each(work, pieces(len(a)))
    return y


def pieces(n: int) -> list[slice]:
    """0 .. n in pieces that are one thread's work each."""
    return [slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS)]


def each(xp: ModuleType, work: Callable[[slice], object], parts: Iterable[slice]) -> None:
    """work(part) for every part: shared among threads for NumPy, one after the other for CuPy."""
    if xp is np:
        threads.each(work, parts)
    else:
        for part in parts:
            work(part)


def gram(x: Array, columns: slice) -> list[Array]:
    """Rows of x^T x that belong to some columns of x, on and above its diagonal.

    x (n, K) float32, columns start:stop of it -> for a = start, start + 128, ..., and b the next, two blocks:
    x[:, a:b].T @ x[:, a:b], of which NumPy has its BLAS multiply one half (syrk), and x[:, a:b].T @ x[:, b:]
    """
    starts = range(columns.start, columns.stop, _GRAM_ROWS)
    parts = [slice(a, min(a + _GRAM_ROWS, columns.stop)) for a in starts]
    found: dict[int, list[Array]] = {}

    def work(own: slice) -> None:
        found[own.start] = [x[:, own].T @ x[:, own], x[:, own].T @ x[:, own.stop :]]

    each(array_module(x), work, parts)
    return [block for part in parts for block in found[part.start]]


def fill_symmetric(H: Array, columns: slice, blocks: list[Array]) -> None:
    """Write what `gram` gave for these columns to H (K, K), and its mirror image."""
    xp, a = array_module(H), columns.start
    for square, right in zip(blocks[::2], blocks[1::2], strict=True):
        b = a + len(square)
        upper = xp.triu(square)
        H[a:b, a:b] = upper + xp.triu(upper, 1).T
        H[a:b, b:] = right
        H[b:, a:b] = right.T
        a = b
