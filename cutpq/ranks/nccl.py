"""Ranks as processes with a GPU each: NCCL, by CuPy's binding."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from ..array import Array, bfloat16
from .communicator import Communicator, in_words, offsets

# ncclDataType_t and ncclRedOp_t of nccl.h
UINT8 = 1
SUM = 0
DTYPES = {
    np.dtype(np.int8): 0,
    np.dtype(np.uint8): UINT8,
    np.dtype(np.int32): 2,
    np.dtype(np.uint32): 3,
    np.dtype(np.int64): 4,
    np.dtype(np.uint64): 5,
    np.dtype(np.float16): 6,
    np.dtype(np.float32): 7,
    np.dtype(np.float64): 8,
    bfloat16: 9,
}


class NcclCommunicator(Communicator):
    """CuPy arrays between GPUs, on CuPy's current stream; only `barrier` waits for it.

    Written against the API of cupy.cuda.nccl and reviewed line by line: it has not run on more than one GPU. Its
    counts, offsets and peers are tested on host memory, with a stand-in for the library.

    all_reduce is NCCL's own, with NCCL's rounding: float16 and bfloat16 are rounded at every step of its ring or
    tree, so that its sums differ from the other backends' in their last bits.

    Ranks that call different things, or of which one skips a call, would wait on their GPUs for ever: failures/watch.py
    notices and ends the job.

    An array made on another stream must stay alive until the collective is done, as with any CuPy kernel.
    """

    backend = "nccl"
    waits_on_host = False
    can_capture = can_capture_exchanges = True

    def __init__(self, control: Communicator, nccl: Any, xp: ModuleType, device: int | None):
        """control: the same ranks by another backend, for set-up and objects; nccl: the module cupy.cuda.nccl."""
        super().__init__(control.rank, control.size, control.reason, xp, device, control.node_of, control.origin)
        self._control, self._nccl = control, nccl
        unique_id = control.bcast(nccl.get_unique_id() if control.rank == 0 else None)
        self._link = nccl.NcclCommunicator(control.size, unique_id, control.rank)
        self.start_watch(control)

    def barrier(self) -> None:
        with self.calling("barrier"):
            self._stream().synchronize()
            self._control.barrier()

    def bcast(self, obj: Any, root: int = 0) -> Any:
        with self.calling(f"bcast from rank {root}"):
            return self._control.bcast(obj, root)

    def split(self, color: int, key: int = 0) -> NcclCommunicator:
        return type(self)(self._control.split(color, key), self._nccl, self.xp, self.device)

    def all_reduce(self, x: Array) -> Array:
        """sum over ranks of x, in x's dtype, as NCCL adds and rounds (see the class).

        x  any shape; float16, bfloat16, float32, float64, and integers of 8, 32 and 64 bits

        Counts 2 (size - 1) / size * x.nbytes as sent: what a ring sends, whatever NCCL chooses. Raises TypeError for
        another dtype.
        """
        self._check_array(x)
        if x.dtype not in DTYPES:
            names = ", ".join(dtype.name for dtype in DTYPES)
            raise TypeError(f"NCCL adds {names}, got {x.dtype}; convert it with .astype")
        ring = [0] * self.size
        ring[(self.rank + 1) % self.size] = 2 * (self.size - 1) * x.nbytes // self.size
        self.count_sent(ring)
        x = self.xp.ascontiguousarray(x).reshape(x.shape)
        out = self.xp.empty(x.shape, x.dtype)
        with self.calling(f"all_reduce of {in_words(x)}"):
            if x.size:
                pointers = self._pointer(x), self._pointer(out)
                self._link.allReduce(*pointers, x.size, DTYPES[x.dtype], SUM, self._stream().ptr)
        return out

    def _all_gather(self, x: Array, counts: list[int]) -> Array:
        if len(set(counts)) > 1:
            return super()._all_gather(x, counts)
        out = self.xp.empty(sum(counts), np.uint8)
        if x.size:
            self._link.allGather(self._pointer(x), self._pointer(out), x.size, UINT8, self._stream().ptr)
        return out

    def _exchange(self, x: Array, starts: list[int], send_counts: list[int], recv_counts: list[int]) -> Array:
        out = self.xp.empty(sum(recv_counts), np.uint8)
        source, target, stream = self._pointer(x), self._pointer(out), self._stream().ptr
        places = offsets(recv_counts)
        me = self.rank
        out[places[me] : places[me] + recv_counts[me]] = x[starts[me] : starts[me] + send_counts[me]]
        self._nccl.groupStart()
        for peer in range(self.size):
            if peer != me and send_counts[peer]:
                self._link.send(source + starts[peer], send_counts[peer], UINT8, peer, stream)
            if peer != me and recv_counts[peer]:
                self._link.recv(target + places[peer], recv_counts[peer], UINT8, peer, stream)
        self._nccl.groupEnd()
        return out

    def _pointer(self, x: Array) -> int:
        return x.data.ptr

    def _stream(self) -> Any:
        return self.xp.cuda.get_current_stream()
