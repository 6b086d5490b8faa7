"""Block codecs against the scalar oracle, published signal-to-noise ratios and other packages."""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import numpy as np
import pytest
from codec_oracle import Format
from codec_oracle import decode as oracle_decode
from codec_oracle import element_value as oracle_element_value
from codec_oracle import encode as oracle_encode

from cutpq.array import bfloat16, to_numpy
from cutpq.codecs import formulas as ref_codec
from cutpq.codecs.codec import Codec, codec
from cutpq.codecs.formats import BLOCKS, ELEMENTS, RULES, SCALES, values

POWERS_OF_TWO = ("e8m0", "e5m0", "e4m0")


def assert_same_bits(have: np.ndarray, want: np.ndarray) -> None:
    """Equal element by element, the sign of zero included; a NaN equals any NaN and nothing else."""
    have, want = np.asarray(have, np.float32), np.asarray(want, np.float32)
    assert have.shape == want.shape
    same = (have.view(np.uint32) == want.view(np.uint32)) | (np.isnan(have) & np.isnan(want))
    wrong = np.flatnonzero(~same)
    assert not wrong.size, f"{wrong.size} differ, first at {wrong[0]}: {have[wrong[0]]} for {want[wrong[0]]}"


def assert_matches_oracle(c: Codec, x: np.ndarray, xp: ModuleType = np) -> None:
    f = Format(c.element.name, c.block, c.scale.name, c.rule)
    wire = c.encode(xp.asarray(x))
    want = oracle_encode(f, x.astype(np.float64).ravel().tolist())
    assert to_numpy(wire).tobytes() == want
    assert_same_bits(to_numpy(c.decode(wire)), np.array(oracle_decode(f, want, x.size), np.float32))


def sqnr_dB(c: Codec, x: np.ndarray) -> float:
    noise = c.decode(c.encode(x)).astype(np.float64) - x.ravel()
    return 10 * math.log10((x.astype(np.float64) ** 2).sum() / (noise**2).sum())


def test_same_bits_helper_sees_nan_and_zero_sign():
    for have, want in ([np.nan], [1.0]), ([0.0], [-0.0]), ([1.0], [1.0000001]):
        with pytest.raises(AssertionError):
            assert_same_bits(np.float32(have), np.float32(want))


# names


@pytest.mark.parametrize(
    ("alias", "long", "bits"),
    [
        ("mxfp4", "e2m1-b32-e8m0-floor", 4.25),
        ("mxfp6-e2m3", "e2m3-b32-e8m0-floor", 6.25),
        ("mxfp6-e3m2", "e3m2", 6.25),
        ("mxfp8-e4m3", "e4m3-floor", 8.25),
        ("mxfp8-e5m2", "e5m2-e8m0", 8.25),
        ("mxint8", "INT8-B32", 8.25),
        ("nvfp4", "e2m1-b16-e4m3-even", 4.5),
        ("int4-b8-float16", "int4-b8-f16", 6.0),
        ("e2m2-b16-e5m0-rceil", "e2m2-b16-e5m0-rceil", 5 + 5 / 16),
        ("e2m0-b128-e4m0", "e2m0-b128-e4m0-floor", 3 + 4 / 128),
    ],
)
def test_spellings_are_one_codec(alias, long, bits):
    assert codec(alias) == codec(long)
    assert codec(alias).name == codec(long).name == alias
    assert codec(alias).bits == bits
    assert codec(alias).ratio == 16 / bits


def test_every_name_leads_back_to_its_codec():
    every = [Codec(*f) for f in itertools.product(ELEMENTS.values(), BLOCKS, SCALES.values(), RULES)]
    assert len({c.name for c in every}) == len(every) == 19 * 5 * 5 * 3
    for c in every:
        assert codec(c.name) == c
        assert codec(f"{c.element.name}-b{c.block}-{c.scale.name}-{c.rule}") == c


