"""The public operations on CuPy arrays against formulas on NumPy arrays: what tests/simt shows, of a GPU.

Small shapes, so that compute-sanitizer gets through them (bench/on_gpu.py runs it).
"""

import numpy as np
import pytest
from assertions import assert_bounded, assert_exact, assert_gemm_close, assert_same_on_ranks
from gpu_clock import gpu_module
from random_weight import random_weight
from reference import Features, reference_mlp

from cutpq import configs, ref
from cutpq.array import bfloat16, to_numpy
from cutpq.attention import attention
from cutpq.cache import Batch, Cache
from cutpq.codec import codec
from cutpq.comm import run_threads
from cutpq.dequant import dequantize, dequantize_columns
from cutpq.gather import gather_columns, rmsnorm_gather
from cutpq.gemm import gated_matmul, matmul, prepare
from cutpq.mlp import Mlp
from cutpq.pack import as_unordered, interleave, pack
from cutpq.reorder import permute_columns
from cutpq.shard import SCHEMES

pytestmark = pytest.mark.gpu

DTYPES = [np.dtype(np.float16), bfloat16]


@pytest.fixture(scope="module")
def xp():
    return gpu_module()


def contiguous(K, size):
    return np.arange(K) // size


def lengths(*rows):
    """g_idx of groups with so many rows each."""
    return np.repeat(np.arange(len(rows)), rows)


def tokens(M, K, dtype=np.float16):
    return np.random.default_rng(9).standard_normal((M, K)).astype(dtype)


def check(xp, w, M, dtype=np.float16, packed=None):
    """matmul on the GPU within the bound of the formula; returns y."""
    x = tokens(M, w.K, dtype)
    y = to_numpy(matmul(xp.asarray(x), packed or prepare(w, xp)))
    assert_gemm_close(y, x, ref.dequant(w.codes, w.scales, w.zeros, w.g_idx, dtype), w.bias)
    return y


# ---- matmul

WEIGHTS = {
    "groups_of_32": dict(K=256, N=136, group_size=32, g_idx=contiguous(256, 32)),
    "groups_of_128": dict(K=384, N=64, group_size=128, g_idx=contiguous(384, 128)),
    "one_group": dict(K=200, N=64, group_size=200, g_idx=contiguous(200, 200)),
    "last_group_short": dict(K=160, N=72, group_size=64, g_idx=contiguous(160, 64)),
    "sparse_groups": dict(K=128, N=64, group_size=16, g_idx=lengths(3, 1, 16, 2, 9, 33, 1, 7, 13, 4, 8, 31)),
    "empty_groups": dict(K=64, N=64, group_size=32, g_idx=lengths(0, 31, 0, 0, 1, 32, 0)),
    "act_order": dict(K=256, N=64, group_size=64),
}


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matmul_in_every_order(xp, name, dtype, symmetric):
    check(xp, random_weight(**WEIGHTS[name], symmetric=symmetric, bias=True), 3, dtype)


@pytest.mark.parametrize("M", [1, 8, 9, 16, 17, 33, 64, 65, 130, configs.DEQUANT_FROM])
def test_matmul_of_every_tile_of_tokens(xp, M):
    check(xp, random_weight(1664, 136, 64, g_idx=contiguous(1664, 64), symmetric=True), M)


def test_looking_every_row_up_gives_the_same(xp):
    w = random_weight(**WEIGHTS["groups_of_32"]).to(xp)
    x = xp.asarray(tokens(5, w.K))
    assert_exact(to_numpy(matmul(x, as_unordered(pack(w)))), to_numpy(matmul(x, pack(w))))


@pytest.mark.parametrize("M", [1, 40])
def test_exact_sums(xp, M):
    w = random_weight(512, 128, 64, exact=True, g_idx=contiguous(512, 64))
    x = np.random.default_rng(1).integers(-1, 2, (M, 512)).astype(np.float16)
    assert_exact(to_numpy(matmul(xp.asarray(x), prepare(w, xp))), ref.gemm(x, w.codes, w.scales, w.zeros, w.g_idx))


@pytest.mark.parametrize("M", [2, 40])
def test_columns_that_blocks_share_have_the_same_bits_every_time_and_place(xp, M):
    """One strip of 64 columns and thousands of rows: many blocks add up in one place."""
    w = random_weight(8192, 64, 64, g_idx=contiguous(8192, 64)).to(xp)
    x = xp.asarray(tokens(M, w.K))
    first = to_numpy(matmul(x, pack(w)))
    for _ in range(20):
        assert_exact(to_numpy(matmul(x, pack(w))), first)
    perm = np.random.default_rng(3).permutation(64)
    assert_exact(to_numpy(matmul(x, pack(permute_columns(w, xp.asarray(perm))))), first[:, perm])


def test_gated(xp):
    gate, up = (random_weight(128, 72, 32, g_idx=contiguous(128, 32), seed=s) for s in (0, 1))
    x = tokens(19, 128)
    y = to_numpy(gated_matmul(xp.asarray(x), pack(interleave(gate.to(xp), up.to(xp)))))
    a, b = (x.astype(float) @ dequantize(w).astype(float) for w in (gate, up))
    exact = a / (1 + np.exp(-a)) * b
    assert_bounded(y, exact, 2.0**-11 * np.abs(exact) + 2.0**-18 * (1 + np.abs(a)) * (1 + np.abs(b)))


