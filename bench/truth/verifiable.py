"""Data that any rank can predict, and the check of a sum of it: which elements are wrong.

An element is a function of (seed, rank, index), so that every rank knows what all ranks brought, and checks a
slice of the sum against float64. Slices begin where blocks do, for a codec's bound is that of whole blocks.

Two gates. No element may be farther from the exact sum than the codec's bound allows. That alone would let a wide
format's sum lack a rank, so the norm of all errors may not exceed that of a sum rounded by the formats' definitions,
computed from the same data in float64, by more than MARGIN; nor fall as much below it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import numpy as np

from cutpq.array import Array, bfloat16, ceil_div, to_numpy
from cutpq.codecs.codec import Codec
from cutpq.codecs.formats import BLOCKS, carry_threshold, magnitudes, scale_values
from cutpq.ranks.communicator import Communicator
from truth.reference import EPS32

CHUNK = 1 << 16  # consecutive elements that one random generator makes

# Relative slack of the error's norm. A float32 sum may differ in its last bit from the float64 one: where it lies
# halfway between two codes, or a block's largest magnitude at the edge of two scales, it is rounded the other way.
MARGIN = 0.02

# For each dtype: the largest relative error of a rounding to it, and half the spacing of its subnormal numbers.
ROUNDING = {
    np.dtype(np.float16): (2.0**-11, 2.0**-25),
    np.dtype(bfloat16): (2.0**-8, 2.0**-134),
    np.dtype(np.float32): (EPS32, 2.0**-150),
}


def term(seed: int, rank: int, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    """Elements start..stop of what `rank` brings: standard normal, the same for whoever asks."""
    parts = [np.empty(0, np.float32)]
    for chunk in range(start // CHUNK, ceil_div(stop, CHUNK)):
        first, last = max(start - chunk * CHUNK, 0), min(stop - chunk * CHUNK, CHUNK)
        rng = np.random.default_rng([seed, rank, chunk])
        parts.append(rng.standard_normal(last, np.float32)[first:])
    return np.concatenate(parts).astype(dtype)


def slices(count: int, ranks: int) -> list[tuple[int, int]]:
    """From where to where each rank checks: as even as whole blocks of any codec allow."""
    block = max(BLOCKS)
    ends = [min(ceil_div(count, block) * rank // ranks * block, count) for rank in range(ranks + 1)]
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
    exact, magnitude = reduce(np.add, wide), reduce(np.add, map(np.abs, wide))
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


def rounded_sum(terms: Iterable[np.ndarray], codec: Codec | None, algo: str) -> np.ndarray | None:
    """The sum as a codec is to round it, (n,) float64: each term, for twoshot the sum, too, then to the terms' dtype.

    terms  what each rank brings, (n,), from the start of a block

    None for a plain sum, whose roundings depend on who adds and whose bound is tight, and for "auto", which may be so.
    """
    if codec is None or algo not in ("oneshot", "twoshot"):
        return None
    terms = list(terms)
    total = reduce(np.add, (rounded(x.astype(np.float64), codec) for x in terms))
    if algo == "twoshot":
        total = rounded(total, codec)
    with np.errstate(over="ignore"):
        return total[: terms[0].size].astype(terms[0].dtype).astype(np.float64)


def rounded(x: np.ndarray, codec: Codec) -> np.ndarray:
    """x (n,) float64, from the start of a block, with every number at its nearest on its block's grid; whole blocks.

    By the definitions in cutpq/codecs/formats.py, and in another way than the codec: in float64, by searching the grid.
    """
    blocks = np.zeros((ceil_div(x.size, codec.block), codec.block))
    blocks.reshape(-1)[: x.size] = x
    if codec.rotate:
        blocks = blocks @ _hadamard(codec.block)
    grid = magnitudes(codec.element)[: codec.element.largest_code + 1].astype(np.float64)
    scales = _scales(np.abs(blocks).max(axis=1, keepdims=True), codec)
    blocks = np.copysign(grid[_nearest(grid, np.abs(blocks) / scales)] * scales, blocks)
    if codec.rotate:
        blocks = blocks @ _hadamard(codec.block) * _hadamard(codec.block)[0, 0] ** -2 / codec.block
    return blocks.reshape(-1)


def _scales(amax: np.ndarray, codec: Codec) -> np.ndarray:
    """X of blocks with these largest magnitudes; see formats.RULES."""
    scale, element = codec.scale, codec.element
    known = scale_values(scale)[: scale.largest_code + 1].astype(np.float64)
    if scale.mantissa_bits == 0:
        half, above = np.frexp(np.maximum(amax, np.finfo(float).tiny))
        mantissa, threshold = 2 * half, carry_threshold(element, codec.rule)
        carry = mantissa > threshold if codec.rule == "rceil" else mantissa >= threshold
        return np.clip(2.0 ** (above - 1.0 + carry - element.max_exponent), known[0], known[-1])
    ratio = amax / element.largest
    if codec.rule == "even":
        code = _nearest(known, ratio)
    else:
        code = (
            np.searchsorted(known, ratio, "left")
            if codec.rule == "rceil"
            else np.searchsorted(known, ratio, "right") - 1
        )
    return known[np.clip(code, scale.smallest_code, scale.largest_code)]


def _nearest(grid: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The place of the nearest in a rising grid; in the middle of two, of the even multiple of their distance."""
    steps = np.append(np.diff(grid), np.inf)
    middles = grid + steps / 2
    place = np.searchsorted(middles, x)
    return place + ((x == middles[place]) & (grid[place] / steps[place] % 2 == 1))


