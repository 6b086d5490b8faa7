"""Jobs of several ranks: run to their end or killed, with what they printed."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

HELPERS = Path(__file__).resolve().parent
BENCH_PATH = os.pathsep.join([str(HELPERS.parents[1] / "bench"), os.environ.get("PYTHONPATH", "")])
MPIRUN = shutil.which("mpirun", path=os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", ""))

needs_mpi = pytest.mark.skipif(
    MPIRUN is None or importlib.util.find_spec("mpi4py") is None, reason="mpi4py or mpirun is not installed"
)


def run(command, timeout_s=60.0, **environment):
    """Run to the end, or kill all that it started: a hang is a failed test, not a hung one."""
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "CUTPQ_COMM"} | environment,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate()
        pytest.fail(f"still running after {timeout_s} s: {command}\n{out}\n{err}")
    return SimpleNamespace(status=process.returncode, out=out, err=err, seconds=time.monotonic() - start)


def mpirun(ranks, *names, backend="mpi", timeout_s=60.0, **environment):
    worker = [sys.executable, str(HELPERS / "mpi_worker.py"), backend, *names]
    return run([MPIRUN, "-n", str(ranks), *worker], timeout_s, **environment)
