"""What a launch did, counted: sectors of global memory, passes through shared memory, instructions, atomics."""

from pathlib import Path

import numpy as np
import pytest

from cutpq.kernels import executor

SOURCE = """
extern "C" __global__ void count(const int* in, int* out) {
  __shared__ __align__(16) int x[1024];
  const int t = threadIdx.x;
  BODY
}
"""


def counted(body, monkeypatch):
    monkeypatch.setattr(executor.settings, "counts", [])
    data, out = np.arange(4096, dtype=np.int32), np.zeros(4096, np.int32)
    kernel = executor.build("count", SOURCE.replace("BODY", body), Path(__file__).parent, "fast")
    kernel((1,), (32,), (data, out))
    (line,) = executor.settings.counts
    return line


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (8, 32), (0, 1)])
def test_sectors_of_a_strided_load(monkeypatch, stride, sectors):
    loads = counted(f"out[t] = in[{stride} * t];", monkeypatch)["global_loads"]
    assert (loads["accesses"], loads["bytes"], loads["sectors"]) == (1, 128, sectors)
    assert loads["least_sectors"] == (1 if stride == 0 else 4)


@pytest.mark.parametrize(("stride", "passes"), [(1, 1), (2, 2), (3, 1), (32, 32), (0, 1)])
def test_bank_conflicts(monkeypatch, stride, passes):
    body = f"((volatile int*)x)[t] = t; __syncwarp(); out[t] = ((volatile int*)x)[{stride} * t];"
    line = counted(body, monkeypatch)
    assert line["shared_loads"] == {"accesses": 1, "passes": passes, "least_passes": 1}
    assert line["shared_stores"] == {"accesses": 1, "passes": 1, "least_passes": 1}
    collisions = [{"opcode": "ld", "source": "count.unit.cu:5", "passes": passes, "least_passes": 1}]
    assert [c | {"source": Path(c["source"]).name} for c in line["conflicts"]] == (collisions if passes > 1 else [])


def test_instructions_and_atomics(monkeypatch):
    line = counted("if (t < 8) atomicAdd(out, in[t]);", monkeypatch)
    assert line["atomics"] == 8
    assert line["instructions"]["ld.global"] == 1
    assert (line["kernel"], line["grid"], line["block"]) == ("count", [1, 1, 1], [32, 1, 1])