def test_a_graph_replays_the_product(xp):
    w = prepare(random_weight(1024, 64, 64, g_idx=contiguous(1024, 64)), xp)
    x, y = xp.asarray(tokens(2, 1024)), xp.empty((2, 64), np.float16)
    xp.cuda.get_current_stream().synchronize()
    with xp.cuda.Stream(non_blocking=True) as stream:
        want = to_numpy(matmul(x, w, out=y))
        stream.begin_capture()
        matmul(x, w, out=y)
        graph = stream.end_capture()
        for _ in range(3):
            y.fill(np.nan)
            graph.launch(stream)
            stream.synchronize()
            assert_exact(to_numpy(y), want)


# ---- dequant, gather_columns, rmsnorm_gather


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["last_group_short", "act_order"])
def test_dequantize(xp, name, bits, dtype):
    w = random_weight(**WEIGHTS[name], bits=bits)
    want = ref.dequant(w.codes, w.scales, w.zeros, w.g_idx, dtype)
    assert_exact(to_numpy(dequantize(pack(w.to(xp)), dtype)), want)


def test_dequantize_back_to_disk_order(xp):
    w = random_weight(**WEIGHTS["groups_of_32"])
    rows = np.random.default_rng(2).permutation(w.K).astype(np.int32)
    want = np.empty((w.K, w.N), np.float16)
    want[rows] = dequantize(w)
    assert_exact(to_numpy(dequantize_columns(pack(w.to(xp)), slice(0, w.N), rows=xp.asarray(rows))), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather_columns(xp, dtype):
    x = tokens(5, 1032, dtype)
    perm = np.random.default_rng(2).permutation(1032)[:1024].astype(np.int32)
    assert_exact(to_numpy(gather_columns(xp.asarray(x), xp.asarray(perm))), x[:, perm])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rmsnorm_gather(xp, dtype):
    x, weight = tokens(3, 1032, dtype), tokens(1, 1032, dtype)[0]
    perm = np.random.default_rng(2).permutation(1032).astype(np.int32)
    y = to_numpy(rmsnorm_gather(xp.asarray(x), xp.asarray(weight), xp.asarray(perm)))
    x64 = x.astype(np.float64)
    exact = (x64 * weight.astype(np.float64) / np.sqrt((x64**2).mean(axis=1, keepdims=True) + 1e-5))[:, perm]
    unit = 2.0**-11 if dtype == np.float16 else 2.0**-8
    assert_bounded(y, exact, (unit + 2.0**-18) * np.abs(exact) + 2.0**-25)


# ---- attention


@pytest.mark.parametrize("window", [None, 9], ids=["all", "window"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention(xp, dtype, window):
    """Ragged prompts after others, six heads of two, against the formulas with the same cache."""
    rng = np.random.default_rng(4)
    past, new = (70, 0, 33), (5, 40, 1)
    old = rng.standard_normal((2, 3, 2, 80, 64)).astype(dtype)
    qkv, angle = rng.standard_normal((46, 10 * 64)).astype(dtype), rng.uniform(-3, 3, (46, 32))
    results = []
    for module in np, xp:
        cache = Cache(3, 80, [2], 64, np.dtype(dtype), module)
        cache.lengths[:] = past
        kept = cache.layers[0]
        kept.keys[...], kept.values[...] = module.asarray(old[0]), module.asarray(old[1])
        batch = Batch.of([[0] * n for n in new], cache, 1, module)
        angles = tuple(module.asarray(f(angle).astype(np.float32)) for f in (np.cos, np.sin))
        y = attention(module.asarray(qkv), angles, kept, batch, np.arange(6) // 3, 0.125, window)
        results.append([to_numpy(a).astype(np.float64) for a in (y, kept.keys, kept.values)])
    unit = 2.0**-11 if dtype == np.float16 else 2.0**-8
    (y, keys, values), (got, got_keys, got_values) = results
    assert_exact(got_values, values)
    assert_bounded(got_keys, keys, 2 * unit * np.abs(keys) + 2.0**-20)
    assert_bounded(got, y, np.full(y.shape, 8 * unit * np.abs(values).max()))


# ---- layers


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tp", [1, 3])
def test_mlp(xp, scheme, tp):
    order = np.random.default_rng(0).permutation(128) // 32
    gate, up = (random_weight(128, 288, 32, seed=s, g_idx=order) for s in (1, 2))
    down = random_weight(288, 64, 32, seed=3)
    x = tokens(3, 128)
    results = run_threads(
        tp, lambda comm: to_numpy(Mlp.from_weights(gate, up, down, comm, scheme)(xp.asarray(x))), xp=xp
    )
    features = Features(*(dequantize(w) for w in (gate, up, down)))
    assert_bounded(results[0], *reference_mlp(x, [features], "silu", tp))
    if tp > 1:
        assert_same_on_ranks(results)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8-e4m3", "nvfp4", "int4-b8", "e2m1-b16-e5m0"])
def test_codec_has_the_same_wire_and_numbers(xp, name):
    x = np.random.default_rng(1).standard_normal(1000).astype(np.float16)
    c = codec(name)
    wire = c.encode(x)
    assert_exact(to_numpy(c.encode(xp.asarray(x))), wire)
    assert_exact(to_numpy(c.decode(xp.asarray(wire))), c.decode(wire))
