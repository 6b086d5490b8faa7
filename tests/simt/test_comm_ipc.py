"""The ipc backend in one process: the real class and the real kernels, with a stand-in for CUDA's memory handles.

Ranks are threads that share a GPU, or host memory in its place: they meet on the host. Sums that meet in the kernel:
test_all_reduce_kernels.
"""

import threading
from types import SimpleNamespace

import ml_dtypes
import mpi_worker
import numpy as np
import pytest
from assertions import assert_exact
from harness.gpu_clock import gpu_module

from cutpq.array import to_numpy
from cutpq.codecs.codec import codec
from cutpq.cost.all_reduce import oneshot_sent, twoshot_sent
from cutpq.kernels.config import Device
from cutpq.ranks import ipc
from cutpq.ranks.all_reduce import all_reduce, all_reduce_rmsnorm
from cutpq.ranks.failures import abort
from cutpq.ranks.failures.patience import RanksDisagreeError
from cutpq.ranks.ipc import IpcCommunicator, IpcError
from cutpq.ranks.slab import SLAB_UNIT, CudaMemory
from cutpq.ranks.threads import run_threads

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class HostMemory:
    """Slabs of one process; a handle is a number."""

    xp = np
    slabs: dict = {}  # noqa: RUF012
    lock = threading.Lock()

    def __init__(self):
        self.opened = set()
        self.current = 7
        self.capturing = False

    def allocate(self, nbytes):
        assert nbytes % SLAB_UNIT == 0
        return np.zeros(nbytes, np.uint8)

    def handle(self, slab):
        with self.lock:
            number = len(self.slabs)
            self.slabs[number] = slab
        return number.to_bytes(8, "little")

    def open(self, handle, nbytes):
        slab = self.slabs[int.from_bytes(handle, "little")]
        assert slab.nbytes == nbytes
        self.opened.add(slab.ctypes.data)
        return slab

    def close(self, slab):
        self.opened.remove(slab.ctypes.data)

    def addresses(self, slabs):
        return slabs

    def status(self):
        word = np.zeros(1, np.uint32)
        return word, word

    def stream(self):
        return SimpleNamespace(ptr=self.current, synchronize=lambda: None, is_capturing=lambda: self.capturing)

    def drain(self):
        pass


class GpuMemory(CudaMemory):
    """Slabs of one GPU. A process cannot open its own handles, so that a handle is an address here, too."""

    def __init__(self):
        gpu = gpu_module()
        super().__init__(gpu, gpu.cuda.runtime.getDevice())

    def handle(self, slab):
        return slab.data.ptr.to_bytes(8, "little")

    def open(self, handle, nbytes):
        pointer = int.from_bytes(handle, "little")
        return self._array(self.xp.cuda.UnownedMemory(pointer, nbytes, self, self.device), nbytes)

    def close(self, slab):
        pass


@pytest.fixture(params=[HostMemory, pytest.param(GpuMemory, marks=pytest.mark.gpu)], ids=["host", "gpu"])
def memory(request):
    return request.param


def run_ipc(size, case, memory=HostMemory):
    return run_threads(size, lambda control: case(IpcCommunicator(control, memory(), "0000:01")), timeout_s=20)


