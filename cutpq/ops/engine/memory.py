"""How much memory the engine's float32 copies of weights may take.

Environment:
    CUTPQ_HOST_MEMORY  bytes for float32 weights of this process, as 800M or 16G; default: half of what is free,
                       shared by the ranks of this machine
"""

from __future__ import annotations

import os
import re
import sys
import threading
from functools import cache
from typing import Any
from weakref import finalize

_lock = threading.Lock()
_used = 0
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


def reserve(nbytes: int, owner: Any) -> bool:
    """Whether so many bytes are left for a float32 copy that `owner` keeps; they return when it is collected.

    The first refusal says so in a line. Raises ValueError for a CUTPQ_HOST_MEMORY that is no number of bytes.
    """
    global _used, _told
    with _lock:
        if _used + nbytes <= _budget():
            _used += nbytes
            finalize(owner, _release, nbytes)
            return True
        told, _told = _told, True
    if not told:
        print(
            f"cutpq: float32 weights fill the {_budget() / 2**30:.1f} GiB of CUTPQ_HOST_MEMORY: "
            "the rest stay packed and are dequantized in each call",
            file=sys.stderr,
        )
    return False


def _release(nbytes: int) -> None:
    global _used
    with _lock:
        _used -= nbytes
