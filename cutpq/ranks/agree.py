"""What is wrong on one rank, raised on all of them: none goes on alone into the next collective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .communicator import Communicator

T = TypeVar("T")


def on_first(comm: Communicator, run: Callable[[], T]) -> T:
    """run() on rank 0; what it returns on every rank, and what it raises (ValueError, OSError) too. Collective."""
    value, failure = comm.bcast(_attempt(run) if comm.rank == 0 else None)
    if failure is not None:
        raise failure
    return value


def on_every(comm: Communicator, run: Callable[[], T]) -> T:
    """run() on every rank; what it raises (ValueError, OSError) on one, and be it alone, is raised on all. Collective.

    No rank returns before run() has ended on all of them.
    """
    value, mine = _attempt(run)
    for failure in [comm.bcast(mine, rank) for rank in range(comm.size)]:
        if failure is not None:
            raise failure
    return value


def _attempt(run: Callable[[], T]) -> tuple[Any, Exception | None]:
    """(what run() returns, None), or (None, what it raised)."""
    try:
        return run(), None
    except (ValueError, OSError) as error:
        return None, error
