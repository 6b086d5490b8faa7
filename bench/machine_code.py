"""What one warp executes for one unit of gemm_w4a16, counted in the machine code. Needs NVRTC and nvdisasm, no GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cutpq import kernels, nvrtc
from cutpq.configs import GemmConfig

# Integer and logical instructions, of which a multiprocessor does 64 lanes a clock (sm_80 and sm_90: CUDA C++
# Programming Guide, throughput of native arithmetic instructions); it issues four warps' instructions a clock.
HALF_RATE = ("LOP3", "SHF", "IADD3", "VIADD", "PRMT", "ISETP", "SEL", "LEA", "IMNMX", "VIMNMX", "PLOP3", "P2R", "R2P")

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")
_JUMP = re.compile(r"\bBRA\b.*`\((\.L_\w+)\)")
_LABEL = re.compile(r"^(\.L_\w+):")


@dataclass(frozen=True)
class UnitCode:
    """Instructions of one warp for one unit: a slab of SLAB rows by 64 columns.

    instructions  all that are issued, predicated ones too
    integer       those of half rate
    loads         16-byte loads of codes that a slab takes
    """

    instructions: int
    integer: int
    loads: int

    @property
    def per_load(self) -> float:
        """Instructions for each 16-byte load of codes."""
        return self.instructions / self.loads


class DisassemblerMissing(ImportError):
    """No nvdisasm on this machine; the message says what to install."""


def disassembler() -> str:
    """nvdisasm: of the CUDA wheels beside NVRTC, else on the PATH. Raises DisassemblerMissing."""
    beside = nvrtc.find().library.parent.parent / "bin" / "nvdisasm"
    found = str(beside) if beside.is_file() else shutil.which("nvdisasm")
    if found is None:
        raise DisassemblerMissing("nvdisasm counts the instructions, and is not here: pip install nvidia-cuda-nvdisasm")
    return found


@cache
def unit_code(config: GemmConfig, arch: str) -> UnitCode:
    """The counts for a configuration whose rows take one way: grouped or unordered."""
    path = kernels.compile_kernel("gemm_w4a16", config, arch).path
    return count(_disassemble(path), loads=config.SLAB // 16)


def _disassemble(cubin: Path) -> str:
    return subprocess.run([disassembler(), "-c", str(cubin)], capture_output=True, text=True, check=True).stdout


def count(text: str, loads: int) -> UnitCode:
    """The counts of a unit in nvdisasm's text: the loop around HMMA. Raises ValueError where there is no such loop."""
    lines = text.splitlines()
    labels = {found[1]: at for at, line in enumerate(lines) if (found := _LABEL.match(line))}
    hmma = [at for at, line in enumerate(lines) if " HMMA." in line]
    jumps = [(at, labels[found[1]]) for at, line in enumerate(lines) if (found := _JUMP.search(line))]
    loops = [(to, at) for at, to in jumps if hmma and to < hmma[0] and at > hmma[-1]]
    if not loops:
        raise ValueError("this machine code has no loop around HMMA")
    start, end = min(loops)
    opcodes = [found[1] for line in lines[start : end + 1] if (found := _INSTRUCTION.match(line))]
    integer = sum(opcode.split(".")[0] in HALF_RATE for opcode in opcodes)
    return UnitCode(len(opcodes), integer, loads)
