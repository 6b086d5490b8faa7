"""What the compiler makes of every kernel: registers, shared memory, spills. Needs NVRTC, but no GPU.

python bench/kernels.py [--arch sm_90a,sm_80 | gpu]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

from harness.gpu_clock import gpu_module

from cutpq import __version__
from cutpq.kernels import nvrtc
from cutpq.kernels.compile import ARCHITECTURES, Cubin, architecture, compile_kernel
from cutpq.kernels.config import Config
from cutpq.kernels.load import device
from cutpq.kernels.source import source_digest
from cutpq.ops.gemm_config import GemmConfig
from cutpq.shipped import shipped


def main() -> int:
    """Print the table; 1 if a kernel spills registers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="sm_90a", help=f"some of {','.join(ARCHITECTURES)} (default sm_90a), or gpu")
    asked = parser.parse_args().arch
    arches, cuda = (asked.split(","), None) if asked != "gpu" else of_gpu()
    major, minor = nvrtc.find(cuda).version
    print(f"# cutpq {__version__}, NVRTC {major}.{minor}, sources {source_digest()}")
    print(f"# {'arch':8}{'registers':>10}{'smem_bytes':>12}{'spill_bytes':>13}  kernel and constants")
    spills = 0
    for arch in arches:
        configs = shipped(int(arch[3:].rstrip("a")))
        with ThreadPoolExecutor() as pool:
            cubins = list(pool.map(compile_for(arch, cuda), configs))
        for (name, config), cubin in zip(configs, cubins, strict=True):
            made = cubin.resources
            smem = config.smem_bytes if isinstance(config, GemmConfig) else 0
            constants = " ".join(f"{f.name}={int(getattr(config, f.name))}" for f in fields(config))
            print(f"  {arch:8}{made.registers:10}{smem:12}{made.spill_bytes:13}  {name} {constants}")
            spills += made.spill_bytes
    return 1 if spills else 0


def of_gpu() -> tuple[list[str], int]:
    """The architecture of the GPU that is here, and the CUDA version of CuPy: what its kernels are compiled with."""
    xp = gpu_module()
    return [architecture(device(xp).arch)], int(xp.cuda.runtime.runtimeGetVersion()) // 1000


def compile_for(arch: str, cuda: int | None) -> Callable[[tuple[str, Config]], Cubin]:
    """What compiles a kernel and its configuration for an architecture."""
    return lambda kernel: compile_kernel(*kernel, arch, cuda)


if __name__ == "__main__":
    sys.exit(main())
