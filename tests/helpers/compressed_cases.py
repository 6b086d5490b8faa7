"""What a compressed all_reduce must do on every backend, as cases that each rank runs.

By threads in test_compressed_all_reduce.py, and there by mpirun:
PYTHONPATH=bench mpirun -n 3 python tests/helpers/compressed_cases.py
"""

import threading
from functools import cache, wraps

import numpy as np
from assertions import assert_bounded, assert_exact, assert_same_on_ranks

import cutpq as cq
from cutpq.array import bfloat16, to_numpy
from cutpq.codecs.codec import codec
from cutpq.cost.all_reduce import oneshot_sent, twoshot_sent
from cutpq.ranks.init import init

ALGOS = ("oneshot", "twoshot")
SIZES = (0, 1, 31, 32, 33, 300, 1024)  # for 8 ranks: none, less than a block each, ragged, and even
CODECS = ("mxfp4", "mxfp6-e3m2", "mxfp8-e5m2", "mxint8", "nvfp4", "e2m2-b16-e5m0-rceil", "int4-b8", "e2m0-b8-e4m0")
ROUNDOFF = {np.dtype(np.float16): 2.0**-11, bfloat16: 2.0**-8, np.dtype(np.float32): 2.0**-24}


def all_reduce(x, comm, *how):
    """cutpq's, on arrays as comm takes them."""
    return to_numpy(cq.all_reduce(comm.xp.asarray(x), comm, *how))


def term(rank, shape, dtype=np.float16):
    """What `rank` adds: numbers of very different magnitudes, other ones on every rank."""
    rng = np.random.default_rng([11, rank])
    return np.asarray(rng.standard_normal(shape) * np.exp2(rng.integers(-3, 4, shape)), dtype)


def terms(size, shape, dtype=np.float16):
    return [term(rank, shape, dtype) for rank in range(size)]


def once(make):
    """Ranks that are threads expect the same: the first computes it for all of them."""
    made, lock = cache(make), threading.Lock()

    @wraps(make)
    def get(*key):
        with lock:
            return made(*key)

    return get


