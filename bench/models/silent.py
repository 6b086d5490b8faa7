"""One rank of many whose peers say nothing: what it computes takes its time, what it would wait for does not."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from cutpq.array import Array
from cutpq.ranks.communicator import Communicator


class SilentCommunicator(Communicator):
    """Rank 0 of `size`; what the others would send is zero. Results are not those of a model, times are of one rank."""

    backend = "silent"
    takes_any_module = True

    def __init__(self, size: int, alone: Communicator):
        super().__init__(0, size, "peers are silent", alone.xp, alone.device)
        self._alone = alone

    def barrier(self) -> None:
        self._alone.barrier()

    def bcast(self, obj: Any, root: int = 0) -> Any:
        return obj

    def split(self, color: int, key: int = 0) -> Communicator:
        raise NotImplementedError("a silent communicator is not split")

    def all_reduce(self, x: Array) -> Array:
        return x

    def _exchange(self, x: Array, starts: list[int], send_counts: list[int], recv_counts: list[int]) -> Array:
        xp: ModuleType = self.xp
        received = xp.zeros(sum(recv_counts), xp.uint8)
        received[: recv_counts[0]] = x[starts[0] :][: send_counts[0]]
        return received
