"""Ranks as MPI processes, by mpi4py: `mpi` for NumPy arrays, `host` for CuPy arrays through pinned host memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from .array import Array
from .communicator import Communicator, check_color, check_root


class MpiCommunicator(Communicator):
    """NumPy arrays between processes. They travel as bytes, so that any dtype will do.

    A transfer of 2 GiB or more needs an MPI 4 library (MPICH 4, Open MPI with large counts).
    """

    backend = "mpi"

    def __init__(self, mpi: Any, reason: str):
        """mpi: an mpi4py communicator."""
        super().__init__(mpi.Get_rank(), mpi.Get_size(), reason)
        self._mpi = mpi

    def barrier(self) -> None:
        self._mpi.Barrier()

    def bcast(self, obj: Any, root: int = 0) -> Any:
        check_root(root, self.size)
        return self._mpi.bcast(obj, root)

    def split(self, color: int, key: int = 0) -> MpiCommunicator:
        check_color(color)
        return MpiCommunicator(self._mpi.Split(color, key), self.reason)

    def _all_gather(self, x: Array, counts: list[int]) -> Array:
        out = self._empty(sum(counts))
        self._mpi.Allgatherv(x, [out, (counts, _offsets(counts))])
        return out

    def _all_to_all(self, x: Array, send_counts: list[int], recv_counts: list[int]) -> Array:
        out = self._empty(sum(recv_counts))
        self._mpi.Alltoallv([x, (send_counts, _offsets(send_counts))], [out, (recv_counts, _offsets(recv_counts))])
        return out

    def _empty(self, nbytes: int) -> np.ndarray:
        return np.empty(nbytes, np.uint8)


class HostCommunicator(MpiCommunicator):
    """CuPy arrays between processes, of which several may share a GPU: down to the host, by MPI, and up again.

    Every collective waits for the current stream. Times of ranks that share a GPU mean little. Written against the
    CuPy API and reviewed; not yet run on a GPU.
    """

    backend = "host"

    def __init__(self, mpi: Any, reason: str, device: int | None):
        import cupy

        super().__init__(mpi, reason)
        self.xp, self.device = cupy, device

    def barrier(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()
        super().barrier()

    def split(self, color: int, key: int = 0) -> HostCommunicator:
        check_color(color)
        return HostCommunicator(self._mpi.Split(color, key), self.reason, self.device)

    def _all_gather(self, x: Array, counts: list[int]) -> Array:
        return self._to_gpu(super()._all_gather(self._to_host(x), counts))

    def _all_to_all(self, x: Array, send_counts: list[int], recv_counts: list[int]) -> Array:
        return self._to_gpu(super()._all_to_all(self._to_host(x), send_counts, recv_counts))

    def _empty(self, nbytes: int) -> np.ndarray:
        if nbytes == 0:
            return super()._empty(0)
        import cupyx

        return cupyx.empty_pinned(nbytes, np.uint8)

    def _to_host(self, x: Array) -> np.ndarray:
        return x.get(out=self._empty(x.size))

    def _to_gpu(self, staged: np.ndarray) -> Array:
        out = self.xp.empty(staged.size, np.uint8)
        out.set(staged)
        self.xp.cuda.get_current_stream().synchronize()  # before the pinned memory may be used again
        return out


def _offsets(counts: Sequence[int]) -> list[int]:
    return list(accumulate(counts, initial=0))[:-1]