@pytest.fixture(autouse=True)
def _host_kernels(monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    monkeypatch.setattr(HostMemory, "slabs", {})


MOVES = {name: case for name, case in mpi_worker.CASES.items() if "sum" not in name and name != "splits"}


@pytest.mark.parametrize("case", MOVES.values(), ids=MOVES)
def test_collectives(case):
    for size in (1, 2, 3):
        run_ipc(size, case)


def numbers(rank, n, dtype):
    return (np.random.default_rng([3, rank]).standard_t(2, n) * 4).astype(dtype)


SUMS = {  # elements, dtype, codec, algo
    "plain_small": (1001, np.float16, None, "plain"),
    "plain_two_shots": (131072 + 9, np.float16, None, "plain"),
    "plain_float32": (77, np.float32, None, "oneshot"),
    "oneshot": (1500, np.float16, "mxfp4", "oneshot"),
    "twoshot": (1500, BFLOAT16, "mxfp4", "twoshot"),
    "share_without_blocks": (40, np.float16, "nvfp4", "twoshot"),
    "options": (96, np.float16, "mxfp4+hadamard", "twoshot"),
}


@pytest.mark.parametrize("case", SUMS)
def test_sum_equals_that_of_threads(memory, case):
    n, dtype, name, algo = SUMS[case]

    def on_rank(comm):
        return to_numpy(all_reduce(comm.xp.asarray(numbers(comm.rank, n, dtype)), comm, codec=name, algo=algo))

    want = run_threads(3, on_rank)[0]
    for total in run_ipc(3, on_rank, memory):
        assert_exact(total, want)


@pytest.mark.parametrize("algo", ["oneshot", "twoshot"])
def test_a_sum_with_its_norm_goes_by_the_peers_kernel(algo, monkeypatch, memory):
    """Not by two exchanges through slabs, in which ranks meet on the host four times."""
    monkeypatch.setattr(IpcCommunicator, "_exchange", None)

    def on_rank(comm):
        x, residual = (numbers(comm.rank + seed, 3 * 64, np.float16).reshape(3, 64) for seed in (0, 9))
        residual = comm.bcast(residual)
        weight, perm = numbers(5, 64, np.float16), np.random.default_rng(1).permutation(64).astype(np.int32)
        x, residual, weight, perm = (comm.xp.asarray(a) for a in (x, residual, weight, perm))
        y = all_reduce_rmsnorm(x, comm, residual, weight, perm, codec="mxfp4", algo=algo)
        return np.stack([to_numpy(y), to_numpy(residual)])

    want = run_threads(3, on_rank)[0]
    for got in run_ipc(3, on_rank, memory):
        assert_exact(got, want)


def test_sums_count_what_the_formulas_say():
    def on_rank(comm):
        x = np.ones(1500, np.float16)
        sent = []
        for algo in "oneshot", "twoshot":
            comm.reset_sent()
            all_reduce(x, comm, codec="mxfp4", algo=algo)
            sent.append(comm.sent_bytes)
        comm.reset_sent()
        comm.all_reduce(x)
        return [*sent, comm.sent_bytes]

    c = codec("mxfp4")
    for rank, sent in enumerate(run_ipc(3, on_rank)):
        assert sent == [oneshot_sent(1500, 3, c), twoshot_sent(1500, 3, rank, c), 2 * 3000]


def test_slabs_grow_together_and_give_back_what_they_opened():
    def on_rank(comm):
        before = comm._slabs[0].nbytes
        total = comm.all_reduce(np.ones(8 * SLAB_UNIT, np.uint8))
        assert (total == 2).all()
        assert comm._slabs[0].nbytes > before
        assert comm._memory.opened == {slab.ctypes.data for r, slab in enumerate(comm._slabs) if r != comm.rank}

    run_ipc(2, on_rank)


def test_memory_that_cannot_be_opened_is_an_error_on_all_ranks():
    class Closed(HostMemory):
        def open(self, handle, nbytes):
            if threading.current_thread().name == "rank 1":
                raise OSError("cudaErrorInvalidValue")
            return super().open(handle, nbytes)

    def connect(control):
        with pytest.raises(IpcError, match="on rank 1, OSError: cudaErrorInvalidValue"):
            IpcCommunicator(control, Closed(), "0000:01")
        control.barrier()

    run_threads(3, connect, timeout_s=20)


def test_memory_that_shows_nothing_is_an_error():
    class Blind(HostMemory):
        def open(self, handle, nbytes):
            return np.zeros(nbytes, np.uint8)

    with pytest.raises(IpcError, match="does not see what rank"):
        run_ipc(2, lambda comm: None, Blind)


def test_memory_that_takes_no_stores_is_an_error(monkeypatch):
    """Kernels set flags in each other's slabs: what can be read only would leave them waiting."""
    monkeypatch.setattr(ipc, "STORES_S", 0.1)

    class ReadOnly(HostMemory):
        def open(self, handle, nbytes):
            return super().open(handle, nbytes).copy()

    with pytest.raises(IpcError, match="on rank 0, it does not see what rank 1 stored into its memory"):
        run_ipc(2, lambda comm: None, ReadOnly)


def test_slabs_stay_until_all_ranks_close_them():
    """A peer may read the slab of a rank that has nothing more to do, and whose communicator is gone."""

    def on_rank(comm):
        comm.all_reduce(np.ones(8, np.float16))
        own = comm._slabs[comm.rank]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comm._control, "barrier", lambda: events.append(id(own) in ipc._open_to_peers))
            comm.close()
        assert id(own) not in ipc._open_to_peers
        assert not comm._memory.opened

    events = []
    before = len(ipc._open_to_peers)
    run_ipc(2, lambda comm: comm.all_reduce(np.ones(8, np.float16)))
    assert len(ipc._open_to_peers) == before + 2, "dropped without close"
    run_ipc(2, on_rank)
    assert len(ipc._open_to_peers) == before + 2
    assert events == [True] * 4, "the memory must live through both meetings"


