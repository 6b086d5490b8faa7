"""What all benches share: `#` header lines, tables of fixed columns, JSON lines, and how a time is taken."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cutpq.array import to_numpy
from cutpq.ranks.communicator import Communicator


def header(comm: Communicator) -> list[str]:
    """What must be known of a run to make sense of its times, a line each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"# cutpq {_package('cutpq')}, commit {_commit()}, {datetime.date.today().isoformat()}",
        f"# machine: {_cpu()}, {cores} cores; GPU: {_gpu(comm)}",
        f"# Python {platform.python_version()}, NumPy {np.__version__}, MPI: {_mpi()}",
        f"# ranks: {comm.size}, backend: {comm.backend} ({comm.reason})",
    ]
    if comm.xp is np:
        lines.append("# no GPU: times are of the NumPy reference; results and bytes are those of any run")
    if comm.xp is not np and comm.backend in ("host", "ipc"):
        lines.append("# ranks share a GPU or go without NCCL: times are not meaningful")
    return lines


@dataclass(frozen=True)
class Column:
    """A table's column: `key` in the row, heading with its unit, width, and format of a value.

    title  one line, or two in a table where all have two
    """

    key: str
    title: str
    width: int
    form: str = ""


@dataclass(frozen=True)
class Table:
    """Columns of fixed width, numbers to the right. A missing value prints as "-"."""

    columns: tuple[Column, ...]

    def heading(self) -> str:
        """The line of column names, or the two, behind a `#`."""
        titles = [c.title.split("\n") for c in self.columns]
        lines = [" ".join(map(str.rjust, parts, self._widths())) for parts in zip(*titles, strict=True)]
        return "\n".join("#" + line.removeprefix(" ").rstrip() for line in lines)

    def line(self, row: dict[str, Any]) -> str:
        """One row."""
        return " ".join(self._cell(c, row.get(c.key)) for c in self.columns)

    def _widths(self) -> list[int]:
        return [c.width for c in self.columns]

    @staticmethod
    def _cell(column: Column, value: Any) -> str:
        return ("-" if value is None else format(value, column.form)).rjust(column.width)


def write_json(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line. The file appears when it is whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    temporary.replace(path)


def progress(total: int, what: str, comm: Communicator) -> tqdm:
    """A bar on rank 0's terminal, for what takes longer than two seconds; nothing elsewhere."""
    hidden = comm.rank != 0 or not sys.stderr.isatty()
    return tqdm(total=total, desc=what, delay=2, leave=False, disable=hidden)


def pyplot() -> Any:
    """matplotlib's pyplot, for files alone: it needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def time_us(run: Callable[[], Any], comm: Communicator, iterations: int, budget_s: float) -> float:
    """Median over iterations of the slowest rank's time for run(), after one run that does not count.

    Every iteration begins together. At least one iteration, at most `iterations`, fewer where they would take longer
    than `budget_s`. With CuPy the time is between two events on the current stream, else it is wall time.
    """
    once = _slowest(_time_once(run, comm), comm)[0]
    count = max(1, min(iterations, int(budget_s * 1e6 / once)))
    times = [_time_once(run, comm) for _ in range(count)]
    return statistics.median(_slowest(times, comm))


def same_on_ranks(digest: bytes, comm: Communicator) -> list[bytes]:
    """Every rank's digest, in rank order."""
    mine = np.frombuffer(digest, np.uint8)
    return [bytes(row) for row in to_numpy(comm.all_gather(comm.xp.asarray(mine)))]


def _time_once(run: Callable[[], Any], comm: Communicator) -> float:
    comm.barrier()
    if comm.xp is np:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e6
    cuda = comm.xp.cuda
    begin, end = cuda.Event(), cuda.Event()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return cuda.get_elapsed_time(begin, end) * 1e3


def _slowest(times: float | list[float], comm: Communicator) -> list[float]:
    every = to_numpy(comm.all_gather(comm.xp.asarray(np.atleast_1d(np.asarray(times, np.float64)))))
    return [float(t) for t in every.max(axis=0)]


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu(comm: Communicator) -> str:
    if comm.xp is np:
        return "none"
    runtime = comm.xp.cuda.runtime
    name = runtime.getDeviceProperties(comm.device or 0)["name"].decode()
    return f"{name}, driver for CUDA {runtime.driverGetVersion()}, CuPy {comm.xp.__version__}"


def _mpi() -> str:
    if "mpi4py.MPI" not in sys.modules:
        return "none"
    first_line = sys.modules["mpi4py.MPI"].Get_library_version().splitlines()[0]
    return " ".join(first_line.split())
