"""encode, decode_sum, decode_sum_encode and decode_sum_rmsnorm, on the CPU and on a GPU: byte for byte the formulas.

The formulas run without the kernels, in NumPy; tests/codecs/test_codec.py holds them against a scalar oracle.
"""

import itertools
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from assertions import assert_exact

from cutpq.array import to_numpy
from cutpq.codecs import config, launch
from cutpq.codecs.codec import codec
from cutpq.codecs.formats import BLOCKS, ELEMENTS, RULES, SCALES, scale_values
from cutpq.cost.all_reduce import oneshot_sent, twoshot_sent
from cutpq.ops.gather import rmsnorm_gather
from cutpq.ranks.all_reduce import all_reduce, all_reduce_rmsnorm
from cutpq.ranks.threads import run_threads

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def covering():
    """Every element, and every pair of block and scale, and of scale and rule."""
    for k, (scale, block) in enumerate(itertools.product(SCALES, BLOCKS)):
        yield f"{list(ELEMENTS)[k % len(ELEMENTS)]}-b{block}-{scale}-{RULES[k % len(RULES)]}"


def formulas(monkeypatch, call):
    with monkeypatch.context() as patch:
        patch.delenv("CUTPQ_HOST_KERNELS", raising=False)
        return call()


@pytest.fixture(autouse=True)
def _host_kernels(monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")


def specials():
    """Both ends of float32 and of the scales, ties, zeros of both signs, and blocks with NaN and Inf."""
    tops = 2.0 ** np.r_[-149, -140, -133, -127:-120, -20:20, 100:128]
    steps = np.array([1, -0.75, 0.5, 0.3125, -0.1, 2.0**-4, 0, -0.0])
    x = np.outer(np.r_[tops, 1.5 * tops, 1.8125 * tops[:-1], 1.9375 * tops[:-1]], steps).astype(np.float32).reshape(-1)
    poisoned = x[: 8 * 128].copy()
    poisoned[[3, 300, 301, 700]] = np.nan, np.inf, -np.inf, -np.nan
    return np.concatenate([x, poisoned, np.zeros(256, np.float32), -poisoned])


def real(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def heavy_tailed(n, seed=0):
    return np.random.default_rng(seed).standard_t(1.5, n).astype(np.float32)


DATA = {"normal": partial(real, 4500), "heavy_tailed": partial(heavy_tailed, 4096), "special_values": specials}


def assert_same_numbers(have, want):
    """Equal bits, the sign of zero included; a NaN equals any NaN."""
    assert have.dtype == want.dtype
    assert have.shape == want.shape
    nan = np.isnan(want.astype(np.float32))
    assert_exact(np.isnan(have.astype(np.float32)), nan)
    zeroed = [np.where(nan, np.zeros_like(a), a) for a in (have, want)]
    assert_exact(*[a.view(f"u{a.itemsize}") for a in zeroed])


def assert_kernels_follow(monkeypatch, xp, name, x):
    c = codec(name)
    wire = formulas(monkeypatch, lambda: c.encode(x))
    assert_exact(to_numpy(c.encode(xp.asarray(x), out=xp.full(wire.size, 0xAA, np.uint8))), wire)
    assert_same_numbers(to_numpy(c.decode(xp.asarray(wire))), formulas(monkeypatch, lambda: c.decode(wire)))


@pytest.mark.parametrize("name", [*covering(), "mxint8", "int4-even"])
def test_every_family_on_every_kind_of_data(monkeypatch, xp, name):
    for data in DATA.values():
        assert_kernels_follow(monkeypatch, xp, name, data())


@pytest.mark.parametrize("name", ["nvfp4", "int4-b8-float16"])
def test_scale_at_ties_of_its_ratio(monkeypatch, xp, name):
    """The largest magnitude just in the middle of two scales, times the largest element."""
    c = codec(name)
    scales = scale_values(c.scale)[: c.scale.largest_code + 1].astype(np.float64)
    ties = ((scales[1:] + scales[:-1]) / 2)[:: 1 if scales.size < 1000 else 31]
    x = np.zeros((ties.size, c.block), np.float32)
    x[:, 5] = ties * c.element.largest
    assert_kernels_follow(monkeypatch, xp, name, x)


@pytest.mark.parametrize("name", ELEMENTS)
def test_bytes_that_no_encoder_writes(monkeypatch, xp, name):
    """Codes above the largest are NaN; so is a block whose scale is."""
    c = codec(f"{name}-b8")
    wire = np.random.default_rng(5).integers(0, 256, c.wire_bytes(2048), dtype=np.uint8)
    wire[-256:] = np.arange(256)  # every scale
    assert_same_numbers(to_numpy(c.decode(xp.asarray(wire))), formulas(monkeypatch, lambda: c.decode(wire)))


CHECKED = ["mxfp4", "nvfp4", "e2m0-b8-e4m0", "e2m2-b128-e5m0-rceil", "int7-b64-float16"]


@pytest.mark.parametrize("name", CHECKED)
def test_no_race_in_any_order(monkeypatch, settings, name):
    for settings.seed in range(4):
        for data in DATA.values():
            assert_kernels_follow(monkeypatch, np, name, data())


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_sixteen_bit_numbers(monkeypatch, xp, dtype):
    with np.errstate(over="ignore"):
        x = specials().astype(dtype)
    assert_kernels_follow(monkeypatch, xp, "mxfp4", x)
    assert_kernels_follow(monkeypatch, xp, "e2m2-b128-e5m0-rceil", x[:1001])


@pytest.mark.parametrize("arch", [80, 100])
def test_codes_by_instructions_of_other_architectures(monkeypatch, settings, arch):
    """E4M3 has an instruction from sm_89 on, which all other tests here execute, E2M1 on sm_100a."""
    settings.arch = arch
    for name in "mxfp4", "mxfp8-e4m3", "e4m3-b64-float16-rceil", "e2m1-b16-e4m3-even":
        for x in (specials(), heavy_tailed(2000), heavy_tailed(2000).astype(np.float16)):
            assert_kernels_follow(monkeypatch, np, name, x)


@pytest.mark.parametrize("n", [1, 7, 8, 31, 33, 2047, 2048, 2049, 4096 + 17])
def test_ragged_ends(monkeypatch, xp, n):
    for name in "mxfp4", "e2m2-b128-e5m0-rceil":
        assert_kernels_follow(monkeypatch, xp, name, real(n, seed=n))


@pytest.mark.parametrize("name", ["mxfp4", "e2m1-b16-e8m0-rceil", "e2m1-b128-e8m0-even"])
def test_packed_encoder(monkeypatch, xp, name):
    """Blocks of every binade of float16, with ties of every step and numbers far below the largest; odd shares."""
    rng = np.random.default_rng(5)
    ties = np.arange(-28, 29) / 4  # of E2M1's steps, from the smallest on
    rows = []
    for exponent in range(-24, 16):
        top = np.ldexp(rng.uniform(1, 2), exponent)
        scaled = np.ldexp(rng.permutation(ties), exponent - 2)
        small = top * 2.0 ** -rng.uniform(0, 24, 70) * rng.choice([-1, 1], 70)
        rows.append(np.r_[rng.permutation(np.r_[scaled, small]), top])
    x = np.clip(np.concatenate([*rows, np.zeros(128), [-0.0] * 128]), -65504, 65504).astype(np.float16)
    x = np.r_[x, x[:128], np.array([np.nan, *[1] * 127, -np.inf, *[-2] * 127], np.float16), x]
    assert_kernels_follow(monkeypatch, xp, name, x)
    c, x = codec(name), x[:-3]
    for n in 1, 15, 16, 31, 1000, len(x):
        want = formulas(monkeypatch, partial(c.encode, x[:n]))
        assert_exact(to_numpy(c.encode(xp.asarray(x[:n]))), want)
    monkeypatch.setattr(config, "MOST_BLOCKS", 1)  # a block has several tiles
    whole = np.tile(x, 2)[: 2 * len(x) // c.block * c.block]
    cuts = np.cumsum(c.shares(len(whole), 3))[:-1]  # wires of shares begin anywhere
    want = np.concatenate([formulas(monkeypatch, partial(c.encode, part)) for part in np.split(whole, cuts)])
    assert_exact(to_numpy(launch.encode(xp.asarray(whole), c, 3)), want)


def test_input_that_begins_at_no_16_byte_boundary(monkeypatch, xp):
    c, x = codec("mxfp4"), real(1000)
    want = formulas(monkeypatch, lambda: c.encode(x[3:]))
    assert_exact(to_numpy(c.encode(xp.asarray(x)[3:])), want)


@pytest.mark.parametrize("name", ["mxfp4", "e2m2-b16-e5m0-rceil"])
@pytest.mark.parametrize("algo", ["oneshot", "twoshot"])
def test_blocks_of_several_tiles(monkeypatch, xp, name, algo):
    """As in large arrays, where a block of threads goes on to its next tile: ragged, a tile more on some blocks."""
    monkeypatch.setattr("cutpq.codecs.config.MOST_BLOCKS", 2)
    assert_kernels_follow(monkeypatch, xp, name, real(5 * 2048 + 77))

    def on_rank(comm):
        x = comm.xp.asarray(real(3 * 5 * 2048, seed=comm.rank))
        return to_numpy(all_reduce(x, comm, codec=name, algo=algo))

    want = formulas(monkeypatch, lambda: run_threads(3, on_rank))[0]
    for total in run_threads(3, on_rank, xp=xp):
        assert_same_numbers(total, want)


def test_options_are_left_to_the_formulas(monkeypatch, xp):
    monkeypatch.setattr("cutpq.codecs.launch.encode", lambda *_, **__: pytest.fail("no kernel knows the options"))
    x = real(128)
    for c in codec("mxfp4", rotate=True), codec("mxfp4", outliers=np.arange(64) == 3):
        wire = c.encode(xp.asarray(x))
        assert_exact(to_numpy(wire), c.encode(x))
        assert_exact(to_numpy(c.decode(wire)), c.decode(to_numpy(wire)))


# ---- sums


def sum_on_ranks(size, n, dtype, name, algo, xp=np):
    def on_rank(comm):
        x = (heavy_tailed(n, seed=comm.rank) * 4).astype(dtype)
        total = all_reduce(xp.asarray(x), comm, codec=name, algo=algo)
        return to_numpy(total), comm.sent_bytes

    return run_threads(size, on_rank, xp=xp)


SUMS = {  # ranks, elements, dtype, codec
    "two_ranks": (2, 4096, np.float16, "mxfp4"),
    "share_without_blocks": (4, 96, np.float16, "mxfp4"),
    "ragged_last_block": (3, 2500, BFLOAT16, "mxfp4"),
    "unaligned_shares": (3, 1000, np.float16, "e2m0-b8-e5m0"),
    "float32": (2, 777, np.float32, "nvfp4"),
    "eight_ranks": (8, 3000, np.float16, "e2m2-b16-e5m0-rceil"),
}


@pytest.mark.parametrize("algo", ["oneshot", "twoshot"])
@pytest.mark.parametrize("case", SUMS)
def test_sum_equals_the_formulas_on_every_rank(monkeypatch, xp, case, algo):
    size, n, dtype, name = SUMS[case]
    want = formulas(monkeypatch, lambda: sum_on_ranks(size, n, dtype, name, algo))[0][0]
    c = codec(name)
    for rank, (total, sent_bytes) in enumerate(sum_on_ranks(size, n, dtype, name, algo, xp)):
        assert_same_numbers(total, want)
        assert sent_bytes == (oneshot_sent(n, size, c) if algo == "oneshot" else twoshot_sent(n, size, rank, c))


@pytest.mark.parametrize("algo", ["oneshot", "twoshot"])
def test_sum_has_no_race_in_any_order(monkeypatch, settings, algo):
    want = formulas(monkeypatch, lambda: sum_on_ranks(3, 2500, BFLOAT16, "mxfp4", algo))[0][0]
    for settings.seed in range(3):
        for total, _ in sum_on_ranks(3, 2500, BFLOAT16, "mxfp4", algo):
            assert_same_numbers(total, want)


@pytest.mark.parametrize("name", ["mxfp4", "e2m0-b8-e5m0", "int4", "int8-b8", "e3m0-b64"])
def test_sum_of_scales_near_and_far(monkeypatch, xp, name):
    """Scales a few binades apart, at any height: sums that half2 holds exactly, and those that it just does not.

    Of every fourth block the scales fall from rank to rank, as under act-order; of others one half of the ranks lies
    beyond what float32 holds beside the other.
    """
    rng, c, n = np.random.default_rng(11), codec(name), 2048
    largest, blocks = c.scale.largest_code, n // c.block
    for ranks in (2, 3, 4, 8) if name in ("mxfp4", "int4") else (3, 8):
        spread, base = rng.integers(0, 9, blocks), rng.integers(0, largest, blocks)
        codes = base + rng.integers(0, spread + 1, (ranks, blocks))
        falling = np.outer(np.arange(ranks)[::-1], rng.integers(0, 4, blocks)) + rng.integers(0, 3, (ranks, blocks))
        codes[:, ::4] = (base + falling)[:, ::4]
        codes[: ranks // 2, 1::4] += 22
        codes[ranks // 2 :, 2::4] += 22
        codes[rng.integers(ranks, size=blocks), np.arange(blocks)] += spread // 2
        elements = rng.integers(0, 256, (ranks, n * c.element.bits // 8), dtype=np.uint8)
        elements[:, : elements.shape[1] // 2] = elements[0, : elements.shape[1] // 2]  # alike: the largest sums
        bits = np.unpackbits(np.minimum(codes, largest).astype("<u2").view(np.uint8), bitorder="little")
        scales = np.packbits(bits.reshape(ranks, blocks, 16)[:, :, : c.scale.bits].reshape(ranks, -1), 1, "little")
        wires = np.concatenate([elements, scales], axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            terms = formulas(monkeypatch, lambda: [c.decode(wire) for wire in wires])  # noqa: B023
            total = terms[0].copy()
            for term in terms[1:]:
                total += term
        have = launch.decode_sum(xp.asarray(wires), c, n, np.float32)
        assert_same_numbers(to_numpy(have), total)
        again = formulas(monkeypatch, lambda: c.encode(total))  # noqa: B023
        assert_exact(to_numpy(launch.decode_sum_encode(xp.asarray(wires), c, n)), again)


def test_sum_of_scales_that_is_just_above_a_tie(monkeypatch, xp):
    """5 lies between 4 and 6 of E2M1; one rank's 2^-9 decides, which half2 loses beside it."""
    c = codec("mxfp4")
    encoded = {x: formulas(monkeypatch, lambda: c.encode(np.full(256, x, np.float32))) for x in (2.0**-9, 4, 1)}  # noqa: B023
    for terms in itertools.permutations(encoded):
        wires = np.stack([encoded[x] for x in terms])
        have = to_numpy(launch.decode_sum_encode(xp.asarray(wires), c, 256))
        numbers = formulas(monkeypatch, lambda: c.decode(have))  # noqa: B023
        assert_exact(numbers, np.full(256, 6, np.float32))


def test_sum_of_special_values(monkeypatch, xp):
    def on_rank(comm):
        x = comm.xp.asarray(np.roll(specials(), 64 * comm.rank))
        return [to_numpy(all_reduce(x, comm, codec="mxfp4", algo=algo)) for algo in ("oneshot", "twoshot")]

    want = formulas(monkeypatch, lambda: run_threads(2, on_rank))[0]
    for ranks_sums in run_threads(2, on_rank, xp=xp):
        for have, expected in zip(ranks_sums, want, strict=True):
            assert_same_numbers(have, expected)


@pytest.mark.parametrize("name", ["e2m1-rceil", "e5m2-rceil"])
def test_term_beyond_float32(monkeypatch, xp, name):
    """1.9 * 2^127 is rounded up to 2^128: Inf, though with rank 0's term the exact sum would be finite."""

    def on_rank(comm):
        x = np.full(64, [-1, 1.9][comm.rank] * 2.0**127, np.float32)
        return to_numpy(all_reduce(comm.xp.asarray(x), comm, codec=name, algo="oneshot"))

    want = formulas(monkeypatch, lambda: run_threads(2, on_rank))[0]
    for total in run_threads(2, on_rank, xp=xp):
        assert_same_numbers(total, want)


@pytest.mark.parametrize("algo", ["oneshot", "twoshot"])
def test_order_of_the_ranks(monkeypatch, xp, algo):
    """Ranks 0 and 1 cancel and leave what rank 2 brings; in another order it would be lost beside them."""
    small = real(500)

    def on_rank(comm):
        x = [small * 2.0**40, small * -(2.0**40), small][comm.rank]
        return to_numpy(all_reduce(comm.xp.asarray(x.astype(np.float32)), comm, codec="mxint8", algo=algo))

    want = formulas(monkeypatch, lambda: run_threads(3, on_rank))[0]
    assert (want != 0).mean() > 0.9
    for total in run_threads(3, on_rank, xp=xp):
        assert_same_numbers(total, want)


# ---- the sum, and what follows it


def normed_on_ranks(size, M, K, dtype, name, algo, xp=np):
    perm = xp.asarray(np.random.default_rng(1).permutation(K).astype(np.int32))
    weight = xp.asarray(np.random.default_rng(2).uniform(0.5, 1.5, K).astype(dtype))
    residual = xp.asarray(real(M * K, seed=99).reshape(M, K).astype(dtype))

    def term(comm):
        return xp.asarray(real(M * K, seed=comm.rank).reshape(M, K).astype(dtype))

    def apart(comm):
        total = all_reduce(term(comm), comm, codec=name, algo=algo)
        after = (residual.astype(np.float32) + total.astype(np.float32)).astype(dtype)
        return to_numpy(rmsnorm_gather(after, weight, perm, 1e-5)), to_numpy(after)

    def together(comm):
        mine = residual.copy()
        y = all_reduce_rmsnorm(term(comm), comm, mine, weight, perm, 1e-5, codec=name, algo=algo)
        return to_numpy(y), to_numpy(mine)

    return run_threads(size, apart, xp=xp), run_threads(size, together, xp=xp)


@pytest.mark.parametrize("algo", ["oneshot", "twoshot"])
@pytest.mark.parametrize(
    ("M", "K", "dtype", "name"),
    [
        (3, 2056, np.float16, "int8-float16"),
        (5, 40, BFLOAT16, "e2m0-b8-e5m0"),
        (2, 9, np.float16, "mxfp4"),
        (2, 64, np.float32, "mxfp4"),
    ],
)
def test_fused_end_equals_its_steps(xp, M, K, dtype, name, algo):
    for apart, together in zip(*normed_on_ranks(3, M, K, np.dtype(dtype), name, algo, xp), strict=True):
        for have, want in zip(together, apart, strict=True):
            assert_exact(have, want)


def test_fused_end_without_kernels(monkeypatch):
    steps = formulas(monkeypatch, lambda: normed_on_ranks(2, 2, 64, np.dtype(np.float16), "mxfp4", "twoshot"))
    for apart, together in zip(*steps, strict=True):
        for have, want in zip(together, apart, strict=True):
            assert_exact(have, want)


def test_fused_end_refuses_a_residual_of_another_shape():
    x, weight, perm = np.ones((2, 8), np.float16), np.ones(8, np.float16), np.arange(8, dtype=np.int32)
    with pytest.raises(ValueError, match="residual must have"):
        run_threads(1, lambda comm: all_reduce_rmsnorm(x, comm, x[:1].copy(), weight, perm))
