"""Nodes of several ranks each: a namespace a node, shared memory inside, a cable of a limited rate between.

mpirun starts on node 0 and reaches the others by a launcher command that enters their namespaces, as `ssh` would.
A node has its own host name (node0, node1, ...), network, IPC objects and /dev/shm; files are those of the machine.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.namespaces import address, connect, disconnect, mpirun, tool

# UCX would see that the nodes are one machine and go around the cable. Inside a node MPICH has its own shared memory.
OVER_CABLE = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"}

# Called as `ssh [-x] ADDRESS COMMAND`: the last part of the address is the node's number plus one.
LAUNCHER = """#!/bin/sh
[ "$1" = -x ] && shift
node=node$((${1##*.} - 1)); shift
exec ip netns exec $node unshare --uts --ipc sh -c "hostname $node; mount -t tmpfs none /dev/shm; $*"
"""


@contextmanager
def cluster(sizes: Sequence[int], rate: str, folder: Path) -> Iterator[list[str]]:
    """Make the nodes, with so many ranks each; within the block the words before a command that all ranks run."""
    names = [f"node{node}" for node in range(len(sizes))]
    connect(names, rate)
    launcher, hosts = folder / "launcher", folder / "hosts"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    hosts.write_text("".join(f"{address(node)}:{size}\n" for node, size in enumerate(sizes)))
    start = [mpirun() or "mpirun", "-localhost", address(0), "-launcher", "ssh", "-launcher-exec", str(launcher)]
    if sum(sizes) > len(os.sched_getaffinity(0)):  # a node's ranks do not know that other nodes have the same cores
        start += ["-genv", "MPIR_CVAR_ENABLE_HEAVY_YIELD", "1"]
    try:
        yield [str(launcher), address(0), shlex.join([*start, "-hostfile", str(hosts), "-n", str(sum(sizes))])]
    finally:
        disconnect(names)


def run(start: list[str], command: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    """The job, started: `command` on every rank, with these variables besides those of this process."""
    return subprocess.Popen(
        [*start[:-1], f"{start[-1]} {shlex.join(command)}"], env=os.environ | OVER_CABLE | environment
    )


def cut(node: int) -> None:
    """Pull the cable of a node."""
    tool(f"ip -n node{node} link set eth0 down")
