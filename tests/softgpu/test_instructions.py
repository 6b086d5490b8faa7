"""The executor's instructions against NumPy, a line of PTX at a time, on edge cases and random bits."""

import ml_dtypes
import numpy as np
import pytest

from cutpq.kernels import executor

bf16 = ml_dtypes.bfloat16

TEMPLATE = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry line(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u64 pd) {{
  .reg .b64 %rd<8>; .reg .b32 %t; .reg .pred %p;
  .reg .b{a} %a; .reg .b{b} %b; .reg .b{c} %c; .reg .b{d} %d;
  ld.param.u64 %rd0, [pa]; ld.param.u64 %rd1, [pb]; ld.param.u64 %rd2, [pc]; ld.param.u64 %rd3, [pd];
  mov.u32 %t, %tid.x;
  mad.wide.u32 %rd4, %t, {a_bytes}, %rd0; ld.global.b{a} %a, [%rd4];
  mad.wide.u32 %rd5, %t, {b_bytes}, %rd1; ld.global.b{b} %b, [%rd5];
  mad.wide.u32 %rd6, %t, {c_bytes}, %rd2; ld.global.b{c} %c, [%rd6];
  {line}
  mad.wide.u32 %rd7, %t, {d_bytes}, %rd3; st.global.b{d} [%rd7], %d;
  ret;
}}
"""


def execute(line, dtype, *arrays):
    """d of `line` for every element of a, b and c, which default to zeros."""
    n = len(arrays[0])
    a, b, c = [*arrays, *[np.zeros(n, np.uint32)] * (3 - len(arrays))]
    d = np.zeros(n, dtype)
    bits = {name: 8 * x.dtype.itemsize for name, x in zip("abcd", (a, b, c, d), strict=True)}
    ptx = TEMPLATE.format(line=line, **bits, **{f"{name}_bytes": width // 8 for name, width in bits.items()})
    executor.Kernel("line", ptx.encode(), "fast")((1,), (n,), (a, b, c, d))
    return d


def words(seed, dtype=np.uint32, n=480):
    """Random bits behind every pair of values at an edge."""
    info = np.iinfo(dtype)
    edges = np.array([0, 1, 2, 31, 32, 33, 255, info.max, info.max - 1, info.min, info.min + 1], dtype)
    rng = np.random.default_rng(seed)
    print("seed", seed)
    values = rng.integers(info.min, info.max, n, dtype=dtype, endpoint=True)
    values[:121] = np.repeat(edges, 11) if seed % 2 else np.tile(edges, 11)
    return values


def floats(seed, n=480):
    """Any bits but NaN, behind pairs of zeros, subnormal numbers, limits and infinities."""
    x = words(seed, n=n).view(np.float32).copy()
    edges = np.array([0, -0.0, 1, -1, 1e-45, -1e-40, 3e38, -3e38, np.inf, -np.inf, 1.5], np.float32)
    x[np.isnan(x)] = 1
    x[:121] = np.repeat(edges, 11) if seed % 2 else np.tile(edges, 11)
    return x


def wide(f):
    """The function in Python's integers, cut to 32 bits."""
    return lambda *xs: np.array([f(*map(int, row)) & 0xFFFFFFFF for row in zip(*xs, strict=True)], np.uint32)


def signed(x):
    return x - 2**32 if x >= 2**31 else x


def lop3(table):
    def bit(a, b, c, n):
        return table >> ((a >> n & 1) * 4 + (b >> n & 1) * 2 + (c >> n & 1)) & 1

    return wide(lambda a, b, c: sum(bit(a, b, c, n) << n for n in range(32)))


def prmt(a, b, s):
    data = (b << 32 | a).to_bytes(8, "little")
    picked = [(data[s >> 4 * k & 7], s >> 4 * k & 8) for k in range(4)]
    return sum((255 * (byte >> 7) if sign else byte) << 8 * k for k, (byte, sign) in enumerate(picked))


def bfe(a, b, c):
    return (a >> (b & 255)) & ((1 << (c & 255)) - 1)


