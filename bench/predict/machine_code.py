"""What one warp executes, counted in machine code: a unit of gemm_w4a16, a tile of a codec's kernels or of attention.

Needs NVRTC and nvdisasm, no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cutpq.codecs.config import WireConfig
from cutpq.kernels import nvrtc
from cutpq.kernels.compile import compile_kernel
from cutpq.model.decode_attention import DecodeAttentionConfig
from cutpq.ops.gemm_config import GemmConfig

# Integer and logical instructions: a multiprocessor executes 64 lanes of these a clock, two warps' worth, while it can
# issue four warps' instructions (sm_80 and sm_90: CUDA C++ Programming Guide, throughput of native arithmetic).
HALF_RATE = ("LOP3", "SHF", "IADD3", "VIADD", "PRMT", "ISETP", "SEL", "LEA", "IMNMX", "VIMNMX", "PLOP3", "P2R", "R2P")

# The instructions of the main loop by what they do: copy into the ring, load from it, multiply, dequantize, wait, jump.
CLASSES = {
    "ldgsts": ("LDGSTS",),
    "lds": ("LDS",),
    "ldsm": ("LDSM",),
    "mma": ("HMMA",),
    "half2": ("HFMA2", "HMUL2", "HADD2"),
    "bits": ("LOP3", "PRMT", "SHF"),
    "sync": ("BAR", "LDGDEPBAR", "DEPBAR", "WARPSYNC"),
    "branch": ("BRA", "BSSY", "BSYNC", "BREAK", "EXIT"),
}
CLASS_OF = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes}

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)")
_JUMP = re.compile(r"\bBRA\b.*`\((\.L_\w+)\)")
_LABEL = re.compile(r"^(\.L_\w+):")


@dataclass(frozen=True)
class UnitCode:
    """Instructions of one warp for one unit: a slab of SLAB rows by 64 columns.

    instructions  all that are issued, predicated ones too
    integer       those of half rate
    loads         16-byte loads of codes that a slab takes
    classes       how many of each class, see CLASSES; all others are "address"
    """

    instructions: int
    integer: int
    loads: int
    classes: tuple[tuple[str, int], ...] = ()

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
    """The counts for a configuration whose rows take one way: uniform or scattered groups."""
    path = compile_kernel("gemm_w4a16", config, arch).path
    return count(_disassemble(path), loads=config.lane_codes)


@cache
def attention_tile(config: DecodeAttentionConfig, arch: str) -> UnitCode:
    """The counts of decode_attention's loop over tiles of 16 keys; loads are a warp's of keys and values."""
    path = compile_kernel("decode_attention", config, arch).path
    return count(_disassemble(path), loads=config.D // 8)


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
    classes = Counter(CLASS_OF.get(opcode.split(".")[0], "address") for opcode in opcodes)
    return UnitCode(len(opcodes), integer, loads, tuple(classes.items()))


@dataclass(frozen=True)
class TileCode:
    """Instructions of one warp for one tile of encode, decode_sum or decode_sum_encode: what a thread takes at a time.

    instructions  all that are issued, predicated ones too
    integer       those of half rate
    outside       what a block executes once, however many tiles it takes
    """

    instructions: int
    integer: int
    outside: int


@cache
def tile_code(kernel: str, config: WireConfig, arch: str, far: bool = False) -> TileCode:
    """The counts for aligned wires, finite numbers and whole blocks; `far` as for count_tile."""
    return count_tile(_disassemble(compile_kernel(kernel, config, arch).path), far)


def count_tile(text: str, far: bool = False) -> TileCode:
    """The counts of the loop over tiles in nvdisasm's text, on its usual way.

    Of all ways through the loop it is the one with most loads and stores of whole words; among equals the one with
    fewest loads and stores of bytes and halves (ragged ends, unaligned wires) and fewest of the instructions that
    another way would have; then the longest. Additions that are not fused belong to scales near float32's limits. Of
    ranks whose scales are far apart the way has no arithmetic in half2, else no conversions to float32. An inner loop
    counts as one pass. Raises ValueError where there is no loop.
    """
    avoided = ("FADD", "HFMA2", "HMUL2") if far else ("FADD", "HADD2.F32")
    code, labels = _instructions(text)
    ways = [_next(code, labels, at) for at in range(len(code))]
    best = [(0, -1)] * len(code)  # from each instruction on: the greatest weight of a way, and its first step
    for at in reversed(range(len(code))):
        weight, to = max(((best[to][0], to) for to in ways[at] if to > at), default=(0, -1))
        best[at] = (_weight(code[at][0], avoided) + weight, to)
    path, at = [], 0
    while at >= 0:
        path.append(at)
        at = best[at][1]
    loops = [[step for step in path if to <= step <= at] for at in path for to in ways[at] if to <= at]
    if not loops:
        raise ValueError("this machine code has no loop")
    loop = max(loops, key=len)
    inside = [code[at][0].split(".")[0] for at in loop]
    return TileCode(len(inside), sum(op in HALF_RATE for op in inside), len(path) - len(inside))


def _weight(opcode: str, avoided: tuple[str, ...]) -> int:
    if not opcode.startswith(("LDG.", "STG.")):
        return -10 if opcode.startswith(avoided) else 1
    return -50 if {"U8", "U16", "S16"} & set(opcode.split(".")) else 1000


_STEP = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+((?:@!?U?P\w+\s+)?)([A-Z][A-Z0-9_.]*)(.*)")


def _instructions(text: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """(opcode, predicate and operands) of each instruction, and the instruction that each label stands at."""
    code: list[tuple[str, str]] = []
    labels = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif found := _STEP.match(line):
            code.append((found[2], found[1] + found[3]))
    return code, labels


def _next(code: list[tuple[str, str]], labels: dict[str, int], at: int) -> list[int]:
    """Where instruction `at` may lead to."""
    opcode, rest = code[at]
    if opcode.startswith("BRA.DIV"):  # taken where the lanes of a warp have parted
        return [at + 1]
    target = re.search(r"`\((\.L_\w+)\)", rest) if opcode.startswith("BRA") else None
    conditional = re.search(r"\bU?P\d", rest.partition("`")[0]) is not None
    onward = [at + 1] if at + 1 < len(code) else []
    if target:
        return [labels[target[1]], *(onward if conditional else [])]
    return [] if opcode.startswith(("EXIT", "RET")) and not conditional else onward
