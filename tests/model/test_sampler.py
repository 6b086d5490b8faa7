"""Which distribution a Sampler draws from, by its definition in slow loops, and that it draws from that one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from assertions import assert_bounded, assert_exact

from cutpq.array import bfloat16, to_numpy
from cutpq.model.sampler import Sampler, uniform

EPS = 2.0**-52


def defined(s: Sampler, logits: list[float], seen: list[int]) -> list[float]:
    """The probabilities of one row, token by token."""
    values = [(v / s.repetition_penalty if v > 0 else v * s.repetition_penalty) if t in seen else v
              for t, v in enumerate(logits)]  # fmt: skip
    top = max(values)
    if s.temperature == 0:
        return [float(t == values.index(top)) for t in range(len(values))]
    weights = [math.exp((v - top) / s.temperature) for v in values]
    if s.top_k:
        least = sorted(values, reverse=True)[min(s.top_k, len(values)) - 1]
        weights = [w if v >= least else 0.0 for w, v in zip(weights, values, strict=True)]
    total = math.fsum(weights)
    chances = [w / total for w in weights]
    if s.top_p < 1:
        by_chance = sorted(range(len(chances)), key=lambda t: (-chances[t], t))
        kept, reached = set(), 0.0
        for t in by_chance:
            if reached >= s.top_p:
                break
            kept.add(t)
            reached += chances[t]
        chances = [c if t in kept else 0.0 for t, c in enumerate(chances)]
        total = math.fsum(chances)
        chances = [c / total for c in chances]
    return chances


SAMPLERS = {
    "as_the_model_says": Sampler(),
    "cold": Sampler(temperature=0.3),
    "hot": Sampler(temperature=2.5),
    "nearly_greedy": Sampler(temperature=1e-6),
    "greedy": Sampler(temperature=0),
    "top_k": Sampler(top_k=5),
    "top_k_of_one": Sampler(top_k=1),
    "top_k_beyond_the_vocabulary": Sampler(top_k=500),
    "top_p": Sampler(top_p=0.6),
    "tiny_top_p": Sampler(top_p=1e-9),
    "penalty": Sampler(repetition_penalty=1.7),
    "greedy_with_penalty": Sampler(temperature=0, repetition_penalty=3.0),
    "all_of_them": Sampler(0.8, 20, 0.9, 1.2),
}


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32], ids=["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_probabilities_are_the_defined_ones(xp, name, dtype) -> None:
    """float32 penalties, then float64: a token is kept or not as defined, its probability within the roundings."""
    seed = 11
    print("seed", seed)
    rng = np.random.default_rng(seed)
    logits = (3 * rng.standard_normal((4, 101))).astype(dtype)
    seen = [[1, 2, 2], [100], list(range(50)), [0]]
    sampler = SAMPLERS[name]
    got = to_numpy(sampler.probabilities(xp.asarray(logits), seen))
    rows = logits.astype(np.float32).astype(np.float64).tolist()
    want = np.array([defined(sampler, row, tokens) for row, tokens in zip(rows, seen, strict=True)])
    if sampler.repetition_penalty == 1:
        assert_exact(got > 0, want > 0)
    # A logit's rounding by a float32 penalty is 2**-24 of it, and exp() makes a relative error of that, over T.
    penalty = 0.0 if sampler.repetition_penalty == 1 else 2.0**-24
    relative = 300 * EPS + 2 * penalty * 40 / max(sampler.temperature, 1e-3)
    assert_bounded(got, want, relative * want + 1e-300)


def test_ties(xp) -> None:
    logits = xp.asarray(np.array([[1.0, 3.0, 3.0, 2.0, 2.0, 0.0]], np.float32))
    greedy = Sampler(temperature=0)
    assert_exact(greedy(logits, [[]], [0], 0), np.array([1]))
    assert_exact(to_numpy(Sampler(top_k=3).probabilities(logits)[0] > 0), np.array([0, 1, 1, 1, 1, 0], bool))
    nucleus = to_numpy(Sampler(top_p=0.5).probabilities(logits)[0] > 0)
    assert_exact(nucleus, np.array([0, 1, 1, 0, 0, 0], bool))  # 0.39 and 0.39, the first of which is not enough
    half = to_numpy(Sampler(top_p=0.5).probabilities(xp.zeros((1, 2), np.float32))[0])
    assert_exact(half, np.array([1.0, 0.0]))  # 0.5 reaches 0.5


def test_the_penalty_reads_only_what_was_seen(xp) -> None:
    logits = xp.asarray(np.array([[2.0, 1.9, -1.0], [2.0, 1.9, -1.0]], np.float32))
    assert_exact(Sampler(0, repetition_penalty=1.5)(logits, [[0, 2], [1]], [0, 1], 0), np.array([1, 0]))
    assert_exact(to_numpy(logits)[0], np.array([2.0, 1.9, -1.0], np.float32))  # the caller's logits stay


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """Pearson's statistic over the bins that can be; infinite where something came that cannot."""
    if counts[p == 0].any():
        return math.inf
    want = counts.sum() * p[p > 0]
    return float(((counts[p > 0] - want) ** 2 / want).sum())


