"""Ranks as threads of one process: for tests, accuracy studies, and many ranks on one GPU."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from ..array import Array, array_module
from ..ops.engine.threads import sharing_cores
from . import nodes
from .communicator import Communicator, check_color, check_received, check_root
from .failures.patience import RanksDisagreeError, patience_s

T = TypeVar("T")


class _Stopped(BaseException):
    """Unwinds a thread that waited for a rank which failed. Not an Exception: no handler of the user's may catch it."""


class _Job:
    """State that all threads of one `run_threads` share: which ranks have finished, and the first failure."""

    def __init__(self, timeout_s: float, node_of: Sequence[int]):
        self.timeout_s, self.node_of = timeout_s, node_of
        self.changed = threading.Condition()
        self.finished: set[int] = set()
        self.failure: tuple[int, BaseException] | None = None

    def fail(self, rank: int, error: BaseException) -> None:
        with self.changed:
            self.failure = self.failure or (rank, error)
            self.changed.notify_all()

    def finish(self, rank: int) -> None:
        with self.changed:
            self.finished.add(rank)
            self.changed.notify_all()


class _MeetingPoint:
    """Where the ranks of one communicator meet: each puts something in its slot and reads the others' slots.

    members  the ranks' numbers in the job, by their number in this communicator
    """

    def __init__(self, job: _Job, members: list[int]):
        self.job, self.members = job, members
        self.slots: list[Any] = [None] * len(members)
        self.here: set[int] = set()
        self.turn = 0

    def meet(self, rank: int, call: str) -> None:
        """Wait for all members; stop if one failed, has returned already or does not come in time."""
        with self.job.changed:
            turn = self.turn
            self.here.add(rank)
            if len(self.here) == len(self.members):
                self.here.clear()
                self.turn += 1
                self.job.changed.notify_all()
            decided = self.job.changed.wait_for(
                lambda: self.turn != turn or self.job.failure or self._gone(), self.job.timeout_s
            )
            if self.turn != turn:
                return
            if self.job.failure:
                raise _Stopped
            away = sorted(set(range(len(self.members))) - self.here)
            late = f"{away} did not come in {self.job.timeout_s:g} s (CUTPQ_TIMEOUT)"
            why = f"{self._gone()} returned already" if decided else late
            raise RanksDisagreeError(f"rank {rank} waits in {call} for ranks {away}, of which {why}")

    def _gone(self) -> list[int]:
        return [r for r, member in enumerate(self.members) if member in self.job.finished]