def _hadamard(size: int) -> np.ndarray:
    """+1 and -1 in Sylvester's order, times the power of two near 1/sqrt(size) that codec.py takes."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix * 2.0 ** -(size.bit_length() // 2)


def _as_float32(magnitude: np.ndarray) -> np.ndarray:
    """At least as large, though a cast may round down."""
    with np.errstate(over="ignore"):
        return (magnitude * (1 + 2 * EPS32)).astype(np.float32)


@dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    wrong         elements that differ between ranks or lie outside the bound
    rel_err       |y - exact| / |exact|, 2-norms
    expected_err  the same of the sum as it is to be rounded; None where that is not known
    """

    wrong: int
    rel_err: float
    expected_err: float | None

    @property
    def check(self) -> str:
        """ok, or FAIL; a NaN among the errors fails."""
        expected = self.expected_err
        rounded = expected is None or abs(self.rel_err - expected) <= MARGIN * expected
        return "ok" if rounded and not self.wrong else "FAIL"


def verify(y: Array, exact: np.ndarray, bound: np.ndarray, right: np.ndarray | None, comm: Communicator) -> Verdict:
    """Check a sum on all ranks, each its slice (see slices). The verdict is the same on all.

    y             (count,) this rank's sum
    exact, bound  of this rank's slice: sum_and_bound
    right         of it: rounded_sum
    """
    sizes = [stop - start for start, stop in slices(y.size, comm.size)]
    mine = sizes[comm.rank]
    found = to_numpy(comm.all_to_all(y, sizes, [mine] * comm.size)).reshape(comm.size, mine)
    bits = found.view(f"u{found.itemsize}")
    differs = (bits != bits[0]).any(axis=0)
    error = np.abs(found[0].astype(np.float64) - exact)
    wrong = differs | ~(error <= bound)  # written so that NaN counts as wrong
    rounding = exact - (exact if right is None else right)
    part = np.array([wrong.sum(), (error**2).sum(), (rounding**2).sum(), (exact**2).sum()], np.float64)
    count, noise, expected, signal = to_numpy(comm.all_gather(comm.xp.asarray(part))).sum(axis=0)
    rel_err, expected_err = (float(np.sqrt(energy / signal)) if signal else 0.0 for energy in (noise, expected))
    return Verdict(int(count), rel_err, None if right is None else expected_err)
