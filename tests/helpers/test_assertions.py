"""A comparison that cannot fail proves nothing: each one is shown the errors that it exists for."""

import numpy as np
import pytest
from assertions import assert_bounded, assert_exact, assert_gemm_close, assert_same_on_ranks


@pytest.fixture
def product():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 4096)).astype(np.float16)
    w = (rng.standard_normal((4096, 64)) * 0.02).astype(np.float16)
    return x, w, (x.astype(np.float64) @ w.astype(np.float64)).astype(np.float16)


def test_gemm_close_accepts_one_rounding(product):
    x, w, y = product
    assert_gemm_close(y, x, w)


@pytest.mark.parametrize("error", ["zeroed_column", "nan", "inf", "one_element", "swapped_columns", "one_row_missing"])
def test_gemm_close_rejects(product, error):
    x, w, y = product
    if error == "zeroed_column":
        y[:, 7] = 0
    elif error == "nan":
        y[0, 0] = np.nan
    elif error == "inf":
        y[0, 0] = np.inf
    elif error == "one_element":
        y[3, 63] *= np.float16(1.01)
    elif error == "swapped_columns":
        y[:, [1, 2]] = y[:, [2, 1]]
    elif error == "one_row_missing":
        y = (x[:, 1:].astype(np.float64) @ w[1:].astype(np.float64)).astype(np.float16)
    with pytest.raises(AssertionError, match="outside the bound"):
        assert_gemm_close(y, x, w)


def test_gemm_close_rejects_missing_bias(product):
    x, w, y = product
    with pytest.raises(AssertionError, match="outside the bound"):
        assert_gemm_close(y, x, w, bias=np.full(64, 0.01, np.float16))


def test_exact_rejects_other_bits_dtype_and_shape():
    a = np.array([0.0, 1.0, np.nan], np.float16)
    assert_exact(a.copy(), a)
    with pytest.raises(AssertionError, match="1 of 3 differ, first at \\(0,\\)"):
        assert_exact(np.array([-0.0, 1.0, np.nan], np.float16), a)
    with pytest.raises(AssertionError, match="dtype"):
        assert_exact(a.astype(np.float32), a)
    with pytest.raises(AssertionError, match="shape"):
        assert_exact(a[None], a)


def test_bounded_rejects_shape_that_would_broadcast():
    with pytest.raises(AssertionError, match="shape"):
        assert_bounded(np.zeros(1), np.zeros(4), np.ones(4))


def test_same_on_ranks_names_the_rank_and_wants_two():
    a = np.ones(3, np.float16)
    assert_same_on_ranks([a, a.copy()])
    with pytest.raises(AssertionError, match=r"ranks \[2\] differ"):
        assert_same_on_ranks([a, a, a + np.float16(0.001)])
    with pytest.raises(AssertionError, match="nobody"):
        assert_same_on_ranks([a])
