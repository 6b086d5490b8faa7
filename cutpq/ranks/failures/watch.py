"""Whether all ranks make the same calls: a thread of every rank tells rank 0's thread, which compares.

It tells a few times a second what was called since it last did. What rank 0's finds it raises, and an error in any
thread ends the job (abort.py). No call waits for this, and CUDA is asked nothing, so that it sees calls alone: not
what a replayed CUDA graph does, nor why a GPU does not come to an end.

A rank that skips one of many equal calls is seen when the calls differ again, or end.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from itertools import zip_longest

from ..communicator import Communicator, RanksDisagreeError, patience_s
from . import abort

TICK_S = 0.25


def start(control: Communicator, waits_on_host: bool) -> Watch | None:
    """This rank's thread of a watch over the ranks of `control`; None where there is no way or no need. Collective.

    waits_on_host  ranks find out themselves who is late, and the watch only what differs
    """
    post = control.post() if control.size > 1 else None
    if post is None:
        return None
    watch = Watch(control.rank, control.size, post, math.inf if waits_on_host else patience_s())
    abort.when_all_have_left(watch.end)
    return watch


class Post(ABC):
    """Small objects to rank 0, from a thread of its own, without waiting for anybody."""

    @abstractmethod
    def send(self, calls: list[str] | None) -> None:
        """To rank 0."""

    @abstractmethod
    def receive(self) -> list[tuple[int, list[str] | None]]:
        """(rank, object) of all that has come to rank 0, of each rank in the order of sending."""

    @abstractmethod
    def flush(self) -> None:
        """Return when all that was sent has been received."""


class Roll:
    """What each rank has called, and what is wrong with it; kept by rank 0."""

    def __init__(self, size: int, patience_s: float, now: float):
        self._patience_s = patience_s
        self._agreed = 0  # calls that all ranks have made alike
        self._calls: list[deque[str]] = [deque() for _ in range(size)]  # of each rank, beyond those
        self._since = [now] * size  # when it was last heard of, or not behind any other

    def hear(self, rank: int, calls: list[str], now: float) -> None:
        """The next calls of a rank."""
        self._calls[rank].extend(calls)
        self._since[rank] = now

    def complaint(self, now: float) -> str | None:
        """Ranks whose calls of the same number differ; else ranks that others have been waiting for too long."""
        while all(self._calls) and len({calls[0] for calls in self._calls}) == 1:
            self._agreed += 1
            for calls in self._calls:
                calls.popleft()
        for number, column in enumerate(zip_longest(*self._calls), self._agreed + 1):
            ranks_of: dict[str, list[int]] = {}
            for rank, call in enumerate(column):
                if call is not None:
                    ranks_of.setdefault(call, []).append(rank)
            if len(ranks_of) > 1:
                called = "; ".join(f"{_ranks(ranks)} {call}" for call, ranks in ranks_of.items())
                return f"ranks make different calls as their number {number}: {called}"
        return self._late(now)

    def _late(self, now: float) -> str | None:
        made = [self._agreed + len(calls) for calls in self._calls]
        behind = [rank for rank, number in enumerate(made) if number < max(made)]
        for rank in set(range(len(made))) - set(behind):
            self._since[rank] = now
        late = [rank for rank in behind if now - self._since[rank] > self._patience_s]
        if not late:
            return None
        number = min(made[rank] for rank in late)
        ahead = next(calls for calls in self._calls if len(calls) > number - self._agreed)
        waiting = [rank for rank in range(len(made)) if made[rank] > number]
        return (
            f"{_ranks(late)} made {number} calls, and none in the last {self._patience_s:g} s (CUTPQ_TIMEOUT); "
            f"{_ranks(waiting)} went on to call {number + 1}, {ahead[number - self._agreed]}: "
            "a call was skipped, or the rank is gone"
        )


def _ranks(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks}"


class Watch:
    """This rank's thread."""

    def __init__(self, rank: int, size: int, post: Post, patience_s: float):
        self._rank, self._post = rank, post
        self._roll = Roll(size, patience_s, time.monotonic()) if rank == 0 else None
        self._left = set(range(1, size))  # ranks that rank 0 has to hear the end of
        self._calls: deque[str] = deque()
        self._found_before = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch of rank {rank}", daemon=True)
        self._thread.start()

    def called(self, what: str) -> None:
        """The next collective of this rank. Costs as much as an append."""
        self._calls.append(what)

    def end(self) -> None:
        """Collective: no more calls. Returns when this rank's thread has ended."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(TICK_S):
            self._tell()
        self._tell()
        if self._roll is None:
            self._post.send(None)
            self._post.flush()
            return
        while self._left:
            time.sleep(TICK_S / 10)
            self._tell()
        self._tell()

    def _tell(self) -> None:
        calls = [self._calls.popleft() for _ in range(len(self._calls))]
        if self._roll is not None:
            self._compare(self._roll, calls)
        elif calls:
            self._post.send(calls)

    def _compare(self, roll: Roll, calls: list[str]) -> None:
        now = time.monotonic()
        for rank, theirs in [(0, calls), *self._post.receive()]:
            if theirs:
                roll.hear(rank, theirs, now)
            elif theirs is None:
                self._left.discard(rank)
        found = roll.complaint(now)
        if found and self._found_before:  # a tick later, when all have told what they call
            raise RanksDisagreeError(found)
        self._found_before = found is not None
