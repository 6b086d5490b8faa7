"""Machines made of Linux network namespaces, joined by a switch with cables (veth) of a limited rate.

Needs Linux, iproute2 (ip and tc), util-linux (unshare, setpriv), and root, or a system that lets users make namespaces.
Nothing remains: all namespaces belong to a mount and process namespace of the script's own, and vanish with it,
however it ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

MTU = 9000  # at 1500 bytes the CPU cannot send packets fast enough to fill 1 Gbit/s
BURST = "16kb"  # bytes the token bucket passes at once: less than the smallest message worth compressing
COUNTER = Path("/sys/class/net/eth0/statistics/tx_bytes")
WITHIN = "CUTPQ_WITHIN_NAMESPACES"  # set where a script calls itself in namespaces

# The process dies with its parent, and takes all processes and namespaces in it along.
UNSHARE = ["setpriv", "--pdeathsig", "KILL"]
UNSHARE += ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]

# `ip netns` keeps its names in /run/netns, which a fresh system may lack.
PREPARE = "mount -t tmpfs none /run && mkdir /run/netns"


def as_root() -> list[str]:
    """What makes a user root of the namespaces, if it is not root already."""
    return [] if os.geteuid() == 0 else ["--map-root-user"]


def obstacle() -> str | None:
    """Why this cannot run here, if it cannot."""
    if not sys.platform.startswith("linux"):
        return f"network namespaces are Linux's, and this is {sys.platform}"
    packages = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "setpriv": "util-linux"}
    missing = [f"{tool} ({package})" for tool, package in packages.items() if shutil.which(tool) is None]
    if mpirun() is None:
        missing.append("mpirun (pip install 'cutpq[mpi]')")
    if missing:
        return f"needs {', '.join(missing)}"
    trial = subprocess.run(
        [*UNSHARE, *as_root(), "sh", "-c", PREPARE],
        capture_output=True,
        text=True,
        check=False,
    )
    if trial.returncode:
        return (
            "must make namespaces, as root may outside of containers (or in a privileged one), and users where the "
            f"system lets them; here: {trial.stderr.strip()}"
        )
    return None


def within_namespaces(command: list[str]) -> int:
    """Run a command where it alone sees the namespaces it makes. If this is ended, so is that, and they are gone."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    inside = [*UNSHARE, *as_root(), "sh", "-c", f'{PREPARE} && exec "$@"', "sh", *command]
    within = subprocess.Popen(inside, env=os.environ | {WITHIN: "1"})
    try:
        return within.wait()
    finally:
        within.kill()


def mpirun() -> str | None:
    """The launcher beside this Python, or else on the PATH."""
    beside = os.path.dirname(sys.executable)
    return shutil.which("mpirun", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))


def connect(names: list[str], rate: str) -> None:
    """Make a switch, and for each name a namespace with a cable to it that carries `rate` ("none": no limit).

    The token buckets (tc tbf) at both ends let a machine send at no more than the rate and receive at no more.
    """
    tool("ip netns add switch")
    tool("ip -n switch link add hub type bridge")
    tool("ip -n switch link set hub up")
    for number, name in enumerate(names):
        port = f"port{number}"
        tool(f"ip netns add {name}")
        tool(f"ip -n {name} link set lo up")
        tool(f"ip -n {name} link add eth0 mtu {MTU} type veth peer name {port} mtu {MTU} netns switch")
        tool(f"ip -n {name} addr add {address(number)}/16 dev eth0")
        tool(f"ip -n {name} link set eth0 up")
        tool(f"ip -n switch link set {port} master hub up")
        if rate != "none":
            for namespace, end in ((name, "eth0"), ("switch", port)):
                tool(f"tc -n {namespace} qdisc add dev {end} root tbf rate {rate} burst {BURST} limit 8mb")


def address(number: int) -> str:
    """The address of the machine with this number."""
    return f"10.0.{number // 250}.{number % 250 + 1}"


def disconnect(names: list[str]) -> None:
    """Remove what `connect` made, with all that is in it."""
    for name in ("switch", *names):
        tool(f"ip netns del {name}")


def tool(command: str) -> None:
    """Run `ip` or `tc`; ends the script with what it said where it fails."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{os.path.basename(sys.argv[0])}: `{command}` failed: {done.stderr.strip()}")
