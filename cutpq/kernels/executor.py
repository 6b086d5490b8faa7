"""CUDA kernels on NumPy arrays, without a GPU: NVRTC makes PTX of the source, and softgpu/ executes it on the CPU.

    kernel = build("dequant", source, include=cuda_src)
    kernel((blocks,), (threads,), (x, y, np.int32(n)), shared_mem=0)  # y is written, as on a GPU

Inline assembly is executed with all else. Two modes:

    fast   numbers, hangs, accesses out of bounds, results that depend on the order of things (vary `seed`)
    check  also races on shared and global memory, memory order, reads of what is uninitialized or in flight

Environment:
    CUTPQ_HOST_KERNELS=1  NumPy arrays of the public functions go through the kernels; "check" for check mode

The executor is C++ (softgpu/README.md); g++ compiles it at the first use, which takes a minute, into CUTPQ_CACHE_DIR.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from . import nvrtc
from .cache import cache_dir, one_at_a_time
from .source import included_files

CXX_FLAGS = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC"]
RED_ZONE = 128  # bytes behind every array in shared memory that nobody may touch, in check mode
# Parsed once for all files of the executor; that is most of what it takes to compile them.
STANDARD_HEADERS = [
    "algorithm",
    "cmath",
    "functional",
    "immintrin.h",
    "map",
    "memory",
    "mutex",
    "set",
    "sstream",
    "string",
    "unordered_map",
    "vector",
]
FOLDERS = ("ptx", "machine", "instructions", "races")  # of softgpu/: what the executor consists of


class ExecutorError(RuntimeError):
    """What a kernel did wrong, with kernel, block, thread, the line of PTX and the line of the source."""


@dataclass
class Settings:
    """How launches run; module-wide, so that tests reach launches made deep inside the public API."""

    seed: int = 0  # order of blocks and warps: 0 ascending, 1 descending, else random and interrupted anywhere
    max_resident: int = 1 << 16  # blocks alive at a time
    arch: int = 90  # what is compiled for, and how tensor cores add
    timeout_s: int = 60
    counts: list[dict[str, Any]] | None = None  # if a list: what every launch in fast mode did is appended


settings = Settings()
default_mode = "fast"


def is_asked_for() -> bool:
    """Whether the environment wants NumPy arrays to go through kernels."""
    return os.environ.get("CUTPQ_HOST_KERNELS", "0") != "0"


def mode() -> str:
    """How kernels on NumPy arrays are to run: "check" where the environment says so, or the default."""
    return "check" if os.environ.get("CUTPQ_HOST_KERNELS") == "check" else default_mode


class _Options(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("check", "seed", "most_resident", "arch", "timeout_s", "count")]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("program", ctypes.c_void_p),
        ("args", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("device", ctypes.c_int32),
        ("after", ctypes.c_int32),
        ("early", ctypes.c_int32),
    ]


# ---- the executor itself


@cache
def source_dir() -> Path:
    """The folder softgpu: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "softgpu", package.parent / "softgpu"):
        if (candidate / "README.md").is_file():
            return candidate
    raise FileNotFoundError(f"softgpu is neither inside nor beside {package}: reinstall cutpq")


def _cache_dir() -> Path:
    return cache_dir() / "executor"


def _digest(*parts: Any) -> str:
    h = hashlib.sha256()
    for part in parts:
        h.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
    return h.hexdigest()[:16]


def _cpu() -> str:
    """What -march=native depends on."""
    found = re.search(r"^flags.*$", Path("/proc/cpuinfo").read_text(), re.M)
    return found[0] if found else ""


def library_path() -> Path:
    """The executor as a library of C++, libsoftgpu.so; g++ compiles it where CUTPQ_CACHE_DIR has none.

    Raises ExecutorError where g++ is not here or refuses.
    """
    files = sorted(p for folder in FOLDERS for p in (source_dir() / folder).iterdir() if p.suffix in (".cpp", ".h"))
    path = _cache_dir() / f"executor-{_digest(*files, CXX_FLAGS, STANDARD_HEADERS, _cpu())}" / "libsoftgpu.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path.parent.name):
            if not path.exists():
                _compile_library([p for p in files if p.suffix == ".cpp"], path)
    return path


