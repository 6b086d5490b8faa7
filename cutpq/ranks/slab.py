"""Slabs: the GPU memory of each rank that its peers read, and how much of it a sum takes (tile/slab.cuh)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from ..array import Array, ceil_div
from ..codecs.config import WireConfig, encode_config, wire_config
from ..codecs.formats import ELEMENTS, SCALES, Element, Scale
from ..codecs.layout import Layout
from ..kernels.config import FLOAT32
from ..weights.shard import even_shares

# CUDA packs smaller allocations into one piece of memory, whose IPC handle would open its neighbours, too.
SLAB_UNIT = 2 << 20

# Kernels take the size of half a slab as 32 bits.
MOST_BYTES = 1 << 31

# Halves start where a cudaMalloc would: any load that is aligned in an array is aligned in them.
HALF_ALIGN = 256


class CudaMemory:
    """What IpcCommunicator needs of CUDA, through CuPy."""

    def __init__(self, cupy: ModuleType, device: int):
        self.xp, self.device = cupy, device

    def allocate(self, nbytes: int) -> Array:
        """A slab of zeros, by a cudaMalloc of its own: memory of CuPy's pool cannot be opened piece by piece."""
        slab = self._array(self.xp.cuda.memory.Memory(nbytes), nbytes)
        slab[...] = 0
        return slab

    def handle(self, slab: Array) -> bytes:
        """What another process needs to open it."""
        return self.xp.cuda.runtime.ipcGetMemHandle(slab.data.ptr)

    def open(self, handle: bytes, nbytes: int) -> Array:
        """Another process's slab."""
        pointer = self.xp.cuda.runtime.ipcOpenMemHandle(handle)
        return self._array(self.xp.cuda.UnownedMemory(pointer, nbytes, self, self.device), nbytes)

    def close(self, slab: Array) -> None:
        """Give back what `open` returned, before its owner frees it."""
        self.xp.cuda.runtime.ipcCloseMemHandle(slab.data.ptr)

    def addresses(self, slabs: list[Array]) -> Any:
        """The slabs' addresses as a device array, for kernels."""
        return self.xp.array([slab.data.ptr for slab in slabs], np.uint64)

    def status(self) -> tuple[np.ndarray, Array]:
        """A word of host memory that kernels can write: as the host and as the device sees it."""
        # not cupyx.zeros_pinned: threads that import cupyx at once see a half-made module
        word = np.frombuffer(self.xp.cuda.alloc_pinned_memory(4), np.uint32, 1)
        word[0] = 0
        memory = self.xp.cuda.UnownedMemory(word.ctypes.data, word.nbytes, word, self.device)
        return word, self.xp.ndarray((1,), np.uint32, self.xp.cuda.MemoryPointer(memory, 0))

    def drain(self) -> None:
        """Wait for all work of this GPU that this process has launched."""
        try:
            with self.xp.cuda.Device(self.device):
                self.xp.cuda.runtime.deviceSynchronize()
        except self.xp.cuda.runtime.CUDARuntimeError:  # a faulted context runs nothing more
            pass

    def stream(self) -> Any:
        """CuPy's current stream."""
        return self.xp.cuda.get_current_stream()

    def _array(self, memory: Any, nbytes: int) -> Array:
        return self.xp.ndarray((nbytes,), np.uint8, self.xp.cuda.MemoryPointer(memory, 0))


def share_bytes(x: Array, codec: Layout | None, size: int) -> list[int]:
    """Bytes of each rank's share on the wire; uncompressed shares are whole groups of eight numbers."""
    if codec:
        return [codec.wire_bytes(share) for share in codec.shares(x.size, size)]
    return [8 * groups * x.itemsize for groups in even_shares(ceil_div(x.size, 8), size)]


def half_bytes(shares: list[int], whole: int, algo: str) -> int:
    """Bytes of half a slab that a sum takes: "twoshot" all shares and one share's sum, else one wire.

    whole  bytes of the wire of one rank
    """
    place = ceil_div(shares[0], 16) * 16
    return (len(shares) + 1) * place if algo == "twoshot" else whole + 16


# Where a rank's slab keeps what its peers read, as tile/slab.cuh has it.
MEETINGS = 2

# Blocks of a sum for each multiprocessor, which has room for two: the kernels are compiled for at most 128 registers.
# A block has 256 threads with four 16-byte loads each. Each half of the grid, which the two-shot sum lets alternate,
# has 1.7 MiB in flight on an A100 and 2.1 on an H100: NVLink needs 0.4 (371 GB/s times 1 us), an H100's memory 2 (3.35
# TB/s times 0.6 us).
BLOCKS_OF_SM = 2


@dataclass(frozen=True)
class PeerConfig(WireConfig):
    """all_reduce_oneshot and all_reduce_twoshot; a PLAIN payload has no codec, and its constants mean nothing.

    STEP       0: all steps, with flags between them; else that step alone
    PACKED     sixteen numbers a thread through half2, see tile/packed_wire.cuh
    TILES      tiles that a block has in flight, of an array or of one rank's wire
    SUM_TILES  the same of the wires of all ranks, of which a thread has up to 256 bytes
    """

    GRID: int = 216
    STEP: int = 0
    PLAIN: bool = False
    PACKED: bool = False
    TILES: int = 4
    SUM_TILES: int = 1

    @property
    def teams(self) -> int:
        """Teams of a block's threads, each of which has a tile of its own at a time (tile/either_wire.cuh)."""
        return 2 if self.PACKED else 1

    @property
    def smem_bytes(self) -> int:
        """Shared memory: a word for every rank, then the scales of a tile, both 16-byte aligned."""
        return ceil_div(4 * self.RANKS, 16) * 16 + (0 if self.PLAIN else self.scratch_bytes)

    @property
    def data_at(self) -> int:
        """Bytes of flags, epochs and what was sent, before a slab's data."""
        return ceil_div(4 * (MEETINGS * self.GRID * self.RANKS + 2 * self.GRID), 256) * 256


@cache
def peer_config(
    codec: tuple[Element, int, Scale, str] | None, dtype: int, ranks: int, step: int = 0, sms: int = 108
) -> PeerConfig:
    """The configuration for a codec's element, block, scale and rounding rule; None stands for a plain payload.

    sms  multiprocessors that each rank has at least; all ranks need the same number
    """
    facts = codec or (ELEMENTS["e2m1"], 32, SCALES["e8m0"], "floor")
    of_group = 32 if codec is None and dtype == FLOAT32 else 16  # bytes of eight numbers in registers, at most
    return PeerConfig(
        **vars(wire_config(*facts, dtype, ranks)), GRID=BLOCKS_OF_SM * sms, STEP=step, PLAIN=codec is None,
        PACKED=codec is not None and encode_config(*facts, dtype).PACKED,
        SUM_TILES=next(tiles for tiles in (4, 2, 1) if tiles == 1 or tiles * ranks * of_group <= 256),
    )  # fmt: skip