def test_options_are_part_of_what_a_codec_is():
    mask = np.arange(64) % 32 == 3
    assert codec("mxfp4+hadamard") == codec("mxfp4", rotate=True) != codec("mxfp4")
    assert codec(codec("mxfp4"), outliers=mask) == codec("mxfp4", outliers=mask) != codec("mxfp4")
    assert codec("mxfp4", outliers=mask).name == "mxfp4+2of64"
    assert codec("mxfp4", outliers=mask & False) == codec("mxfp4")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("fp4", "mxfp4"),
        ("mxfp4-b16", "mxfp4"),
        ("e2m1-b24", "e2m1-b64"),
        ("e9m9", ""),
        ("e2m1-b16-e5m0-ceil", "e2m1-b16-e5m0-rceil"),
        ("e2m1-e5m0-b16", "e2m1-e5m0"),
        ("int9", "int"),
        ("e2m1+rotate", "e2m1"),
        ("", ""),
        (None, ""),
    ],
)
def test_wrong_name_gets_the_grammar_and_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=r"ELEM\[-bBLOCK\]\[-SCALE\]\[-RULE\].*BLOCK 8, 16") as error:
        codec(name)
    assert nearest in str(error.value).partition("Nearest:")[2]
    assert repr(name) in str(error.value)


# the bytes


def varied(rng: np.random.Generator, n: int) -> np.ndarray:
    """Magnitudes over 20 binades with many ties, exact zeros and negative zeros."""
    x = np.round(rng.standard_normal(n) * 16) / 8 * 2.0 ** rng.integers(-10, 10, n)
    x[::11], x[5::13] = 0.0, -0.0
    return x.astype(np.float16)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_bytes_of_every_element_and_scale(element, scale):
    for rule in RULES if scale != "float16" else ("even",):
        x = varied(np.random.default_rng(len(element + scale + rule)), 3 * 8 + 5)
        assert_matches_oracle(codec(f"{element}-b8-{scale}-{rule}"), x)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", ["e2m0-b{}-e4m0", "e2m2-b{}-e5m0-rceil", "int7-b{}", "e2m1-b{}-f16-rceil"])
def test_bytes_of_every_block_and_width(xp, name, block):
    assert_matches_oracle(codec(name.format(block)), varied(np.random.default_rng(block), 3 * block + 1), xp)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32])
def test_bytes_of_every_input_dtype(xp, dtype):
    x = np.random.default_rng(3).standard_normal((2, 3, 32)).astype(dtype)
    for c in codec("mxfp4"), codec("nvfp4"), codec("e3m2-b16-e5m0-even"):
        assert_matches_oracle(c, x, xp)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("element", ELEMENTS)
def test_engine_makes_the_bits_of_the_formulas(element, scale, rule, monkeypatch):
    seed = len(element) + 10 * len(scale) + 100 * len(rule)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    c = codec(f"{element}-b8-{scale}-{rule}")
    grid = values(c.element)[: c.element.largest_code + 1]
    ties = rng.choice(np.concatenate([grid, (grid[1:] + grid[:-1]) / 2]), (64, 8)) * rng.choice([-1, 1], (64, 8))
    ties[:, 0] = rng.choice(grid[1:], 64)  # else all may be zero
    normal = np.ldexp(ties, rng.integers(-10, 10, (64, 1))).astype(np.float32)
    for x in normal, every_kind_of_float32(rng, (64, 8)):
        assert_engine_equals_formulas(c, x, monkeypatch)


@pytest.mark.parametrize("scale", POWERS_OF_TWO)
@pytest.mark.parametrize("element", ELEMENTS)
def test_engine_where_its_quick_steps_end(element, scale, monkeypatch):
    """Blocks of one binade each call: where the scale's codes end, float32's exponents, and room for 2^23 steps."""
    c = codec(f"{element}-b8-{scale}")
    e, s = c.element, c.scale
    grid = values(e)[: e.largest_code + 1]
    ties = np.sort(np.concatenate([grid, (grid[1:] + grid[:-1]) / 2]))
    ties = np.concatenate([ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(9e9))])
    blocks = np.concatenate([np.resize(ties, (3 * len(grid), 7)), np.full((3 * len(grid), 1), e.largest)], axis=1)
    ends = -s.bias, s.largest_code - s.bias, -126 - e.min_exponent, 127 - 23 + e.mantissa_bits - e.max_exponent, 0
    for exponent in [end + step for end in ends for step in (-1, 0, 1)]:
        with np.errstate(over="ignore"):
            x = np.ldexp(blocks, exponent).astype(np.float32)
        assert_engine_equals_formulas(c, np.concatenate([x, -x]), monkeypatch)


