"""The NCCL backend on host memory: the real class, with a stand-in for the library that moves bytes between threads.

What this checks is pointers, counts, peers, dtypes, streams and grouping. Whether NCCL is content, only GPUs tell.
"""

import ctypes
import queue
import threading
from types import SimpleNamespace

import ml_dtypes
import mpi_worker
import numpy as np
import pytest

from cutpq.ranks.nccl import NcclCommunicator
from cutpq.ranks.threads import run_threads

STREAM = 4711
TYPES = [
    np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64, np.float16, np.float32, np.float64,
    ml_dtypes.bfloat16,
]  # fmt: skip  # in the order of ncclDataType_t


class Library:
    """The part of cupy.cuda.nccl that the backend uses."""

    def __init__(self):
        self.ids = 0
        self.mail = {}  # (unique id, from, to) -> queue of bytes
        self.lock = threading.Lock()
        self.thread = threading.local()  # the open group of this rank, and the memory it may touch

    def get_unique_id(self):
        with self.lock:
            self.ids += 1
            return bytes([self.ids])

    def NcclCommunicator(self, size, unique_id, rank):
        assert isinstance(unique_id, bytes)
        return Link(self, size, unique_id, rank)

    def groupStart(self):
        assert not hasattr(self.thread, "group"), "a group in a group"
        self.thread.group = []

    def groupEnd(self):
        for receive in self.thread.group:
            receive()
        del self.thread.group

    def box(self, *way):
        with self.lock:
            return self.mail.setdefault(way, queue.Queue())

    def check(self, pointer, nbytes, writes=False):
        inside = [
            not (writes and read_only)
            for start, end, read_only in self.thread.arrays
            if start <= pointer and pointer + nbytes <= end
        ]
        assert any(inside), "outside the arrays of this call"


class Link:
    def __init__(self, library, size, unique_id, rank):
        self.library, self.size, self.id, self.rank = library, size, unique_id, rank

    def send(self, pointer, count, dtype, peer, stream):
        assert stream == STREAM
        assert peer != self.rank
        assert count > 0
        assert hasattr(self.library.thread, "group"), "sends of several ranks would wait for each other"
        self._put(pointer, count * np.dtype(TYPES[dtype]).itemsize, peer)

    def recv(self, pointer, count, dtype, peer, stream):
        assert stream == STREAM
        assert peer != self.rank
        assert count > 0
        self.library.thread.group.append(lambda: self._take(pointer, count * np.dtype(TYPES[dtype]).itemsize, peer))

    def allGather(self, source, target, count, dtype, stream):
        assert stream == STREAM
        nbytes = count * np.dtype(TYPES[dtype]).itemsize
        for peer in range(self.size):
            self._put(source, nbytes, peer)
        for peer in range(self.size):
            self._take(target + peer * nbytes, nbytes, peer)

    def allReduce(self, source, target, count, dtype, op, stream):
        assert stream == STREAM
        assert op == 0, "ncclSum"
        dtype = np.dtype(TYPES[dtype])
        for peer in range(self.size):
            self._put(source, count * dtype.itemsize, peer)
        parts = [np.frombuffer(self._get(peer), dtype) for peer in range(self.size)]
        total = sum(parts[1:], parts[0])
        assert total.size == count
        self.library.check(target, total.nbytes, writes=True)
        ctypes.memmove(target, total.ctypes.data, total.nbytes)

    def _put(self, pointer, nbytes, peer):
        self.library.check(pointer, nbytes)
        self.library.box(self.id, self.rank, peer).put(ctypes.string_at(pointer, nbytes))

    def _get(self, peer):
        return self.library.box(self.id, peer, self.rank).get(timeout=10)

    def _take(self, pointer, nbytes, peer):
        what = self._get(peer)
        assert len(what) == nbytes
        self.library.check(pointer, nbytes, writes=True)
        ctypes.memmove(pointer, what, nbytes)


class OnHost(NcclCommunicator):
    """The backend with NumPy's pointers and a stream of its own."""

    def _pointer(self, x):
        assert x.flags.c_contiguous
        known = self._nccl.thread.__dict__.setdefault("arrays", [])
        known.append((x.ctypes.data, x.ctypes.data + x.nbytes, not x.flags.writeable))
        return x.ctypes.data

    def _stream(self):
        return SimpleNamespace(ptr=STREAM, synchronize=lambda: None)


def run_nccl(size, case):
    library = Library()
    return run_threads(size, lambda control: case(OnHost(control, library, np, 0)), timeout_s=20)


@pytest.mark.parametrize("case", mpi_worker.CASES.values(), ids=mpi_worker.CASES)
def test_collectives(case):
    for size in (1, 2, 3, 8):
        run_nccl(size, case)


def test_all_reduce_counts_what_a_ring_sends():
    def sent(comm):
        comm.all_reduce(np.ones(300, np.float16))
        return comm.sent_bytes

    assert run_nccl(3, sent) == [800] * 3
    assert run_nccl(1, sent) == [0]


@pytest.mark.parametrize("dtype", [np.int16, np.bool_, np.complex64])
def test_all_reduce_names_what_nccl_adds(dtype):
    with pytest.raises(TypeError, match=f"NCCL adds int8, .*bfloat16, got {np.dtype(dtype)}"):
        run_nccl(2, lambda comm: comm.all_reduce(np.zeros(3, dtype)))
