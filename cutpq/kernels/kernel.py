"""Compile the kernels of cuda_src, keep the results, launch them with checked arguments.

    kernel = kernels.load("gather_columns", config, xp)
    kernel((blocks,), threads, x, perm, y, M, K)          # on CuPy's current stream

Environment:
    CUTPQ_CACHE_DIR       where compiled kernels are kept; default ~/.cache/cutpq
    CUTPQ_VERBOSE=1       a line for every kernel that is compiled: architecture, registers, time
    CUTPQ_PRINT_CONFIGS=1 every configuration that is used, once
    CUTPQ_HOST_KERNELS=1  run the kernels on NumPy arrays, by the CPU runtime of a source checkout; "check" for its
                          slower mode that finds races. For tests
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np

from ..array import address, bfloat16
from . import nvrtc
from .config import BFLOAT16, FLOAT16, FLOAT32, Config, Device

# Variants that a kernel is compiled for; "a" opens the instructions of that architecture alone.
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a")

SCALARS: dict[str, Any] = {"int": np.int32, "u32": np.uint32, "float": np.float32}
ELEMENTS = {
    "half": np.dtype(np.float16),
    "__nv_bfloat16": bfloat16,
    "float": np.dtype(np.float32),
    "int": np.dtype(np.int32),
    "u32": np.dtype(np.uint32),
    "u8": np.dtype(np.uint8),
    "u16": np.dtype(np.uint16),
}

NULL = np.uint64(0)


class KernelError(RuntimeError):
    """A kernel cannot be compiled or launched here; the message says why and what to do."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: `const half* scales` has type "half" and is a pointer to const."""

    name: str
    type: str
    pointer: bool
    const: bool


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of a compiled kernel."""

    registers: int
    stack_bytes: int
    spill_bytes: int


@dataclass(frozen=True)
class Cubin:
    """A compiled kernel on disk."""

    path: Path
    resources: Resources


@dataclass(frozen=True)
class Kernel:
    """A compiled entry point; calling it checks and converts the arguments, and launches."""

    name: str
    parameters: tuple[Parameter, ...]
    types: dict[str, np.dtype]  # the types that the configuration chooses, as act_t
    function: Any  # cupy.RawKernel, or its twin on the CPU

    def __call__(self, grid: tuple[int, ...], block: int, *args: Any, smem_bytes: int = 0) -> None:
        if len(args) != len(self._checks):
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments, got {len(args)}")
        converted = tuple([check(arg) for check, arg in zip(self._checks, args, strict=True)])
        self.function(grid, (block,), converted, shared_mem=smem_bytes)

    @cached_property
    def _checks(self) -> tuple[Callable[[Any], Any], ...]:
        """For each parameter what turns an argument into its declared type: made once, since a launch is short."""
        return tuple(
            _array_check(f"{self.name}: {p.name}", p.type, self.types) if p.pointer else SCALARS[p.type]
            for p in self.parameters
        )


def _array_check(what: str, element: str, types: dict[str, np.dtype]) -> Callable[[Any], Any]:
    """Returns the array it is given, or raises: contiguous, of the element's type, and aligned as kernels read it."""
    dtype = types.get(element) or ELEMENTS.get(element)
    # activations are read in 16-byte words, as is what has no element type
    align = 16 if dtype is None or element in types else dtype.itemsize

    def check(arg: Any) -> Any:
        if arg is None:
            return NULL
        if isinstance(arg, list) and dtype is None:  # arrays, whose addresses the CPU runtime lays out
            return arg
        flags = getattr(arg, "flags", None)
        if flags is None:
            raise TypeError(f"{what} must be an array, got {type(arg).__name__}")
        if not flags.c_contiguous:
            raise ValueError(f"{what} must be contiguous, got strides {arg.strides} for shape {arg.shape}")
        if dtype is not None and arg.dtype != dtype:
            raise TypeError(f"{what} must be {dtype}, got {arg.dtype}")
        if align > 1 and address(arg) % align:
            raise ValueError(f"{what} must be aligned to {align} bytes, its address is {address(arg):#x}")
        return arg

    return check


def usable(xp: ModuleType) -> bool:
    """Whether arrays of `xp` can be given to kernels: CuPy's always, NumPy's under CUTPQ_HOST_KERNELS."""
    return xp is not np or os.environ.get("CUTPQ_HOST_KERNELS", "0") != "0"