def assert_engine_equals_formulas(c: Codec, x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wires bit for bit, and what they decode to, in float32 and in float16."""
    monkeypatch.delenv("CUTPQ_HOST", raising=False)
    wire = c.encode(x)
    numbers, rounded = c.decode(wire), c.decode(wire, out=np.empty(x.size, np.float16))
    monkeypatch.setenv("CUTPQ_HOST", "formulas")
    assert np.array_equal(wire, c.encode(x))
    assert_same_bits(numbers, c.decode(wire))
    with np.errstate(over="ignore"):
        assert_same_bits(rounded, c.decode(wire).astype(np.float16))


def every_kind_of_float32(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Rows of random bits, NaN and Inf among them, of subnormal numbers, of zeros, of integers times powers of two."""
    x = rng.integers(0, 2**32, shape, np.uint32).view(np.float32)
    x[1::4] = rng.integers(0, 2**23, x[1::4].shape, np.uint32).view(np.float32)
    x[2::4] = np.round(rng.standard_normal(x[2::4].shape) * 64) * 2.0 ** rng.integers(-120, 120, (len(x[2::4]), 1))
    x[2], x[6] = 0.0, -0.0
    return x


def test_values_of_every_code():
    for element in ELEMENTS.values():
        want = [oracle_element_value(element.name, code) for code in range(2**element.bits)]
        numbers = [np.nan if v is None else float(v) for v in want]
        assert np.array_equal(values(element), numbers, equal_nan=True)


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS)
def test_rounding_at_every_tie_and_beside_it(element):
    """The middle of two neighbours goes to the even one, the float32 on either side to the nearer."""
    grid = values(element)[: element.largest_code + 1].astype(np.float64)
    ties = ((grid[1:] + grid[:-1]) / 2).astype(np.float32)
    # A tie between p and 2p, where there is no mantissa bit, goes to 2p: two steps of p, not one.
    steps_below = grid[:-1] / np.diff(grid)
    to_upper = np.round(steps_below) % 2 == 1
    index = np.arange(len(ties))
    for sign, high_bit in (1, 0), (-1, 1 << (element.bits - 1)):
        above, below = np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, np.float32(0))
        for y, step in (ties, to_upper), (above, 1), (below, 0):
            assert np.array_equal(ref_codec.encode_elements(sign * y, element), index + step + high_bit)


def test_elements_survive_unchanged():
    """Every number of a format is its own nearest neighbour; beyond the largest all saturate, even Inf."""
    for element in ELEMENTS.values():
        codes = np.r_[: element.largest_code + 1]
        codes = np.r_[codes, codes + 2 ** (element.bits - 1)].astype(np.uint8)
        assert np.array_equal(ref_codec.encode_elements(values(element)[codes], element), codes)
        beyond = np.float32([element.largest * 1.01, element.largest * 3, 3e38, np.inf])
        assert (ref_codec.encode_elements(beyond, element) == element.largest_code).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_packing_is_one_little_endian_bit_string(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, 8 * 5).astype(np.uint8)
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    packed = ref_codec.pack_bits(codes, bits)
    assert packed.tobytes() == number.to_bytes(5 * bits, "little")
    assert np.array_equal(ref_codec.unpack_bits(packed, bits), codes)


def test_wire_as_documented_byte_by_byte():
    """mxfp4, 32 elements and one more: 0.5, 1, ..., scale 2^0, the nibble of the first element lowest."""
    x = np.zeros(33, np.float32)
    x[:8] = [0.5, 1, 1.5, 2, 3, 4, 6, -6]
    x[32] = 2.0**-3  # alone in its block: 4 * 2^-5
    wire = codec("mxfp4").encode(x)
    assert wire.tolist() == [0x21, 0x43, 0x65, 0xF7] + [0] * 12 + [0x06] + [0] * 15 + [127, 122, 31]
    assert np.array_equal(codec("mxfp4").decode(wire), x)


# sizes


