"""Data that any rank can predict, and the check of a sum of it: which elements are wrong.

An element is a function of (seed, rank, index), so that every rank knows what all ranks brought, and checks a
slice of the sum against float64. Slices begin where blocks do, for a codec's bound is that of whole blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from reference import EPS32

from cutpq.array import Array, bfloat16, to_numpy
from cutpq.codec import Codec
from cutpq.comm import Communicator
from cutpq.formats import BLOCKS

CHUNK = 1 << 16  # elements that share a generator

# Of a dtype: the largest relative error of a rounding to it, and half the spacing of its subnormal numbers.
ROUNDING = {
    np.dtype(np.float16): (2.0**-11, 2.0**-25),
    np.dtype(bfloat16): (2.0**-8, 2.0**-134),
    np.dtype(np.float32): (EPS32, 2.0**-150),
}


def term(seed: int, rank: int, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    """Elements start..stop of what `rank` brings: standard normal, the same for whoever asks."""
    parts = [np.empty(0, np.float32)]
    for chunk in range(start // CHUNK, -(-stop // CHUNK)):
        first, last = max(start - chunk * CHUNK, 0), min(stop - chunk * CHUNK, CHUNK)
        rng = np.random.default_rng([seed, rank, chunk])
        parts.append(rng.standard_normal(last, np.float32)[first:])
    return np.concatenate(parts).astype(dtype)


def slices(count: int, ranks: int) -> list[tuple[int, int]]:
    """From where to where each rank checks: as even as whole blocks of any codec allow."""
    block = max(BLOCKS)
    ends = [min(-(-count // block) * rank // ranks * block, count) for rank in range(ranks + 1)]
    return list(pairwise(ends))


def sum_and_bound(
    terms: Iterable[np.ndarray], codec: Codec | None, algo: str, each_step: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(exact, bound), both (n,) float64: |y - exact| <= bound for a right sum y of the ranks' terms.

    terms      what each rank brings, (n,), from the start of a block
    algo       "plain", "oneshot", "twoshot"; "auto" may round as often as "twoshot"
    each_step  a plain sum is rounded to the terms' dtype at every step of a ring, as NCCL does

    The codec's bound of each term, for twoshot that of the sum, too, as large as it may have become; then the
    additions in float32 and the rounding to the terms' dtype.
    """
    terms = list(terms)
    unit, tiny = ROUNDING[terms[0].dtype]
    wide = [x.astype(np.float64) for x in terms]
    exact, magnitude = sum(wide), sum(np.abs(x) for x in wide)
    coded = np.zeros(exact.shape)
    if codec is not None and algo != "plain":
        coded = coding_bound([np.abs(x) for x in wide], np.abs(exact), codec, algo)
    adding = len(terms) * EPS32 * (magnitude + coded)
    if each_step and algo in ("plain", "auto"):
        adding = adding + (len(terms) - 1) * unit * magnitude
    return exact, coded + adding + unit * (np.abs(exact) + coded + adding) + tiny


def coding_bound(terms: Iterable[np.ndarray], total: np.ndarray, codec: Codec, algo: str) -> np.ndarray:
    """What a codec may add to the error of a sum, (n,) float64: its bound of each term, for twoshot of the sum, too.

    terms, total  (n,) float64, from the start of a block: how large each term and the exact sum may be at most
    """
    terms = list(terms)
    coded = sum(codec.bound(_as_float32(x)) for x in terms)
    if algo == "oneshot":
        return coded
    adding = len(terms) * EPS32 * (sum(terms) + coded)
    return coded + codec.bound(_as_float32(total + coded + adding))


def _as_float32(magnitude: np.ndarray) -> np.ndarray:
    """At least as large, though a cast may round down."""
    with np.errstate(over="ignore"):
        return (magnitude * (1 + 2 * EPS32)).astype(np.float32)


@dataclass(frozen=True)
class Verdict:
    """wrong: elements that differ between ranks or lie outside the bound; rel_err: |y - exact| / |exact|, 2-norms."""

    wrong: int
    rel_err: float


def verify(y: Array, exact: np.ndarray, bound: np.ndarray, comm: Communicator) -> Verdict:
    """Check a sum on all ranks, each its slice (see slices). The verdict is the same on all.

    y             (count,) this rank's sum
    exact, bound  of this rank's slice
    """
    sizes = [stop - start for start, stop in slices(y.size, comm.size)]
    mine = sizes[comm.rank]
    found = to_numpy(comm.all_to_all(y, sizes, [mine] * comm.size)).reshape(comm.size, mine)
    bits = found.view(f"u{found.itemsize}")
    differs = (bits != bits[0]).any(axis=0)
    error = np.abs(found[0].astype(np.float64) - exact)
    wrong = differs | ~(error <= bound)  # NaN is wrong, too
    part = np.array([wrong.sum(), (error**2).sum(), (exact**2).sum()], np.float64)
    count, noise, signal = to_numpy(comm.all_gather(comm.xp.asarray(part))).sum(axis=0)
    return Verdict(int(count), float(np.sqrt(noise / signal)) if signal else 0.0)
