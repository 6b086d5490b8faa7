"""Norms, rotation and attention against formulas written out, where whole models would not show an error."""

import numpy as np
import pytest
from assertions import assert_bounded

from cutpq.array import to_numpy
from cutpq.model import formulas as ref
from cutpq.ops.formulas import layer_norm, rmsnorm


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def near(got: np.ndarray, want: np.ndarray) -> None:
    assert_bounded(got, want, np.full(want.shape, 3e-6 * max(1.0, np.abs(want).max())))


def test_norms_of_large_values_do_not_overflow_float16(xp) -> None:
    x = (normal(3, 32) * 3000).astype(np.float16)
    weight, bias = normal(32, seed=1), normal(32, seed=2)
    v = x.astype(np.float64)
    rms = v / np.sqrt((v**2).mean(1, keepdims=True) + 1e-5) * weight
    x, weight_there, bias_there = (xp.asarray(a) for a in (x, weight, bias))
    assert_bounded(to_numpy(rmsnorm(x, weight_there, 1e-5)), rms, 2.0**-10 * np.abs(rms) + 1e-6)
    layer = (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5) * weight + bias
    assert_bounded(to_numpy(layer_norm(x, weight_there, bias_there, 1e-5)), layer, 2.0**-10 * np.abs(layer) + 1e-5)


def test_eps_keeps_a_row_of_zeros_finite() -> None:
    zeros = np.zeros((2, 8), np.float32)
    assert (rmsnorm(zeros, np.ones(8, np.float32), 1e-5) == 0).all()
    assert (layer_norm(zeros, np.ones(8, np.float32), np.full(8, 3, np.float32), 1e-5) == 3).all()


def test_rotation_leaves_lengths_and_depends_on_distance_only(xp) -> None:
    q, k = normal(1, 1, 8), normal(1, 1, 8, seed=1)
    angles = np.array([1.0, 0.3, 0.1, 0.02])

    def at(x, position):
        cos, sin = (xp.asarray(part(position * angles)[None]) for part in (np.cos, np.sin))
        return to_numpy(ref.rotate(xp.asarray(x), cos, sin))

    near(np.linalg.norm(at(q, 5)), np.linalg.norm(q))
    near((at(q, 9) * at(k, 4)).sum(), (at(q, 25) * at(k, 20)).sum())
    assert abs((at(q, 9) * at(k, 4)).sum() - (at(q, 9) * at(k, 5)).sum()) > 1e-3


def attend(q, k, v, positions, kv_of_head, scale, window):
    """Head by head and query by query, in float64."""
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(q.shape[:3]):
        p = positions[b, t]
        first = 0 if window is None else max(0, p - window + 1)
        keys, values = (a[b, kv_of_head[h], first : p + 1].astype(np.float64) for a in (k, v))
        scores = np.exp(scale * (keys @ q[b, t, h]) - 30)
        out[b, t, h] = (scores / scores.sum()) @ values
    return out


@pytest.mark.parametrize("pieces", [1, 40, 1 << 20], ids=["query_by_query", "some_queries", "all_queries"])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_attention_of_queries_anywhere(xp, window, pieces, monkeypatch) -> None:
    """Prompts that start at different positions, heads that share keys unevenly, keys beyond the last query."""
    monkeypatch.setattr(ref, "_SCORES", pieces)
    q, k, v = normal(2, 5, 3, 4), normal(2, 2, 11, 4, seed=1), normal(2, 2, 11, 4, seed=2)
    positions = np.array([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    k[:, :, 10:] = 1e30  # nobody may see it
    heads = np.array([0, 0, 1])
    there = [xp.asarray(a) for a in (q, k, v)]
    got = ref.attention(*there, positions, xp.asarray(heads), 0.7, window)
    near(to_numpy(got), attend(q, k, v, positions, heads, 0.7, window))


def test_large_scores_do_not_overflow() -> None:
    q, k, v = normal(1, 4, 1, 8) * 100, normal(1, 1, 4, 8, seed=1) * 100, normal(1, 1, 4, 8, seed=2)
    got = ref.attention(q, k, v, np.arange(4)[None], np.array([0]), 1.0)
    best = [np.argmax(k[0, 0, : t + 1] @ q[0, t, 0]) for t in range(4)]
    near(got[0, :, 0], v[0, 0, best].astype(np.float64))


def test_a_query_that_does_not_exist_gets_zeros() -> None:
    q, k, v = normal(2, 2, 1, 4), normal(2, 1, 3, 4, seed=1), normal(2, 1, 3, 4, seed=2)
    positions = np.array([[1, 2], [0, -1]])
    got = ref.attention(q, k, v, positions, np.array([0]), 1.0)
    assert (got[1, 1] == 0).all()
    near(got[:, :1], attend(q, k, v, positions, [0], 1.0, None)[:, :1])
