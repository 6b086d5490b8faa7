"""What every backend must do, as cases that each rank runs: under threads by test_comm, under mpirun by test_mpi.

mpirun -n 3 python tests/helpers/mpi_worker.py gathers_equal_shapes ...
"""

import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np

import cutpq as cq
from cutpq.array import bfloat16, to_numpy
from cutpq.ranks.failures import abort
from cutpq.ranks.init import init
from cutpq.ranks.nccl import NcclCommunicator

DTYPES = (np.float16, bfloat16, np.float32, np.float64, np.int8, np.uint8, np.int64, np.bool_, np.complex64)


def assert_same(got, want):
    """Same dtype, shape and bits; empty arrays have none, but a dtype and a shape."""
    same = (got.dtype, got.shape, got.tobytes()) == (want.dtype, want.shape, want.tobytes())
    assert same, f"got {got!r}, want {want!r}"


def numbers(rank, shape, dtype=np.int32):
    """What `rank` brings: other numbers on every rank, small enough for every dtype."""
    return np.random.default_rng([7, rank]).integers(0, 100, shape).astype(dtype)


def gathers_equal_shapes(comm):
    got = comm.all_gather(numbers(comm.rank, (2, 3)))
    assert_same(got, np.stack([numbers(r, (2, 3)) for r in range(comm.size)]))


def gathers_scalars_and_nothing(comm):
    assert_same(comm.all_gather(np.array(comm.rank)), np.arange(comm.size))
    assert_same(comm.all_gather(np.empty((3, 0), np.float16)), np.empty((comm.size, 3, 0), np.float16))


def gathers_uneven_counts(comm):
    counts = [3 * r % 5 for r in range(comm.size)]  # rank 0 has none
    got = comm.all_gather(numbers(comm.rank, counts[comm.rank]), counts)
    assert_same(got, np.concatenate([numbers(r, n) for r, n in enumerate(counts)]))


def gathers_every_dtype(comm):
    for dtype in DTYPES:
        got = comm.all_gather(numbers(comm.rank, 5, dtype))
        assert_same(got, np.stack([numbers(r, 5, dtype) for r in range(comm.size)]))


def takes_views_that_are_not_contiguous(comm):
    wide = numbers(comm.rank, (comm.size, 6))
    assert_same(comm.all_gather(wide.T)[comm.rank], np.ascontiguousarray(wide.T))
    assert_same(comm.all_gather(wide[:, ::2])[comm.rank], np.ascontiguousarray(wide[:, ::2]))
    assert_same(comm.all_to_all(wide[:, 1::2])[comm.rank], np.ascontiguousarray(wide[comm.rank, 1::2]))


def sends_a_row_to_each_rank(comm):
    got = comm.all_to_all(numbers(comm.rank, (comm.size, 4), np.float16))
    assert_same(got, np.stack([numbers(r, (comm.size, 4), np.float16)[comm.rank] for r in range(comm.size)]))


def sends_uneven_pieces(comm):
    counts = [[(r + 2 * s) % 4 for s in range(comm.size)] for r in range(comm.size)]  # counts[from][to], with zeros

    def piece(source, target):
        return np.arange(counts[source][target]) + 10 * target + 1000 * source

    me, ranks = comm.rank, range(comm.size)
    outgoing = np.concatenate([piece(me, r) for r in ranks])
    got = comm.all_to_all(outgoing, counts[me], [counts[r][me] for r in ranks])
    assert_same(got, np.concatenate([piece(r, me) for r in ranks]))


def sums_exactly(comm):
    """Integers that float16 holds, so that every order and rounding gives the same; 0, 1, ... elements."""
    for size in (0, 1, 7, comm.size - 1, comm.size + 1, 1000):
        for dtype in (np.float16, np.float32, np.float64, bfloat16, np.int32, np.int64):
            parts = [numbers(r, size) % 16 for r in range(comm.size)]
            assert_same(comm.all_reduce(parts[comm.rank].astype(dtype)), sum(parts).astype(dtype))


