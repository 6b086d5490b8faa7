"""Tokens drawn from logits: which distribution, and which token of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..array import Array, array_module, to_float32, to_numpy


@dataclass(frozen=True)
class Sampler:
    """How the next token is drawn. Every field's default leaves the model's distribution as it is.

    temperature  logits are divided by it; 0 takes the most likely token, the first of several
    top_k        only so many of the most likely tokens (and those as likely as the last of them); 0: all
    top_p        only the most likely tokens that have, together, at least this probability; 1: all
    repetition_penalty  logits of tokens that the sequence has already are divided by it where they are positive and
                 multiplied where negative (CTRL, arXiv 1909.05858); 1: none
    seed         of the random numbers: equal seeds, equal tokens

    They apply in the order: repetition_penalty, temperature, top_k, top_p. Raises ValueError for a value out of
    range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "temperature": (self.temperature, 0 <= self.temperature < math.inf, "a number >= 0 (0 for the likeliest)"),
            "top_k": (self.top_k, self.top_k >= 0, "a whole number >= 0 (0 for all tokens)"),
            "top_p": (self.top_p, 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "a number above 0"),
            "seed": (self.seed, 0 <= self.seed < 1 << 64, "a whole number from 0 to 2**64 - 1"),
        }
        for name, (value, holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {value}")

    def __call__(self, logits: Array, seen: Sequence[Sequence[int]], sequences: Sequence[int], step: int) -> np.ndarray:
        """The next token of each sequence, (B,) int64 in host memory.

        logits     (B, vocabulary), NumPy or CuPy
        seen       the tokens that each sequence has; read only where there is a repetition penalty
        sequences  the number of each sequence, and `step`, of its new token: what seed, sequence and step give is one
                   random number, so that a token depends neither on the rest of the batch nor on the number of ranks
        """
        if self.temperature == 0:
            return to_numpy(self._penalized(logits, seen).argmax(axis=1)).astype(np.int64)
        xp = array_module(logits)
        below = _running_sums(self.probabilities(logits, seen))
        total = below[:, -1:]
        drawn = xp.asarray([uniform(self.seed, sequence, step) for sequence in sequences])[:, None] * total
        # The first token whose running sum exceeds the drawn number. Rounding may raise that number to the total: then
        # it is the last token with a probability above 0.
        return to_numpy(((below <= drawn) & (below < total)).sum(axis=1)).astype(np.int64)

    def probabilities(self, logits: Array, seen: Sequence[Sequence[int]] = ()) -> Array:
        """(B, vocabulary) float64: what a token is drawn from, rows that sum to 1 up to rounding."""
        xp = array_module(logits)
        if self.temperature == 0:
            likeliest = self._penalized(logits, seen).argmax(axis=1)
            return (xp.arange(logits.shape[1]) == likeliest[:, None]).astype(xp.float64)
        scaled = self._penalized(logits, seen).astype(xp.float64)
        # The largest is subtracted first: divided by a small temperature it might be infinite.
        scaled = (scaled - scaled.max(axis=1, keepdims=True)) / self.temperature
        if 0 < self.top_k < scaled.shape[1]:
            least = xp.partition(scaled, scaled.shape[1] - self.top_k, axis=1)[:, -self.top_k, None]
            scaled = xp.where(scaled < least, -xp.inf, scaled)
        p = xp.exp(scaled)
        p /= p.sum(axis=1, keepdims=True)
        if self.top_p < 1:
            p = _nucleus(p, self.top_p)
            p /= p.sum(axis=1, keepdims=True)
        return p

    def _penalized(self, logits: Array, seen: Sequence[Sequence[int]]) -> Array:
        """float32 logits, with the repetition penalty."""
        values = to_float32(logits)
        if self.repetition_penalty == 1:
            return values
        xp = array_module(logits)
        tokens = [np.unique(row) for row in seen]
        rows = xp.asarray(np.repeat(np.arange(len(tokens)), [len(row) for row in tokens]))
        at = rows, xp.asarray(np.concatenate(tokens).astype(np.int64))
        values, old = values.copy(), values[at]
        values[at] = xp.where(old > 0, old / self.repetition_penalty, old * self.repetition_penalty)
        return values


def _nucleus(p: Array, top_p: float) -> Array:
    """p, with zeros for every token whose more likely tokens have at least top_p together."""
    xp = array_module(p)
    order = xp.argsort(-p, axis=1, kind="stable")
    ranked = xp.take_along_axis(p, order, axis=1)
    before = _running_sums(ranked) - ranked
    kept = xp.zeros(p.shape, bool)
    kept[xp.arange(len(p))[:, None], order] = before < top_p
    return xp.where(kept, p, 0.0)


def _running_sums(p: Array) -> Array:
    """The sums of each row's first numbers. Row by row: CuPy's scan of many rows has a barrier in divergent code."""
    return array_module(p).stack([row.cumsum() for row in p])


def uniform(seed: int, sequence: int, step: int) -> float:
    """A random number in [0, 1) that belongs to these three: Philox4x64 (Salmon et al. 2011), its first 53 bits."""
    raw = np.random.Philox(key=np.array([seed, sequence], np.uint64), counter=step).random_raw()
    return (int(raw) >> 11) * 2.0**-53
