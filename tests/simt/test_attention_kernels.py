"""rotate_qkv and softmax on the executor and on a GPU, alone and as attention, through the public functions."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from assertions import assert_bounded, assert_exact
from truth.reference import unit_roundoff

from cutpq.array import to_numpy
from cutpq.kernels import load as kernels
from cutpq.model.attention import attention, rotate_qkv, softmax, softmax_config
from cutpq.model.cache import Batch, Cache
from cutpq.ops import score_chunks
from cutpq.ops.score_chunks import Chunk

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
EPS = 2.0**-24  # unit roundoff of float32
TINY = {FLOAT16: 2.0**-25, BFLOAT16: 2.0**-120}  # half of the smallest number, and more than float32 flushes


@pytest.fixture(autouse=True)
def _host_kernels(monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")


@dataclass(frozen=True)
class Case:
    """Sequences with `past` tokens in the cache and `new` ones; heads of D features, KV of them for keys."""

    past: tuple[int, ...]
    new: tuple[int, ...]
    H: int
    KV: int
    D: int
    window: int | None = None
    rotated: bool = True
    length: int = 24
    dtype: np.dtype = FLOAT16

    def run(self, xp=np):
        """(qkv, angles, cache of one layer with `past` in it, batch), arrays of xp"""
        rng = np.random.default_rng([self.H, self.D, *self.new])
        cache = Cache(len(self.past), self.length, [self.KV], self.D, self.dtype, xp)
        cache.lengths[:] = self.past
        for b, n in enumerate(self.past):
            for array in cache.layers[0].keys, cache.layers[0].values:
                array[b, :, :n] = xp.asarray(rng.standard_normal((self.KV, n, self.D)).astype(self.dtype))
        batch = Batch.of([[0] * n for n in self.new], cache, 1, xp)
        M = sum(self.new)
        qkv = rng.standard_normal((M, (self.H + 2 * self.KV) * self.D)).astype(self.dtype)
        angle = rng.uniform(-3, 3, (M, self.D // 2))
        angles = tuple(xp.asarray(part(angle).astype(np.float32)) for part in (np.cos, np.sin))
        return xp.asarray(qkv), angles if self.rotated else None, cache.layers[0], batch

    @property
    def tokens(self):
        """(sequence, index among its new ones, position) of each new token."""
        return [(b, t, self.past[b] + t) for b, n in enumerate(self.new) for t in range(n)]


CASES = {
    "one_token": Case((0,), (1,), 1, 1, 16),
    "gqa": Case((0,), (5,), 6, 2, 64),
    "mqa": Case((0,), (3,), 5, 1, 32),
    "own_heads": Case((0, 0), (4, 4), 3, 3, 80),
    "ragged": Case((2, 0, 9), (1, 6, 3), 4, 2, 16),
    "decode": Case((7, 12), (1, 1), 4, 2, 96),
    "cache_is_full": Case((20, 3), (1, 4), 2, 1, 16, length=21),
    "window": Case((9, 0), (8, 8), 4, 2, 16, window=3),
    "window_far_from_the_start": Case((13, 15), (2, 3), 4, 2, 16, window=4),
    "window_of_one": Case((4,), (6,), 2, 1, 16, window=1),
    "not_rotated": Case((1,), (4,), 4, 2, 128, rotated=False),
    "bfloat16": Case((3, 0), (2, 5), 4, 2, 32, dtype=BFLOAT16),
}


def rotate(x, cos, sin):
    """Its value and its bound in float64: two float32 roundings, and one to x's dtype. x (M, heads, D)"""
    unit, tiny = unit_roundoff(x.dtype), TINY[x.dtype]
    v = x.astype(np.float64)
    a, b = np.split(v, 2, axis=-1)
    c, s = cos[:, None].astype(np.float64), sin[:, None].astype(np.float64)
    exact = np.concatenate([a * c - b * s, b * c + a * s], axis=-1)
    product = np.concatenate([np.abs(a * c), np.abs(b * c)], axis=-1)
    return exact, unit * np.abs(exact) + 1.01 * EPS * (product + np.abs(exact)) + tiny


# ---- rotate_qkv