@pytest.mark.parametrize("name", ["mxfp4", "int2-b8-e4m0", "e1m1-b8-e5m0", "nvfp4", "e2m2-b128-f16", "int8"])
def test_every_size_comes_back_whole(name):
    c = codec(name)
    x = np.full(2 * c.block + 3, c.element.largest, np.float32)  # with a scale of 1, exactly
    for n in [0, 1, 2, c.block - 1, c.block, c.block + 1, 2 * c.block - 1, 2 * c.block, 2 * c.block + 3]:
        wire = c.encode(x[:n])
        assert wire.dtype == np.uint8
        assert wire.shape == (c.wire_bytes(n),)
        assert np.array_equal(c.decode(wire), x[:n])
    assert c.wire_bytes(8 * c.block) * 8 == c.bits * 8 * c.block  # whole blocks: the bits, exactly


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7])
def test_every_number_of_rows_with_outliers_comes_back_whole(rows):
    c = codec("mxint8", outliers=np.arange(20) % 7 == 3)
    x = np.full((rows, 20), c.element.largest, np.float32)
    wire = c.encode(x)
    assert wire.shape == (c.wire_bytes(x.size),)
    assert np.array_equal(c.decode(wire), x.ravel())


def test_long_arrays_are_coded_in_pieces():
    """More elements than one piece holds, and not a whole number of pieces."""
    x = np.random.default_rng(5).standard_normal(200_003).astype(np.float16)
    for c in codec("e2m2-b16-e5m0"), codec("mxfp4+hadamard"):
        whole = c.decode(c.encode(x))
        parts = [c.decode(c.encode(x[i : i + 4096])) for i in range(0, x.size, 4096)]
        assert_same_bits(whole, np.concatenate(parts))


def test_any_shape_and_stride_in_flat_order():
    x = np.random.default_rng(6).standard_normal((6, 8, 4)).astype(np.float16)
    c = codec("mxint8")
    for view in x, x[::-1, ::2], x.transpose(2, 0, 1), x[0, 0, 0]:
        assert_same_bits(c.decode(c.encode(view)), c.decode(c.encode(view.ravel().copy())))


def test_pieces_cut_at_granules_are_wires_of_their_own():
    x = np.random.default_rng(7).standard_normal((6, 48)).astype(np.float16)
    mask = np.arange(48) == 7
    for c in codec("e1m1-b8-e5m0"), codec("mxfp4+hadamard"), codec("mxfp4", outliers=mask):
        whole, step = c.decode(c.encode(x)), c.granule
        pieces = [c.decode(c.encode(x.ravel()[i : i + step])) for i in range(0, x.size, step)]
        assert_same_bits(whole, np.concatenate(pieces))


def test_out_arguments_are_filled():
    c, x = codec("mxfp4"), np.random.default_rng(8).standard_normal(64).astype(np.float16)
    wire, y = np.empty(34, np.uint8), np.empty(64, np.float32)
    assert c.encode(x, out=wire) is wire
    assert c.decode(wire, out=y) is y
    assert np.array_equal(wire, c.encode(x))
    assert np.array_equal(y, c.decode(wire))


# the ends of the ranges


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("element", ["e1m2", "e2m1", "e2m3", "e3m2", "e4m3", "e5m2", "int8", "e3m0"])
def test_both_ends_of_e8m0(xp, element, rule):
    """Blocks from the smallest subnormal float32 to the largest number, scales of 2^-127 among them."""
    tops = [2.0**-149, 2.0**-140, 1.5 * 2.0**-127, 2.0**-126, 2.0**-125, 1.7 * 2.0**-120, 1.5 * 2.0**127]
    steps = np.array([1, -0.75, 0.5, 0.3125, -0.1, 2.0**-4, 0, 0.99])
    assert_matches_oracle(codec(f"{element}-b8-{rule}"), np.outer(tops, steps).astype(np.float32), xp)


@pytest.mark.parametrize("element", ELEMENTS)
def test_scale_carries_just_where_its_rule_says(element):
    """amax at the rule's threshold, and the float32 on either side."""
    M, top = ELEMENTS[element].mantissa_bits, ELEMENTS[element].largest
    at = np.float32([2 - 2.0 ** -(M + 1), top, top / 4, 1])
    amax = np.concatenate([at, np.nextafter(at, np.float32(0)), np.nextafter(at, np.float32(9e9))])
    for rule in RULES:
        assert_matches_oracle(codec(f"{element}-b8-{rule}"), np.outer(amax, np.float32([1] + [0] * 7)))


