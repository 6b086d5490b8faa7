"""Runs the kernels of cuda_src on the CPU, with NumPy arrays.

A kernel is compiled by g++ against a small CUDA for the CPU (runtime/): every CUDA thread is a fiber, warp
instructions and barriers gather their lanes, blocks take turns. Two modes:

    fast    numbers, hangs, accesses out of bounds, results that depend on the order of things (vary `seed`)
    check   also races on shared and global memory, memory order, reads of what is uninitialised or in flight

    kernel = build("dequant", source, include=cuda_src)
    kernel((blocks,), (threads,), (x, y, np.int32(n)), shared_mem=0)      # y is written, as on a GPU
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

RUNTIME = Path(__file__).resolve().parent / "runtime"
CACHE = Path(os.environ.get("CUTPQ_CACHE_DIR", Path.home() / ".cache" / "cutpq")) / "simt"

COMMON = [
    "g++",
    "-std=c++20",
    "-g",
    "-fPIC",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-march=native",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Wno-attributes",
    "-Wno-unused-function",
]
MODES = {
    "fast": ["-O2"],
    # -O1, because the vectorizer and store merging of -O2 change the size of accesses
    "check": [
        "-O1",
        "-fsanitize=thread",
        "--param=tsan-distinguish-volatile=1",
        "--param=tsan-instrument-func-entry-exit=0",
    ],
}
SCALAR, POINTER_TO_CONST, POINTER = range(3)  # kinds of parameters, as in runtime/cuda.h


class SimtError(RuntimeError):
    """What a kernel did wrong, with its source line, block and thread."""


@dataclass
class Settings:
    """How launches run; module-wide, so that tests reach launches made deep inside the public API."""

    seed: int = 0  # order of lanes, warps and blocks: 0 ascending, 1 descending, else random
    max_resident: int = 1 << 16  # blocks alive at a time
    mma_model: int = 90  # tensor cores of 90 Hopper or 80 Ampere; 0 a chain of fp32 fma
    timeout_s: int = 60


settings = Settings()
default_mode = "fast"


class _Options(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("check", "seed", "max_resident", "mma_model", "timeout_s")]


class _Parameter(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_int), ("kind", ctypes.c_int)]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("args", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("after", ctypes.c_int),
    ]


def _digest(*parts: Any) -> str:
    h = hashlib.sha256()
    for part in parts:
        h.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
    return h.hexdigest()[:16]


def _compile(output: Path, command: list[str]) -> Path:
    """Run the compiler into a temporary file and rename it, since several processes may build at once."""
    if output.exists():
        return output
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=CACHE, suffix=output.suffix, delete=False) as unfinished:
        done = subprocess.run([*command, "-o", unfinished.name], capture_output=True, text=True)
        if done.returncode:
            os.unlink(unfinished.name)
            raise SimtError(f"g++ refused {output.stem}:\n{done.stderr}")
        os.replace(unfinished.name, output)
    return output


@cache
def _runtime() -> ctypes.PyDLL:
    sources = sorted(RUNTIME.glob("*.cpp"))
    command = [*COMMON, "-O3", "-shared", "-fno-gnu-unique", *map(str, sources), "-ldl"]
    path = CACHE / f"runtime-{_digest(*sources, *sorted(RUNTIME.glob('*.h')), COMMON)}.so"
    # Global, so that kernels find its symbols; PyDLL, so that threads (ranks in one process) launch one by one.
    lib = ctypes.PyDLL(str(_compile(path, command)), mode=ctypes.RTLD_GLOBAL)
    lib.simt_error.restype = ctypes.c_char_p
    lib.simt_malloc.restype, lib.simt_malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    lib.simt_free.restype, lib.simt_free.argtypes = None, [ctypes.c_void_p]
    return lib


class DeviceBuffer:
    """A copy of an array between guard pages; `array` is a view of it."""

    def __init__(self, source: np.ndarray):
        if not source.flags.c_contiguous:
            raise SimtError(f"arrays must be contiguous, got strides {source.strides} for {source.shape}")
        self.pointer = _runtime().simt_malloc(max(source.nbytes, 1))
        if not self.pointer:
            raise MemoryError(f"no room for {source.nbytes} bytes")
        raw = (ctypes.c_char * source.nbytes).from_address(self.pointer)
        self.array = np.frombuffer(raw, source.dtype).reshape(source.shape) if source.size else source
        self.array[...] = source

    def free(self) -> None:
        _runtime().simt_free(self.pointer)


class Kernel:
    """A compiled kernel, called as a cupy.RawKernel: kernel(grid, block, args, shared_mem=bytes)."""

    def __init__(self, name: str, tag: str, mode: str):
        self.name, self.symbol, self.mode = name, (tag + name).encode(), mode
        parameters = (_Parameter * 64)()
        count = _runtime().simt_signature(self.symbol, parameters)
        if count < 0:
            raise SimtError(f'no kernel extern "C" {name} in this source')
        self.parameters = [(p.bytes, p.kind) for p in parameters[:count]]

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0) -> None:
        launch([(self, grid, block, args, shared_mem)])


# Ranks may be threads that share arrays: no other launch comes between the copies to the device and back.
_one_at_a_time = threading.Lock()

# kernel, grid, block, arguments, bytes of shared memory
Call = tuple[Kernel, Sequence[int], Sequence[int], Sequence[Any], int]


def launch(calls: Sequence[Call | list[Call]]) -> None:
    """Run kernels side by side, as on several GPUs that see each other's memory.

    Those of a list run one after the other, on one GPU.
    Arrays that are given twice are shared. A list of arrays becomes a device array of their addresses.
    """
    with _one_at_a_time:
        _launch_alone(calls)


def _launch_alone(devices: Sequence[Call | list[Call]]) -> None:
    streams = [device if isinstance(device, list) else [device] for device in devices]
    calls = [call for stream in streams for call in stream]
    is_first = [i == 0 for stream in streams for i in range(len(stream))]
    buffers: dict[int, DeviceBuffer] = {}
    results: dict[int, np.ndarray] = {}

    def on_device(array: np.ndarray, writable: bool) -> int:
        key = array.ctypes.data
        if key not in buffers:
            buffers[key] = DeviceBuffer(array)
        if writable:
            results[key] = array
        return int(buffers[key].pointer)

    def converted(kernel: Kernel, i: int, arg: Any) -> np.ndarray:
        size, kind = kernel.parameters[i]
        if isinstance(arg, list):
            pointers = np.array([on_device(a, True) for a in arg], np.uint64)
            keep.append(pointers)
            arg = pointers
        if kind != SCALAR and not (isinstance(arg, np.uint64) and arg == 0):  # zero is the null pointer
            if not isinstance(arg, np.ndarray):
                raise SimtError(f"argument {i} of {kernel.name} must be an array, got {type(arg).__name__}")
            return np.array(on_device(arg, kind == POINTER), np.uint64)
        value = np.array(arg)
        if value.ndim or value.dtype.itemsize != size:
            got = f"argument {i} of {kernel.name} has {value.nbytes} bytes"
            raise SimtError(f"{got}, the kernel takes {size}")
        return value

    keep: list[Any] = []
    descriptions = (_Launch * len(calls))()
    try:
        for at, (description, call) in enumerate(zip(descriptions, calls, strict=True)):
            kernel, grid, block, args, shared_mem = call
            description.after = -1 if is_first[at] else at - 1
            if len(args) != len(kernel.parameters):
                raise SimtError(f"{kernel.name} takes {len(kernel.parameters)} arguments, {len(args)} given")
            values = [converted(kernel, i, arg) for i, arg in enumerate(args)]
            pointers = (ctypes.c_void_p * len(values))(*[v.ctypes.data for v in values])
            keep += [values, pointers]
            description.name, description.args, description.shared_bytes = kernel.symbol, pointers, shared_mem
            description.grid[:], description.block[:] = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        _run(descriptions, calls[0][0].mode)
        for key, array in results.items():
            array[...] = buffers[key].array
    finally:
        for buffer in buffers.values():
            buffer.free()


def _run(descriptions: ctypes.Array, mode: str) -> None:
    options = _Options(mode == "check", *astuple(settings))
    if _runtime().simt_launch(len(descriptions), descriptions, ctypes.byref(options)):
        raise SimtError(_with_source_lines(_runtime().simt_error().decode()))


def _with_source_lines(message: str) -> str:
    for library, offset in set(re.findall(r"pc (\S+)\+(0x[0-9a-f]+)", message)):
        command = ["addr2line", "-e", library, offset]
        found = subprocess.run(command, capture_output=True, text=True).stdout.split()
        message = message.replace(f"pc {library}+{offset}", found[0] if found else offset)
    return message


def build(name: str, source: str, include: Path, mode: str | None = None) -> Kernel:
    """Compile the kernel `name` out of `source`, whose #include lines are looked up in `include`."""
    with _building:
        return _build(name, source, include, mode or default_mode)


