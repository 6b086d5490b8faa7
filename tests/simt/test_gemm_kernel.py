"""gemm_w4a16, on the executor and on a GPU, through matmul: exact and bounded data, every way to find a scale."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from activations import EXACT
from assertions import assert_bounded, assert_exact, assert_gemm_close
from random_weight import as_scattered, random_weight

from cutpq.array import ceil_div, to_numpy
from cutpq.kernels import load as kernels
from cutpq.kernels.config import FLOAT16 as FLOAT16_CODE
from cutpq.kernels.config import Device
from cutpq.ops import formulas as ref
from cutpq.ops import gemm, gemm_config
from cutpq.ops.gemm import gated_matmul, matmul
from cutpq.weights.pack import SCALE_LOOKUPS, interleave, pack
from cutpq.weights.permutation import permute_columns

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(autouse=True)
def _host_kernels(monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")


@pytest.fixture
def multiprocessors(monkeypatch):
    """Pretend to have so many: fewer make longer runs of units, more cut columns into more parts."""
    device = kernels.device

    def pretend(sms, **others):
        monkeypatch.setattr(kernels, "device", lambda xp: device(xp)._replace(sms=sms, **others))

    return pretend


@pytest.fixture
def cut(monkeypatch):
    """Cut K into so many parts."""

    def into(cuts):
        monkeypatch.setattr(gemm_config, "_cuts", lambda config, problem, device: cuts)
        gemm_config.select_gemm.cache_clear()

    yield into
    gemm_config.select_gemm.cache_clear()


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that are loaded, one for each product of a new weight."""
    names = []
    load = kernels.load
    monkeypatch.setattr(kernels, "load", lambda name, *rest: names.append(name) or load(name, *rest))
    return names


@pytest.fixture
def shape(monkeypatch):
    """Take blocks of this shape, and slabs of so many rows."""

    def take(shape, slab):
        def candidates(problem):
            return [[gemm_config._gemm_config(problem, 8 if problem.M <= 8 else 16, shape, slab)]]

        monkeypatch.setattr(gemm_config, "candidates", candidates)
        gemm_config.select_gemm.cache_clear()

    yield take
    gemm_config.select_gemm.cache_clear()


def contiguous(K, size):
    return np.arange(K) // size


def lengths(*rows):
    """g_idx of groups with so many rows each; 0 is an empty group."""
    return np.repeat(np.arange(len(rows)), rows)


def tokens(M, K, dtype=FLOAT16, seed=0):
    return np.random.default_rng(seed).standard_normal((M, K)).astype(dtype)


def check(xp, w, M, dtype=FLOAT16):
    """matmul of the packed weight by xp against the formula, element by element; returns y."""
    x = tokens(M, w.K, dtype)
    weight = ref.dequant(w.codes, w.scales, w.zeros, w.g_idx, dtype)
    out = xp.asarray(np.full((M, w.N), np.nan, dtype))
    assert matmul(xp.asarray(x), pack(w.to(xp)), out=out) is out
    y = to_numpy(out)
    assert_gemm_close(y, x, weight, w.bias)
    return y


# ---- tokens


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("M", [1, 8, 9, 16, 17, 33, 64, 65, 130])
def test_every_tile_of_tokens(xp, M, dtype):
    check(xp, random_weight(192, 136, 64, g_idx=contiguous(192, 64), symmetric=True, bias=True), M, dtype)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_many_tokens_go_by_plain_weights(xp, dtype):
    """With a bias, which bfloat16 does not hold in one number."""
    check(xp, random_weight(96, 264, 32, bias=True), gemm_config.dequant_from(kernels.device(xp)), dtype)


def test_no_tokens():
    assert matmul(tokens(0, 64), pack(random_weight(64, 64, 32))).shape == (0, 64)


# ---- groups

