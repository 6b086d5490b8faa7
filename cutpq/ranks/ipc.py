"""Ranks as processes of one machine whose GPUs read each other's memory: CUDA IPC.

Each rank owns a slab of GPU memory and opens those of its peers. A rank writes what it sends into its own slab, where
its peers read it; in a two-shot sum it writes terms into the slab of who adds them. Sums are the kernels
all_reduce_oneshot and all_reduce_twoshot.

    ranks have        they meet                                            a sum
    a GPU each        in the kernel, by flags in each other's slabs        is asynchronous, one launch
    a GPU in common   on the host: two of their kernels never run at once  waits for the stream at each step

Written against the CUDA and CuPy documentation and reviewed; not yet run on a GPU. The kernels, the layout of slabs
and the steps that meet on the host are tested on the CPU.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from ..array import Array, aligned, bfloat16, ceil_div, to_numpy
from ..kernels import load as kernels
from ..kernels.config import FLOAT16, MOST_ELEMENTS, payload_code
from .communicator import Communicator, check_received, in_words, offsets
from .failures.abort import before_exit
from .failures.patience import RanksDisagreeError, patience_s
from .slab import HALF_ALIGN, MOST_BYTES, SLAB_UNIT, half_bytes, peer_config, share_bytes

if TYPE_CHECKING:
    from ..codecs.codec import Codec

# Up to here an uncompressed sum goes in one shot: a second meeting of the GPUs would cost more than the bytes that it
# saves. vLLM's custom all-reduce has the same bound for 8 ranks.
ONESHOT_BYTES = 256 << 10

_STEPS = {"oneshot": 2, "twoshot": 3}

# How long a rank waits for the stores of its peers to show, which after a barrier should be there.
STORES_S = 5.0

# This process's slabs that peers may have open, by id. A slab leaves when all ranks closed it together. That of a
# communicator which was dropped without close() stays until the process ends: a peer may still be reading it.
_open_to_peers: dict[int, Array] = {}


class IpcError(RuntimeError):
    """The ranks cannot read each other's GPU memory; raised on all ranks alike."""


