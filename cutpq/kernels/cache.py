"""Where compiled kernels are kept, and how many who want the same one at once wait for the first.

Environment:
    CUTPQ_CACHE_DIR  where they are kept; default ~/.cache/cutpq
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def cache_dir() -> Path:
    """The folder, which may not exist yet."""
    return Path(os.environ.get("CUTPQ_CACHE_DIR") or Path.home() / ".cache" / "cutpq")


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Lets one thread of one process in for each name: the others wait, and then find what it has made.

    Where the file system has no locks nobody waits, and the same thing is made several times. One name must not be
    asked for within another: a file that locks one of them may be that of the other too.
    """
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    number = hashlib.sha256(name.encode()).hexdigest()[:2]  # a few hundred files at most, however many kernels
    with open(folder / number, "w") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