GROUPS = {
    "groups_of_32": dict(K=256, N=64, group_size=32, g_idx=contiguous(256, 32)),
    "groups_of_128": dict(K=384, N=64, group_size=128, g_idx=contiguous(384, 128)),
    "groups_of_96": dict(K=288, N=64, group_size=96, g_idx=contiguous(288, 96)),
    "last_group_short": dict(K=160, N=64, group_size=64, g_idx=contiguous(160, 64)),
    "one_group": dict(K=200, N=64, group_size=200, g_idx=contiguous(200, 200)),
    "groups_of_one_row": dict(K=96, N=64, group_size=1, g_idx=contiguous(96, 1)),
    "sparse_groups": dict(
        K=128, N=64, group_size=16, g_idx=lengths(3, 1, 16, 2, 9, 5, 1, 7, 13, 4, 8, 16, 11, 15, 1, 16)
    ),
    "empty_groups": dict(K=64, N=64, group_size=32, g_idx=lengths(0, 31, 0, 0, 1, 32, 0)),
    "long_groups_off_the_grid": dict(K=256, N=64, group_size=128, g_idx=lengths(100, 130, 26)),
    "act_order": dict(K=256, N=64, group_size=64),
    "act_order_of_unequal_groups": dict(
        K=72, N=64, group_size=32, g_idx=np.random.default_rng(5).permutation(lengths(40, 0, 1, 31))
    ),
}


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", GROUPS)
def test_every_kind_of_groups(xp, cut, shape, name, symmetric):
    cut(1), shape(gemm_config._SMALLER, 32)  # so that a block goes down several units
    check(xp, random_weight(**GROUPS[name], symmetric=symmetric), 3)


@pytest.mark.parametrize("name", ["groups_of_32", "sparse_groups", "act_order"])
def test_every_kind_of_groups_in_bfloat16(xp, cut, shape, name):
    cut(1), shape(gemm_config._SMALLER, 32)
    check(xp, random_weight(**GROUPS[name]), 3, BFLOAT16)


def test_units_that_reach_beyond_the_rows_of_an_act_order(xp, shape):
    shape(gemm_config._NARROW, 32)  # 256 rows, of which there are 72
    check(xp, random_weight(**GROUPS["act_order_of_unequal_groups"]), 3)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("lookup", [0, 1, 2])
def test_weights_are_those_of_the_specification_bit_for_bit(xp, lookup, bits):
    """A token with a single 1 in it reads one row of the weight, through every step of its way."""
    K = 64
    w = random_weight(K, 64, 32, bits=bits, g_idx=[contiguous(K, 32), lengths(20, 1, 43), contiguous(K, 32)][lookup])
    p = pack(w.to(xp)) if lookup < 2 else as_scattered(pack(w.to(xp)))
    assert p.scale_lookup == SCALE_LOOKUPS[lookup]
    for dtype in (FLOAT16, BFLOAT16):
        y = to_numpy(matmul(xp.asarray(np.eye(K, dtype=dtype)), p))
        assert_exact(y, ref.dequant(w.codes, w.scales, w.zeros, w.g_idx, dtype))


@pytest.mark.parametrize("name", ["groups_of_32", "sparse_groups"])
def test_looking_every_row_up_gives_the_same(xp, shape, name):
    """In blocks of one shape, which fits every device: another shape adds in another order."""
    shape(gemm_config._SMALLER, 32)
    p = pack(random_weight(**GROUPS[name]).to(xp))
    x = xp.asarray(tokens(5, p.K))
    assert_exact(to_numpy(matmul(x, as_scattered(p))), to_numpy(matmul(x, p)))


# ---- shapes


@pytest.mark.parametrize(("K", "N"), [(8, 8), (104, 72), (1096, 8), (32, 1032)])
def test_ragged_shapes(xp, K, N):
    check(xp, random_weight(K, N, K, g_idx=contiguous(K, K), bias=True), 2)


@pytest.mark.parametrize("cuts", [1, 2, 3, 40])
@pytest.mark.parametrize(("M", "N"), [(5, 64), (3, 320), (40, 136), (70, 200)])
def test_parts_of_a_column(xp, cut, M, N, cuts):
    """Runs longer than the ring, shorter, and, where there are more parts than units, empty."""
    cut(cuts)
    check(xp, random_weight(1600, N, 64, g_idx=contiguous(1600, 64), bias=True), M)