def device(xp: ModuleType) -> Device:
    """The processor that kernels on arrays of `xp` run on: the current CUDA device, or a small Hopper for the CPU."""
    if xp is np:
        return Device(arch=90, sms=4)
    try:
        return _gpu(xp, xp.cuda.runtime.getDevice())
    except xp.cuda.runtime.CUDARuntimeError as error:
        raise KernelError(f"there is no usable GPU: {error}; NumPy arrays work without one") from None


@cache
def _gpu(xp: ModuleType, device_id: int) -> Device:
    found = xp.cuda.Device(device_id)
    return Device(int(found.compute_capability), found.attributes["MultiProcessorCount"])


def load(name: str, config: Config, xp: ModuleType) -> Kernel:
    """The kernel cuda_src/NAME.cu, compiled for `config` and the device that `xp` computes on.

    xp  cupy: for the current device; numpy: for the CPU runtime, which only a source checkout has

    Raises KernelError, with the compiler's words.
    """
    if xp is np:
        return _load_on_host(name, config, _host_mode())
    return _load_on_gpu(name, config, xp, xp.cuda.runtime.getDevice())


@cache
def _load_on_gpu(name: str, config: Config, xp: ModuleType, device_id: int) -> Kernel:
    gpu = device(xp)
    major = xp.cuda.runtime.runtimeGetVersion() // 1000
    cubin = compile_kernel(name, config, architecture(gpu.arch), major)
    function = xp.RawModule(path=str(cubin.path)).get_function(name)
    function.max_dynamic_shared_size_bytes = gpu.smem_limit  # a launch may ask for more than 48 KiB
    if config.wants_shared_memory:
        function.preferred_shared_memory_carveout = 100
    _announce(name, config)
    return Kernel(name, signature(name), _types(config), function)


def _announce(name: str, config: Config) -> None:
    if os.environ.get("CUTPQ_PRINT_CONFIGS", "0") != "0":
        print(f"cutpq: {name} {config}", file=sys.stderr)


def _types(config: Config) -> dict[str, np.dtype]:
    dtypes = {FLOAT16: np.dtype(np.float16), BFLOAT16: bfloat16, FLOAT32: np.dtype(np.float32)}
    return {name: dtypes[code] for name, code in config.types().items()}


def architecture(capability: int) -> str:
    """The variant to compile for a device: 90 -> "sm_90a"."""
    return f"sm_{capability}a" if capability in (90, 100) else f"sm_{capability}"


# ---- sources


@cache
def source_dir() -> Path:
    """The folder of CUDA sources: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "cuda_src", package.parent / "cuda_src"):
        if (candidate / "target.cuh").is_file():
            return candidate
    raise FileNotFoundError(f"cuda_src is neither inside nor beside {package}: reinstall cutpq")


def source_digest() -> str:
    """A digest of all CUDA sources, so that a change of any header makes a new key."""
    h = hashlib.sha256()
    root = source_dir()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".cu", ".cuh")):
        h.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()[:16]


def translation_unit(name: str, config: Config) -> str:
    """The text that is compiled: the digest, the constants of `config`, and the kernel's file."""
    constants = "".join(f"constexpr int {f.name} = {int(getattr(config, f.name))};\n" for f in fields(config))
    return f'// cuda_src {source_digest()}\n{constants}#include "{name}.cu"\n'


@cache
def signature(name: str) -> tuple[Parameter, ...]:
    """The parameters of the kernel, read from its source."""
    text = re.sub(r"//[^\n]*", "", (source_dir() / f"{name}.cu").read_text(encoding="utf-8"))
    found = re.search(rf'extern\s+"C"\s+__global__\s+void\b[^{{;]*?\b{name}\s*\(([^)]*)\)\s*\{{', text)
    if not found:
        raise KernelError(f'{name}.cu has no kernel: extern "C" __global__ void {name}(...) {{')
    return tuple(_parameter(text) for text in found[1].split(","))


def _parameter(text: str) -> Parameter:
    words = text.replace("*", " * ").replace("__restrict__", " ").split()
    if words[0] == "const":
        return Parameter(words[-1], words[1], pointer="*" in words, const="*" in words)
    return Parameter(words[-1], words[0], pointer="*" in words, const=False)


# ---- compiling