_building = threading.Lock()


def _build(name: str, source: str, include: Path, mode: str) -> Kernel:
    headers = sorted(p for p in include.rglob("*") if p.suffix in (".cu", ".cuh"))
    tag = _digest(name, source, mode, COMMON, MODES, RUNTIME / "cuda.h", *headers) + ":"
    library = CACHE / f"{name}-{mode}-{tag[:-1]}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        unit = CACHE / f"{name}-{mode}-{tag[:-1]}-{os.getpid()}.cpp"
        unit.write_text(f'#define SIMT_TAG "{tag}"\n#line 1 "{name}.cu"\n{source}\nSIMT_EXPORT({name})\n')
        folders = (_parsed_header(mode), RUNTIME, include)  # g++ takes the parsed header where it finds it first
        command = [*_kernel_flags(mode), *(f"-I{folder}" for folder in folders), "-include", "cuda.h", "-c", str(unit)]
        try:
            objects = _compile(library.with_suffix(f".{os.getpid()}.o"), command)
            # linked without the sanitizer's library: the runtime answers the calls
            _compile(library, ["g++", "-shared", str(objects)])
            objects.unlink()
        finally:
            unit.unlink()
    _runtime()
    _loaded.append(ctypes.CDLL(str(library)))  # registers itself under its tag
    return Kernel(name, tag, mode)


def _kernel_flags(mode: str) -> list[str]:
    return [*COMMON, *MODES[mode], "-DCUTPQ_HOST", "-fvisibility=hidden", "-fno-gnu-unique"]


def _parsed_header(mode: str) -> Path:
    """A folder with runtime/cuda.h as g++ has parsed it, which takes as long as a kernel does."""
    folder = CACHE / f"header-{mode}-{_digest(COMMON, MODES, *sorted(RUNTIME.glob('*.h')))}"
    folder.mkdir(parents=True, exist_ok=True)
    _compile(folder / "cuda.h.gch", [*_kernel_flags(mode), "-x", "c++-header", str(RUNTIME / "cuda.h")])
    return folder


_loaded: list[ctypes.CDLL] = []


def ldmatrix_passes() -> tuple[int, int]:
    """Passes that ldmatrix took through shared memory so far, and those that it takes without conflicts."""
    taken, ideal = ctypes.c_long(), ctypes.c_long()
    _runtime().simt_ldmatrix_passes(ctypes.byref(taken), ctypes.byref(ideal))
    return taken.value, ideal.value
