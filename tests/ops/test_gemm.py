"""matmul and dequantize against slow formulas, and what wrong operands are told."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from assertions import assert_exact, assert_gemm_close
from harness.gpu_clock import gpu_module
from random_weight import random_weight

from cutpq.array import bfloat16, to_numpy
from cutpq.ops import formulas as ref
from cutpq.ops.dequant import dequantize
from cutpq.ops.gemm import matmul, prepare
from cutpq.weights.pack import PackedWeight, pack
from cutpq.weights.permutation import sort_groups
from cutpq.weights.weight import PlainWeight


def slow_dequantize(w, dtype):
    out = np.empty((w.K, w.N), dtype)
    for k in range(w.K):
        for n in range(w.N):
            g = w.g_idx[k]
            difference = np.float32(int(w.codes[k, n]) - int(w.zeros[g, n]))
            out[k, n] = (difference * np.float32(w.scales[g, n])).astype(dtype)
    return out


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_dequantize_is_the_formula_rounded_once(xp, bits, dtype):
    w = random_weight(K=40, N=16, group_size=8, bits=bits)
    assert_exact(to_numpy(dequantize(w.to(xp), dtype)), slow_dequantize(w, dtype))


def test_dequantize_rounds_float32_scales_once():
    scale = np.float32(1 + 2.0**-10 + 2.0**-11)  # rounded to float16 first, it would lose its last bit
    w = random_weight(K=8, N=8, group_size=8, symmetric=True)
    w = replace(w, codes=np.full_like(w.codes, 11), scales=np.full((1, 8), scale))
    assert_exact(dequantize(w), np.full((8, 8), np.float16(3 * scale)))
    assert np.float16(3 * scale) != np.float16(3) * np.float16(scale)


def test_weights_beyond_float16_are_inf_not_a_warning():
    w = random_weight(K=8, N=8, group_size=8, symmetric=True)
    w.scales[:] = 60000
    w.codes[:] = 15
    assert np.isposinf(dequantize(w)).all()


def test_dequantize_refuses_other_types():
    with pytest.raises(TypeError, match="float16, bfloat16, float32, got float64"):
        dequantize(random_weight(K=8, N=8, group_size=8), np.float64)


@pytest.mark.parametrize(("K", "N", "M"), [(64, 8, 1), (96, 40, 3), (256, 24, 17)])
def test_exact_data_gives_equal_results(xp, K, N, M):
    w = random_weight(K, N, 16, exact=True)
    x = np.random.default_rng(1).integers(-1, 2, (M, K)).astype(np.float16)
    exact = x.astype(np.float64) @ dequantize(w).astype(np.float64)
    assert_exact(to_numpy(matmul(xp.asarray(x), w.to(xp))), exact.astype(np.float16))


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_real_data_stays_within_the_bound(xp, dtype, bias):
    w = random_weight(512, 48, 32, bias=bias)
    x = np.random.default_rng(1).standard_normal((5, 512)).astype(dtype)
    y = to_numpy(matmul(xp.asarray(x), w.to(xp)))
    assert y.dtype == dtype
    assert_gemm_close(y, x, dequantize(w, dtype), w.bias)


def test_sorted_rows_and_permuted_x_give_the_same_product(monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST", "formulas")  # a BLAS sums rows in another order when they are permuted
    w = random_weight(256, 32, 32, bias=True)
    x = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float16)
    ws, perm = sort_groups(w)
    assert_exact(matmul(x[:, perm], ws), matmul(x, w))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_plain_weights_are_multiplied_as_they_are(xp, dtype):
    x, weight = (np.random.default_rng(i).integers(-2, 3, (32, 32)).astype(dtype) for i in (1, 2))
    bias = np.arange(32, dtype=dtype)
    y = matmul(xp.asarray(x), PlainWeight(xp.asarray(weight), xp.asarray(bias)))
    assert_exact(to_numpy(y), x @ weight + bias)


def test_columns_in_pieces_are_the_columns(monkeypatch):
    w = random_weight(64, 56, 16, bias=True)
    x = np.random.default_rng(1).standard_normal((4, 64)).astype(np.float16)
    whole = matmul(x, w)
    monkeypatch.setattr(ref, "_PIECE", 64 * 9)
    assert_exact(matmul(x, w), whole)


def test_no_rows_and_out(xp):
    w = random_weight(64, 16, 16).to(xp)
    assert matmul(xp.empty((0, 64), np.float16), w).shape == (0, 16)
    x = xp.ones((2, 64), np.float16)
    out = xp.full((2, 16), np.nan, np.float16)
    assert matmul(x, w, out=out) is out
    assert_exact(to_numpy(out), to_numpy(matmul(x, w)))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((2, 63), np.float16), ValueError, r"x must have shape \(M, 64\), got \(2, 63\)"),
        (np.zeros((2, 64), np.float64), TypeError, "x must be float16 or bfloat16 or float32, got float64"),
        ([[0.0] * 64], TypeError, "x must be a NumPy or CuPy array, got list"),
    ],
)
def test_wrong_x_is_named(x, error, message):
    with pytest.raises(error, match=message):
        matmul(x, random_weight(64, 16, 16))


@pytest.mark.parametrize("kind", ref.ACTIVATIONS)
def test_activations_against_float64(xp, kind):
    from truth.reference import activation

    v = np.arange(65536, dtype=np.uint16).view(np.float16)
    v = v[np.isfinite(v)]
    got, want = to_numpy(ref.activate(kind, xp.asarray(v))), activation(kind, v.astype(np.float64))
    # one rounding to float16, and float32 on the way; tanh and erf cancel to nothing far left, to float32's grain of 1
    bound = 2.0**-11 * np.abs(want) + 2.0**-25 + np.abs(v.astype(np.float64)) * 2.0**-22
    assert (np.abs(got.astype(np.float64) - want) <= bound).all()
    up = np.full_like(v, 0.5)
    assert_exact(
        ref.activate(kind, v, up), (ref.activate(kind, v.astype(np.float32)) * np.float32(0.5)).astype(np.float16)
    )


def test_unknown_activation_lists_the_known():
    with pytest.raises(ValueError, match="activation 'relu' is not one of silu, gelu, gelu_tanh"):
        ref.activate("relu", np.zeros(2, np.float16))


# ---- one rounding


@pytest.mark.parametrize("dtype", [np.float16, bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_a_plain_weights_bias_is_rounded_with_the_product(xp, dtype, tokens):
    """Product and bias are each half a unit in the last place of 1: rounded one after the other, both are lost."""
    half = float(ml_dtypes.finfo(dtype).eps) / 2
    weight, bias = np.full((2, 24), half, dtype), np.full(24, half, np.float32)
    weight[0] = 1
    w = PlainWeight(xp.asarray(weight), xp.asarray(bias))
    y = to_numpy(matmul(xp.ones((tokens, 2), dtype), w))
    assert_exact(y, np.full((tokens, 24), 1 + 2 * half, dtype))


def test_a_plain_weight_is_converted_once(xp):
    """Not in every forward pass."""
    w = PlainWeight(xp.ones((8, 16), np.float32))
    first = w.as_dtype(np.dtype(np.float16))
    assert first.dtype == np.float16
    assert w.as_dtype(np.dtype(np.float16)) is first
    assert w.as_dtype(np.dtype(np.float32)) is w.weight


@pytest.mark.gpu
def test_products_by_the_library_use_what_was_converted():
    xp = gpu_module()
    w = PlainWeight(xp.ones((8, 16), np.float32))
    kept = [w.as_dtype(np.dtype(np.float16)) for _ in range(2) if matmul(xp.ones((3, 8), np.float16), w) is not None]
    assert kept[0] is kept[1]
    assert len(w._by_dtype) == 2


# ---- scales that are no float16 numbers


def float32_scales(factor):
    w = random_weight(64, 48, 32)
    return replace(w, scales=w.scales.astype(np.float32) * np.float32(factor))


def test_a_loaded_weights_scales_are_rounded_for_kernels_with_a_warning(xp, monkeypatch):
    """Else a whole model goes through float64 in silence, on a GPU orders of magnitude slower."""
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    w = float32_scales(1.0001).to(xp)
    with pytest.warns(UserWarning, match=r"layers\.7\.down: some scales are no float16 numbers; .* at most 1\.0e-04"):
        prepared = prepare(w, xp, name="layers.7.down")
    assert isinstance(prepared, PackedWeight)
    rounded = replace(w, scales=w.scales.astype(np.float16))
    x = xp.ones((3, 64), np.float16)
    assert_exact(to_numpy(matmul(x, prepared)), to_numpy(matmul(x, pack(rounded))))
    assert prepare(w, xp) is w, "a single product stays exact"


@pytest.mark.parametrize("factor", [1e-6, 3e7], ids=["subnormal", "overflow"])
def test_scales_far_from_float16_are_not_rounded(xp, factor, monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    w = float32_scales(factor).to(xp)
    with pytest.warns(UserWarning, match="m: some scales are far from float16 numbers .* float64, which is slow"):
        assert prepare(w, xp, name="m") is w