def test_the_gpu_is_drained_before_the_process_leaves():
    def on_rank(comm):
        assert comm._memory.drain in abort._exit_callbacks

    run_ipc(2, on_rank)


def test_a_capture_neither_grows_nor_loses_slabs():
    def on_rank(control):
        comm = IpcCommunicator(control, HostMemory(), f"0000:0{control.rank}")
        old = list(comm._slabs)
        comm._memory.capturing = True
        with pytest.raises(ValueError, match=r"does not fit the slabs, .* call comm.reserve\(\d+\)"):
            comm.all_reduce(np.ones(8 * SLAB_UNIT, np.float16))
        with pytest.raises(ValueError, match="all_gather meets on the host"):
            comm.all_gather(np.ones(8, np.uint8))
        comm._used_in_capture = True  # as a sum that fits leaves it
        comm._memory.capturing = False
        comm.reserve(8 * SLAB_UNIT)
        assert comm._slabs[0] is not old[0]
        assert comm._memory.opened >= {slab.ctypes.data for r, slab in enumerate(old) if r != comm.rank}
        comm.close()
        assert not comm._memory.opened

    run_threads(2, on_rank, timeout_s=20)


def test_a_capture_by_ranks_that_share_a_gpu_is_refused():
    def on_rank(comm):
        comm._memory.capturing = True
        with pytest.raises(ValueError, match="share a GPU meet on the host in every collective"):
            comm.all_reduce(np.ones(8, np.float16))

    run_ipc(2, on_rank)


def test_another_stream_is_refused():
    def on_rank(comm):
        comm.all_reduce(np.ones(8, np.float16))
        comm._memory.current = 8
        with pytest.raises(ValueError, match="another stream"):
            comm.all_reduce(np.ones(8, np.float16))

    run_ipc(2, on_rank)


def test_peer_that_did_not_come_is_named_by_the_next_call():
    def on_rank(comm):
        comm._status[0] = 1 + 2
        with pytest.raises(RanksDisagreeError, match="in a sum for rank 2, which did not come in 60 s"):
            comm.all_reduce(np.ones(8, np.float16))
        with pytest.raises(RanksDisagreeError, match="rank 2"):
            comm.barrier()

    run_ipc(3, on_rank)


def test_sums_of_ranks_whose_gpus_differ(monkeypatch):
    """The grid of all is that of the smallest GPU, since each block waits for those of its number."""

    mine = threading.local()
    monkeypatch.setattr(ipc.kernels, "device", lambda xp: Device(90, mine.sms))

    def on_rank(control):
        mine.sms = 5 - control.rank
        comm = IpcCommunicator(control, HostMemory(), "0000:01")
        return comm._sms, comm.all_reduce(numbers(comm.rank, 100, np.dtype(np.float16)))

    (sms, total), *others = run_threads(3, on_rank, timeout_s=20)
    assert sms == 3
    for of_other, sums in others:
        assert of_other == sms
        assert_exact(sums, total)


def test_ranks_with_a_gpu_each_meet_in_the_kernel():
    def on_rank(control):
        comm = IpcCommunicator(control, HostMemory(), f"0000:0{control.rank}")
        assert not comm.shared
        assert not comm.waits_on_host

    run_threads(2, on_rank, timeout_s=20)
