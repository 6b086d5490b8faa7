"""residual_norm on the CPU and on a GPU: the bits of its steps, and LayerNorm against float64."""

import ml_dtypes
import numpy as np
import pytest
from assertions import assert_bounded, assert_exact

from cutpq.array import to_float32, to_numpy
from cutpq.kernels import load as kernels
from cutpq.ops.gather import rmsnorm_gather
from cutpq.ops.residual_norm import residual_norm

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(autouse=True)
def _kernels_on_the_host(monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")


def operands(M, K, dtype, seed=0):
    """total, residual, weight, bias, perm"""
    rng = np.random.default_rng([seed, M, K])
    total, residual = rng.standard_normal((2, M, K)).astype(dtype)
    weight, bias = rng.uniform(0.5, 1.5, (2, K)).astype(dtype)
    return total, residual, weight, bias, rng.permutation(K).astype(np.int32)


SHAPES = [(1, 8), (3, 2048), (2, 2056), (5, 72)]  # fewer numbers than threads, more, and a ragged last turn


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize(("M", "K"), SHAPES)
def test_the_bits_are_those_of_an_addition_and_rmsnorm_gather(xp, settings, M, K, dtype):
    settings.seed = 3
    total, residual, weight, _, perm = (xp.asarray(a) for a in operands(M, K, dtype))
    added = (to_float32(residual) + to_float32(total)).astype(dtype)
    want = rmsnorm_gather(added, weight, perm, 1e-5)
    y = residual_norm(total, residual, weight, perm, 1e-5)
    assert_exact(to_numpy(residual), to_numpy(added))
    assert_exact(to_numpy(y), to_numpy(want))


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize(("M", "K"), SHAPES)
def test_layer_norm(xp, settings, M, K, dtype):
    """Rows far from zero: a variance taken as mean(v^2) - mean(v)^2 would lose its digits."""
    settings.seed = 4
    total, residual, weight, bias, perm = operands(M, K, dtype, seed=1)
    residual = (residual + 20).astype(dtype)
    there = [xp.array(a) for a in (total, residual, weight, perm)]
    y = to_numpy(residual_norm(*there, 1e-5, bias=xp.asarray(bias)))
    added = (residual.astype(np.float32) + total.astype(np.float32)).astype(dtype)
    assert_exact(to_numpy(there[1]), added)
    v = added.astype(np.float64)
    v = v - v.mean(1, keepdims=True)
    term = v / np.sqrt((v**2).mean(1, keepdims=True) + 1e-5) * weight.astype(np.float64)
    exact = (term + bias.astype(np.float64))[:, perm]
    unit = 2.0 ** (-11 if dtype == FLOAT16 else -8)
    # The float32 mean of numbers near 20 is off by some units of 2^-24 * 20; so is each difference.
    noise = (np.abs(term[:, perm]) + 20 / np.sqrt((v**2).mean(1, keepdims=True) + 1e-5) * 1.5) * (K**0.5 + 8) * 2.0**-23
    assert_bounded(y, exact, unit * np.abs(exact) + noise + 2.0**-25)


@pytest.mark.parametrize("center", [False, True], ids=["rmsnorm", "layer_norm"])
def test_without_a_total_the_residual_is_only_read(xp, center):
    total, residual, weight, bias, perm = (xp.asarray(a) for a in operands(2, 64, FLOAT16))
    bias, before = bias if center else None, to_numpy(residual.copy())
    y = residual_norm(None, residual, weight, perm, 1e-5, bias=bias)
    assert_exact(to_numpy(residual), before)
    assert_exact(to_numpy(y), to_numpy(residual_norm(xp.zeros_like(total), residual, weight, perm, bias=bias)))


@pytest.mark.parametrize("center", [False, True], ids=["rmsnorm", "layer_norm"])
def test_float32_ragged_and_strided_rows_take_the_formula(xp, center, monkeypatch):
    monkeypatch.setattr(kernels, "load", lambda *_: pytest.fail("a kernel"))
    for dtype, K, step in ((np.float32, 64, 1), (np.float16, 9, 1), (np.float16, 64, 2)):
        total, residual, weight, bias, perm = operands(2, K, dtype)
        apart = xp.asarray(np.repeat(residual, step, axis=1))[:, ::step]
        there = [xp.asarray(a) for a in (total, weight, perm)]
        y = residual_norm(there[0], apart, *there[1:], bias=xp.asarray(bias) if center else None)
        added = (residual.astype(np.float32) + total.astype(np.float32)).astype(dtype)
        assert_exact(to_numpy(apart), added)
        v = added.astype(np.float64)
        v = v - v.mean(1, keepdims=True) if center else v
        exact = v / np.sqrt((v**2).mean(1, keepdims=True) + 1e-5) * weight + (bias if center else 0)
        assert_bounded(to_numpy(y), exact[:, perm], 2.0**-10 * np.abs(exact[:, perm]) + 1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"residual": np.ones((2, 16))}, TypeError, "residual must be float16 or bfloat16 or float32, got float64"),
        ({"total": np.ones((2, 8), np.float16)}, ValueError, r"total must have shape \(2, 16\), got \(2, 8\)"),
        ({"total": np.ones((2, 16), np.float32)}, TypeError, "total must be float16, got float32"),
        ({"weight": np.ones(8, np.float16)}, ValueError, r"weight must have shape \(16,\), got \(8,\)"),
        ({"bias": np.ones(16, np.float32)}, TypeError, "bias must be float16, got float32"),
        ({"perm": np.zeros(16, np.int64)}, TypeError, "perm must be int32, got int64"),
    ],
)
def test_wrong_operands(change, error, message):
    ones = np.ones((2, 16), np.float16)
    arguments = {"total": ones, "residual": ones.copy(), "weight": ones[0], "perm": np.zeros(16, np.int32)}
    with pytest.raises(error, match=message):
        residual_norm(**(arguments | change))
