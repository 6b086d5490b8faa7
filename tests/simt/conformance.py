"""What a GPU's instructions give for random operands, recorded, so that the executor can be held to it.

    python tests/simt/conformance.py        # on a machine with a GPU and CuPy: writes tests/recordings

A recording belongs to the assembly text of its wrapper: change the text, and it counts no more.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PTX = ROOT / "cuda_src" / "ptx"
SOURCE = Path(__file__).with_suffix(".cu")
RECORDINGS = ROOT / "tests" / "recordings"
SHARED_BYTES = 1024

# Every kernel of conformance.cu, and the file whose instructions it runs.
KERNELS = {
    "lop3_and_or": "bits.cuh",
    "prmt_bytes": "bits.cuh",
    "ldmatrix_four": "ldmatrix.cuh",
    "cp_async_plain": "cp_async.cuh",
    "cp_async_hint": "cp_async.cuh",
    "mma_float16": "mma.cuh",
    "mma_bfloat16": "mma.cuh",
    "counter": "memory_order.cuh",
    "system_flags": "memory_order.cuh",
    "timer": "timer.cuh",
    "convert_e4m3": "convert_small.cuh",
    "convert_e2m1": "convert_small.cuh",
}

# The architecture from which an instruction is there; before it the wrapper gives zeros.
SINCE = {"convert_e4m3": 89, "convert_e2m1": 100}


def operands(name: str) -> np.ndarray:
    """(32, 8) random words, the same on every machine."""
    return np.random.default_rng(sorted(KERNELS).index(name)).integers(0, 2**32, (32, 8), dtype=np.uint32)


def assembly_digest(file: str) -> str:
    """A digest of the code of a wrapper file, comments left out."""
    text = re.sub(r"//[^\n]*", "", (PTX / file).read_text())
    return hashlib.sha256((text + SOURCE.read_text()).encode()).hexdigest()[:16]


def recorded(name: str, arch: str) -> np.ndarray | None:
    """What a GPU gave for operands(name) with the assembly of today, or None."""
    path = RECORDINGS / f"{name}-{arch}.npz"
    if not path.is_file():
        return None
    with np.load(path) as file:
        return file["out"] if str(file["digest"]) == assembly_digest(KERNELS[name]) else None


def record(xp: Any) -> None:
    """Run every kernel on the current GPU and write the results."""
    from cutpq.kernels import load as kernels
    from cutpq.kernels import nvrtc
    from cutpq.kernels.compile import architecture

    arch = architecture(kernels.device(xp).arch)
    compiler = nvrtc.find(xp.cuda.runtime.runtimeGetVersion() // 1000)
    options = [f"-arch={arch}", "-std=c++17", f"-I{ROOT / 'cuda_src'}", f"-I{compiler.include}"]
    cubin, _ = compiler.compile(SOURCE.read_text(), "conformance.unit.cu", options)
    RECORDINGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conformance.cubin"
        path.write_bytes(cubin)
        module = xp.RawModule(path=str(path))
        for name, file in KERNELS.items():
            out = xp.zeros((32, 8), xp.uint32)
            module.get_function(name)((1,), (32,), (xp.asarray(operands(name)), out), shared_mem=SHARED_BYTES)
            np.savez(RECORDINGS / f"{name}-{arch}.npz", out=out.get(), digest=assembly_digest(file))
            print(f"recorded {name} on {arch}")


if __name__ == "__main__":
    import cupy

    record(cupy)
