"""Communicators: collectives on threads, their checks and failures, and the choice of a backend."""

import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import mpi_worker
import numpy as np
import pytest

from cutpq.ranks import discovery as launch
from cutpq.ranks.alone import SelfCommunicator
from cutpq.ranks.discovery import Gpu
from cutpq.ranks.failures.patience import RanksDisagreeError
from cutpq.ranks.init import init
from cutpq.ranks.threads import run_threads

SIZES = range(1, 9)


@pytest.mark.parametrize("case", mpi_worker.CASES.values(), ids=mpi_worker.CASES)
def test_threads(case):
    for size in SIZES:
        run_threads(size, case, timeout_s=20)


@pytest.mark.parametrize("case", mpi_worker.CASES.values(), ids=mpi_worker.CASES)
def test_one_process(case):
    case(SelfCommunicator())


def test_threads_return_in_rank_order():
    assert run_threads(5, lambda comm, a, b: (comm.rank, a, b), 1, 2) == [(r, 1, 2) for r in range(5)]


def test_threads_do_not_share_broadcast_objects():
    def append_to(comm):
        things = comm.bcast([0])
        comm.barrier()
        things.append(comm.rank)
        comm.barrier()
        return things

    assert run_threads(3, append_to) == [[0, r] for r in range(3)]


def test_input_may_be_overwritten_as_soon_as_a_rank_goes_on():
    """A rank that goes on early must not change what slower ranks still read."""

    def overwrite(comm):
        x = np.full(100_000, comm.rank)
        for _ in range(20):
            got = comm.all_gather(x)
            x[:] = -1
            assert (got == np.arange(comm.size)[:, None]).all()
            comm.barrier()
            x[:] = comm.rank

    run_threads(4, overwrite, timeout_s=20)


def test_comparison_of_the_cases_can_fail():
    x = np.float32([1, 0])
    mpi_worker.assert_same(x, x.copy())
    for other in (np.float64([1, 0]), np.float32([[1, 0]]), np.float32([1, -0.0]), np.float32([1, np.nan])):
        with pytest.raises(AssertionError, match="got array"):
            mpi_worker.assert_same(x, other)
    with pytest.raises(AssertionError):
        mpi_worker.assert_same(np.empty(0, np.float16), np.empty(0, np.float32))


# Failures of one rank


def assert_ends_at_once(error, rank, size, fn):
    start = time.monotonic()
    with pytest.raises(error) as caught:
        run_threads(size, fn, timeout_s=60)
    assert time.monotonic() - start < 5
    told = [*getattr(caught.value, "__notes__", ()), str(caught.value)]
    assert any(f"rank {rank} of {size}" in text for text in told)
    return str(caught.value)


def test_error_of_a_rank_is_raised_and_nobody_waits():
    def fail(comm):
        if comm.rank == 2:
            raise ValueError("planted")
        comm.barrier()

    assert "planted" in assert_ends_at_once(ValueError, 2, 4, fail)


def test_first_error_is_the_one_raised():
    def fail(comm):
        time.sleep(0.3 * comm.rank)
        raise ValueError(f"planted on {comm.rank}")

    assert "planted on 0" in assert_ends_at_once(ValueError, 0, 3, fail)