def test_scale_of_2_to_the_minus_127_is_no_zero():
    x = np.float32([2.0**-125, 2.0**-127, 2.0**-128, -(2.0**-126), 0, 0, 0, 0])
    wire = codec("e2m1-b8").encode(x)
    assert wire[-1] == 0
    assert_same_bits(codec("e2m1-b8").decode(wire), x)


@pytest.mark.parametrize("scale", SCALES)
def test_narrow_scales_saturate_at_both_ends(scale):
    c = codec(f"e2m1-b8-{scale}-rceil")
    limit = c.error_bound
    huge = np.full(8, np.float32(1e38))
    if limit.largest < 1e38:
        assert_same_bits(c.decode(c.encode(huge)), np.full(8, np.float32(limit.largest)))
    tiny = np.full(8, np.float32(limit.smallest / 1000))
    assert np.abs(c.decode(c.encode(tiny)) - tiny).max() <= limit.relative * limit.smallest
    assert_matches_oracle(c, np.concatenate([huge, -huge, tiny, np.float32([0, 1, 2, 3, 4, 5, 6, 7])]))


def test_float16_scale_rounds_by_its_rule_and_never_to_inf_or_zero():
    x = np.float32([1.0, -1 / 3, 0.7, 0, 0, 0, 0, 1e-9])
    scales = {rule: codec(f"int4-b8-float16-{rule}").encode(x)[-2:].view(np.float16)[0] for rule in RULES}
    exact = 1 / 1.75
    assert float(scales["floor"]) == float(scales["even"]) < exact < float(scales["rceil"])
    assert scales["rceil"] == np.nextafter(scales["floor"], np.float16(9))
    for value, scale in (3e38, 65504.0), (0.0, 2.0**-24), (1e-30, 2.0**-24):
        for rule in RULES:
            wire = codec(f"int4-b8-float16-{rule}").encode(np.full(8, np.float32(value)))
            assert wire[-2:].view(np.float16)[0] == scale


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32])
def test_a_block_with_nan_or_inf_is_nan_and_its_neighbours_are_not(bad, dtype):
    x = np.random.default_rng(9).standard_normal(48).astype(dtype)
    clean = x.copy()
    x[19] = bad
    for scale in SCALES:
        for c in codec(f"e2m1-b16-{scale}"), codec(f"int3-b16-{scale}", rotate=True):
            y = c.decode(c.encode(x))
            assert np.isnan(y[16:32]).all()
            assert not c.encode(x)[2 * c.element.bits : 4 * c.element.bits].any()  # 16 elements of n bits: 2 n bytes
            want = c.decode(c.encode(clean))
            assert_same_bits(y[:16], want[:16])
            assert_same_bits(y[32:], want[32:])
            assert np.isnan(c.decode(c.encode(np.full(3, bad, dtype)))).all()


def test_zero_blocks_are_zeros_of_their_sign():
    x = np.zeros(40, np.float32)
    x[3] = -0.0
    for scale in SCALES:
        c = codec(f"e2m1-b8-{scale}")
        assert_same_bits(c.decode(c.encode(x)), x)


# published figures


