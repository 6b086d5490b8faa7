"""The plain all-reduce: one rounding, in rank order, the same bits on every rank."""

import mpi_worker
import numpy as np
import pytest
from assertions import assert_bounded, assert_exact, assert_same_on_ranks
from mpi_worker import normal

from cutpq.array import bfloat16
from cutpq.ranks.all_reduce import all_reduce
from cutpq.ranks.sums import add_rows
from cutpq.ranks.threads import run_threads

# Half the distance from 1 to the next number.
ROUNDOFF = {np.float16: 2.0**-11, bfloat16: 2.0**-8, np.float32: 2.0**-24, np.float64: 2.0**-53}


@pytest.mark.parametrize("case", mpi_worker.TWO_SHOT_CASES.values(), ids=mpi_worker.TWO_SHOT_CASES)
def test_threads(case):
    for size in range(1, 9):
        run_threads(size, case, timeout_s=20)


@pytest.mark.parametrize("dtype", ROUNDOFF, ids=lambda dtype: np.dtype(dtype).name)
def test_within_two_roundings_of_the_exact_sum(dtype):
    for size in (2, 5, 8):
        ys = run_threads(size, lambda comm: all_reduce(normal(comm.rank, 500, dtype), comm))
        assert_same_on_ranks(ys)
        parts = np.stack([normal(r, 500, dtype) for r in range(size)]).astype(np.longdouble)
        exact, magnitude = parts.sum(axis=0), np.abs(parts).sum(axis=0)
        summing = size * (2.0**-53 if dtype is np.float64 else 2.0**-24) * magnitude
        assert_bounded(ys[0].astype(np.longdouble), exact, ROUNDOFF[dtype] * (np.abs(exact) + summing) + summing)


def test_rounding_at_every_step_would_be_seen():
    """1 + 2^-11 + 2^-11 is a number of float16, but 1 + 2^-11 is not and rounds back to 1."""
    terms = np.float16([1, 2**-11, 2**-11])
    ys = run_threads(3, lambda comm: all_reduce(terms[comm.rank : comm.rank + 1], comm))
    assert_exact(ys[0], np.float16([1 + 2**-10]))


def test_rank_order_would_be_seen():
    """In float32 (2^24 + 1) + 1 = 2^24, while 2^24 + (1 + 1) is not."""
    terms = np.float32([2**24, 1, 1])
    forward = run_threads(3, lambda comm: all_reduce(terms[comm.rank : comm.rank + 1], comm))
    backward = run_threads(3, lambda comm: all_reduce(terms[2 - comm.rank : 3 - comm.rank], comm))
    assert_exact(forward[1], np.float32([2**24]))
    assert_exact(backward[1], np.float32([2**24 + 2]))


def test_overflow_and_nan_stay():
    terms = np.float16([[60000, 60000, np.inf, np.inf, np.nan], [60000, -60000, 1, -np.inf, 1]])

    def quietly(comm):
        with np.errstate(over="ignore", invalid="ignore"):
            return all_reduce(terms[comm.rank], comm)

    for y in run_threads(2, quietly):
        np.testing.assert_array_equal(y, np.float16([np.inf, 0, np.inf, np.nan, np.nan]))


def test_sum_that_overflows_float16_on_the_way_is_right():
    terms = np.float16([60000, 60000, -60000])
    ys = run_threads(3, lambda comm: all_reduce(terms[comm.rank : comm.rank + 1], comm))
    assert_exact(ys[0], np.float16([60000]))


def test_input_stays_and_out_is_filled():
    def into(comm):
        x = np.arange(6, dtype=np.float16).reshape(2, 3)
        before, out = x.copy(), np.full((2, 3), np.nan, np.float16)
        assert all_reduce(x, comm, out=out) is out
        assert_exact(x, before)
        assert all_reduce(x, comm, out=x) is x
        return x, out

    for size in (1, 3):
        for x, out in run_threads(size, into):
            assert_exact(out, np.arange(6, dtype=np.float16).reshape(2, 3) * size)
            assert_exact(x, out)


def test_result_is_not_the_input():
    x = np.ones(3, np.float32)
    (y,) = run_threads(1, lambda comm: all_reduce(x, comm))
    y[:] = 5
    assert_exact(x, np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("out", "error", "text"),
    [
        (np.empty(5, np.float16), ValueError, r"out must have shape \(6,\), got \(5,\)"),
        (np.empty(6, np.float32), TypeError, "out must be float16, got float32"),
    ],
    ids=["shape", "dtype"],
)
def test_out_that_does_not_fit(out, error, text):
    with pytest.raises(error, match=text):
        run_threads(2, lambda comm: all_reduce(np.ones(6, np.float16), comm, out=out))


def test_rows_of_float16_are_added_in_float32():
    """Subnormal numbers, cancellation, and a lone Inf or NaN, in rows longer than a piece: what NumPy makes."""
    rng = np.random.default_rng(12)
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite, small = every[np.isfinite(every)], every[np.abs(every) < 2.0**-12]
    for numbers, bad in (small, None), (finite, None), *((finite, bits) for bits in (0x7C00, 0x7C01, 0xFC00, 0xFFFF)):
        for ranks in 1, 2, 5:
            terms = rng.choice(numbers, (ranks, 150_000))
            if bad:
                terms[-1, rng.integers(150_000)] = every[bad]
            want = terms[0].astype(np.float32)
            with np.errstate(invalid="ignore"):  # a NaN is signalling
                for term in terms[1:]:
                    want += term
            have, number = add_rows(terms), ~np.isnan(want)
            assert_exact(have[number], want[number])
            assert np.isnan(have[~number]).all()