def expected(xs, c, algo):
    """The result by its definition, in one process: float32 sums in rank order of what wires say."""
    size, (n, shape, dtype) = len(xs), (xs[0].size, xs[0].shape, xs[0].dtype)
    blocks = -(-n // c.block)
    padded = np.zeros((size, blocks * c.block), dtype)
    padded[:, :n] = [x.ravel() for x in xs]
    total = np.zeros(blocks * c.block, np.float32)
    for row in padded:
        total = total + c.decode(c.encode(row))
    if algo == "twoshot":
        total = c.decode(c.encode(total))
    return total[:n].reshape(shape).astype(dtype)


@once
def expected_of_terms(size, n, name, algo):
    return expected(terms(size, n), codec(name), algo)


@once
def exact_and_limits(size, n, name, dtype):
    """The terms' sum, and how far a result of each algo may be from it before its last rounding."""
    c, xs = codec(name), terms(size, n, dtype)
    exact = np.sum([x.astype(np.float64) for x in xs], axis=0)
    bound = np.sum([c.bound(x) for x in xs], axis=0)
    summing = size * 2.0**-24 * np.sum([np.abs(x.astype(np.float64)) for x in xs], axis=0) * 2
    decoded = np.sum([c.decode(c.encode(x)) for x in xs], axis=0, dtype=np.float32)
    return exact, {"oneshot": bound + summing, "twoshot": bound + summing + c.bound(decoded)}


def agree(y, comm):
    assert_same_on_ranks(list(to_numpy(comm.all_gather(comm.xp.asarray(y))))) if comm.size > 1 else None


def every_size_is_right_and_equal_on_all_ranks(comm):
    """And sends the bytes that are published."""
    for name in CODECS:
        c = codec(name)
        for n in SIZES:
            for algo in ALGOS:
                comm.reset_sent()
                y = all_reduce(term(comm.rank, n), comm, c, algo)
                sent = oneshot_sent(n, comm.size, c)
                assert comm.sent_bytes == (sent if algo == "oneshot" else twoshot_sent(n, comm.size, comm.rank, c))
                agree(y, comm)
                assert_exact(y + np.float16(0), expected_of_terms(comm.size, n, name, algo) + np.float16(0))


def every_dtype_and_shape(comm):
    for dtype in ROUNDOFF:
        for shape in (), (3, 5, 7), (2, 0, 4):
            for algo in ALGOS:
                y = all_reduce(term(comm.rank, shape, dtype), comm, "mxint8", algo)
                assert (y.dtype, y.shape) == (dtype, shape)
                agree(y, comm)


def errors_are_within_the_stated_bound(comm):
    """Beyond three ranks each codec with one of the dtypes, which enters before and after what the ranks do."""
    for k, name in enumerate(CODECS):
        for dtype in list(ROUNDOFF) if comm.size <= 3 else [list(ROUNDOFF)[(k + comm.size) % 3]]:
            exact, limits = exact_and_limits(comm.size, 500, name, dtype)
            for algo in ALGOS:
                y = all_reduce(term(comm.rank, 500, dtype), comm, name, algo).astype(np.float64)
                assert_bounded(y, exact, limits[algo] + ROUNDOFF[dtype] * (np.abs(exact) + limits[algo]))


def even_sums_send_a_share_of_their_bytes(comm):
    """S bytes of float16 in whole blocks on every rank: times these factors."""
    for name in CODECS:
        c = codec(name)
        even = comm.size * 8 * c.block
        S = 2 * even
        for algo, times in ("oneshot", comm.size - 1), ("twoshot", 2 * (comm.size - 1) / comm.size):
            comm.reset_sent()
            all_reduce(term(comm.rank, even), comm, c, algo)
            assert comm.sent_bytes == times * S * c.bits / 16


def options_work_on_all_ranks(comm):
    mask = np.arange(48) % 24 == 5
    large = np.where(mask, 20, 1)
    for rows in (1, 2, 7):
        xs = [(x * large).astype(np.float16) for x in terms(comm.size, (rows, 48))]
        exact = np.sum(xs, axis=0, dtype=np.float64)
        for algo in ALGOS:
            c = codec("mxfp4", rotate=True, outliers=mask)
            comm.reset_sent()
            y = all_reduce(xs[comm.rank], comm, c, algo)
            n = 48 * rows
            sent = oneshot_sent(n, comm.size, c)
            assert comm.sent_bytes == (sent if algo == "oneshot" else twoshot_sent(n, comm.size, comm.rank, c))
            agree(y, comm)
            roundings = (comm.size + 2) * 2.0**-11 * np.sum(np.abs(xs), axis=0, dtype=np.float64)
            assert_bounded(y[:, mask], exact[:, mask], roundings[:, mask])
            assert_bounded(y, exact, np.full(y.shape, 60.0 * comm.size))


def a_block_with_nan_is_nan_everywhere(comm):
    for algo in ALGOS:
        x = term(comm.rank, 200, np.float32)
        if comm.rank == comm.size - 1:
            x[100] = np.inf
        y = all_reduce(x, comm, "e2m1-b8", algo)
        agree(y, comm)
        assert np.isnan(y[96:104]).all()
        assert not np.isnan(np.delete(y, np.s_[96:104])).any()


def auto_is_the_same_on_all_ranks(comm):
    for n in (64, 1 << 18):
        x = term(comm.rank, n)
        y = all_reduce(x, comm, "mxfp4")
        agree(y, comm)
        every = [all_reduce(x, comm, "mxfp4", algo).tobytes() for algo in ("plain", *ALGOS)]
        assert y.tobytes() in every


CASES = {
    case.__name__: case
    for case in (
        every_size_is_right_and_equal_on_all_ranks,
        every_dtype_and_shape,
        errors_are_within_the_stated_bound,
        even_sums_send_a_share_of_their_bytes,
        options_work_on_all_ranks,
        a_block_with_nan_is_nan_everywhere,
        auto_is_the_same_on_all_ranks,
    )
}


def main():
    comm = init("mpi")
    for name, case in CASES.items():
        case(comm)
        comm.barrier()
        if comm.rank == 0:
            print(f"passed {name}", flush=True)


if __name__ == "__main__":
    main()
