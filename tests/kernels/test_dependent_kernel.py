"""Programmatic dependent launch by the driver, on a GPU: the bits of launches in order, also of a captured graph.

Each case is a process of its own, because the software device reads its environment once: with SOFTGPU_RACES=1 it holds
every launch against the kernels that it may overlap with.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness.gpu_clock import gpu_module

ROOT = Path(__file__).resolve().parents[2]

# A norm and two products: eagerly twice, and then as a graph that is replayed twice.
CHAIN = """
import sys
from pathlib import Path

import cupy as cp
import numpy as np
from random_weight import random_weight

from cutpq.kernels import dependent_launch, source
from cutpq.ops.gemm import matmul
from cutpq.ops.residual_norm import residual_norm
from cutpq.weights.pack import pack

launches = []
launch = dependent_launch.DependentKernel.__call__
dependent_launch.DependentKernel.__call__ = lambda self, *a, **k: (launches.append(1), launch(self, *a, **k))
source.source_dir = lambda: Path(sys.argv[1])
rng = np.random.default_rng(5)
total, residual, weight = (cp.asarray(rng.standard_normal(s), np.float16) for s in ((3, 640), (3, 640), 640))
perm = cp.asarray(rng.permutation(640), np.int32)
w1, w2 = (pack(random_weight(640, n, 64, bias=True, seed=n).to(cp)) for n in (640, 72))

def step():
    return matmul(matmul(residual_norm(total, residual.copy(), weight, perm, 1e-5), w1), w2)

stream = cp.cuda.Stream(non_blocking=True)
with stream:
    first, second = step().get(), step().get()
    stream.begin_capture()
    captured = step()
    graph = stream.end_capture()
    for _ in range(2):
        graph.launch(stream)
    replayed = captured.get()
print(len(launches), first.tobytes().hex(), second.tobytes().hex(), replayed.tobytes().hex())
"""


def chain(pdl, sources=ROOT / "cuda_src"):
    """The process: it prints how many launches had the attribute, and results, each of which has to be the same."""
    path = os.pathsep.join([str(ROOT / "tests" / "helpers"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"CUTPQ_PDL": pdl, "SOFTGPU_RACES": "1", "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", CHAIN, str(sources)], env=env, capture_output=True, text=True)


def results(done):
    assert done.returncode == 0, done.stderr
    launches, *found = done.stdout.split()
    return int(launches), found


@pytest.fixture(autouse=True)
def _hopper():
    if int(gpu_module().cuda.Device().compute_capability) < 90:
        pytest.skip("programmatic dependent launch needs sm_90")


@pytest.mark.gpu
def test_bits_are_those_of_launches_in_order():
    none, in_order = results(chain("0"))
    assert none == 0
    some, early = results(chain("1"))
    assert some == 4, "the first product with a weight is launched in order, the others are not"
    assert len({*in_order, *early}) == 1


@pytest.mark.gpu
def test_missing_wait_is_refused(tmp_path):
    """By the software device, which names both kernels; a GPU would now and then give another result."""
    if b"softgpu" not in gpu_module().cuda.runtime.getDeviceProperties(0)["name"]:
        pytest.skip("a GPU does not say so")
    shutil.copytree(ROOT / "cuda_src", tmp_path / "cuda_src")
    kernel = tmp_path / "cuda_src" / "gemm_w4a16.cu"
    kernel.write_text(kernel.read_text().replace("wait_for_earlier_kernels();", ""))
    done = chain("1", tmp_path / "cuda_src")
    assert done.returncode != 0
    assert "softgpu: kernel gemm_w4a16" in done.stderr
    assert "a launch that may still run" in done.stderr