def test_error_reaches_ranks_that_wait_in_a_part():
    def fail(comm):
        part = comm.split(comm.rank // 2)
        if comm.rank == 3:
            raise ValueError("planted")
        part.barrier()
        comm.barrier()

    assert_ends_at_once(ValueError, 3, 4, fail)


def test_waiting_ranks_cannot_swallow_the_end():
    def fail(comm):
        if comm.rank == 0:
            raise ValueError("planted")
        try:
            comm.barrier()
        except Exception:
            time.sleep(60)

    assert_ends_at_once(ValueError, 0, 3, fail)


def test_rank_that_returns_leaves_nobody_waiting():
    def leave(comm):
        if comm.rank != 1:
            comm.barrier()

    with pytest.raises(
        RanksDisagreeError, match=r"waits in its call 1, barrier, for ranks \[1\], of which \[1\] returned"
    ):
        run_threads(2, leave, timeout_s=60)


def test_rank_that_does_not_come_is_named():
    def dawdle(comm):
        if comm.rank == 1:
            time.sleep(1)
        comm.barrier()

    with pytest.raises(RanksDisagreeError, match=r"ranks \[1\], of which \[1\] did not come in 0.2 s"):
        run_threads(3, dawdle, timeout_s=0.2)


def test_different_collectives_are_named():
    def differ(comm):
        if comm.rank == 0:
            comm.all_gather(np.zeros(2))
        else:
            comm.barrier()

    with pytest.raises(RanksDisagreeError, match=r"\{0: 'exchange of arrays', 1: 'barrier'\}"):
        run_threads(2, differ)


@pytest.mark.parametrize("size", [0, -1])
def test_no_ranks(size):
    with pytest.raises(ValueError, match=f"size must be at least 1, got {size}"):
        run_threads(size, print)


# Arguments that do not fit

x6 = np.arange(6, dtype=np.float32)

BAD = {
    "gather_list": (TypeError, "builtins", lambda c: c.all_gather([1, 2])),
    "gather_objects": (TypeError, "dtype of numbers, got object", lambda c: c.all_gather(np.array([c, c]))),
    "gather_counts_too_few": (ValueError, r"must be 2 numbers >= 0.* got \[6\]", lambda c: c.all_gather(x6, [6])),
    "gather_count_negative": (ValueError, r"got \[-6, 6\]", lambda c: c.all_gather(x6, [-6, 6])),
    "gather_count_fraction": (TypeError, "float", lambda c: c.all_gather(x6, [6.0, 6.0])),
    "gather_count_is_not_mine": (ValueError, r"= \(5,\), got \(6,\)", lambda c: c.all_gather(x6, [5, 5])),
    "gather_counts_of_a_matrix": (ValueError, r"got \(2, 3\)", lambda c: c.all_gather(x6.reshape(2, 3), [6, 6])),
    "gather_sizes_differ": (ValueError, "counts on .* bytes from rank", lambda c: c.all_gather(x6[: 3 + c.rank])),
    "gather_dtypes_differ": (
        ValueError, "dtypes and counts must agree", lambda c: c.all_gather(x6.astype(["f4", "f8"][c.rank]))
    ),
    "to_all_rows": (ValueError, r"a row for each of 2 ranks, got shape \(6,\)", lambda c: c.all_to_all(x6)),
    "to_all_scalar": (ValueError, r"got shape \(\)", lambda c: c.all_to_all(np.array(1))),
    "to_all_one_count": (ValueError, "only one", lambda c: c.all_to_all(x6, send_counts=[3, 3])),
    "to_all_sum": (ValueError, r"\(5,\), got \(6,\)", lambda c: c.all_to_all(x6, [2, 3], [2, 3])),
    "to_all_own_piece": (ValueError, "they must be equal", lambda c: c.all_to_all(x6, [3, 3], [2, 2])),
    "to_all_negative": (ValueError, r"recv_counts .* got \[3, -3\]", lambda c: c.all_to_all(x6, [3, 3], [3, -3])),
    "to_all_disagree": (
        ValueError, "rank 1 counts on 8 bytes from rank 0, which sends 12",
        lambda c: c.all_to_all(x6, [3, 3], [3, 3]) if c.rank == 0 else c.all_to_all(x6, [3, 3], [2, 3]),
    ),
    "sum_bool": (TypeError, "all_reduce adds float16.* got bool", lambda c: c.all_reduce(x6 > 1)),
    "sum_complex": (TypeError, "got complex64", lambda c: c.all_reduce(x6.astype(np.complex64))),
    "split_color": (ValueError, "color must be an int >= 0, got -1", lambda c: c.split(-1)),
    "bcast_root": (ValueError, "root must be a rank from 0 to 1, got 2", lambda c: c.bcast(None, root=2)),
}  # fmt: skip


@pytest.mark.parametrize(("error", "text", "call"), BAD.values(), ids=BAD)
def test_bad_argument(error, text, call):
    with pytest.raises(error, match=text):
        run_threads(2, call, timeout_s=20)


def test_one_process_refuses_the_same():
    for call in (lambda c: c.all_reduce(x6 > 1), lambda c: c.all_to_all(x6), lambda c: c.all_gather(x6, [5])):
        with pytest.raises((TypeError, ValueError)):
            call(SelfCommunicator())


def test_cupy_array_where_ranks_move_numpy(monkeypatch):
    mpi = pytest.importorskip("mpi4py.MPI")
    from cutpq.ranks.mpi import MpiCommunicator

    class Foreign:
        __module__ = "cupy"

    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    with pytest.raises(TypeError, match="backend mpi moves numpy arrays, got one of cupy"):
        MpiCommunicator(mpi.COMM_SELF, "test").all_gather(Foreign())


# The choice of a backend

A, B = Gpu("node1", 0, "0000:01", nccl=True), Gpu("node1", 1, "0000:02", nccl=True)
FAR = Gpu("node2", 0, "0000:01", nccl=True)


def test_exported_memory_is_alive():
    """CUDA gives no handle for memory that has been freed: `ipc` could never be chosen."""
    allocated = set()

    class Memory:
        def __init__(self, nbytes):
            self.ptr = id(self)
            allocated.add(self.ptr)

        def __del__(self):
            allocated.remove(self.ptr)

    def handle(ptr):
        if ptr not in allocated:
            raise RuntimeError("cudaErrorInvalidValue")

    cuda = SimpleNamespace(Device=lambda _: nullcontext(), memory=SimpleNamespace(Memory=Memory))
    cuda.runtime = SimpleNamespace(ipcGetMemHandle=handle)
    assert launch._exports_memory(SimpleNamespace(cuda=cuda), 0)
    assert not allocated


A_IPC, B_IPC, FAR_IPC = (replace(gpu, ipc=True) for gpu in (A, B, FAR))
NO_NCCL = Gpu("node1", 1, "0000:02", problem="CuPy finds no NCCL")
NO_GPU = Gpu("node1", problem="CuPy is not installed")

CHOICES = {
    "no_gpu": ([NO_GPU, NO_GPU], "mpi", "no rank has a GPU"),
    "some_without": ([A, NO_GPU, B], "mpi", "only 2 of 3 ranks have a GPU"),
    "each_its_own": ([A, B], "nccl", "every rank has its own GPU"),
    "same_bus_on_two_nodes": ([A, FAR], "nccl", "every rank has its own GPU"),
    "shared": ([A, A, B], "host", "3 ranks share 2 GPUs"),
    "shared_with_ipc": ([A_IPC, A_IPC, B_IPC], "host", "3 ranks share 2 GPUs"),
    "shared_by_all": ([A, A], "host", "2 ranks share 1 GPU"),
    "nccl_missing": ([A, NO_NCCL], "host", "no NCCL on rank 1: CuPy finds no NCCL"),
}


@pytest.mark.parametrize(("found", "backend", "reason"), CHOICES.values(), ids=CHOICES)
def test_auto_choice(found, backend, reason):
    assert launch.choose(found) == (backend, reason)


def test_required_backend_names_the_rank_that_cannot():
    assert launch.require("nccl", [A, FAR]) == ("nccl", "asked for")
    assert launch.require("host", [A, NO_NCCL]) == ("host", "asked for")
    with pytest.raises(RuntimeError, match=r"on rank 1 \(node1\), CuPy is not installed"):
        launch.require("host", [A, NO_GPU])
    with pytest.raises(RuntimeError, match=r"on rank 1 \(node1\), CuPy finds no NCCL"):
        launch.require("nccl", [A, NO_NCCL])
    assert launch.require("ipc", [A_IPC, A_IPC]) == ("ipc", "asked for")
    with pytest.raises(RuntimeError, match=r"one machine.*rank 1's GPU exports no memory.*host"):
        launch.require("ipc", [A_IPC, B])
    with pytest.raises(RuntimeError, match=r"one machine.*they are on 2"):
        launch.require("ipc", [A_IPC, FAR_IPC])
    with pytest.raises(RuntimeError, match=r"a GPU for each rank: 3 ranks have 2\..*host"):
        launch.require("nccl", [A, B, A])


def stand_in_cupy(monkeypatch, count):
    """As much of CuPy as a look at the GPUs needs; count() gives or raises."""
    cupy, cuda, nccl = ModuleType("cupy"), ModuleType("cupy.cuda"), ModuleType("cupy.cuda.nccl")
    cuda.runtime = SimpleNamespace(getDeviceCount=count)
    cuda.Device = lambda number: SimpleNamespace(pci_bus_id=f"0000:{number:02}")
    nccl.get_version = lambda: 22703
    cupy.cuda, cuda.nccl = cuda, nccl
    for module in (cupy, cuda, nccl):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return nccl


def test_find_gpu_counts_round(monkeypatch):
    stand_in_cupy(monkeypatch, lambda: 2)
    seen = [launch.find_gpu(number) for number in range(3)]
    assert [(gpu.device, gpu.bus) for gpu in seen] == [(0, "0000:00"), (1, "0000:01"), (0, "0000:00")]
    assert all(gpu.nccl for gpu in seen)


def test_find_gpu_without_driver_or_nccl(monkeypatch):
    def no_driver():
        raise RuntimeError("cudaErrorInsufficientDriver")

    stand_in_cupy(monkeypatch, no_driver)
    gpu = launch.find_gpu(0)
    assert gpu.device is None
    assert "CuPy finds no GPU (RuntimeError: cudaErrorInsufficientDriver)" in gpu.problem
    stand_in_cupy(monkeypatch, lambda: 1).get_version = no_driver
    gpu = launch.find_gpu(0)
    assert (gpu.device, gpu.nccl) == (0, False)
    assert "CuPy finds no NCCL" in gpu.problem
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert launch.find_gpu(0).problem == "CuPy is not installed"


def test_ranks_give_way_only_when_crowded(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    policies = []
    linux = {"SCHED_OTHER": 0, "SCHED_BATCH": 3, "sched_param": int, "sched_getscheduler": lambda pid: 0}
    linux["sched_setscheduler"] = lambda pid, policy, priority: policies.append(policy)
    for attribute, value in linux.items():
        monkeypatch.setattr(f"os.{attribute}", value, raising=False)
    name = "MPIR_CVAR_ENABLE_HEAVY_YIELD"
    for ranks, user, want in (("2", None, None), ("3", None, "1"), ("3", "0", "0"), (None, None, None)):
        for variable, value in ((name, user), ("MPI_LOCALNRANKS", ranks)):
            if value is None:
                monkeypatch.delenv(variable, raising=False)
            else:
                monkeypatch.setenv(variable, value)
        policies.clear()
        launch._give_way_when_crowded()
        assert launch.os.environ.get(name) == want
        assert policies == ([linux["SCHED_BATCH"]] if want == "1" else [])


def test_init_prints_one_line(capsys):
    comm = init("self")
    assert (comm.rank, comm.size, comm.backend) == (0, 1, "self")
    assert capsys.readouterr().out == "# cutpq: 1 rank, backend self: asked for\n"


def test_environment_overrides_auto_only(capsys, monkeypatch):
    monkeypatch.setenv("CUTPQ_COMM", "self")
    init()
    assert "backend self: asked for" in capsys.readouterr().out
    monkeypatch.setenv("CUTPQ_COMM", "nonsense")
    assert init("self").backend == "self"
    with pytest.raises(ValueError, match=r"CUTPQ_COMM=.nonsense. is not one of auto, self, .*, nccl, ipc, host"):
        init()


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend='gloo' is not one of auto, self"):
        init("gloo")


def test_threads_are_not_started_by_init():
    with pytest.raises(ValueError, match="run_threads"):
        init("threads")