class IpcCommunicator(Communicator):
    """GPU arrays between processes of one machine, by peer loads; on one stream, the first that is used.

    RanksDisagreeError names a peer that does not come within CUTPQ_TIMEOUT. With a GPU for each rank the sum that
    waited returns undefined numbers, and the next collective or barrier raises the error. watch.py also ends a job
    whose ranks make different calls.

    A slab is freed when all ranks have met and closed it: by `close`, or by `reserve` for a larger one. Else it stays
    until the process ends; a process that leaves finishes its work on the GPU and waits for the others to leave.
    """

    backend = "ipc"

    def __init__(self, control: Communicator, memory: Any, bus: str, device: int | None = None):
        """control: the same ranks by another backend, for objects and for meeting on the host; bus: of the GPU.

        Raises IpcError, on all ranks.
        """
        super().__init__(control.rank, control.size, control.reason, memory.xp, device, origin=control.origin)
        self._control, self._memory, self._bus = control, memory, bus
        self.shared = len({control.bcast(bus, root) for root in range(control.size)}) < control.size
        self.waits_on_host = self.shared
        self.can_capture = not self.shared
        sms = kernels.device(memory.xp).sms
        self._sms = min(control.bcast(sms, root) for root in range(control.size))
        self._data_at = peer_config(None, FLOAT16, control.size, sms=self._sms).data_at
        self._status, self._status_on_device = memory.status()
        self._stream: int | None = None
        self._slabs: list[Array] = []
        self._kept_for_graphs: list[tuple[list[Array], Any]] = []  # slabs, and the device array of their addresses
        self._used_in_capture = False
        self._half_bytes = 0
        before_exit(memory.drain)
        self.reserve(SLAB_UNIT)
        if not self.shared:
            self.start_watch(control)

    def barrier(self) -> None:
        with self.calling("barrier"):
            self._synchronize()
            self._control.barrier()

    def bcast(self, obj: Any, root: int = 0) -> Any:
        with self.calling(f"bcast from rank {root}"):
            return self._control.bcast(obj, root)

    def split(self, color: int, key: int = 0) -> IpcCommunicator:
        return type(self)(self._control.split(color, key), self._memory, self._bus, self.device)

    def reserve(self, half_bytes: int) -> None:
        """Make room for `half_bytes` in each half of every slab. Collective, if there is less.

        A graph that was captured goes on with the slabs of its time, which are kept for it. During a capture nothing
        can be reserved: do so before.

        Raises ValueError for more than MOST_BYTES and during a capture, IpcError where new slabs cannot be shared.
        """
        if half_bytes <= self._half_bytes:
            return
        if half_bytes > MOST_BYTES:
            raise ValueError(f"a collective of {half_bytes} bytes is beyond {MOST_BYTES}; cut it into pieces")
        if self._is_capturing():
            raise ValueError(
                f"a collective of {half_bytes} bytes does not fit the slabs, of {self._half_bytes}, which cannot grow "
                f"during a capture: call comm.reserve({half_bytes}), or this collective, on every rank before it"
            )
        self._give_back_slabs()
        nbytes = ceil_div(self._data_at + 2 * half_bytes, SLAB_UNIT) * SLAB_UNIT
        self._slabs = self._open(self._memory.allocate(nbytes), nbytes)
        self._addresses = self._memory.addresses(self._slabs)
        self._half_bytes = (nbytes - self._data_at) // 2 // HALF_ALIGN * HALF_ALIGN

    def close(self) -> None:
        """Free this communicator's GPU memory, after which it cannot be used. Collective.

        Graphs that captured its sums must not be launched any more.
        """
        with self.calling("close"):
            for slabs, _ in [*self._kept_for_graphs, (self._slabs, self._addresses)]:
                self._free_together(slabs)
            self._kept_for_graphs, self._slabs = [], []

    def _give_back_slabs(self) -> None:
        """Free the slabs, or keep them where a captured graph has their addresses. Collective."""
        if self._used_in_capture:
            self._kept_for_graphs.append((self._slabs, self._addresses))
            self._used_in_capture = False
        elif self._slabs:
            self._free_together(self._slabs)
        self._slabs = []

    def _free_together(self, slabs: list[Array]) -> None:
        """Close the peers' slabs and free the own one, between two meetings."""
        self.barrier()  # after it no rank reads these slabs
        for rank, slab in enumerate(slabs):
            if rank != self.rank:
                self._memory.close(slab)
        self._control.barrier()  # after it no rank has these slabs open
        del _open_to_peers[id(slabs[self.rank])]

    def _is_capturing(self) -> bool:
        """Whether the current stream's work goes into a graph. Raises ValueError where collectives cannot do so."""
        if not self._memory.stream().is_capturing():
            return False
        if self.shared:
            raise ValueError(
                "ranks that share a GPU meet on the host in every collective, which a graph cannot capture: "
                "end the capture, or give each rank a GPU"
            )
        return True

    def _open(self, own: Array, nbytes: int) -> list[Array]:
        """Open every rank's slab, and check that loads see what its owner stored, and stores show at the owner.

        Opening alone proves nothing.
        """
        _open_to_peers[id(own)] = own
        own[self._data_at] = self.rank + 1
        self._memory.stream().synchronize()
        problem, handle, slabs = "", b"", [own] * self.size
        try:
            handle = self._memory.handle(own)
        except Exception as error:  # CUDA's reason why it cannot be shared
            problem = f"{type(error).__name__}: {error}"
        handles = [self._control.bcast(handle, root) for root in range(self.size)]
        try:
            for rank in set(range(self.size)) - {self.rank}:
                slabs[rank] = self._memory.open(handles[rank], nbytes)
                if int(slabs[rank][self._data_at]) != rank + 1:
                    problem = problem or f"it does not see what rank {rank} wrote"
        except Exception as error:
            problem = problem or f"{type(error).__name__}: {error}"
        self._agree(problem)
        try:
            for rank in set(range(self.size)) - {self.rank}:
                slabs[rank][self._data_at + HALF_ALIGN + self.rank] = self.rank + 1
            self._memory.stream().synchronize()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        self._control.barrier()  # after it every rank has stored
        self._agree(problem or self._missing_stores(own))
        return slabs

    def _missing_stores(self, own: Array) -> str:
        """What is wrong with the peers' stores into this rank's slab; "" where all show within STORES_S."""
        first = self._data_at + HALF_ALIGN
        wanted = np.arange(1, self.size + 1)
        wanted[self.rank] = 0
        deadline = time.monotonic() + STORES_S
        while True:
            missing = np.flatnonzero(to_numpy(own[first : first + self.size]) != wanted)
            if not len(missing):
                return ""
            if time.monotonic() > deadline:
                return f"it does not see what rank {missing[0]} stored into its memory"
            time.sleep(0.001)

    def _agree(self, problem: str) -> None:
        """Raise IpcError on all ranks where one has a problem. Collective."""
        for rank in range(self.size):
            theirs = self._control.bcast(problem, rank)
            if theirs:
                raise IpcError(f"GPU memory cannot be shared between processes: on rank {rank}, {theirs}")

    def all_reduce(self, x: Array) -> Array:
        """sum over ranks of x, in x's dtype: added in rank order, rounded once, equal on all ranks bit for bit.

        x  any shape, the same on all ranks; as Communicator.all_reduce

        In one shot up to ONESHOT_BYTES, and then counts (size - 1) * x.nbytes as sent; else in two, of shares that
        are whole groups of eight numbers.
        """
        self._check_array(x)
        with self.calling(f"all_reduce of {in_words(x)}"):
            total = self.sum_by_kernel(x, None, "oneshot" if x.nbytes <= ONESHOT_BYTES else "twoshot")
            return super().all_reduce(x) if total is None else total

    def sum_by_kernel(self, x: Array, codec: Codec | None, algo: str) -> Array | None:
        self._check_array(x)
        if x.dtype not in (np.float16, bfloat16, np.float32) or not kernels.usable(self.xp):
            return None
        if not 0 < x.size <= MOST_ELEMENTS or (codec and (codec.rotate or codec.outliers)):
            return None
        capturing = self._is_capturing()
        self._check_peers_came()
        self._check_stream()
        shares = share_bytes(x, codec, self.size)
        self.reserve(half_bytes(shares, sum(shares), algo))
        self._used_in_capture |= capturing
        out = self._launch(aligned(x).reshape(-1), codec, algo).reshape(x.shape)
        mine = shares[self.rank]
        others = (self.size - 1) * mine
        self.sent_bytes += sum(shares) - mine + others if algo == "twoshot" else self._oneshot_bytes(x, codec)
        return out

    def _oneshot_bytes(self, x: Array, codec: Codec | None) -> int:
        return (self.size - 1) * (codec.wire_bytes(codec.padded(x.size)) if codec else x.nbytes)

    def _launch(self, x: Array, codec: Codec | None, algo: str) -> Array:
        facts = (codec.element, codec.block, codec.scale, codec.rule) if codec else None
        out = self.xp.empty(x.size, x.dtype)
        timeout_us = int(patience_s() * 1e6)
        for step in range(1, _STEPS[algo] + 1) if self.shared else (0,):
            if step > 1:
                self.barrier()
            config = peer_config(facts, payload_code(x.dtype), self.size, step, self._sms)
            kernel = kernels.load(f"all_reduce_{algo}", config, self.xp)
            kernel(
                (config.GRID,), config.THREADS, self._addresses, x, out, self._status_on_device, self.rank, x.size,
                self._half_bytes, timeout_us, smem_bytes=config.smem_bytes,
            )  # fmt: skip
        return out

    def _exchange(self, x: Array, starts: list[int], send_counts: list[int], recv_counts: list[int]) -> Array:
        if self._is_capturing():
            raise ValueError(
                f"{self.kind} meets on the host, which a graph cannot capture; sums of floats can be captured"
            )
        self._synchronize()  # finish pending sums: after the all_gather below, slabs may be overwritten
        mine = np.array([x.size, *starts, *send_counts], np.int64)
        of_rank = self._control.all_gather(mine)
        for source in range(self.size):
            check_received(self.rank, source, int(of_rank[source][1 + self.size + self.rank]), recv_counts[source])
        self.reserve(ceil_div(int(of_rank[:, 0].max()), 2))
        self._slabs[self.rank][self._data_at : self._data_at + x.size] = x
        self.barrier()
        out = self.xp.empty(sum(recv_counts), np.uint8)
        for source, (place, count) in enumerate(zip(offsets(recv_counts), recv_counts, strict=True)):
            first = self._data_at + int(of_rank[source][1 + self.rank])
            out[place : place + count] = self._slabs[source][first : first + count]
        self.barrier()
        return out

    def _synchronize(self) -> None:
        self._memory.stream().synchronize()
        self._check_peers_came()

    def _check_peers_came(self) -> None:
        if self._status[0]:
            raise RanksDisagreeError(
                f"rank {self.rank} waited in a sum for rank {int(self._status[0]) - 1}, which did not come in "
                f"{patience_s():g} s (CUTPQ_TIMEOUT): it calls something else, or is gone"
            )

    def _check_stream(self) -> None:
        """Raise ValueError for a second stream: two streams on one communicator could wait for each other for ever."""
        stream = self._memory.stream().ptr
        self._stream = stream if self._stream is None else self._stream
        if stream != self._stream:
            raise ValueError(
                "this communicator has been used on another stream; a communicator is for one stream: "
                "make another by comm.split(0, comm.rank)"
            )