@pytest.mark.parametrize("slab", [64, 32])
@pytest.mark.parametrize("M", [5, 13])
@pytest.mark.parametrize("name", ["_MEDIUM", "_NARROW", "_LONG", "_LONG_NARROW", "_SMALLER"])
def test_every_shape_of_block(xp, shape, name, M, slab):
    """Each that the device has shared memory for; Hopper has it for all, and the others are refused with the reason."""
    shape(getattr(gemm_config, name), slab)
    w = random_weight(1352, 200, 64, g_idx=contiguous(1352, 64), symmetric=True, bias=True)
    device = kernels.device(xp)
    problem = gemm_config.GemmProblem(M, 256, 1408, FLOAT16_CODE, "uniform", 64, 8)
    ((config,),) = gemm_config.candidates(problem)
    objections = gemm_config.with_stages(config, device).objections(device)
    if not objections:
        check(xp, w, M)
        return
    assert device.smem_limit < Device(90, 1).smem_limit, objections
    with pytest.raises(ValueError, match=r"shared memory exceed|of a multiprocessor"):
        check(xp, w, M)


@pytest.mark.parametrize("M", [1, 16])
def test_few_columns_are_cut_and_many_are_not(M):
    """And never into more parts than there are units."""
    device = Device(90, 132)
    for N, K in [(64, 8192), (8192, 3584), (57344, 8192), (64, 64)]:
        problem = gemm_config.GemmProblem(M, N, K, FLOAT16_CODE, "uniform", 128, 8)
        config, cuts = gemm_config.select_gemm(problem, device)
        assert 1 <= cuts <= ceil_div(K, config.block_k)
        assert (cuts > 1) == (N == 64 and K > 64)
        assert not config.objections(device)


@pytest.mark.parametrize("arch", [80, 86])
@pytest.mark.parametrize(("bits", "M"), [(4, 1), (4, 16), (4, 32), (4, 64), (8, 16), (8, 64)])
def test_configurations_of_other_architectures(settings, multiprocessors, bits, M, arch):
    settings.arch = 80
    multiprocessors(2, arch=arch)
    check(np, random_weight(320, 200, 32, bits=bits, g_idx=contiguous(320, 32)), M)


# ---- order of events


@pytest.mark.parametrize("M", [2, 20])
def test_same_bits_in_every_schedule(settings, multiprocessors, M):
    multiprocessors(3)
    w = random_weight(640, 192, 32, g_idx=contiguous(640, 32), seed=1)
    first = check(np, w, M)
    for seed, resident in [(1, 100), (2, 100), (3, 2), (4, 1)]:
        settings.seed, settings.max_resident = seed, resident
        assert_exact(check(np, w, M), first)


@pytest.mark.parametrize("M", [2, 20, 40])
@pytest.mark.parametrize("sms", [3, 5, 16])
def test_permuted_columns_have_permuted_bits(xp, multiprocessors, M, sms):
    """What a column adds up to does not depend on where it stands: naive and tp-aware give the same bits."""
    multiprocessors(sms)
    w = random_weight(1664, 520, 64, g_idx=contiguous(1664, 64), bias=True, seed=2)
    perm = np.random.default_rng(3).permutation(520)
    x = xp.asarray(tokens(M, 1664))
    permuted, plain = (to_numpy(matmul(x, pack(v.to(xp)))) for v in (permute_columns(w, perm), w))
    assert_exact(permuted, plain[:, perm])


@pytest.mark.parametrize(("seed", "bits"), [(1, 4), (2, 4), (3, 8)])
def test_no_race_in_any_schedule(settings, cut, seed, bits):
    settings.seed = seed
    cut(2)  # nine units for a ring of four
    check(np, random_weight(2304, 200, 64, bits=bits, g_idx=contiguous(2304, 64)), 9)


def test_counters_are_zero_again(xp, monkeypatch, cut):
    cut(3)
    made = []
    monkeypatch.setattr(gemm, "workspace", lambda *args: made.append(workspace(*args)) or made[-1])
    check(xp, random_weight(640, 320, 64, g_idx=contiguous(640, 64)), 70)
    assert made[0][1].size >= 4
    assert not made[0][1].any()


workspace = gemm.workspace


