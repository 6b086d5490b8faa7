"""Whether all ranks make the same calls: a thread of every rank reports them to rank 0's thread, which compares.

Every TICK_S each rank sends rank 0 its new calls. Rank 0 compares them and raises RanksDisagreeError; an error in any
thread ends the job (abort.py). No collective waits for this, and CUDA is asked nothing. So the watch sees calls alone:
not what a replayed CUDA graph does, nor why a kernel does not end.

A rank that skips one of many equal calls is seen when the calls differ again, or end.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from itertools import zip_longest

from .patience import RanksDisagreeError

TICK_S = 0.25


class Channel(ABC):
    """Carries small messages from a thread of each rank to rank 0's. Sending and receiving return at once."""

    @abstractmethod
    def send(self, calls: list[str] | None) -> None:
        """Send rank 0 this rank's next calls; None says that there will be no more."""

    @abstractmethod
    def receive(self) -> list[tuple[int, list[str] | None]]:
        """(rank, message) of all messages that have come to rank 0; those of one rank in the order of sending."""

    @abstractmethod
    def flush(self) -> None:
        """Return when all that was sent has been received."""


class CallLog:
    """What each rank has called, as far as rank 0 has heard, and what is wrong with it."""

    def __init__(self, size: int, patience_s: float, now: float):
        self._patience_s = patience_s
        self._agreed = 0  # how many calls all ranks have made alike
        self._calls: list[deque[str]] = [deque() for _ in range(size)]  # each rank's calls beyond those
        self._since = [now] * size  # when each rank last called, or was last not behind the others

    def add(self, rank: int, calls: list[str], now: float) -> None:
        """Append the next calls of a rank."""
        self._calls[rank].extend(calls)
        self._since[rank] = now

    def problem(self, now: float) -> str | None:
        """Which ranks' calls of the same number differ; else which ranks are late; None if all is well."""
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
    """The thread of one rank that reports its calls, and on rank 0 compares them."""

    def __init__(self, rank: int, size: int, channel: Channel, patience_s: float):
        self._rank, self._channel = rank, channel
        self._log = CallLog(size, patience_s, time.monotonic()) if rank == 0 else None
        self._left = set(range(1, size))  # ranks that have not yet told rank 0 that they make no more calls
        self._calls: deque[str] = deque()
        self._found_before = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch of rank {rank}", daemon=True)
        self._thread.start()

    def called(self, what: str) -> None:
        """Note the next collective of this rank; costs an append to a deque."""
        self._calls.append(what)

    def end(self) -> None:
        """Collective: no more calls. Returns when this rank's thread has ended."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(TICK_S):
            self._report()
        self._report()
        if self._log is None:
            self._channel.send(None)
            self._channel.flush()
            return
        while self._left:
            time.sleep(TICK_S / 10)
            self._report()
        self._report()

    def _report(self) -> None:
        calls = [self._calls.popleft() for _ in range(len(self._calls))]
        if self._log is not None:
            self._compare(self._log, calls)
        elif calls:
            self._channel.send(calls)

    def _compare(self, log: CallLog, calls: list[str]) -> None:
        now = time.monotonic()
        for rank, theirs in [(0, calls), *self._channel.receive()]:
            if theirs:
                log.add(rank, theirs, now)
            elif theirs is None:
                self._left.discard(rank)
        found = log.problem(now)
        if found and self._found_before:  # still there a tick later, when every rank has reported
            raise RanksDisagreeError(found)
        self._found_before = found is not None
