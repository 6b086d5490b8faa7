"""How much memory the engine's float32 copies of weights may take, and what a process keeps of the memory it frees.

Environment:
    CUTPQ_HOST_MEMORY  bytes for float32 weights of this process, as 800M or 16G; default: half of what is free,
                       shared by the ranks of this machine. First come copies for any product, then those for few rows
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from functools import cache
from typing import Any
from weakref import finalize

# mallopt's numbers of two limits in glibc, and what they are set to: the size from which an array is memory of its own,
# which goes back to the system when it is freed (glibc refuses more), and how much of the rest may stay unused.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_OWN_BYTES, _UNUSED_BYTES = 32 << 20, 256 << 20

_lock = threading.RLock()  # a collection of garbage may give bytes back while this thread holds it
_bytes = dict.fromkeys(("expected", "first", "second"), 0)
_told = False


@cache
def _budget() -> int:
    asked = os.environ.get("CUTPQ_HOST_MEMORY", "")
    if not asked:
        ranks = int(os.environ.get("MPI_LOCALNRANKS") or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or 1)
        return _free_bytes() // 2 // ranks
    found = re.fullmatch(r"(\d+)([KMGT]?)", asked)
    if not found:
        raise ValueError(f"CUTPQ_HOST_MEMORY={asked!r} is not a number of bytes such as 800M or 16G")
    return int(found[1]) << 10 * " KMGT".index(found[2] or " ")


def _free_bytes() -> int:
    try:
        with open("/proc/meminfo") as lines:
            found = re.search(r"MemAvailable:\s+(\d+) kB", lines.read())
    except OSError:
        found = None
    return int(found[1]) << 10 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def expect(nbytes: int, owner: Any) -> None:
    """Count on it that `owner`, as long as it lives, may ask for so many bytes."""
    with _lock:
        _take("expected", nbytes, owner)


def reserve(nbytes: int, owner: Any) -> bool:
    """Whether so many bytes are left for a float32 copy that `owner` keeps; they return when it is collected.

    The first refusal says so in a line. Raises ValueError for a CUTPQ_HOST_MEMORY that is no number of bytes.
    """
    global _told
    with _lock:
        if _bytes["first"] + _bytes["second"] + nbytes <= _budget():
            _take("first", nbytes, owner)
            return True
        told, _told = _told, True
    if not told:
        print(
            f"cutpq: float32 weights fill the {_budget() / 2**30:.1f} GiB of CUTPQ_HOST_MEMORY: "
            "the rest stay packed and are dequantized in each call",
            file=sys.stderr,
        )
    return False


def reserve_second(nbytes: int, owner: Any) -> bool:
    """As `reserve`, for a second copy: where all first copies that are expected fit beside it. Says nothing."""
    with _lock:
        fits = _bytes["expected"] + _bytes["second"] + nbytes <= _budget()
        if fits:
            _take("second", nbytes, owner)
        return fits


def _take(kind: str, nbytes: int, owner: Any) -> None:
    _bytes[kind] += nbytes
    finalize(owner, _give_back, kind, nbytes)


def _give_back(kind: str, nbytes: int) -> None:
    with _lock:
        _bytes[kind] -= nbytes


@cache
def keep_freed() -> None:
    """From now on this process keeps freed arrays' memory for the next ones: of up to 32 MiB each, 256 MiB together.

    By default glibc gives back what is freed from 128 KiB on, and the system clears every page of the next array again:
    a tenth of a prefill. Does nothing with another allocator than glibc's, or where MALLOC_ variables choose limits.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _OWN_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _UNUSED_BYTES)