@cache
def library() -> ctypes.PyDLL:
    """The executor in this process."""
    lib = ctypes.PyDLL(str(library_path()))  # keeps Python's lock: ranks that are threads launch one by one
    lib.softgpu_error.restype = lib.softgpu_counted.restype = ctypes.c_char_p
    for name, takes, gives in (
        ("load", [ctypes.c_char_p], ctypes.c_void_p),
        ("kernel", [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p),
        ("parameters", [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)], ctypes.c_int),
        ("malloc", [ctypes.c_uint64], ctypes.c_void_p),
        ("free", [ctypes.c_void_p], None),
        ("launch", [ctypes.c_int, ctypes.POINTER(_Launch), ctypes.POINTER(_Options)], ctypes.c_int),
    ):
        function = getattr(lib, f"softgpu_{name}")
        function.argtypes, function.restype = takes, gives
    return lib


def _compile_library(sources: list[Path], path: Path) -> None:
    """Compile into a temporary folder and rename: what is killed leaves no half of a library."""
    import tempfile
    from concurrent.futures import ThreadPoolExecutor

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".building-") as folder:
        headers = Path(folder) / "standard.h"
        headers.write_text("".join(f"#include <{name}>\n" for name in STANDARD_HEADERS))
        _run_compiler(["g++", *CXX_FLAGS, "-x", "c++-header", str(headers)])
        units = _units(sources, Path(folder))
        objects = [unit.with_suffix(".o") for unit in units]
        compile_it = ["g++", *CXX_FLAGS, "-include", str(headers), "-c"]
        commands = [[*compile_it, str(unit), "-o", str(o)] for unit, o in zip(units, objects, strict=True)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run_compiler, commands))
        linked = Path(folder) / path.name
        _run_compiler(["g++", "-shared", f"-Wl,-soname,{path.name}", *map(str, objects), "-o", str(linked)])
        os.replace(linked, path)


def _units(sources: list[Path], folder: Path) -> list[Path]:
    """Files in `folder` that include the sources: one for each folder of them, whose headers are then parsed once.

    The instructions stay apart: their families have functions of the same names.
    """
    texts: dict[str, str] = {}
    for source in sources:
        together = source.parent.name
        name = f"{together}-{source.stem}" if together == "instructions" else together
        texts[name] = texts.get(name, "") + f'#include "{source}"\n'
    for name, text in texts.items():
        (folder / f"{name}.cpp").write_text(text)
    return [folder / f"{name}.cpp" for name in texts]


def _run_compiler(command: list[str]) -> None:
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise ExecutorError("the executor of CUDA kernels is compiled by g++ 12 or newer, which is not here") from None
    if done.returncode:
        raise ExecutorError(f"{' '.join(command)} failed:\n{done.stderr}")


# ---- kernels


class Kernel:
    """A kernel that is ready to run, called as a cupy.RawKernel: kernel(grid, block, args, shared_mem=bytes).

    early  launched by programmatic dependent launch: in a list of calls it may start before the call before it ends
    """

    def __init__(self, name: str, ptx: bytes, mode: str, early: bool = False):
        self.name, self.mode, self.ptx, self.early = name, mode, ptx, early
        self._program = _program(ptx, name)
        sizes = (ctypes.c_uint32 * 64)()
        count = library().softgpu_parameters(self._program, sizes)
        self.parameter_bytes = list(sizes[:count])

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0) -> None:
        launch([(self, grid, block, args, shared_mem)])


@cache
def _program(ptx: bytes, name: str) -> int:
    lib = library()
    module = lib.softgpu_load(ptx)
    program = lib.softgpu_kernel(module, name.encode()) if module else None
    if not program:
        raise ExecutorError(lib.softgpu_error().decode() or f'no kernel extern "C" {name} in this source')
    return int(program)


def build(name: str, source: str, include: Path, mode: str | None = None, early: bool = False) -> Kernel:
    """The kernel `name` of `source`, whose #include lines are looked up in `include`.

    Raises nvrtc.CompileError, with the compiler's words.
    """
    mode = mode or default_mode
    return Kernel(name, compile_ptx(name, source, include, settings.arch, mode), mode, early)


def compile_ptx(name: str, source: str, include: Path, arch: int, mode: str) -> bytes:
    """The PTX of `source` for an architecture such as 90; from CUTPQ_CACHE_DIR if it was compiled before.

    Raises nvrtc.CompileError, with the compiler's words.
    """
    import tempfile

    compiler = nvrtc.find()
    headers = included_files(source, include)
    target = f"compute_{arch}{'a' if arch >= 90 else ''}"
    defined = [f"-DSOFTGPU_RED_ZONE={RED_ZONE}"] if mode == "check" else []
    path = _cache_dir() / f"{name}-{_digest(source, target, defined, compiler.version, *headers)}.ptx"
    if path.exists():
        return path.read_bytes()
    options = [f"-arch={target}", "-std=c++17", "-lineinfo", *defined, f"-I{include}", f"-I{compiler.include}"]
    with one_at_a_time(path.name):
        if path.exists():
            return path.read_bytes()
        ptx = compiler.compile(source, f"{name}.unit.cu", options, result="PTX")[0].rstrip(b"\0")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as unfinished:
            unfinished.write(ptx)
        os.replace(unfinished.name, path)
        return ptx