def chi_square_limit(freedom: int) -> float:
    """The quantile of 1 - 1e-6 (4.753 of the normal distribution), by Wilson and Hilferty's approximation."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 4.753 * math.sqrt(part)) ** 3


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0.5, 8, 0.95)], ids=["plain", "all"])
def test_draws_have_the_distribution(xp, sampler) -> None:
    """Chi-square of 20,000 draws, along sequences and steps: below the limit, not so for a temperature 15 % higher."""
    logits = np.log(np.arange(1, 13) / 78.0).astype(np.float32)[None]
    p = to_numpy(sampler.probabilities(xp.asarray(logits)))[0]
    rows = xp.asarray(np.repeat(logits, 10_000, axis=0))
    drawn = sampler(rows, [[]] * 10_000, range(10_000), 7)
    along = [sampler(rows[:1000], [[]] * 1000, range(1000), step) for step in range(20, 30)]
    counts = np.bincount(np.concatenate([drawn, *along]), minlength=12)
    limit = chi_square_limit(int((p > 0).sum()) - 1)
    assert chi_square(counts, p) < limit
    warmer = replace(sampler, temperature=1.15 * sampler.temperature)
    assert chi_square(counts, to_numpy(warmer.probabilities(xp.asarray(logits)))[0]) > limit


def test_the_random_number_belongs_to_seed_sequence_and_step() -> None:
    numbers = {uniform(seed, sequence, step) for seed in range(5) for sequence in range(5) for step in range(5)}
    assert len(numbers) == 125
    assert all(0 <= u < 1 for u in numbers)
    assert uniform(2**64 - 1, 0, 0) != uniform(0, 0, 0)
    assert uniform(3, 4, 5) == 0.1669261059033691  # a text made today can be made again


def test_a_draw_does_not_depend_on_the_batch(xp) -> None:
    rng = np.random.default_rng(3)
    logits = xp.asarray(rng.standard_normal((6, 300)).astype(np.float32))
    sampler = Sampler(temperature=1.5, seed=9)
    together = sampler(logits, [[]] * 6, range(6), 2)
    alone = [int(sampler(logits[i : i + 1], [[]], [i], 2)[0]) for i in range(6)]
    assert together.tolist() == alone
    assert together.tolist() == sampler(logits, [[]] * 6, range(6), 2).tolist()
    assert together.tolist() != Sampler(temperature=1.5, seed=10)(logits, [[]] * 6, range(6), 2).tolist()


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53, 1.0])  # 1.0: what is drawn, rounded up to the total
def test_the_ends_of_the_distribution(xp, u, monkeypatch) -> None:
    """A token that cannot be is never drawn: not the first for 0, not the last for the largest number below 1."""
    monkeypatch.setattr("cutpq.model.sampler.uniform", lambda *_: u)
    logits = np.full((1, 50), -np.inf, np.float32)
    logits[0, 10:40] = np.random.default_rng(1).standard_normal(30)
    [token] = Sampler()(xp.asarray(logits), [[]], [0], 0)
    assert token == (10 if u == 0 else 39)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": -0.1}, r"temperature must be a number >= 0 .*, got -0\.1"),
        ({"temperature": math.nan}, "temperature must be .*, got nan"),
        ({"temperature": math.inf}, "temperature must be .*, got inf"),
        ({"top_k": -1}, "top_k must be a whole number >= 0 .*, got -1"),
        ({"top_p": 0.0}, r"top_p must be a number above 0 and at most 1, got 0\.0"),
        ({"top_p": 1.01}, "top_p must be .*, got 1.01"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty must be a number above 0, got 0\.0"),
        ({"seed": -1}, "seed must be a whole number from 0 to .*, got -1"),
        ({"seed": 2**64}, "seed must be .*, got 18446744073709551616"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields, said) -> None:
    with pytest.raises(ValueError, match=said):
        Sampler(**fields)