INTEGER_LINES = {
    "add.u32 %d, %a, %b;": wide(lambda a, b, c: a + b),
    "sub.s32 %d, %a, %b;": wide(lambda a, b, c: a - b),
    "add.sat.s32 %d, %a, %b;": wide(lambda a, b, c: min(max(signed(a) + signed(b), -(2**31)), 2**31 - 1)),
    "mul.lo.u32 %d, %a, %b;": wide(lambda a, b, c: a * b),
    "mul.hi.u32 %d, %a, %b;": wide(lambda a, b, c: a * b >> 32),
    "mul.hi.s32 %d, %a, %b;": wide(lambda a, b, c: signed(a) * signed(b) >> 32),
    "mad.lo.s32 %d, %a, %b, %c;": wide(lambda a, b, c: a * b + c),
    "mad.hi.u32 %d, %a, %b, %c;": wide(lambda a, b, c: (a * b >> 32) + c),
    "min.s32 %d, %a, %b;": wide(lambda a, b, c: min(signed(a), signed(b))),
    "max.u32 %d, %a, %b;": wide(lambda a, b, c: max(a, b)),
    "abs.s32 %d, %a;": wide(lambda a, b, c: abs(signed(a))),
    "and.b32 %d, %a, %b;": wide(lambda a, b, c: a & b),
    "xor.b32 %d, %a, %b;": wide(lambda a, b, c: a ^ b),
    "not.b32 %d, %a;": wide(lambda a, b, c: ~a),
    "shl.b32 %d, %a, %b;": wide(lambda a, b, c: a << b if b < 32 else 0),
    "shr.u32 %d, %a, %b;": wide(lambda a, b, c: a >> b if b < 32 else 0),
    "shr.s32 %d, %a, %b;": wide(lambda a, b, c: signed(a) >> min(b, 31)),
    "shf.l.wrap.b32 %d, %a, %b, %c;": wide(lambda a, b, c: (b << 32 | a) << (c & 31) >> 32),
    "shf.r.clamp.b32 %d, %a, %b, %c;": wide(lambda a, b, c: (b << 32 | a) >> min(c, 32)),
    "shf.l.clamp.b32 %d, %a, %b, %c;": wide(lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32),
    "lop3.b32 %d, %a, %b, %c, 0xea;": lop3(0xEA),
    "lop3.b32 %d, %a, %b, %c, 0x96;": lop3(0x96),
    "lop3.b32 %d, %a, %b, %c, 0x1b;": lop3(0x1B),
    "prmt.b32 %d, %a, %b, %c;": wide(prmt),
    "bfe.u32 %d, %a, %b, %c;": wide(bfe),
    "popc.b32 %d, %a;": wide(lambda a, b, c: bin(a).count("1")),
    "clz.b32 %d, %a;": wide(lambda a, b, c: 32 - a.bit_length()),
    "bfind.u32 %d, %a;": wide(lambda a, b, c: a.bit_length() - 1),
    "brev.b32 %d, %a;": wide(lambda a, b, c: int(f"{a:032b}"[::-1], 2)),
    "dp4a.s32.s32 %d, %a, %b, %c;": wide(
        lambda a, b, c: c + sum((((a >> k & 255) ^ 128) - 128) * (((b >> k & 255) ^ 128) - 128) for k in (0, 8, 16, 24))
    ),
    "add.cc.u32 %d, %a, %b; addc.u32 %d, %c, 0;": wide(lambda a, b, c: c + (a + b >> 32)),
    "sub.cc.u32 %d, %a, %b; subc.u32 %d, %c, 0;": wide(lambda a, b, c: c - (a < b)),
    "setp.lt.s32 %p, %a, %b; selp.b32 %d, %a, %c, %p;": wide(lambda a, b, c: a if signed(a) < signed(b) else c),
    "mov.b32 %d, 0; setp.hs.u32 %p, %a, %b; @!%p bra L; mov.b32 %d, %c; L:": wide(lambda a, b, c: c if a >= b else 0),
}  # fmt: skip


@pytest.mark.parametrize("line", INTEGER_LINES)
def test_integers(line):
    a, b, c = words(1), words(2), words(3)
    np.testing.assert_array_equal(execute(line, np.uint32, a, b, c), INTEGER_LINES[line](a, b, c))


