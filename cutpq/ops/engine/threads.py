"""How many cores a rank computes with, and work that is shared among them.

The threads are this module's own. Those of a BLAS spin while they wait, and take the cores from whatever comes between
two products: a BLAS is therefore set to one thread, and large products are cut into parts. Ranks of one machine share
the cores: eight ranks on two cores would run sixteen threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")

_NAMES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Threads:
    """The number of threads that this process computes with, and the pool of those beside the one that asks."""

    def __init__(self) -> None:
        asked = [int(os.environ[name]) for name in _NAMES if os.environ.get(name, "").isdigit()]
        self.limit = min([*asked, cores()])
        self.pool: ThreadPoolExecutor | None = None


class _Here(threading.local):
    """Whether this thread works on its share of something."""

    shares = False


_state, _here = _Threads(), _Here()


def limit() -> int:
    """Threads that this process computes with: one within shared work, where the others have their own share."""
    return 1 if _here.shares else _state.limit


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


@cache
def use_one_for_blas() -> None:
    """From now on a product takes the thread that asks for it, in every BLAS library that the process has loaded."""
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        library.set_num_threads(1)


def each(work: Callable[[T], object], pieces: Iterable[T]) -> None:
    """work(piece) for every piece, on as many threads as `limit` says, of which the caller's is one."""
    todo = list(pieces)
    use_one_for_blas()
    if limit() == 1 or len(todo) < 2:
        for piece in todo:
            work(piece)
        return
    rest = iter(todo)  # the next piece goes to the thread that is ready first

    def work_on() -> None:
        _here.shares = True
        try:
            for piece in rest:
                work(piece)
        finally:
            _here.shares = False

    _state.pool = _state.pool or ThreadPoolExecutor(cores(), thread_name_prefix="cutpq")
    helpers = [_state.pool.submit(work_on) for _ in range(min(_state.limit, len(todo)) - 1)]
    try:
        work_on()
    finally:  # also after an error: no piece may be worked on when the caller goes on
        for helper in helpers:
            if not helper.cancel():
                helper.result()


def in_order(tasks: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
    """What each task gives, in their order: a task for each thread is computed while the caller uses what it has."""
    if _state.limit == 1:
        yield from (task() for task in tasks)
        return
    use_one_for_blas()
    _state.pool = _state.pool or ThreadPoolExecutor(cores(), thread_name_prefix="cutpq")
    begun: deque[Future[T]] = deque()
    try:
        for task in tasks:
            begun.append(_state.pool.submit(task))
            if len(begun) > _state.limit:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:  # also after an error: no task may be computed when the caller goes on
        for future in begun:
            if not future.cancel():
                wait([future])
