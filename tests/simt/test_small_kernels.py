"""dequant, activation, gather_columns and rmsnorm_gather, on the CPU and on a GPU, through the public functions."""

import ml_dtypes
import numpy as np
import pytest
from activations import EXACT
from assertions import assert_bounded, assert_exact
from random_weight import random_weight

from cutpq.array import to_numpy
from cutpq.ops import formulas as ref
from cutpq.ops.activation import activate
from cutpq.ops.dequant import dequantize, dequantize_columns
from cutpq.ops.gather import gather_columns, rmsnorm_gather
from cutpq.ops.gemm import matmul
from cutpq.weights.pack import ASCENDING, SCATTERED, UNIFORM, pack, unpack

DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
contiguous = lambda K, size: np.arange(K) // size  # noqa: E731


@pytest.fixture(autouse=True)
def _host_kernels(monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")


# ---- pack


WEIGHTS = {
    "groups_of_32": (dict(K=128, N=64, group_size=32, g_idx=contiguous(128, 32)), UNIFORM),
    "last_group_short": (dict(K=160, N=72, group_size=64, g_idx=contiguous(160, 64)), UNIFORM),
    "one_group": (dict(K=104, N=128, group_size=104, g_idx=contiguous(104, 104)), UNIFORM),
    "symmetric": (dict(K=64, N=8, group_size=32, g_idx=contiguous(64, 32), symmetric=True), UNIFORM),
    "short_groups": (dict(K=96, N=64, group_size=24, g_idx=contiguous(96, 24)), ASCENDING),
    "empty_groups": (dict(K=64, N=64, group_size=32, g_idx=np.repeat([1, 5], [3, 61])), ASCENDING),
    "act_order": (dict(K=96, N=64, group_size=32), SCATTERED),
}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", WEIGHTS)
def test_pack_keeps_every_weight(xp, name, bits):
    facts, scale_lookup = WEIGHTS[name]
    w = random_weight(**facts, bits=bits, bias=True)
    p = pack(w.to(xp))
    back = unpack(p).to(np)
    assert p.scale_lookup == scale_lookup
    assert_exact(back.codes, w.codes)
    assert_exact(back.scales[back.g_idx], w.scales[w.g_idx])
    assert_exact(back.zeros[back.g_idx], w.zeros[w.g_idx])
    assert_exact(back.bias, w.bias.astype(np.float32))
    assert (p.zero is not None) == facts.get("symmetric", False)


def test_pack_drops_groups_without_rows():
    assert pack(random_weight(**WEIGHTS["empty_groups"][0])).scales.shape[0] == 2


@pytest.mark.parametrize(("bits", "packed"), [(2, 4), (3, 4), (4, 4), (8, 8)])
def test_codes_take_half_a_byte_or_a_byte(bits, packed):
    p = pack(random_weight(128, 128, 32, bits=bits))
    assert (p.bits, p.words.nbytes) == (packed, 128 * 128 * packed // 8)


def test_pack_refuses_scales_that_float16_would_round():
    w = random_weight(**WEIGHTS["one_group"][0])
    with pytest.raises(ValueError, match="no float16 numbers"):
        pack(w.__class__(**{**vars(w), "scales": w.scales.astype(np.float32) * np.float32(1.0001)}))


# ---- dequant


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_dequant_every_width(xp, bits, dtype):
    w = random_weight(72, 72, 32, bits=bits, g_idx=contiguous(72, 32))
    weight = to_numpy(dequantize(pack(w.to(xp)), dtype))
    assert_exact(weight, ref.dequant(w.codes, w.scales, w.zeros, w.g_idx, dtype))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", WEIGHTS)
def test_dequant_every_order(xp, name, bits):
    w = random_weight(**WEIGHTS[name][0], bits=bits, seed=2)
    assert_exact(to_numpy(dequantize(pack(w.to(xp)))), ref.dequant(w.codes, w.scales, w.zeros, w.g_idx))


@pytest.mark.parametrize("bits", [4, 8])
def test_dequant_scatters_rows(xp, bits):
    w = random_weight(96, 64, 32, bits=bits, seed=3)
    perm = np.argsort(w.g_idx, kind="stable").astype(np.int32)
    ordered = w.__class__(**{**vars(w), "codes": w.codes[perm], "g_idx": w.g_idx[perm]})
    p, rows = pack(ordered.to(xp)), xp.asarray(perm)
    assert_exact(to_numpy(dequantize_columns(p, slice(0, 64), rows=rows)), dequantize(w))


@pytest.mark.parametrize("bits", [4, 8])
def test_dequant_some_columns(xp, bits):
    w = random_weight(64, 576, 32, bits=bits, seed=4)
    some = dequantize_columns(pack(w.to(xp)), slice(262, 526))
    assert_exact(to_numpy(some), dequantize(w)[:, 262:526])


def test_zero_point_sixteen(xp):
    """GPTQ's first format stores zero - 1 in four bits, so that 16 is a zero point."""
    w = random_weight(64, 64, 32, g_idx=contiguous(64, 32))
    w = w.__class__(**{**vars(w), "zeros": np.full_like(w.zeros, 16)})
    assert_exact(to_numpy(dequantize(pack(w.to(xp)))), dequantize(w))


# ---- activation


def near_activation(y, exact, v):
    """Half a step of y's dtype, and the exponential's own error, which grows with its argument."""
    unit = 2.0 ** (-11 if y.dtype == np.float16 else -8)
    assert_bounded(y, exact, unit * np.abs(exact) + 2.0**-19 * np.abs(exact) * (1 + v * v) + 2.0**-23 * (1 + np.abs(v)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", EXACT)
def test_activation(xp, kind, dtype):
    x = np.linspace(-9, 9, 3 * 2056).reshape(3, 2056).astype(dtype)
    v = x.astype(np.float64)
    on_device = xp.asarray(x)
    near_activation(to_numpy(activate(kind, on_device)), EXACT[kind](v), v)
    assert activate(kind, on_device, out=on_device) is on_device
    near_activation(to_numpy(on_device), EXACT[kind](v), v)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", EXACT)
def test_activation_gated(xp, kind, dtype):
    x = np.random.default_rng(4).uniform(-6, 6, (3, 2064)).astype(dtype)
    gate, up = (x.astype(np.float64).reshape(3, -1, 2, 8)[:, :, i].reshape(3, 1032) for i in (0, 1))
    y = to_numpy(activate(kind, xp.asarray(x), gated=True))
    near_activation(y, EXACT[kind](gate) * up, np.maximum(np.abs(gate), np.abs(up)))


def test_activation_without_a_kernel():
    for dtype, N in ((np.float32, 16), (np.float16, 9)):
        x = np.linspace(-3, 3, N).reshape(1, N).astype(dtype)
        assert_exact(activate("silu", x), ref.activate("silu", x))
    with pytest.raises(ValueError, match="N must be a multiple of 16, got 24"):
        activate("silu", np.zeros((1, 24), np.float16), gated=True)
    with pytest.raises(ValueError, match="activation 'relu' is not one of silu, gelu"):
        activate("relu", np.zeros((1, 16), np.float16))


# ---- gather_columns


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("M", "K", "columns"), [(1, 16, 8), (3, 40, 1032), (70, 8, 16), (2, 9, 5)])
def test_gather_columns(xp, M, K, columns, dtype):
    rng = np.random.default_rng(M)
    x = rng.standard_normal((M, K)).astype(dtype)
    perm = rng.integers(0, K, columns).astype(np.int32)
    out = xp.asarray(np.full((M, columns), np.nan, dtype))
    assert gather_columns(xp.asarray(x), xp.asarray(perm), out=out) is out
    assert_exact(to_numpy(out), x[:, perm])


def test_gather_of_nothing(xp):
    assert gather_columns(xp.zeros((0, 8), np.float16), xp.zeros(8, np.int32)).shape == (0, 8)


# ---- rmsnorm_gather


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("M", "K"), [(1, 8), (3, 2048), (2, 2056)])
def test_rmsnorm_gather(xp, settings, M, K, dtype):
    settings.seed = 3
    rng = np.random.default_rng(K)
    x, weight = rng.standard_normal((M, K)).astype(dtype), rng.uniform(0.5, 1.5, K).astype(dtype)
    perm = rng.permutation(K).astype(np.int32)
    operands = [xp.asarray(a) for a in (x, weight, perm)]
    y = to_numpy(rmsnorm_gather(*operands, 1e-5, out=xp.asarray(np.full_like(x, np.nan))))
    x64 = x.astype(np.float64)
    exact = (x64 / np.sqrt((x64**2).mean(1, keepdims=True) + 1e-5) * weight.astype(np.float64))[:, perm]
    unit = 2.0 ** (-11 if dtype == np.float16 else -8)
    assert_bounded(y, exact, unit * np.abs(exact) + (K**0.5 + 8) * 2.0**-23 * np.abs(exact) + 2.0**-25)


def test_operands_that_begin_anywhere(xp):
    """On a GPU a 16-byte load from another address ends the context."""
    rng = np.random.default_rng(2)
    x, weight = xp.asarray(rng.standard_normal(2 * 64 + 1).astype(np.float16)), xp.ones(65, np.float16)
    shifted, perm = x[1:].reshape(2, 64), xp.arange(64, dtype=np.int32)
    normed = rmsnorm_gather(shifted, weight[1:], perm)
    assert_exact(to_numpy(normed), to_numpy(rmsnorm_gather(shifted.copy(), weight[:64].copy(), perm)))
    w = pack(random_weight(64, 64, 32).to(xp))
    assert_exact(to_numpy(matmul(shifted, w)), to_numpy(matmul(shifted.copy(), w)))
    with pytest.raises(ValueError, match="y must be aligned to 16 bytes"):
        matmul(shifted, w, out=xp.empty(129, np.float16)[1:].reshape(2, 64))
    with pytest.raises(ValueError, match="y must be aligned to 16 bytes"):
        gather_columns(shifted, perm, out=xp.empty(129, np.float16)[1:].reshape(2, 64))


def test_rmsnorm_of_float32_and_of_ragged_rows_has_no_kernel(xp):
    rng = np.random.default_rng(1)
    for dtype, K in ((np.float32, 64), (np.float16, 9)):
        x, perm = rng.standard_normal((2, K)).astype(dtype), rng.permutation(K)
        y = rmsnorm_gather(xp.asarray(x), xp.ones(K, dtype), xp.asarray(perm.astype(np.int32)))
        assert_exact(to_numpy(y), ref.rmsnorm(x, np.ones(K, dtype), 1e-5)[:, perm])


def test_rmsnorm_is_deterministic(xp, settings):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 640)).astype(np.float16), np.ones(640, np.float16)
    operands = [xp.asarray(a) for a in (x, weight, np.arange(640, dtype=np.int32))]
    runs = []
    for seed in range(4):
        settings.seed = seed
        runs.append(to_numpy(rmsnorm_gather(*operands)))
    for other in runs[1:]:
        assert_exact(other, runs[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: rmsnorm_gather(x.astype(np.float64), x[0], np.zeros(16, np.int32)), TypeError, "x must be float16"),
        (lambda x: gather_columns(x, np.zeros(8, np.int64)), TypeError, "perm must be int32"),
        (lambda x: gather_columns(x[0], np.zeros(8, np.int32)), ValueError, "x must have shape"),
        (lambda x: rmsnorm_gather(x, np.ones(8, np.float16), np.zeros(16, np.int32)), ValueError, "weight must have"),
        (lambda x: rmsnorm_gather(x, np.ones(16, np.float16), np.zeros(8, np.int32)), ValueError, "perm must have"),
    ],
)
def test_wrong_operands(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((2, 16), np.float16))