def test_signed_fields():
    a, position, length = words(1), words(4) % 40, words(5) % 40
    got = execute("bfe.s32 %d, %a, %b, %c;", np.uint32, a, position, length)

    def field(a, position, length):
        sign = a >> min(position + length - 1, 31) & 1 if length else 0
        return sum((a >> position + k & 1 if k < length and position + k < 32 else sign) << k for k in range(32))

    np.testing.assert_array_equal(got, wide(field)(a, position, length))


FLOAT_LINES = {
    "add.rn.f32 %d, %a, %b;": lambda a, b, c: a + b,
    "sub.f32 %d, %a, %b;": lambda a, b, c: a - b,
    "mul.rn.f32 %d, %a, %b;": lambda a, b, c: a * b,
    "div.rn.f32 %d, %a, %b;": lambda a, b, c: a / b,
    "sqrt.rn.f32 %d, %a;": lambda a, b, c: np.sqrt(a),
    "min.f32 %d, %a, %b;": lambda a, b, c: np.fmin(a, b),
    "max.f32 %d, %a, %b;": lambda a, b, c: np.fmax(a, b),
    "neg.f32 %d, %a;": lambda a, b, c: -a,
    "add.sat.f32 %d, %a, %b;": lambda a, b, c: np.where(a + b > 0, np.minimum(a + b, 1), np.float32(0)),
    "cvt.rni.f32.f32 %d, %a;": lambda a, b, c: np.rint(a),
    "cvt.rmi.f32.f32 %d, %a;": lambda a, b, c: np.floor(a),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("line", FLOAT_LINES)
def test_float32(line):
    a, b, c = floats(1), floats(2), floats(3)
    np.testing.assert_array_equal(execute(line, np.float32, a, b, c), FLOAT_LINES[line](a, b, c).astype(np.float32))


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_directed_rounding(mode):
    """The sum of two float32 of like size is exact in float64: the nearest float32, or its neighbour on the way."""
    a, b = (np.random.default_rng(s).standard_normal(480).astype(np.float32) for s in (1, 2))
    exact = a.astype(np.float64) + b
    goal = {"rz": np.zeros(480), "rm": np.full(480, -np.inf), "rp": np.full(480, np.inf)}[mode].astype(np.float32)
    nearest = exact.astype(np.float32)
    went_away = np.where(goal > exact, nearest < exact, nearest > exact)
    want = np.where(went_away, np.nextafter(nearest, goal), nearest)
    np.testing.assert_array_equal(execute(f"add.{mode}.f32 %d, %a, %b;", np.float32, a, b), want)


def test_ftz_flushes_operands_and_results():
    tiny = np.array([1e-40, 2e-38, -1e-40, 1.0], np.float32)
    one = np.ones(4, np.float32)
    half = np.full(4, 0.5, np.float32)
    np.testing.assert_array_equal(execute("add.ftz.f32 %d, %a, %b;", np.float32, tiny, -one + 1), [0, tiny[1], 0, 1])
    np.testing.assert_array_equal(execute("mul.ftz.f32 %d, %a, %b;", np.float32, tiny, half), [0, 0, 0, 0.5])
    np.testing.assert_array_equal(execute("mul.f32 %d, %a, %b;", np.float32, tiny, half), tiny * half)


@pytest.mark.parametrize(("suffix", "dtype"), [("f16", np.float16), ("bf16", bf16)])
@pytest.mark.parametrize(("op", "formula"), [("add", np.add), ("mul", np.multiply), ("sub", np.subtract)])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_16_bits_round_once(suffix, dtype, op, formula):
    a, b = (words(s, np.uint16).view(dtype) for s in (1, 2))
    ok = np.isfinite(a.astype(np.float32)) & np.isfinite(b.astype(np.float32))
    a, b = a[ok], b[ok]
    want = formula(a.astype(np.float64), b.astype(np.float64)).astype(dtype)
    got = execute(f"{op}.{suffix} %d, %a, %b;", dtype, a, b)
    np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


CONVERSIONS = [
    ("cvt.f32.f16", np.float16, np.float32), ("cvt.rn.f16.f32", np.float32, np.float16),
    ("cvt.rn.bf16.f32", np.float32, bf16), ("cvt.rn.f32.s32", np.int32, np.float32),
    ("cvt.rn.f32.u32", np.uint32, np.float32), ("cvt.f64.f32", np.float32, np.float64),
    ("cvt.s64.s32", np.int32, np.int64), ("cvt.u16.u32", np.uint32, np.uint16),
    ("cvt.rn.f32.u64", np.uint64, np.float32),
]  # fmt: skip


@pytest.mark.parametrize(("line", "source", "target"), CONVERSIONS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_conversions(line, source, target):
    bits = words(1, {2: np.uint16, 4: np.uint32, 8: np.uint64}[np.dtype(source).itemsize]).view(source)
    a = bits[~np.isnan(bits.astype(np.float64))] if np.dtype(source).kind not in "iu" else bits
    got = execute(f"{line} %d, %a;", target, a)
    np.testing.assert_array_equal(got.astype(np.float64), a.astype(target).astype(np.float64))


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E4M3 = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
TO_BYTES = "{ .reg .b8 %e; cvt.rn.satfinite.e2m1x2.f32 %e, %a, %b; mov.b32 %d, {%e, %e, %e, %e}; }"


def nearest_codes(x, magnitudes, sign, nan):
    """By the letter: the nearest magnitude, of two the one with the even code; the largest for all beyond it."""
    a = np.abs(x.astype(np.float64))
    below = np.clip(np.searchsorted(magnitudes, a, side="right") - 1, 0, len(magnitudes) - 2)
    down, up = a - magnitudes[below], magnitudes[below + 1] - a
    code = below + ((up < down) | ((up == down) & (below % 2 == 1)))
    return np.where(np.isnan(x), nan, code + sign * np.signbit(x)).astype(np.uint32)


@pytest.mark.parametrize(
    ("line", "magnitudes", "sign", "nan", "bits"),
    [("cvt.rn.satfinite.e4m3x2.f32 %d, %a, %b;", E4M3, 128, 127, 8), (TO_BYTES, E2M1, 8, 7, 4)],
    ids=["e4m3", "e2m1"],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_floats_to_pairs_of_small_ones(line, magnitudes, sign, nan, bits):
    """Every value, every tie and their neighbours, limits, infinities, NaN and random bits, of both signs."""
    ties = (magnitudes[1:] + magnitudes[:-1]) / 2
    edges = np.concatenate([magnitudes, ties, [2 * magnitudes[-1], 1e-45, 3e38, np.inf, np.nan]]).astype(np.float32)
    edges = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(np.inf))])
    x = np.concatenate([edges, -edges, words(1).view(np.float32), 8 * floats(3) / np.abs(floats(4))])
    a, b = x, np.roll(x, 7)
    parts = [slice(i, i + 480) for i in range(0, len(x), 480)]
    got = np.concatenate([execute(line, np.uint16 if bits == 8 else np.uint32, a[p], b[p]) for p in parts])
    high, low = (nearest_codes(v, magnitudes, sign, nan) for v in (a, b))
    pair = high << bits | low
    np.testing.assert_array_equal(got, pair if bits == 8 else pair * np.uint32(0x01010101))


def test_floats_to_integers_stop_at_the_limits():
    a = np.array([0.5, 1.5, -1.5, 3e9, -3e9, np.inf, -np.inf, np.nan], np.float32)
    got = execute("cvt.rzi.s32.f32 %d, %a;", np.int32, a)
    np.testing.assert_array_equal(got, [0, 1, -1, 2**31 - 1, -(2**31), 2**31 - 1, -(2**31), 0])
    got = execute("cvt.rni.u32.f32 %d, %a;", np.uint32, a)
    np.testing.assert_array_equal(got, [0, 2, 0, 3000000000, 0, 2**32 - 1, 0, 0])


def test_what_is_not_modelled_is_an_error_where_it_is_executed():
    with pytest.raises(executor.ExecutorError, match=r"does not model this instruction\n  PTX line \d+: .*vadd"):
        execute("vadd.s32.s32.s32 %d, %a, %b;", np.uint32, words(1), words(2))