# ---- widths


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("bits", [2, 3])
def test_narrow_codes_are_widened_and_multiplied_by_the_kernel(xp, launched, bits, dtype):
    """Not dequantized; to the last code and zero point, and with the memory of four bits."""
    w = random_weight(96, 72, 32, bits=bits)
    check(xp, w, 64, dtype)
    assert launched == ["gemm_w4a16"]
    y = to_numpy(matmul(xp.asarray(np.eye(96, dtype=dtype)), pack(w.to(xp))))
    assert_exact(y, ref.dequant(w.codes, w.scales, w.zeros, w.g_idx, dtype))


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("M", [1, 16, 33, 64])
def test_eight_bits_at_every_tile_of_tokens(xp, launched, M, dtype):
    check(xp, random_weight(200, 136, 64, bits=8, g_idx=contiguous(200, 64), symmetric=True, bias=True), M, dtype)
    assert launched == ["gemm_w4a16"]


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", ["groups_of_32", "groups_of_128", "one_group", "sparse_groups", "act_order"])
def test_eight_bits_in_every_kind_of_groups(xp, cut, shape, name, symmetric):
    cut(1), shape(gemm_config._SMALLER, 32)  # so that a block goes down several units
    check(xp, random_weight(**GROUPS[name], bits=8, symmetric=symmetric), 3)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_eight_bits_of_every_code_with_every_zero_point(xp, dtype):
    """bfloat16 holds no byte beside a power of two: its products are made in float32, and still rounded once."""
    w = random_weight(256, 256, 256, bits=8, g_idx=contiguous(256, 256))
    every = np.arange(256, dtype=np.uint8)
    w = replace(w, codes=np.ascontiguousarray(np.broadcast_to(every[:, None], (256, 256))), zeros=every[None, :])
    y = to_numpy(matmul(xp.asarray(np.eye(256, dtype=dtype)), pack(w.to(xp))))
    assert_exact(y, ref.dequant(w.codes, w.scales, w.zeros, w.g_idx, dtype))


# ---- exact data


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("M", [1, 12, 40])
def test_exact_sums(xp, multiprocessors, M, dtype):
    """x in {-1, 0, 1}, scales that are powers of two: no order of summation may change a bit."""
    multiprocessors(3)
    w = random_weight(512, 128, 64, exact=True, g_idx=contiguous(512, 64))
    x = np.random.default_rng(1).integers(-1, 2, (M, 512)).astype(dtype)
    assert_exact(to_numpy(matmul(xp.asarray(x), pack(w.to(xp)))), ref.gemm(x, w.codes, w.scales, w.zeros, w.g_idx))


# ---- activated


@pytest.mark.parametrize("activation", EXACT)
def test_activated(xp, activation):
    w = random_weight(128, 72, 32, g_idx=contiguous(128, 32), bias=True)
    x = 4 * tokens(9, 128)
    v = x.astype(float) @ ref.dequant(w.codes, w.scales, w.zeros, w.g_idx).astype(float) + w.bias.astype(float)
    assert v.min() < -3
    assert v.max() > 3
    exact = EXACT[activation](v)
    # steepness below 1.13, times what the sums may be off; the exponential's own error grows with its argument
    y = to_numpy(matmul(xp.asarray(x), pack(w.to(xp)), activation=activation))
    assert_bounded(y, exact, 2.0**-11 * np.abs(exact) + 2.0**-18 * (1 + v * v))


@pytest.mark.parametrize(
    ("bits", "M", "activation"), [(4, M, kind) for M in (1, 19) for kind in EXACT] + [(8, 19, "silu")]
)
def test_gated(xp, bits, M, activation):
    gate, up = (random_weight(128, 72, 32, bits=bits, g_idx=contiguous(128, 32), bias=True, seed=s) for s in (0, 1))
    x = 4 * tokens(M, 128)
    p = pack(interleave(gate.to(xp), up.to(xp)))
    y = to_numpy(gated_matmul(xp.asarray(x), p, activation=activation))
    a, b = (
        x.astype(float) @ ref.dequant(w.codes, w.scales, w.zeros, w.g_idx).astype(float) + w.bias.astype(float)
        for w in (gate, up)
    )
    exact = EXACT[activation](a) * b
    sums = 2.0**-18 * (1 + a * a) * (1 + np.abs(b))
    assert_bounded(y, exact, 2.0**-11 * np.abs(exact) + sums)