@pytest.mark.parametrize("name", CASES)
def test_rotate_qkv(xp, name):
    case = CASES[name]
    qkv, angles, cache, batch = case.run(xp)
    old = to_numpy(cache.keys.copy()), to_numpy(cache.values.copy())
    q = to_numpy(rotate_qkv(qkv, angles, cache, batch))
    qkv, keys, values = (to_numpy(a) for a in (qkv, cache.keys, cache.values))
    assert q.shape == (len(case.new), case.KV, max(case.new), case.H // case.KV, case.D)
    assert q.dtype == qkv.dtype

    heads = qkv.reshape(len(qkv), -1, case.D)
    got_q = np.stack([q[b, :, t].reshape(case.H, case.D) for b, t, _ in case.tokens])
    got_k = np.stack([keys[b, :, p] for b, _, p in case.tokens])
    got_v = np.stack([values[b, :, p] for b, _, p in case.tokens])
    assert_exact(got_v, heads[:, -case.KV :])
    for got, want in (got_q, heads[:, : case.H]), (got_k, heads[:, case.H : -case.KV]):
        if angles is None:
            assert_exact(got, want)
        else:
            assert_bounded(got, *rotate(want, *map(to_numpy, angles)))

    for b, t, p in case.tokens:  # all else is as it was, and zero
        q[b, :, t] = 0
        old[0][b, :, p], old[1][b, :, p] = keys[b, :, p], values[b, :, p]
    assert_exact(keys, old[0])
    assert_exact(values, old[1])
    assert_exact(q, np.zeros_like(q))


def test_rotate_qkv_of_more_than_a_block(xp):
    case = Case((0, 5), (40, 19), 12, 4, 64, length=40)
    qkv, angles, cache, batch = case.run(xp)
    q = to_numpy(rotate_qkv(qkv, angles, cache, batch))
    heads, angles = to_numpy(qkv).reshape(len(qkv), -1, case.D), list(map(to_numpy, angles))
    got_q = np.stack([q[b, :, t].reshape(case.H, case.D) for b, t, _ in case.tokens])
    got_k = np.stack([to_numpy(cache.keys)[b, :, p] for b, _, p in case.tokens])
    assert_bounded(got_q, *rotate(heads[:, : case.H], *angles))
    assert_bounded(got_k, *rotate(heads[:, case.H : -case.KV], *angles))


def test_rotate_qkv_reads_what_is_not_aligned(xp):
    case = CASES["gqa"]
    want_cache = case.run(xp)[2]
    qkv, angles, cache, batch = case.run(xp)
    want = rotate_qkv(qkv, angles, want_cache, batch)
    apart = [xp.concatenate([a[:, :1], a], axis=1)[:, 1:] for a in (qkv, *angles)]
    assert_exact(to_numpy(rotate_qkv(apart[0], tuple(apart[1:]), cache, batch)), to_numpy(want))
    assert_exact(to_numpy(cache.keys), to_numpy(want_cache.keys))


# ---- softmax


def probabilities(scores, seen, scale, dtype):
    """Value and bound in float64; seen: bool as scores."""
    unit, tiny = unit_roundoff(dtype), TINY[dtype]
    v = np.where(seen, scores.astype(np.float64), -np.inf)
    largest = np.where(seen.any(-1), v.max(-1), 0)[..., None]
    d = scale * (v - largest)
    p = np.exp(d)
    p /= np.maximum(p.sum(-1, keepdims=True), 1)
    away = np.where(seen, np.abs(d), 0)
    threads = softmax_config(scores.shape[-1], 0).THREADS
    additions = 8 * -(-scores.shape[-1] // (8 * threads)) + 6 + threads // 32
    # two roundings of the exponent, here and on average in the sum; exp to 2 units, twice; the sum; 1 / sum, product
    relative = 2 * EPS * (away + (p * away).sum(-1, keepdims=True)) + (8 + additions + 2) * EPS
    return p, p * (unit + 1.01 * relative) + np.where(p > 0, tiny, 0)


def chunk(pairs, queries, keys):
    return Chunk(slice(*pairs), slice(*queries), slice(*keys))


SOFTMAX = {  # positions, KV, rep, chunk of pairs and queries and keys, window
    "one_key": ([[0]], 1, 1, chunk((0, 1), (0, 1), (0, 8)), None),
    "causal": ([[0, 1, 2, 3, 4, 5, 6, 7, 8]], 2, 3, chunk((0, 2), (0, 9), (0, 16)), None),
    "later_queries": ([[3, 4, 5, 6], [11, 12, 13, 14]], 2, 2, chunk((0, 4), (1, 3), (0, 16)), None),
    "later_pairs": ([[3, 4, 5], [11, 12, 13], [0, 1, 2]], 2, 2, chunk((3, 6), (1, 3), (0, 16)), None),
    "padding": ([[5, 6, 7], [0, -1, -1], [9, 10, -1]], 2, 2, chunk((0, 6), (0, 3), (0, 16)), None),
    "window": ([[20, 21, 22, 23], [13, 14, -1, -1]], 1, 2, chunk((0, 2), (0, 4), (8, 24)), 5),
    "window_beyond_the_first_key": ([[9, 10]], 1, 1, chunk((0, 1), (0, 2), (8, 16)), 100),
    "several_steps_of_a_warp": ([[700, 701]], 1, 1, chunk((0, 1), (0, 2), (0, 704)), 690),
    "four_warps": ([[1100, 2999, 17]], 1, 1, chunk((0, 1), (0, 3), (0, 3000)), None),
    "sixteen_warps": ([[8998]], 1, 1, chunk((0, 1), (0, 1), (0, 9000)), 8900),
}


def run_softmax(xp, scores, positions, *rest):
    return to_numpy(softmax(xp.asarray(scores), xp.asarray(positions), *rest))


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax(xp, settings, name, dtype):
    settings.seed = 3
    positions, KV, rep, some, window = SOFTMAX[name]
    positions = np.array(positions, np.int32)
    own = np.repeat(np.repeat(positions, KV, axis=0), rep, axis=1)  # of every row of every pair
    own = own[some.pairs, some.queries.start * rep : some.queries.stop * rep, None]
    key = np.arange(some.keys.start, some.keys.stop)
    seen = (key <= own) & (True if window is None else own - key < window)
    shape = some.shape(rep)
    assert seen.shape == shape
    scores = (np.random.default_rng(shape).standard_normal(shape) * 30).astype(np.float32)
    scores[~seen] = np.nan  # nobody may see it
    got = run_softmax(xp, scores, positions, some, KV, 0.125, window, dtype)
    assert got.dtype == dtype
    assert_exact(got[~seen], np.zeros((~seen).sum(), dtype))
    assert_bounded(got, *probabilities(scores, seen, 0.125, dtype))


def test_softmax_of_large_scores_and_of_equal_ones(xp):
    scores = np.zeros((3, 1, 8), np.float32)
    scores[0, 0] = [3e38, -3e38, 3e38, 0, 1, 2, 3, 4]
    scores[1] = -3e38
    positions, every = np.full((3, 1), 7, np.int32), chunk((0, 3), (0, 1), (0, 8))
    got = run_softmax(xp, scores, positions, every, 1, 1.0, None, FLOAT16)
    assert_exact(got[0, 0], np.array([0.5, 0, 0.5, 0, 0, 0, 0, 0], np.float16))
    assert_exact(got[1:], np.full((2, 1, 8), 0.125, np.float16))


def test_softmax_with_the_largest_in_any_lane(xp):
    """Of four warps, and far above the others: without it they would overflow."""
    at = [0, 8 * 13, 8 * 31 + 7, 8 * 32, 8 * 77 + 1, 8 * 127 + 5, 8 * 128, 1503]
    scores = np.zeros((1, len(at), 1504), np.float32)
    scores[0, range(len(at)), at] = 1000
    every = chunk((0, 1), (0, len(at)), (0, 1504))
    got = run_softmax(xp, scores, np.full((1, len(at)), 1503, np.int32), every, 1, 0.5, None, FLOAT16)
    assert_exact(got, (scores > 0).astype(np.float16))


def test_softmax_is_deterministic(settings):
    scores = np.random.default_rng(0).standard_normal((2, 3, 1504)).astype(np.float32)
    positions = np.array([[1400, 1401, 1500]] * 2, np.int32)
    runs = []
    for settings.seed in range(4):
        runs.append(softmax(scores, positions, chunk((0, 2), (0, 3), (0, 1504)), 1, 1.0, None, FLOAT16))
    for other in runs[1:]:
        assert_exact(other, runs[0])


# ---- attention


def attend(q, keys, values, position, scale, window):
    """One query's result and its bound in float64; keys and values (length, D), as they are stored."""
    unit, tiny = unit_roundoff(q.dtype), TINY[q.dtype]
    first = 0 if window is None else max(0, position - window + 1)
    q, k, v = (x.astype(np.float64) for x in (q, keys[first : position + 1], values[first : position + 1]))
    scores = scale * (k @ q)
    p = np.exp(scores - scores.max())
    p /= p.sum()
    wrong = scale * (len(q) + 2) * EPS * (np.abs(k) @ np.abs(q)).max()  # of a score: the product, in any order
    relative = 2 * wrong + 4 * EPS * (scores.max() - scores.min()) + (20 + len(keys)) * EPS
    exact, size = p @ v, p @ np.abs(v)
    # probabilities are rounded, and then their sum over the values, in any order
    return exact, size * (unit + 1.01 * relative) + tiny * np.abs(v).sum(0) + 1.01 * unit * np.abs(exact) + tiny


@pytest.mark.parametrize("score_bytes", [1, 1 << 25], ids=["query_by_query", "all_queries"])
@pytest.mark.parametrize("name", CASES)
def test_attention(xp, name, score_bytes, monkeypatch):
    monkeypatch.setattr(score_chunks, "SCORE_BYTES", score_bytes)
    case = CASES[name]
    qkv, angles, cache, batch = case.run(xp)
    kv_of_head = np.arange(case.H) // (case.H // case.KV)
    y = to_numpy(attention(qkv, angles, cache, batch, kv_of_head, 0.3, case.window))
    assert y.dtype == case.dtype
    again = case.run(xp)[2]
    q = to_numpy(rotate_qkv(qkv, angles, again, batch))
    keys, values = to_numpy(cache.keys), to_numpy(cache.values)
    assert_exact(keys, to_numpy(again.keys))
    exact, bound = np.empty((2, len(qkv), case.H, case.D))
    for m, (b, t, p) in enumerate(case.tokens):
        for h in range(case.H):
            kv, r = divmod(h, case.H // case.KV)
            operands = q[b, kv, t, r], keys[b, kv], values[b, kv]
            exact[m, h], bound[m, h] = attend(*operands, p, 0.3, case.window)
    assert_bounded(y, exact.reshape(y.shape), bound.reshape(y.shape))


def test_what_the_kernels_cannot_do_takes_the_formulas(monkeypatch):
    """Ten features of a head, float32, and heads that share keys unevenly."""
    monkeypatch.setattr(kernels, "load", lambda *_: pytest.fail("a kernel"))
    cases = [
        (Case((2,), (3,), 2, 1, 10), [0, 0]),
        (Case((2,), (3,), 2, 1, 16, dtype=np.dtype(np.float32)), [0, 0]),
        (Case((2,), (3,), 3, 2, 16), [0, 0, 1]),
        (Case((2,), (3,), 4, 2, 16), [0, 0, 0, 1]),
    ]
    for case, kv_of_head in cases:
        y = attention(*case.run(), np.array(kv_of_head), 0.3)
        assert y.shape == (3, case.H * case.D)
        assert np.isfinite(y.astype(np.float32)).all()
    with pytest.raises(pytest.fail.Exception, match="a kernel"):
        attention(*CASES["gqa"].run(), np.arange(6) // 3, 0.3)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (dict(qkv=np.zeros((5, 639), np.float16)), ValueError, r"qkv must have shape \(5, 640\)"),
        (dict(qkv=np.zeros((5, 640), BFLOAT16)), TypeError, "qkv must be float16"),
        (dict(scale=0.0), ValueError, "scale must be above 0, got 0.0"),
    ],
    ids=["columns", "dtype", "scale"],
)
def test_wrong_operands(changed, error, message):
    qkv, angles, cache, batch = CASES["gqa"].run()
    arguments = dict(qkv=qkv, angles=angles, cache=cache, batch=batch, kv_of_head=np.arange(6) // 3, scale=0.3)
    with pytest.raises(error, match=message):
        attention(**(arguments | changed))


def test_rotate_qkv_wants_heads_of_sixteens_and_whole_groups_of_them():
    for case in Case((0,), (1,), 2, 1, 24), Case((0,), (1,), 3, 2, 16):
        with pytest.raises(ValueError, match=f"multiple of 16 and H of KV={case.KV}, got D={case.D}"):
            rotate_qkv(*case.run())


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((1, 2, 12), np.float32), "of a multiple of 8 keys, got 12"),
        (np.zeros((2, 2, 12), np.float32), r"scores must have shape \(1, 2, 12\)"),
    ],
    ids=["columns", "pairs"],
)
def test_softmax_of_other_scores_than_the_chunk_has(scores, message):
    with pytest.raises(ValueError, match=message):
        softmax(scores, np.zeros((1, 1), np.int32), chunk((0, 1), (0, 1), (0, 12)), 1, 1.0, None, FLOAT16)