def compile_kernel(name: str, config: Config, arch: str, major: int | None = None) -> Cubin:
    """The cubin of a kernel for an architecture such as "sm_90a"; from the cache if it was compiled before.

    major  the CUDA version, as 12 or 13, or None for any that is found

    Raises KernelError if there is no compiler, or if it refuses the kernel.
    """
    try:
        compiler = nvrtc.find(major)
    except nvrtc.NvrtcMissing as missing:
        raise KernelError(str(missing)) from None
    unit = translation_unit(name, config)
    # no -ftz=true: an E8M0 scale of 2^-127 is a subnormal number, and it counts
    options = [f"-arch={arch}", "-std=c++17", "-lineinfo", "--ptxas-options=-v"]
    key = hashlib.sha256(repr((unit, options, compiler.version)).encode()).hexdigest()[:24]
    folder = _cache_dir() / "kernels" / f"{name}-{arch}-{key}"
    if not (folder / "resources.json").is_file():
        _compile_into(folder, compiler, name, config, arch, unit, options)
    resources = Resources(**json.loads((folder / "resources.json").read_text()))
    return Cubin(folder / f"{name}.cubin", resources)


def _compile_into(
    folder: Path, compiler: nvrtc.Nvrtc, name: str, config: Config, arch: str, unit: str, options: list[str]
) -> None:
    """Fill a temporary folder and rename it: many ranks may compile the same kernel at once."""
    start = time.perf_counter()
    includes = [f"-I{source_dir()}", f"-I{compiler.include}"]
    try:
        # the name differs from NAME.cu, which the text includes
        cubin, log = compiler.compile(unit, f"{name}.unit.cu", [*options, *includes])
    except nvrtc.CompileError as error:
        raise KernelError(f"{name} with {config} does not compile for {arch}:\n{error}") from None
    resources = resources_from(log)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as temporary:
        unfinished = Path(temporary) / "done"
        unfinished.mkdir()
        (unfinished / f"{name}.cubin").write_bytes(cubin)
        (unfinished / f"{name}.unit.cu").write_text(unit)
        (unfinished / "log.txt").write_text(log + "\n")
        (unfinished / "options.txt").write_text("\n".join(options) + "\n")
        (unfinished / "resources.json").write_text(json.dumps(vars(resources)))
        try:
            unfinished.rename(folder)
        except OSError:  # another rank was faster, and its result is as good
            if not (folder / "resources.json").is_file():
                raise
    if os.environ.get("CUTPQ_VERBOSE", "0") != "0":
        seconds = time.perf_counter() - start
        print(f"cutpq: compiled {name} {config} for {arch}: {resources}, {seconds:.2f} s", file=sys.stderr)


def resources_from(log: str) -> Resources:
    """What `ptxas -v` wrote."""
    used = re.search(r"Used (\d+) registers", log)
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if not used or not stack:
        raise KernelError(f"ptxas did not report registers and spills; it said:\n{log}")
    return Resources(int(used[1]), int(stack[1]), int(stack[2]) + int(stack[3]))


def _cache_dir() -> Path:
    return Path(os.environ.get("CUTPQ_CACHE_DIR") or Path.home() / ".cache" / "cutpq")


# ---- the CPU runtime

_runtime_once = Lock()


@cache
def _load_on_host(name: str, config: Config, mode: str) -> Kernel:
    function = cpu_runtime().build(name, translation_unit(name, config), source_dir(), mode)
    _announce(name, config)
    return Kernel(name, signature(name), _types(config), function)


def _host_mode() -> str:
    return "check" if os.environ.get("CUTPQ_HOST_KERNELS") == "check" else cpu_runtime().default_mode


def cpu_runtime() -> Any:
    """tests/simt/cpu_cuda.py of a source checkout."""
    with _runtime_once:  # ranks may be threads
        if "cpu_cuda" in sys.modules:
            return sys.modules["cpu_cuda"]
        path = source_dir().parent / "tests" / "simt" / "cpu_cuda.py"
        spec = importlib.util.spec_from_file_location("cpu_cuda", path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise KernelError(f"CUTPQ_HOST_KERNELS needs a source checkout of cutpq: there is no {path}")
        module = importlib.util.module_from_spec(spec)
        sys.modules["cpu_cuda"] = module
        spec.loader.exec_module(module)
        return module
