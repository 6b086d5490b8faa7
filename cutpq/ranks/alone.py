"""One rank alone, where every collective is a copy."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from ..array import Array
from .communicator import Communicator, check_color, check_root, sum_dtype


class SelfCommunicator(Communicator):
    """One rank alone: every collective is a copy."""

    backend = "self"
    takes_any_module = True
    can_capture = can_capture_exchanges = True

    def __init__(self, reason: str = "one process", xp: ModuleType = np, device: int | None = None):
        super().__init__(0, 1, reason, xp, device)

    def barrier(self) -> None:
        if self.device is not None:
            self.xp.cuda.get_current_stream().synchronize()

    def bcast(self, obj: Any, root: int = 0) -> Any:
        check_root(root, 1)
        return obj

    def split(self, color: int, key: int = 0) -> SelfCommunicator:
        check_color(color)
        return SelfCommunicator(self.reason, self.xp, self.device)

    def all_reduce(self, x: Array) -> Array:
        self._check_array(x)
        sum_dtype(x.dtype)
        return x.copy()

    def _exchange(self, x: Array, starts: list[int], send_counts: list[int], recv_counts: list[int]) -> Array:
        return x[starts[0] : starts[0] + send_counts[0]].copy()
