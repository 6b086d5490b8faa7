"""bench/harness/report.py: what a time is of, and what the header says of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from harness.report import header, time_us

from cutpq.ranks.alone import SelfCommunicator

BENCH = Path(__file__).resolve().parents[2] / "bench"

# Five launches, between which Python does something else for 4 ms each.
SLOW_PYTHON = """
import json, sys, time
import cupy
from harness.report import time_us
from cutpq.ranks.alone import SelfCommunicator

x = cupy.ones(1000, cupy.float32)
def run():
    for _ in range(5):
        cupy.add(x, x, out=x)
        time.sleep(0.004)
took = time_us(run, SelfCommunicator("", cupy, 0), 3, 1.0)
print(json.dumps(vars(took)))
"""


@pytest.mark.gpu
def test_a_gpus_time_has_no_python_in_it():
    """SOFTGPU_ASYNC: the default stream of the software device runs beside the host, as a GPU's does."""
    environment = os.environ | {
        "SOFTGPU_ASYNC": "1",
        "PYTHONPATH": os.pathsep.join([str(BENCH), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run([sys.executable, "-c", SLOW_PYTHON], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    took = json.loads(done.stdout)
    assert took["host_us"] > 20_000
    assert took["time_us"] < took["host_us"] / 4


def test_numpys_time_is_wall_time():
    took = time_us(lambda: np.ones(10), SelfCommunicator(""), 3, 1.0)
    assert took.time_us > 0
    assert took.host_us is None


@pytest.mark.parametrize(
    "backend, size, waits_on_host, means_little",
    [
        ("ipc", 4, False, False),
        ("ipc", 4, True, True),
        ("host", 4, True, True),
        ("nccl", 4, False, False),
        ("self", 1, True, False),
    ],
)
def test_the_header_says_where_times_mean_nothing(backend, size, waits_on_host, means_little):
    runtime = SimpleNamespace(getDeviceProperties=lambda _: {"name": b"H100"}, driverGetVersion=lambda: 13000)
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime), __version__="14.2.0")
    comm = SimpleNamespace(
        size=size, backend=backend, reason="asked for", xp=cupy, device=0, waits_on_host=waits_on_host
    )
    assert any("times are not meaningful" in line for line in header(comm)) == means_little