@pytest.mark.parametrize(
    ("element", "normal", "laplace", "outliers"),
    [
        ("int3", (13.73, 12.54, 11.51), (12.99, 11.57, 10.30), (14.97, 13.54, 11.88)),
        ("int4", (19.89, 18.64, 17.56), (18.95, 17.40, 16.02), (19.43, 17.18, 14.80)),
        ("e2m1", (18.38, 18.58, 18.79), (18.01, 18.04, 17.94), (17.05, 16.43, 15.42)),
        ("e3m0", (11.61, 12.26, 13.05), (11.25, 11.77, 12.27), (10.30, 10.42, 10.57)),
        ("int5", (25.99, 24.69, 23.59), (24.99, 23.40, 21.98), (23.79, 21.12, 18.44)),
        ("e2m2", (24.80, 24.85, 24.87), (24.52, 24.39, 24.16), (23.58, 22.68, 21.34)),
        ("e3m1", (18.57, 18.90, 19.27), (18.37, 18.66, 18.92), (17.79, 17.86, 17.95)),
        ("e2m3", (31.05, 31.00, 30.94), (30.80, 30.59, 30.30), (29.93, 28.94, 27.52)),
        ("e3m2", (25.01, 25.18, 25.35), (24.93, 25.08, 25.21), (24.64, 24.68, 24.73)),
        ("int8", (44.11, 42.78, 41.66), (43.08, 41.45, 40.02), (41.19, 38.40, 35.63)),
        ("e4m3", (29.32, 29.93, 30.64), (28.99, 29.50, 29.97), (28.08, 28.19, 28.34)),
    ],
)
def test_signal_to_noise(element, normal, laplace, outliers):
    """One element in a hundred, twenty times larger, carries most of the power: the seed matters more."""
    rng = np.random.default_rng(0)
    n = 1 << 18
    gaussian = rng.standard_normal(n).astype(np.float32)
    heavy = rng.laplace(size=n).astype(np.float32)
    spiked = gaussian * np.where(rng.random(n) < 0.01, np.float32(20), np.float32(1))
    for x, want, tolerance in (gaussian, normal, 0.1), (heavy, laplace, 0.1), (spiked, outliers, 0.3):
        have = [sqnr_dB(codec(f"{element}-b{block}"), x) for block in (8, 16, 32)]
        assert have == pytest.approx(want, abs=tolerance)


@pytest.mark.parametrize(
    ("name", "normal", "laplace"),
    [
        ("e2m1-even", 19.03, 18.14),
        ("e2m1-rceil", 18.76, 17.59),
        ("e2m1-float16", 19.90, 19.77),
        ("nvfp4", 20.44, 20.66),
        ("int4-float16", 20.27, 18.34),
    ],
)
def test_signal_to_noise_of_scales_and_rules(name, normal, laplace):
    rng = np.random.default_rng(0)
    for x, want in (rng.standard_normal(1 << 18), normal), (rng.laplace(size=1 << 18), laplace):
        assert sqnr_dB(codec(name), x.astype(np.float32)) == pytest.approx(want, abs=0.1)


def test_e1mx_is_the_integer_grid():
    x = np.random.default_rng(1).standard_normal(4096).astype(np.float16)
    for rule, x_bits in itertools.product(RULES, (1, 2, 3)):
        e1, integer = codec(f"e1m{x_bits}-{rule}"), codec(f"int{x_bits + 2}-{rule}")
        assert_same_bits(e1.decode(e1.encode(x)), integer.decode(integer.encode(x)))


# the stated bound


def sweep(c: Codec) -> np.ndarray:
    """Blocks led by every amax of a fine sweep over binades of the range, filled with a sweep below it."""
    limit = c.error_bound
    low = max(limit.smallest, 2.0**-60)
    amax = low * 2.0 ** np.linspace(0, 3, 601)
    amax = amax[amax <= limit.largest]
    share = np.linspace(1, -1, c.block)
    return np.concatenate([np.outer(amax, share), np.outer(amax / 64, share)]).astype(np.float32)


@pytest.mark.parametrize("element", ELEMENTS)
def test_error_bound_holds_and_is_sharp(element):
    for scale, rule in itertools.product(SCALES, RULES):
        c = codec(f"{element}-b128-{scale}-{rule}")
        x = sweep(c)
        error = np.abs(c.decode(c.encode(x)).astype(np.float64) - x.ravel())
        assert (error <= c.bound(x)).all(), c.name
        if scale in POWERS_OF_TWO:
            assert (error / c.bound(x)).max() > 0.9, c.name


def test_bound_says_inf_where_the_scales_end(xp):
    x = xp.asarray(np.repeat(np.float32([1.0, 1e6, np.nan, np.inf]), 16))
    assert np.isinf(to_numpy(codec("nvfp4").bound(x))).reshape(4, 16).all(axis=1).tolist() == [False, True, True, True]
    assert np.isinf(codec("e2m1-even").bound(np.full(32, np.float32(3.4e38)))).all()  # which decodes to 2^128


# options


