"""The three comparisons that tests make, and no others. Each is shown to fail in test_assertions.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from truth.reference import gemm_bound, outside, unit_roundoff


def assert_exact(got: np.ndarray, want: np.ndarray) -> None:
    """Same shape, dtype and bits. -0 differs from 0, and a NaN equals only itself."""
    assert got.dtype == want.dtype, f"dtype {got.dtype}, want {want.dtype}"
    assert got.shape == want.shape, f"shape {got.shape}, want {want.shape}"
    a, b = (np.ascontiguousarray(v).reshape(-1).view(np.uint8).reshape(v.size, v.itemsize) for v in (got, want))
    wrong = (a != b).any(axis=1).reshape(got.shape)
    if wrong.any():
        at = tuple(map(int, np.argwhere(wrong)[0]))
        raise AssertionError(f"{wrong.sum()} of {wrong.size} differ, first at {at}: got {got[at]}, want {want[at]}")


def assert_bounded(y: np.ndarray, exact: np.ndarray, bound: np.ndarray) -> None:
    """|y - exact| <= bound, element by element; NaN fails."""
    assert y.shape == exact.shape, f"shape {y.shape}, want {exact.shape}"
    wrong = outside(y, exact, bound)
    if wrong.any():
        at = tuple(map(int, np.argwhere(wrong)[0]))
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} outside the bound, first at {at}: "
            f"got {float(y[at]):.6g}, want {exact[at]:.6g} +- {bound[at]:.2g}"
        )


def assert_gemm_close(y: np.ndarray, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> None:
    """y = x @ w + bias up to one rounding to y's dtype and a float32 sum.

    w  the weight as the kernel sees it, rounded to x's dtype: the bound speaks of the product only
    """
    x64, w64 = x.astype(np.float64), w.astype(np.float64)
    exact = x64 @ w64 + (0 if bias is None else bias.astype(np.float64))
    assert_bounded(y, exact, gemm_bound(x64, w64, exact, unit_roundoff(y.dtype)))


def assert_same_on_ranks(results: Sequence[np.ndarray]) -> None:
    """Every rank's array has the bits of rank 0's."""
    assert len(results) > 1, "one rank alone has nobody to agree with"
    seen = [(y.dtype, y.shape, y.tobytes()) for y in results]
    differing = [rank for rank, what in enumerate(seen) if what != seen[0]]
    assert not differing, f"ranks {differing} differ from rank 0"