def test_interleave_refuses_weights_of_different_shapes():
    gate, up = random_weight(64, 64, 32), random_weight(64, 72, 32)
    with pytest.raises(ValueError, match="must have equal shapes"):
        interleave(gate, up)


# ---- cost


@pytest.mark.parametrize(("bits", "M"), [(4, 8), (4, 16), (4, 64), (8, 8), (8, 64)])
def test_main_loop_moves_whole_sectors_and_has_no_bank_conflicts(counts, bits, M):
    check(np, random_weight(256, 64, 64, bits=bits, g_idx=contiguous(256, 64)), M)
    (line,) = counts
    loads, shared = line["global_loads"], line["shared_loads"]
    assert loads["sectors"] == loads["least_sectors"] > 0
    assert shared["least_passes"] > 0
    # The epilogue's reads of sums collide, once a block; the main loop is what is asked of here.
    elsewhere = [c for c in line["conflicts"] if not c["source"].partition(":")[0].endswith("tile/store_y.cuh")]
    assert not elsewhere


# ---- wrong operands


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((2, 72), np.float16), ValueError, r"x must have shape \(M, 64\)"),
        (np.zeros((2, 64), np.float64), TypeError, "x must be float16 or bfloat16"),
    ],
)
def test_wrong_operands(x, error, message):
    with pytest.raises(error, match=message):
        matmul(x, pack(random_weight(64, 64, 32)))


@pytest.mark.parametrize("gated", [False, True])
def test_product_by_the_plan_of_an_earlier_one(monkeypatch, xp, gated):
    """What differs from the earlier one in anything has its own bits, and wrong operands are still refused."""
    monkeypatch.setattr(kernels, "stays", lambda xp: True)
    multiply = gated_matmul if gated else matmul
    halves = [random_weight(64, 64, 32, g_idx=contiguous(64, 32), seed=s).to(xp) for s in (0, 1)]
    fresh = lambda: pack(interleave(*halves))  # noqa: E731
    kept = fresh()
    for M, dtype, activation, seed in [
        (3, FLOAT16, "silu", 0), (3, FLOAT16, "silu", 1), (3, BFLOAT16, "silu", 1), (3, FLOAT16, "gelu", 1),
        (5, FLOAT16, "silu", 1), (3, FLOAT16, "silu", 2),
    ]:  # fmt: skip
        x = xp.asarray(tokens(M, 64, dtype, seed))
        y = multiply(x, kept, activation=activation)
        assert y.dtype == dtype
        assert_exact(to_numpy(y), to_numpy(multiply(x, fresh(), activation=activation)))
    assert len(kept.plans) == 4
    every_other = xp.asarray(tokens(6, 64))[::2]
    assert_exact(*[to_numpy(multiply(x, kept)) for x in (every_other, xp.ascontiguousarray(every_other))])
    for wrong, error in [
        (xp.zeros((3, 72), np.float16), ValueError), (xp.zeros((3, 64), np.float64), TypeError),
        (xp.zeros(64, np.float16), ValueError), ([[0.0] * 64] * 3, TypeError),
    ]:  # fmt: skip
        with pytest.raises(error, match="x must"):
            multiply(wrong, kept, activation="silu")


def test_columns_that_are_no_multiple_of_8_are_dequantized(xp, launched):
    check(xp, random_weight(96, 66, 32), 2)
    check(xp, random_weight(96, 66, 32, bits=8), 2)
    assert launched == ["dequant", "dequant"]


def test_quant_weights_and_scattered_rows_of_x_are_put_in_order_on_the_way(xp):
    w = random_weight(64, 64, 32).to(xp)
    x = xp.asarray(tokens(64, 2)).T
    assert_exact(to_numpy(matmul(x, w)), to_numpy(matmul(xp.ascontiguousarray(x), pack(w))))


def test_scales_beyond_float16_leave_the_weight_to_the_reference(xp):
    w = random_weight(64, 64, 32)
    w = w.__class__(**{**vars(w), "scales": w.scales.astype(np.float32) * np.float32(1.0001)})
    x, on_device = tokens(2, 64), w.to(xp)
    assert gemm.prepare(on_device, xp) is on_device
    assert_exact(to_numpy(matmul(xp.asarray(x), on_device)), ref.gemm(x, w.codes, w.scales, w.zeros, w.g_idx))
