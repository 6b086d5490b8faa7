"""How a job of many processes ends when one of them fails: at once, with the reason, and not in silence for ever."""

from __future__ import annotations

import atexit
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any, NoReturn

from . import witness

# How long a rank that leaves with a nonzero status waits for the others to leave as well.
EXIT_GRACE_S = 5.0

# How long a failed rank waits for the launcher to pass on what it wrote. Without this wait MPICH's mpirun lost the
# traceback in 4 of 80 jobs; with it in none.
FLUSH_S = 0.5

# Callbacks that run after every rank has reached its exit, before MPI_Finalize.
_end_callbacks: list[Callable[[], None]] = []

# Callbacks that run when this rank reaches its exit, before it tells the others so.
_exit_callbacks: list[Callable[[], None]] = []


def before_exit(callback: Callable[[], None]) -> None:
    """Call this when this rank reaches its exit, before it says so to the others; once, however often it is given."""
    if callback not in _exit_callbacks:
        _exit_callbacks.append(callback)


def at_job_end(callback: Callable[[], None]) -> None:
    """Call this when every rank of the job has reached its exit; never, if the job is aborted."""
    _end_callbacks.append(callback)


def end_job_on_failure(mpi: ModuleType) -> None:
    """From now on a rank that fails ends the job, since the others would wait for it in their next collective.

    An uncaught exception, in any thread, prints its traceback, each line with its rank, and aborts at once. A rank
    that leaves by `sys.exit` with a nonzero status gives the others EXIT_GRACE_S seconds to leave too (a program may
    end so on all ranks) and then aborts. `raise SystemExit` cannot be seen: write sys.exit. A rank that is killed is
    named by a witness.

    Collective over mpi.COMM_WORLD; a second call does nothing.
    """
    if not isinstance(getattr(sys.excepthook, "__self__", None), _Rank):
        _Rank(mpi).watch()


class _Rank:
    """How one rank of the job ends: in good order with the others, or by aborting all of them."""

    def __init__(self, mpi: ModuleType):
        self.mpi = mpi
        self.number = mpi.COMM_WORLD.Get_rank()
        self.exit_ranks = mpi.COMM_WORLD.Dup()  # a communicator of its own: no barrier of the program's can match
        self.presence = witness.start(mpi)
        self.status = 0
        self.exit = sys.exit

    def watch(self) -> None:
        """Take over the places where Python reports that it ends."""
        sys.excepthook = self.on_error
        threading.excepthook = self.on_thread_error
        sys.exit = self.on_exit
        atexit.register(self.leave)

    def on_error(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self.abort("".join(traceback.format_exception(kind, error, trace)))

    def on_thread_error(self, args: Any) -> None:
        if args.exc_type is not SystemExit:  # SystemExit ends a thread without a traceback
            self.on_error(args.exc_type, args.exc_value, args.exc_traceback)

    def on_exit(self, status: Any = None) -> NoReturn:
        self.status = status if isinstance(status, int) else int(status is not None)
        self.exit(status)

    def leave(self) -> None:
        if not self.mpi.Is_finalized():
            self.wait_for_others()
        if self.presence:
            self.presence.end(witness.LEFT)

    def wait_for_others(self) -> None:
        for callback in _exit_callbacks:
            callback()
        all_left = self.exit_ranks.Ibarrier()
        deadline = time.monotonic() + EXIT_GRACE_S
        while not all_left.Test():
            if self.status and time.monotonic() > deadline:
                self.abort(f"left with exit status {self.status} while other ranks still run: ending the job")
            time.sleep(0.001)
        for callback in _end_callbacks:
            callback()

    def abort(self, text: str) -> None:
        if self.presence:
            self.presence.end(witness.ABORTED)
        sys.stdout.flush()
        sys.stderr.write("".join(f"[rank {self.number}] {line}\n" for line in text.splitlines()))
        sys.stderr.flush()
        time.sleep(FLUSH_S)
        self.mpi.COMM_WORLD.Abort(self.status or 1)