def columns_with_outliers(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(512, bool)
    mask[rng.choice(512, 5, replace=False)] = True
    x = rng.standard_normal((64, 512)) * np.where(mask, 20, 1)
    return x.astype(np.float16), mask


@pytest.mark.parametrize("name", ["mxfp4", "e1m1-b8-e5m0", "int4-b128-float16", "nvfp4"])
def test_outlier_columns_travel_exactly(xp, name):
    x, mask = columns_with_outliers(np.random.default_rng(2))
    c = codec(name, outliers=xp.asarray(mask))
    y = to_numpy(c.decode(c.encode(xp.asarray(x)))).reshape(x.shape)
    assert_same_bits(y[:, mask], x[:, mask])
    rest = np.where(mask, np.float16(0), x)
    assert_same_bits(y[:, ~mask], codec(name).decode(codec(name).encode(rest)).reshape(x.shape)[:, ~mask])
    assert c.encode(x).size * 8 == c.bits * x.size == (codec(name).bits + 16 * 5 / 512) * x.size
    assert (np.abs(y.ravel() - x.ravel().astype(np.float64)) <= c.bound(x)).all()


def test_outliers_saturate_round_and_keep_nan():
    mask = np.array([True, False, False, True])
    c = codec("mxint8", outliers=mask)
    x = np.float32([[1e6, 1, 1, -1e6], [np.inf, 1, 1, np.nan], [1 / 3, 1, 1, 0]])
    y = c.decode(c.encode(x)).reshape(3, 4)
    assert_same_bits(y[:, 0], [65504, np.inf, np.float16(1 / 3)])
    assert_same_bits(y[:, 3], [-65504, np.nan, 0])
    assert (y[:, 1:3] == 1).all()  # NaN and Inf beside a block do not spoil it
    bound = c.bound(x).reshape(3, 4)
    assert np.isinf(bound[:2, 0]).all()
    assert bound[2, 0] < 2e-4


@pytest.mark.parametrize("block", BLOCKS)
def test_hadamard_is_its_own_inverse_and_orthogonal(block):
    H = np.array([[1]])
    while len(H) < block:
        H = np.block([[H, H], [H, -H]])
    x = np.random.default_rng(block).integers(-8, 9, (3, block)).astype(np.float32)  # every sum is exact
    assert np.array_equal(ref_codec.hadamard(x), x @ H)
    assert np.array_equal(ref_codec.hadamard(ref_codec.hadamard(x)), block * x)


def test_rotation_holds_its_bound_and_spreads_outliers():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((64, 512)).astype(np.float32)
    x[:, ::32] *= 20
    plain, rotated = codec("int4"), codec("int4", rotate=True)
    assert sqnr_dB(rotated, x) > sqnr_dB(plain, x) + 1.5
    error = np.abs(rotated.decode(rotated.encode(x)).astype(np.float64) - x.ravel())
    assert (error <= rotated.bound(x)).all()


def test_rotation_with_outliers_is_both(xp):
    x, mask = columns_with_outliers(np.random.default_rng(3))
    c = codec("mxfp4", rotate=True, outliers=mask)
    y = to_numpy(c.decode(c.encode(xp.asarray(x)))).reshape(x.shape)
    assert_same_bits(y[:, mask], x[:, mask])
    rest, rotated = np.where(mask, np.float16(0), x), codec("mxfp4", rotate=True)
    assert_same_bits(y[:, ~mask], rotated.decode(rotated.encode(rest)).reshape(x.shape)[:, ~mask])


# errors


def test_wrong_input_is_named():
    c = codec("mxfp4")
    with pytest.raises(TypeError, match="float16, bfloat16 or float32, got float64"):
        c.encode(np.ones(32))
    with pytest.raises(TypeError, match="NumPy or all be CuPy"):
        c.encode([1.0, 2.0])
    with pytest.raises(TypeError, match="wire must be uint8, got float32"):
        c.decode(np.ones(17, np.float32))
    with pytest.raises(ValueError, match=r"wire must have shape \(bytes,\)"):
        c.decode(np.zeros((1, 17), np.uint8))
    with pytest.raises(ValueError, match=r"out must have shape \(17,\)"):
        c.encode(np.ones(32, np.float16), out=np.empty(18, np.uint8))
    with pytest.raises(ValueError, match="32 elements take 17 bytes"):
        c.decode(np.zeros(16, np.uint8))


@pytest.mark.parametrize(("blocks", "last"), [(1, 0), (1, 32), (1, 255), (0, 5)])
def test_impossible_padding_is_refused(blocks, last):
    with pytest.raises(ValueError, match="was cut, or encoded by another codec"):
        codec("mxfp4").decode(np.r_[np.zeros(17 * blocks, np.uint8), np.uint8(last)])


def test_outliers_want_a_mask_and_whole_rows():
    with pytest.raises(ValueError, match=r"\(width,\) bool, got \(2,\) int64"):
        codec("mxfp4", outliers=np.array([3, 5]))
    with pytest.raises(ValueError, match="no whole number of rows of 10"):
        codec("mxfp4", outliers=np.arange(10) == 3).encode(np.ones(32, np.float16))


# other packages, where they are installed


def every_regime(rng: np.random.Generator) -> np.ndarray:
    """(blocks, 32) float32: normal and heavy-tailed, of many magnitudes; ties, zeros, all of float16."""
    n = 1 << 14
    normal = rng.standard_normal(n) * 2.0 ** rng.integers(-12, 12, n // 32).repeat(32)
    ties = rng.integers(-64, 65, n) / 8 * 2.0 ** rng.integers(-6, 6, n // 32).repeat(32)
    patterns = rng.integers(0, 0x7C00, n).astype(np.uint16).view(np.float16) * rng.choice([-1, 1], n)
    every = [normal, normal * np.exp(2 * rng.standard_normal(n)), ties, patterns, np.zeros(32)]
    return np.concatenate(every).astype(np.float32).reshape(-1, 32)


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS)
def test_equals_microxcaling(element):
    """Values of its round="even"; not the sign of zero, because it makes +0.0 of -0.0."""
    mx_ops, formats = pytest.importorskip("mx.mx_ops"), pytest.importorskip("mx.formats")
    torch = pytest.importorskip("torch")
    integer = element.name.startswith("int")
    exponent_bits = 0 if integer else element.exponent_bits
    facts = (exponent_bits, element.mantissa_bits + 2, element.max_exponent, element.largest, None)
    formats._FORMAT_CACHE[element.name,] = facts  # it has a table of formats, and no other way to add one
    x = every_regime(np.random.default_rng(0))
    for scale in POWERS_OF_TWO:
        want = mx_ops._quantize_mx(
            torch.from_numpy(x), SCALES[scale].bits, (element.name,), axes=[-1], block_size=32, round="even"
        ).numpy()
        kept = ~np.isnan(want)  # its narrow scales overflow to NaN, where these saturate
        assert kept.mean() > 0.5
        c = codec(f"{element.name}-{scale}")
        have = c.decode(c.encode(x)).reshape(x.shape)
        assert np.array_equal(have[kept], want[kept])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("element", ["e2m1", "e2m3", "e3m2", "e4m3", "e5m2"])
def test_equals_torchao(element, rule):
    """Scales and codes, but for codes under the scale 2^-127: there torchao divides by 2^-126, or by 1."""
    torch = pytest.importorskip("torch")
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    dtypes = {"e2m1": "float4_e2m1fn_x2", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
    dtype = getattr(torch, dtypes[element]) if element in dtypes else f"fp6_{element}"
    x = every_regime(np.random.default_rng(0))
    mode = getattr(mx.ScaleCalculationMode, rule.upper())
    want_scales, data = mx.to_mx(torch.from_numpy(x), dtype, 32, mode)
    want = data.view(torch.uint8).numpy().reshape(-1)
    if element == "e2m1":
        want = ref_codec.unpack_bits(want, 4)
    want_scales = want_scales.view(torch.uint8).numpy().reshape(-1)
    c = codec(f"{element}-{rule}")
    elements, scales, _ = c._sections(c.encode(x), x.size)
    assert np.array_equal(scales, want_scales)
    kept = np.repeat(scales > 0, 32) | (x.reshape(-1) == 0)
    assert kept.mean() > 0.9
    assert np.array_equal(ref_codec.unpack_bits(elements.reshape(-1), c.element.bits)[kept], want[kept])
