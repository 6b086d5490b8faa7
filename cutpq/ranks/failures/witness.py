"""Says which rank of a machine died first, where it could not say so itself: killed, or ended by a signal.

The launcher then ends the other ranks at once, and names a process at best. A process beside the ranks, one for each
machine, survives that. Every rank keeps a file open in a folder that it watches by inotify: the kernel closes the file
of a rank that dies before the launcher can hear of it, and it keeps such events in order, however late they are read.
A rank that leaves in good order, or after it has told why, renames its file first.

Linux alone. Run as a script, without this package: `python witness.py FOLDER RANKS HOST`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from typing import Any

CLOSE_WRITE, MOVED_TO = 0x8, 0x80  # masks in <sys/inotify.h>
EVENT = struct.Struct("iIII")  # struct inotify_event: watch, mask, cookie, length of the name that follows

LEFT, ABORTED = "left", "aborted"


class Presence:
    """The file that this rank keeps open for as long as it lives."""

    def __init__(self, folder: str, rank: int):
        self._path = os.path.join(folder, f"{rank} {os.getpid()}")
        self._file = open(self._path, "w")  # noqa: SIM115  the kernel closes it

    def end(self, how: str) -> None:
        """Say how this rank ends, LEFT or ABORTED, so that the witness stays silent. The first call counts."""
        try:
            os.rename(self._path, f"{self._path} {how}")
        except OSError:  # an earlier call renamed it, or the folder is gone
            return


def start(mpi: Any) -> Presence | None:
    """Start a witness on each machine. Returns this rank's Presence, or None. Collective over COMM_WORLD."""
    if mpi.COMM_WORLD.Get_size() == 1 or not sys.platform.startswith("linux"):
        return None
    node = mpi.COMM_WORLD.Split_type(mpi.COMM_TYPE_SHARED)
    folder = _start_process(node.Get_size(), mpi.Get_processor_name()) if node.Get_rank() == 0 else None
    folder = node.bcast(folder)
    presence = None if folder is None else Presence(folder, mpi.COMM_WORLD.Get_rank())
    node.Barrier()
    node.Free()
    return presence


def _start_process(ranks: int, host: str) -> str | None:
    """Start the witness and return the folder that it watches; None where the machine allows no witness."""
    folder = tempfile.mkdtemp(prefix="cutpq-ranks-")
    command = [sys.executable, "-I", "-S", __file__, folder, str(ranks), host]
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
        watches = process.stdout is not None and process.stdout.readline() == b"watching\n"
    except OSError:
        watches = False
    if not watches:
        shutil.rmtree(folder, ignore_errors=True)
    return folder if watches else None


def watch(folder: str, ranks: int, host: str) -> None:
    """Name the first rank that dies without a word; return when all ranks of this machine have ended.

    Exits with status 1 where the machine does not allow inotify.
    """
    libc = ctypes.CDLL(None)
    queue = libc.inotify_init()
    if queue < 0 or libc.inotify_add_watch(queue, folder.encode(), CLOSE_WRITE | MOVED_TO) < 0:
        raise SystemExit(1)
    print("watching", flush=True)
    explained = False
    while ranks:
        for mask, name in _events(os.read(queue, 1 << 16)):
            rank, process, *how = name.split()
            ranks -= bool(mask & CLOSE_WRITE)
            explained = explained or ABORTED in how
            if mask & CLOSE_WRITE and not how and not explained:
                explained = True
                print(
                    f"cutpq: rank {rank} (process {process} on {host}) was the first on its machine to end without a "
                    "word: killed, for want of memory perhaps, or crashed",
                    file=sys.stderr,
                    flush=True,
                )


def _events(data: bytes) -> list[tuple[int, str]]:
    found, at = [], 0
    while at < len(data):
        _, mask, _, length = EVENT.unpack_from(data, at)
        at += EVENT.size + length
        found.append((mask, data[at - length : at].rstrip(b"\0").decode()))
    return found


if __name__ == "__main__":
    try:
        watch(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    finally:
        shutil.rmtree(sys.argv[1], ignore_errors=True)