# ---- launches

# kernel, grid, block, arguments, bytes of shared memory
Call = tuple[Kernel, Sequence[int], Sequence[int], Sequence[Any], int]

# Ranks may be threads that share arrays: no other launch comes between the copies to the device and back.
_one_at_a_time = threading.Lock()


def launch(devices: Sequence[Call | list[Call]]) -> None:
    """Run kernels side by side, as on several GPUs that see each other's memory.

    Those of a list run one after the other, on one GPU. In check mode those that are `early` may rely, before their
    griddepcontrol.wait, on nothing that the others of the list do.
    Arrays that are given twice are shared. A list of arrays becomes a device array of their addresses.
    ExecutorError if a kernel does what it may not.
    """
    with _one_at_a_time, _Memory() as memory:
        launches: list[_Launch] = []
        for number, stream in enumerate(devices):
            for n, call in enumerate(stream if isinstance(stream, list) else [stream]):
                launches.append(_describe(call, memory, number, len(launches) - 1 if n else -1))
        mode = (devices[0][0][0] if isinstance(devices[0], list) else devices[0][0]).mode
        order = (settings.seed, settings.max_resident, settings.arch, settings.timeout_s)
        options = _Options(mode == "check", *order, settings.counts is not None)
        if library().softgpu_launch(len(launches), (_Launch * len(launches))(*launches), ctypes.byref(options)):
            raise ExecutorError(library().softgpu_error().decode())
        if settings.counts is not None and mode != "check":
            settings.counts.append(json.loads(library().softgpu_counted()))
        memory.copy_back()


def _describe(call: Call, memory: _Memory, device: int, after: int) -> _Launch:
    kernel, grid, block, args, shared_bytes = call
    if len(args) != len(kernel.parameter_bytes):
        raise ExecutorError(f"{kernel.name} takes {len(kernel.parameter_bytes)} arguments, {len(args)} given")
    values = [_value(kernel, i, arg, memory) for i, arg in enumerate(args)]
    pointers = (ctypes.c_void_p * len(values))(*[v.ctypes.data for v in values])
    memory.keep += [values, pointers]
    shape = [(ctypes.c_uint32 * 3)(*(*dims, 1, 1)[:3]) for dims in (grid, block)]
    return _Launch(kernel._program, pointers, *shape, shared_bytes, device, after, kernel.early and after >= 0)


def _value(kernel: Kernel, i: int, arg: Any, memory: _Memory) -> np.ndarray:
    if isinstance(arg, list):
        arg = np.array([memory.address(a) for a in arg], np.uint64)
    if isinstance(arg, np.ndarray) and not (arg.ndim == 0 and arg.nbytes == kernel.parameter_bytes[i]):
        arg = np.uint64(memory.address(arg))
    if isinstance(arg, int | float):
        raise ExecutorError(
            f"argument {i} of {kernel.name} is the Python number {arg}: give an array, or a NumPy scalar of "
            f"{kernel.parameter_bytes[i]} bytes"
        )
    value = np.array(arg)
    if value.ndim or value.nbytes != kernel.parameter_bytes[i]:
        got = f"argument {i} of {kernel.name} has {value.nbytes} bytes"
        raise ExecutorError(f"{got}, the kernel takes {kernel.parameter_bytes[i]}")
    return value


class _Memory:
    """Copies of the arrays of a launch, each of exactly its size: one byte too far is an error."""

    def __init__(self) -> None:
        self.keep: list[Any] = []
        self._copies: dict[tuple[int, int], tuple[int, np.ndarray]] = {}  # the copy's address, and the array

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, *exception: object) -> None:
        for address, _ in self._copies.values():
            library().softgpu_free(address)

    def address(self, array: np.ndarray) -> int:
        if not array.flags.c_contiguous:
            raise ExecutorError(f"arrays must be contiguous, got strides {array.strides} for {array.shape}")
        key = (array.ctypes.data, array.nbytes)
        if key not in self._copies:
            address = library().softgpu_malloc(array.nbytes)
            if not address:
                raise MemoryError(f"no room for {array.nbytes} bytes")
            ctypes.memmove(address, array.ctypes.data, array.nbytes)
            self._copies[key] = (address, array)
        return self._copies[key][0]

    def copy_back(self) -> None:
        for address, array in self._copies.values():
            if array.flags.writeable:
                ctypes.memmove(array.ctypes.data, address, array.nbytes)
