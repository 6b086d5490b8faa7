"""What the executor makes of the instructions in cuda_src/ptx against recordings of a GPU, bit for bit."""

import re
from pathlib import Path

import conformance
import numpy as np
import pytest
from assertions import assert_exact

from cutpq.kernels import executor

MODELS = {"sm_80": 80, "sm_90a": 90}  # of the tensor cores


def executed(name):
    kernel = executor.build(name, conformance.SOURCE.read_text(), conformance.ROOT / "cuda_src")
    out = np.zeros((32, 8), np.uint32)
    kernel((1,), (32,), (conformance.operands(name), out), shared_mem=conformance.SHARED_BYTES)
    return out


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("name", conformance.KERNELS)
def test_the_executor_gives_what_the_gpu_gave(settings, name, arch):
    settings.arch = MODELS[arch]
    recording = conformance.recorded(name, arch)
    if recording is None:
        pytest.skip(f"no recording of {name} on {arch} yet: run tests/simt/conformance.py on such a GPU")
    assert_exact(executed(name), recording)


@pytest.mark.parametrize("name", conformance.KERNELS)
def test_conformance_kernels_run_and_say_something(settings, name):
    settings.arch = max(settings.arch, conformance.SINCE.get(name, 0))
    out = executed(name)
    assert out.any()
    assert_exact(executed(name), out)


def test_every_wrapper_is_in_a_conformance_kernel():
    order_only = {"cp_async_commit", "cp_async_wait", "evict_first_policy", "shared_address"}
    order_only |= {"let_next_kernel_start", "wait_for_earlier_kernels", "prefetch_line", "prefetch_bulk"}
    wrappers = set()
    for path in conformance.PTX.glob("*.cuh"):
        wrappers |= set(re.findall(r"DEVICE \w+ (\w+)\(", path.read_text()))
    source = conformance.SOURCE.read_text()
    missing = {w for w in wrappers - order_only if not re.search(rf"\b{w}\b", source)}
    assert wrappers > order_only
    assert not missing


def test_changed_assembly_makes_a_recording_void(tmp_path, monkeypatch):
    monkeypatch.setattr(conformance, "RECORDINGS", tmp_path)
    digest = conformance.assembly_digest("bits.cuh")
    np.savez(tmp_path / "prmt_bytes-sm_80.npz", out=np.ones((32, 8), np.uint32), digest=digest)
    assert conformance.recorded("prmt_bytes", "sm_80") is not None
    ptx = tmp_path / "ptx"
    ptx.mkdir()
    text = (conformance.PTX / "bits.cuh").read_text()
    (ptx / "bits.cuh").write_text(text.replace("prmt.b32 %0, %1, %2", "prmt.b32 %0, %2, %1"))
    monkeypatch.setattr(conformance, "PTX", Path(ptx))
    assert conformance.recorded("prmt_bytes", "sm_80") is None