class ThreadsCommunicator(Communicator):
    """Ranks are threads of this process: NumPy arrays, or CuPy arrays of many ranks on one GPU.

    A collective on CuPy arrays waits for the current stream, so that ranks may use streams of their own.
    """

    backend = "threads"
    takes_any_module = True

    def __init__(self, meeting_point: _MeetingPoint, rank: int, xp: ModuleType, device: int | None):
        members, node_of = meeting_point.members, meeting_point.job.node_of
        nodes = [node_of[member] for member in members]
        super().__init__(rank, len(members), f"{len(members)} threads", xp, device, nodes, members)
        self._meeting_point = meeting_point

    def barrier(self) -> None:
        _wait_for_gpu(self.xp)
        with self._meeting("barrier", None):
            pass

    def bcast(self, obj: Any, root: int = 0) -> Any:
        check_root(root, self.size)
        # Pickled, so that ranks do not share an object here which they would not share as processes.
        with self._meeting("bcast", pickle.dumps(obj) if self.rank == root else None) as posted:
            return obj if self.rank == root else pickle.loads(posted[root])

    def split(self, color: int, key: int = 0) -> ThreadsCommunicator:
        check_color(color)
        with self._meeting("split", (color, key)) as posted:
            group = [r for _, r in sorted((k, r) for r, (c, k) in enumerate(posted) if c == color)]
        meeting_point = _MeetingPoint(self._meeting_point.job, [self._meeting_point.members[r] for r in group])
        with self._meeting("split", meeting_point) as meeting_points:
            return ThreadsCommunicator(meeting_points[group[0]], group.index(self.rank), self.xp, self.device)

    def _exchange(self, x: Array, starts: list[int], send_counts: list[int], recv_counts: list[int]) -> Array:
        xp = array_module(x)
        _wait_for_gpu(xp)
        with self._meeting("exchange of arrays", (x, starts, send_counts)) as posted:
            pieces = [theirs[first[self.rank] :][: sent[self.rank]] for theirs, first, sent in posted]
            array_module(*pieces)  # NumPy and CuPy do not mix
            for source, (piece, count) in enumerate(zip(pieces, recv_counts, strict=True)):
                check_received(self.rank, source, piece.size, count)
            out = xp.concatenate(pieces)
            _wait_for_gpu(xp)
            return out

    @contextmanager
    def _meeting(self, collective: str, item: Any) -> Iterator[list[Any]]:
        """The items of all ranks, by rank. They may be read until the block ends: then their owners go on."""
        meeting_point = self._meeting_point
        with self.calling(collective):
            meeting_point.slots[self.rank] = (collective, self.kind, item)
            meeting_point.meet(self.rank, f"its call {self.calls}, {self.call},")
            for field in range(2):
                called = [slot[field] for slot in meeting_point.slots]
                if len(set(called)) > 1:
                    raise RanksDisagreeError(f"ranks called different collectives: {dict(enumerate(called))}")
            yield [item for *_, item in meeting_point.slots]
            meeting_point.meet(self.rank, f"its call {self.calls}, {self.call},")


def run_threads(
    size: int, fn: Callable[..., T], *args: Any, xp: ModuleType = np, timeout_s: float | None = None
) -> list[T]:
    """[fn(comm, *args) on rank r for r in range(size)], the ranks being threads of this process.

    xp         comm.xp: numpy, or cupy for many ranks on the caller's current GPU
    timeout_s  longest wait of a rank for the others in one collective, in seconds; CUTPQ_TIMEOUT (60) unless given

    CUTPQ_NODES says which ranks are taken to share a node (nodes.py); all of them do unless it is set.

    When a rank raises, the others stop at their next collective, and that first error is raised here with the
    rank named. Raises RanksDisagreeError where ranks would wait for each other for ever.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    device = None if xp is np else xp.cuda.Device().id
    text = os.environ.get("CUTPQ_NODES")
    node_of = nodes.parse(text, size) if text else [0] * size
    job = _Job(patience_s() if timeout_s is None else timeout_s, node_of)
    meeting_point = _MeetingPoint(job, list(range(size)))
    results: dict[int, T] = {}

    def run(rank: int) -> None:
        try:
            if device is not None:
                xp.cuda.Device(device).use()  # the current device belongs to a thread
            results[rank] = fn(ThreadsCommunicator(meeting_point, rank, xp, device), *args)
            job.finish(rank)
        except _Stopped:
            pass
        except BaseException as error:
            job.fail(rank, error)

    threads = [threading.Thread(target=run, args=(r,), name=f"rank {r}", daemon=True) for r in range(size)]
    try:
        with sharing_cores(size):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    except BaseException as interrupt:  # Ctrl-C reaches only the main thread
        job.fail(-1, interrupt)
        raise
    if job.failure:
        rank, error = job.failure
        raise _with_rank(error, f"rank {rank} of {size}")
    return [results[r] for r in range(size)]


def _with_rank(error: BaseException, where: str) -> BaseException:
    """The same error, which now says where it was raised."""
    if sys.version_info >= (3, 11):
        error.add_note(f"raised on {where}")
    else:
        error.args = (f"{where}: {error}",)
    return error


def _wait_for_gpu(xp: ModuleType) -> None:
    if xp is not np:
        xp.cuda.get_current_stream().synchronize()
