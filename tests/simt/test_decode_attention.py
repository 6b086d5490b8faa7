"""decode_attention on the executor and on a GPU, through the public function, against float64."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from assertions import assert_bounded, assert_exact
from truth.reference import unit_roundoff

from cutpq.array import to_numpy
from cutpq.kernels.config import Device
from cutpq.model import decode_attention as module
from cutpq.model import formulas as ref
from cutpq.model.decode_attention import decode_attention

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
EPS = 2.0**-24  # unit roundoff of float32
TINY = {FLOAT16: 2.0**-25, BFLOAT16: 2.0**-126}  # half of the smallest number, or more than float32 flushes
SCALE = 0.3


@pytest.fixture(autouse=True)
def _short_splits(monkeypatch):
    """Splits of 128 keys, the least, on any device: short caches have one or some."""
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    monkeypatch.setattr(module, "BLOCKS_PER_SM", 1 << 20)


@dataclass(frozen=True)
class Case:
    """One sequence for each position; rep query heads of D features for each of KV key/value heads."""

    positions: tuple[int, ...]
    KV: int
    rep: int
    D: int
    length: int
    window: int | None = None
    dtype: np.dtype = FLOAT16

    def operands(self):
        """(q, keys, values, positions): what a query must not see is NaN."""
        rng = np.random.default_rng([self.KV, self.rep, self.D, self.length])
        B = len(self.positions)
        q = rng.standard_normal((B, self.KV, self.rep, self.D)).astype(self.dtype)
        keys, values = rng.standard_normal((2, B, self.KV, self.length, self.D)).astype(self.dtype)
        for b in range(B):
            first, end = self.seen(b)
            for a in keys[b], values[b]:
                a[:, :first] = a[:, end:] = np.nan
        return q, keys, values, np.array(self.positions, np.int32)

    def seen(self, b):
        """The keys [first, end) of sequence b."""
        end = self.positions[b] + 1
        return max(0, end - (self.window or end)), end

    def run(self, xp, max_keys=None, scale=SCALE, **options):
        operands = map(xp.asarray, self.operands())
        most = max_keys or max(1, max(self.positions) + 1)
        return to_numpy(decode_attention(*operands, scale, self.window, max_keys=most, **options))


CASES = {
    "one_key": Case((0,), 1, 1, 64, 8),
    "a_tile_and_one_key": Case((16,), 1, 1, 64, 24),
    "padding": Case((5, -1, 40), 2, 4, 64, 48),
    "cache_is_full": Case((127,), 1, 8, 128, 128),
    "two_splits": Case((129,), 2, 3, 128, 320),
    "many_splits_of_ragged_sequences": Case((700, 30, 511), 1, 2, 64, 712),
    "nine_heads": Case((300,), 1, 9, 96, 304),
    "sixteen_heads": Case((40,), 2, 16, 64, 48),
    "more_heads_than_a_fragment": Case((200,), 1, 20, 80, 208),
    "head_dim_80": Case((150,), 2, 2, 80, 160),
    "head_dim_96": Case((77,), 1, 5, 96, 80),
    "head_dim_112": Case((33,), 1, 2, 112, 40),
    "head_dim_256": Case((140,), 1, 4, 256, 144),
    "head_dim_16": Case((50,), 3, 1, 16, 56),
    "window": Case((300, 20), 1, 4, 64, 320, window=37),
    "window_across_splits": Case((400,), 1, 4, 64, 512, window=200),
    "window_of_one": Case((129,), 1, 2, 64, 160, window=1),
    "bfloat16": Case((260, 17), 2, 4, 128, 264, dtype=BFLOAT16),
    "bfloat16_head_dim_80": Case((90,), 1, 12, 80, 96, dtype=BFLOAT16),
}


def expected(case, scale=SCALE):
    """The result and its bound in float64, (B, KV * rep * D)."""
    q, keys, values, positions = (a.astype(np.float64) for a in case.operands())
    unit, tiny = unit_roundoff(case.dtype), TINY[case.dtype]
    exact, bound = np.zeros((2, *q.shape))
    for b in np.flatnonzero(positions >= 0):
        seen = slice(*case.seen(b))
        for kv in range(case.KV):
            k, v = keys[b, kv, seen], values[b, kv, seen]
            scores = scale * (q[b, kv] @ k.T)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            total = p.sum(-1, keepdims=True)
            p /= total
            # of a score, in units of exp: the product, whose sum mma truncates, and the roundings around it
            wrong = (
                scale * 2 * (case.D + 4) * EPS * (np.abs(q[b, kv]) @ np.abs(k).T).max() + 8 * EPS * np.abs(scores).max()
            )
            relative = 2 * wrong + (2 * len(k) + 40) * EPS  # twice: of a probability and of their sum
            y, size = p @ v, p @ np.abs(v)
            # each probability is rounded once, as a number below 1; then the result
            rounded = size * unit + tiny * np.abs(v).sum(0) / total
            exact[b, kv], bound[b, kv] = y, rounded + 1.01 * (size * relative + unit * np.abs(y)) + tiny
    return exact.reshape(len(q), -1), bound.reshape(len(q), -1)


@pytest.mark.parametrize("name", CASES)
def test_decode_attention(xp, settings, name):
    settings.seed = 3
    case = CASES[name]
    y = case.run(xp)
    assert y.dtype == case.dtype
    assert_bounded(y, *expected(case))


def test_formula():
    for name in "padding", "window", "bfloat16", "more_heads_than_a_fragment":
        case = CASES[name]
        q, keys, values, positions = case.operands()
        keys, values = (np.nan_to_num(a.astype(np.float32)).astype(a.dtype) for a in (keys, values))
        y = ref.decode_attention(q, keys, values, positions, SCALE, case.window)
        assert y.dtype == case.dtype
        assert_bounded(y, *expected(case))


def test_large_scores(xp):
    """The largest score is far above the others, in any tile, warp and split: without it exp2 would overflow."""
    for at in 0, 17, 100, 150, 299:
        q, keys, values, positions = Case((299,), 1, 2, 64, 304).operands()
        q[:], keys[:, :, :300] = 1, 0
        keys[:, :, at], values[:, :, at] = 16, np.arange(64)
        y = decode_attention(*map(xp.asarray, (q, keys, values, positions)), 4.0, max_keys=300)
        assert_exact(to_numpy(y), np.tile(np.arange(64, dtype=np.float16), 2)[None])


def test_equal_scores_average_the_values_exactly(xp):
    """Values that tell which key, feature and head they are of; every sum is exact."""
    q, keys, values, positions = Case((255,), 2, 3, 128, 256).operands()
    q[:] = 0
    values[:] = np.arange(256)[:, None] % 8 + np.arange(128) % 64 * 8 + np.arange(2)[:, None, None] * 512
    y = decode_attention(*map(xp.asarray, (q, keys, values, positions)), 1.0, max_keys=256)
    want = values.astype(np.float64).mean(2).repeat(3, axis=1).reshape(1, -1)
    assert_bounded(to_numpy(y), want, 2.0**-11 * want)


# ---- bits that depend on a row alone


@pytest.mark.parametrize("name", ["two_splits", "many_splits_of_ragged_sequences", "window_across_splits"])
def test_bits_do_not_depend_on_max_keys(xp, name):
    case = CASES[name]
    want = case.run(xp)
    for max_keys in max(case.positions) + 1, 512, case.length:
        if max(case.positions) < max_keys <= case.length:
            assert_exact(case.run(xp, max_keys), want)


def test_bits_do_not_depend_on_other_sequences(xp):
    case = CASES["many_splits_of_ragged_sequences"]
    want = case.run(xp)
    q, keys, values, _ = map(xp.asarray, case.operands())
    for other in (-1, 0, 200), (100, 30, -1):
        changed = xp.asarray(np.array([other[0], 30, other[2]], np.int32))
        y = decode_attention(q, xp.nan_to_num(keys), xp.nan_to_num(values), changed, SCALE, max_keys=712)
        assert_exact(to_numpy(y)[1], want[1])


def test_deterministic(settings):
    runs = []
    for settings.seed in range(4):
        runs.append(CASES["many_splits_of_ragged_sequences"].run(np))
    for other in runs[1:]:
        assert_exact(other, runs[0])


def test_counters_are_zero_again(xp, monkeypatch):
    made, workspace = [], module.workspace
    monkeypatch.setattr(module, "workspace", lambda *args: made.append(workspace(*args)) or made[-1])
    CASES["many_splits_of_ragged_sequences"].run(xp)
    assert made[0][1].size >= 3
    assert not made[0][1].any()


def test_out(xp):
    case = CASES["padding"]
    out = xp.full((3, 2 * 4 * 64), 7, np.float16)
    y = decode_attention(*map(xp.asarray, case.operands()), SCALE, max_keys=48, out=out)
    assert y is out
    assert_exact(to_numpy(out), case.run(xp))


def test_split_keys(monkeypatch):
    """Longer where other pairs fill the device or the cache is long; a multiple of what a block takes at a time."""
    monkeypatch.setattr(module, "BLOCKS_PER_SM", 6)
    config = module.config_for(np.float16, 128, 8)
    lengths = [config.split_keys(pairs, 8192, Device(90, 132)) for pairs in (1, 8, 256, 1000)]
    assert lengths == [128, 128, 2048, 8192]
    assert config.split_keys(1, 8, Device(90, 132)) == 128


# ---- what is refused


def test_takes(monkeypatch):
    assert module.takes(np.float16, 64, 1, np)
    assert module.takes(BFLOAT16, 256, 40, np)
    for dtype, D, rep in (np.float32, 64, 1), (np.float16, 24, 1), (np.float16, 272, 1), (np.float16, 64, 0):
        assert not module.takes(dtype, D, rep, np)
    monkeypatch.delenv("CUTPQ_HOST_KERNELS")
    assert not module.takes(np.float16, 64, 1, np)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (dict(q=np.zeros((2, 1, 4, 24), np.float16)), ValueError, r"keys must have shape \(2, 1, length, 24\)"),
        (dict(q=np.zeros((2, 1, 4, 64), np.float32)), TypeError, "q must be float16"),
        (dict(keys=np.zeros((2, 1, 48, 64), BFLOAT16)), TypeError, "keys must be float16"),
        (dict(values=np.zeros((2, 1, 40, 64), np.float16)), ValueError, r"values must have shape \(2, 1, 48, 64\)"),
        (dict(positions=np.zeros(2, np.int64)), TypeError, "positions must be int32"),
        (dict(max_keys=49), ValueError, "max_keys must be 1 to 48, the length of the cache, got 49"),
        (dict(scale=0.0), ValueError, "scale must be above 0 and finite, got 0.0"),
        (dict(window=0), ValueError, "window must be at least 1, got 0"),
        (dict(out=np.zeros((2, 4), np.float16)), ValueError, r"out must have shape \(2, 256\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_operands(changed, error, message):
    q, keys = np.zeros((2, 1, 4, 64), np.float16), np.zeros((2, 1, 48, 64), np.float16)
    arguments = dict(q=q, keys=keys, values=keys, positions=np.zeros(2, np.int32), scale=1.0, max_keys=48)
    with pytest.raises(error, match=message):
        decode_attention(**(arguments | changed))


def test_features_that_no_fragment_fits():
    a = np.zeros((1, 1, 8, 24), np.float16)
    with pytest.raises(ValueError, match="multiple of 16 from 16 to 256, got D=24"):
        decode_attention(a, a, a, np.zeros(1, np.int32), 1.0, max_keys=8)
