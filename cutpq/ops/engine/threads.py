"""How many cores a rank computes with, and work that is shared among them.

A BLAS starts a thread a core in every process, and its threads spin while they wait: eight ranks on two cores would
run sixteen of them. Ranks of one machine therefore share the cores, and small products take one thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

# Below this a second thread costs more than it brings: a product of a third of a millisecond on one core.
SMALL_FLOPS = 1 << 25

_NAMES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Threads:
    """The number of threads that this process computes with, and the one that its BLAS is set to."""

    def __init__(self) -> None:
        asked = [int(os.environ[name]) for name in _NAMES if os.environ.get(name, "").isdigit()]
        self.limit = min([*asked, cores()])
        self.of_blas = 0  # not set yet
        self.lock = threading.Lock()
        self.pool: ThreadPoolExecutor | None = None
        self._libraries: list[Any] | None = None

    def set_blas(self, count: int) -> None:
        if count == self.of_blas:
            return
        with self.lock:
            for library in self.libraries():
                library.set_num_threads(count)
            self.of_blas = count

    def libraries(self) -> list[Any]:
        """The BLAS libraries of the process; none without threadpoolctl, which finds them."""
        if self._libraries is None:
            try:
                from threadpoolctl import ThreadpoolController
            except ImportError:
                self._libraries = []
            else:
                self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        return self._libraries


_state = _Threads()


def limit() -> int:
    """Threads that this process computes with."""
    return _state.limit


def share_cores(ranks: int) -> None:
    """From now on this process takes its share of the cores, as one of so many ranks on this machine."""
    _state.limit = min(_state.limit, max(1, cores() // ranks))


@contextmanager
def sharing_cores(ranks: int) -> Iterator[None]:
    """share_cores while so many threads of this process are ranks."""
    before = _state.limit
    _state.limit = min(before, max(1, cores() // ranks))
    try:
        yield
    finally:
        _state.limit = before


def use_for(flops: int) -> None:
    """Set the BLAS to as many threads as a product of so many operations is worth."""
    _state.set_blas(_state.limit if flops >= SMALL_FLOPS else 1)


def each(work: Callable[[T], object], pieces: Iterable[T]) -> None:
    """work(piece) for every piece, on as many threads as this process computes with; each with a BLAS of one thread."""
    todo = list(pieces)
    _state.set_blas(1)
    if _state.limit == 1 or len(todo) < 2:
        for piece in todo:
            work(piece)
        return
    if _state.pool is None:
        _state.pool = ThreadPoolExecutor(cores(), thread_name_prefix="cutpq")
    for done in [_state.pool.submit(work, piece) for piece in todo]:
        done.result()