def sums_any_shape(comm):
    total = sum(numbers(r, (3, 1, 5)) for r in range(comm.size))
    assert_same(comm.all_reduce(numbers(comm.rank, (3, 1, 5))), total)
    assert_same(comm.all_reduce(numbers(comm.rank, (3, 1, 5)).T), np.ascontiguousarray(total.T))
    assert_same(comm.all_reduce(np.array(1.5, np.float16)), np.array(1.5 * comm.size, np.float16))


def counts_sent_bytes(comm):
    comm.reset_sent()
    comm.all_gather(numbers(comm.rank, (2, 3), np.float16))
    assert comm.sent_bytes == (comm.size - 1) * 12
    comm.all_to_all(numbers(comm.rank, (comm.size, 5), np.float16))
    assert comm.sent_bytes == (comm.size - 1) * (12 + 10)
    comm.barrier()
    comm.bcast(list(range(1000)))
    assert comm.sent_bytes == (comm.size - 1) * (12 + 10), "only payload counts"
    comm.reset_sent()
    assert comm.sent_bytes == 0


def broadcasts_objects(comm):
    for root in range(comm.size):
        assert comm.bcast({"from": comm.rank}, root) == {"from": root}


def splits(comm):
    color = int(comm.rank >= comm.size // 3)  # groups of different sizes, one possibly empty
    group = comm.split(color, key=-comm.rank)
    members = [r for r in reversed(range(comm.size)) if int(r >= comm.size // 3) == color]
    assert (group.rank, group.size) == (members.index(comm.rank), len(members))
    assert group.backend == comm.backend
    assert_same(group.all_gather(np.array([comm.rank])), np.array(members)[:, None])
    assert_same(group.all_reduce(numbers(comm.rank, 9)), sum(numbers(r, 9) for r in members))
    single = group.split(group.rank)
    assert (single.rank, single.size) == (0, 1)
    assert_same(single.all_gather(np.array([comm.rank])), np.array([[comm.rank]]))


CASES = {
    case.__name__: case
    for case in (
        gathers_equal_shapes,
        gathers_scalars_and_nothing,
        gathers_uneven_counts,
        gathers_every_dtype,
        takes_views_that_are_not_contiguous,
        sends_a_row_to_each_rank,
        sends_uneven_pieces,
        sums_exactly,
        sums_any_shape,
        counts_sent_bytes,
        broadcasts_objects,
        splits,
    )
}


def rounded_sum(parts):
    """The formula of all_reduce: float32 (float64 for float64), in rank order, rounded once."""
    wide = np.float64 if parts[0].dtype == np.float64 else np.float32
    total = np.zeros(parts[0].shape, wide)
    for part in parts:
        total = total + part.astype(wide)
    return total.astype(parts[0].dtype)


def normal(rank, size, dtype):
    return np.random.default_rng([11, rank]).standard_normal(size).astype(dtype)


def rounds_once_in_rank_order(comm):
    """Real numbers, bit for bit the formula; so all ranks have the same bits, too."""
    for size in (1, 7, comm.size + 1, 1001):
        for dtype in (np.float16, bfloat16, np.float32, np.float64):
            got = comm.all_reduce(normal(comm.rank, size, dtype))
            assert_same(got, rounded_sum([normal(r, size, dtype) for r in range(comm.size)]))


def sum_sends_two_shots(comm):
    for size in (0, 1, 7, comm.size - 1, comm.size + 1, 1000):
        share = len(np.array_split(np.empty(size), comm.size)[comm.rank])
        comm.reset_sent()
        comm.all_reduce(np.ones(size, np.float16))
        assert comm.sent_bytes == 2 * (size - share) + 2 * share * (comm.size - 1)


TWO_SHOT_CASES = {case.__name__: case for case in (rounds_once_in_rank_order, sum_sends_two_shots)}


# How a job ends. Rank 1 does something, while the others wait for it in a barrier.


def one_rank_raises(comm):
    if comm.rank == 1:
        raise ValueError("planted")
    comm.barrier()


def one_thread_raises(comm):
    if comm.rank == 1:
        threading.Thread(target=one_rank_raises, args=(comm,)).start()
        time.sleep(60)
    comm.barrier()


def one_rank_is_interrupted(comm):
    if comm.rank == 1:
        raise KeyboardInterrupt
    comm.barrier()


def one_rank_exits(comm):
    if comm.rank == 1:
        sys.exit("planted")
    comm.barrier()


def all_ranks_exit(comm):
    time.sleep(0.3 * comm.rank)
    print(f"rank {comm.rank} is done")
    sys.exit(3)


def one_rank_works_longer(comm):
    time.sleep(abort.EXIT_GRACE_S + 1 if comm.rank == 0 else 0)
    print(f"rank {comm.rank} is done")
    sys.exit()


def one_rank_sends_less(comm):
    send = [0, 1] if comm.rank == 1 else [1, 1]
    comm.all_to_all(np.zeros(sum(send)), send, [1, 1])


def one_rank_sends_more(comm):
    send = [2, 1] if comm.rank == 1 else [1, 1]
    comm.all_to_all(np.zeros(sum(send)), send, [1, 1])


def one_rank_skips_a_sum(comm):
    for call in range(3):
        if comm.rank != 1 or call != 1:
            cq.all_reduce(np.ones(64, np.float16), comm, codec="mxfp4", algo="twoshot")


def one_rank_skips_a_barrier(comm):
    if comm.rank != 1:
        comm.barrier()


def one_rank_skips_a_bcast(comm):
    if comm.rank != 1:
        comm.bcast("planted")
    cq.all_reduce(np.ones(64, np.float16), comm, codec="mxfp4", algo="oneshot")


def one_rank_gathers_instead_of_a_bcast(comm):
    if comm.rank == 0:
        comm.all_gather(np.ones(4))
    comm.bcast(comm.rank)


def sum_of_another_shape(comm):
    cq.all_reduce(np.ones((2, 32 + (comm.rank == 1)), np.float16), comm, codec="mxfp4", algo="oneshot")


def sum_by_another_codec(comm):
    """Both wires have the same number of bytes."""
    codec = "int4" if comm.rank == 1 else "e2m1"
    cq.all_reduce(np.ones(64, np.float16), comm, codec=codec, algo="oneshot")


def dies(how):
    def one_rank_dies(comm):
        comm.barrier()
        if comm.rank == 1:
            how()
        comm.barrier()

    return one_rank_dies


DEATHS = {
    "one_rank_is_killed": dies(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "one_rank_crashes": dies(lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    "one_rank_leaves_python": dies(lambda: os._exit(3)),
}


def all_ranks_finalize(comm):
    from mpi4py import MPI

    comm.barrier()
    MPI.Finalize()
    sys.exit(0)


class StuckGpu(NcclCommunicator):
    """NCCL as it is seen from the host when its kernels never end: calls return at once, and a barrier does not."""

    def __init__(self, control):
        link = SimpleNamespace(allReduce=lambda *_: None)
        library = SimpleNamespace(get_unique_id=lambda: b"", NcclCommunicator=lambda *_: link)
        super().__init__(control, library, np, 0)

    def _pointer(self, x):
        return 0

    def _stream(self):
        return SimpleNamespace(ptr=0, synchronize=lambda: time.sleep(60))


def gpus_where_one_rank_skips_a_sum(comm):
    gpus = StuckGpu(comm)
    for shape in (8, 8, 9):
        if comm.rank != 1 or shape == 9:
            gpus.all_reduce(np.ones(shape, np.float16))
    gpus.barrier()


def gpus_where_one_rank_comes_late(comm):
    gpus = StuckGpu(comm)
    for _ in range(2 if comm.rank == 1 else 4):
        gpus.all_reduce(np.ones(8, np.float16))
    if comm.rank == 1:
        time.sleep(60)
    gpus.barrier()


def gpus_where_one_rank_returns(comm):
    gpus = StuckGpu(comm)
    gpus.all_reduce(np.ones(8, np.float16))
    if comm.rank == 0:
        sys.exit()
    gpus.all_reduce(np.ones(8, np.float16))
    gpus.barrier()


def gpus_of_another_codec(comm):
    codec = "int4" if comm.rank == 2 else "e2m1"
    gpus = StuckGpu(comm)
    with gpus.calling(f"all_reduce by {codec}"):
        pass
    gpus.barrier()


def gpus_that_agree(comm):
    gpus = StuckGpu(comm)
    for _ in range(5):
        gpus.all_reduce(np.ones(8, np.float16))
        time.sleep(0.05 * comm.rank)


def ranks_leave_after_a_sum(comm):
    """Nobody waits for the GPU: what the ranks have launched still reads the peers' memory when they leave."""
    comm, xp = comm.comm, comm.xp
    total = comm.all_reduce(xp.full(1 << 20, comm.rank + 1, np.float16))
    if comm.rank == 0:
        sys.exit(0)
    total = to_numpy(total)
    assert (total == comm.size * (comm.size + 1) // 2).all(), total
    print(f"rank {comm.rank} has the sum", flush=True)
    sys.exit(0)


def slow_rank_drains_before_others_end(comm):
    """What a rank still has to finish is done before any rank's process ends."""

    def drain():
        time.sleep(0.5)
        print("drained", flush=True)

    if comm.rank == 1:
        abort.before_exit(drain)
        abort.before_exit(drain)
    abort.at_job_end(lambda: print("all have left", flush=True))


def graph_replays_after_larger_sums(comm):
    """A captured sum finds its slabs again, although a larger sum made the communicator take others."""
    comm, xp = comm.comm, comm.xp
    with xp.cuda.Stream(non_blocking=True) as stream:
        x = xp.ones(1000, np.float16)
        comm.all_reduce(x)
        stream.begin_capture()
        y = comm.all_reduce(x)
        graph = stream.end_capture()
        for factor in (1, 2, 3):
            if factor == 2:
                large = comm.all_reduce(xp.ones(3 << 20, np.float16))
                assert (to_numpy(large) == comm.size).all()
            x.fill(factor)
            y.fill(np.nan)
            graph.launch(stream)
            stream.synchronize()
            assert (to_numpy(y) == factor * comm.size).all(), (factor, y)
            assert (to_numpy(comm.all_reduce(x)) == factor * comm.size).all()


ENDINGS = {
    case.__name__: case
    for case in (ranks_leave_after_a_sum, slow_rank_drains_before_others_end, graph_replays_after_larger_sums)
} | {
    case.__name__: case
    for case in (
        one_rank_raises,
        one_thread_raises,
        one_rank_is_interrupted,
        one_rank_exits,
        all_ranks_exit,
        one_rank_works_longer,
        one_rank_sends_less,
        one_rank_sends_more,
        one_rank_skips_a_sum,
        one_rank_skips_a_barrier,
        one_rank_skips_a_bcast,
        one_rank_gathers_instead_of_a_bcast,
        sum_of_another_shape,
        sum_by_another_codec,
        all_ranks_finalize,
        gpus_where_one_rank_skips_a_sum,
        gpus_where_one_rank_comes_late,
        gpus_where_one_rank_returns,
        gpus_of_another_codec,
        gpus_that_agree,
    )
}


class Moving:
    """A communicator of GPU arrays for cases that are written with NumPy's: each array is moved there and back."""

    def __init__(self, comm):
        self.comm = comm

    def __getattr__(self, name):
        return getattr(self.comm, name)

    def _moved(self, call, x, *rest):
        return to_numpy(call(self.comm.xp.asarray(x), *rest))

    def all_gather(self, x, *rest):
        return self._moved(self.comm.all_gather, x, *rest)

    def all_to_all(self, x, *rest):
        return self._moved(self.comm.all_to_all, x, *rest)

    def all_reduce(self, x):
        return self._moved(self.comm.all_reduce, x)

    def split(self, *args, **kwargs):
        return Moving(self.comm.split(*args, **kwargs))


def main():
    backend, *names = sys.argv[1:]
    abort.EXIT_GRACE_S = 2.0
    comm = init(backend)
    if comm.xp is not np:
        comm = Moving(comm)
    for name in names:
        (CASES | TWO_SHOT_CASES | ENDINGS | DEATHS)[name](comm)
        comm.barrier()
        if comm.rank == 0:
            print(f"passed {name} on {comm.size} ranks", flush=True)


if __name__ == "__main__":
    main()
