"""Kernels for the device at hand, launched with checked arguments.

    kernel = load("gather_columns", config, xp)
    kernel((blocks,), threads, x, perm, y, M, K)          # on CuPy's current stream

Environment:
    CUTPQ_PRINT_CONFIGS=1 every configuration that is used, once
    CUTPQ_HOST_KERNELS=1  run the kernels on NumPy arrays, see executor.py
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, wraps
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from ..array import address, bfloat16
from . import dependent_launch, executor, source
from .compile import Cubin, architecture, compile_kernel
from .config import BFLOAT16, FLOAT16, FLOAT32, Config, Device
from .source import KernelError, Parameter

T = TypeVar("T")

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

_HOST = Device(arch=90, sms=4)


@dataclass(frozen=True)
class Kernel:
    """A compiled entry point; calling it checks and converts the arguments, and launches."""

    name: str
    parameters: tuple[Parameter, ...]
    types: dict[str, np.dtype]  # the types that the configuration chooses, as act_t
    function: Any  # cupy.RawKernel, or one of executor.py

    def __call__(self, grid: tuple[int, ...], block: int, *args: Any, smem_bytes: int = 0) -> None:
        if len(args) != len(self._checks):
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments, got {len(args)}")
        self.launch(grid, block, self.check(0, *args), smem_bytes)

    def check(self, first: int, *args: Any) -> tuple[Any, ...]:
        """Arguments from number `first` on, each converted to its declared type: what `launch` takes, also again.

        Raises TypeError or ValueError for an array of another type, that is not contiguous, or not aligned.
        """
        return tuple([check(arg) for check, arg in zip(self._checks[first : first + len(args)], args, strict=True)])

    def check_of(self, name: str) -> Callable[[Any], Any]:
        """What `check` does for the parameter of that name."""
        return self._checks[[p.name for p in self.parameters].index(name)]

    def settled(self, grid: tuple[int, ...], block: int, *numbers: Any, smem_bytes: int = 0) -> Launch:
        """A launch of this grid with these last arguments, to be called with the arrays that come before them."""
        arrays = len(self.parameters) - len(numbers)
        return Launch(self, grid, block, self._checks[:arrays], self.check(arrays, *numbers), smem_bytes)

    def launch(self, grid: tuple[int, ...], block: int, checked: tuple[Any, ...], smem_bytes: int = 0) -> None:
        """Launch with arguments that `check` gave."""
        self.function(grid, (block,), checked, shared_mem=smem_bytes)

    def launch_in_order(self, grid: tuple[int, ...], block: int, checked: tuple[Any, ...], smem_bytes: int = 0) -> None:
        """As `launch`, but one that may start early starts when all before it in the stream has ended."""
        function = getattr(self.function, "in_order", self.function)
        function(grid, (block,), checked, shared_mem=smem_bytes)

    @cached_property
    def _checks(self) -> tuple[Callable[[Any], Any], ...]:
        """For each parameter what turns an argument into its declared type: made once, since a launch is short."""
        return tuple(
            _array_check(f"{self.name}: {p.name}", p.type, self.types) if p.pointer else SCALARS[p.type]
            for p in self.parameters
        )


@dataclass(frozen=True)
class Launch:
    """A launch whose grid and numbers are decided and converted, so that equal calls share them; Kernel.settled."""

    kernel: Kernel
    grid: tuple[int, ...]
    block: int
    checks: tuple[Callable[[Any], Any], ...]  # of the arrays
    numbers: tuple[Any, ...]
    smem_bytes: int

    def __call__(self, *arrays: Any) -> None:
        """Launch on these arrays. Raises as Kernel.check does."""
        checked = [check(array) for check, array in zip(self.checks, arrays, strict=True)]
        self.kernel.function(self.grid, (self.block,), (*checked, *self.numbers), shared_mem=self.smem_bytes)


def _array_check(what: str, element: str, types: dict[str, np.dtype]) -> Callable[[Any], Any]:
    """Returns the array it is given, or raises: contiguous, of the element's type, and aligned as kernels read it."""
    dtype = types.get(element) or ELEMENTS.get(element)
    # Kernels read activations, and arrays without an element type, in 16-byte words.
    align = 16 if dtype is None or element in types else dtype.itemsize

    def check(arg: Any) -> Any:
        if arg is None:
            return NULL
        try:
            contiguous = arg.flags.c_contiguous
        except AttributeError:
            if isinstance(arg, list) and dtype is None:  # arrays, whose addresses the executor lays out
                return arg
            raise TypeError(f"{what} must be an array, got {type(arg).__name__}") from None
        if not contiguous:
            raise ValueError(f"{what} must be contiguous, got strides {arg.strides} for shape {arg.shape}")
        if dtype is not None and arg.dtype != dtype:
            raise TypeError(f"{what} must be {dtype}, got {arg.dtype}")
        if align > 1 and address(arg) % align:
            raise ValueError(f"{what} must be aligned to {align} bytes, its address is {address(arg):#x}")
        return arg

    return check


def usable(xp: ModuleType) -> bool:
    """Whether arrays of `xp` can be given to kernels: CuPy's always, NumPy's under CUTPQ_HOST_KERNELS."""
    return xp is not np or executor.is_asked_for()


def stays(xp: ModuleType) -> bool:
    """Whether a kernel that `load` gave may be kept: CuPy's always; NumPy's may be run in another mode next time."""
    return xp is not np


def kept(make: Callable[..., T]) -> Callable[..., T]:
    """Decorates make(xp, *key), which decides a launch: equal keys get what it made first, for each device.

    The last few thousand are kept, since lengths of prompts are many. Not where kernels may not be kept.
    """
    remembered = lru_cache(4096)(lambda xp, device_id, *key: make(xp, *key))

    @wraps(make)
    def find(xp: ModuleType, *key: Any) -> T:
        if not stays(xp):
            return make(xp, *key)
        return remembered(xp, 0 if xp is np else xp.cuda.runtime.getDevice(), *key)

    return find


def device(xp: ModuleType) -> Device:
    """The processor that kernels on arrays of `xp` run on: the current CUDA device, or a small Hopper for the CPU."""
    if xp is np:
        return _HOST
    try:
        return _gpu(xp, xp.cuda.runtime.getDevice())
    except xp.cuda.runtime.CUDARuntimeError as error:
        raise KernelError(f"there is no usable GPU: {error}; NumPy arrays work without one") from None


@cache
def _gpu(xp: ModuleType, device_id: int) -> Device:
    found = xp.cuda.Device(device_id)
    # Only two attributes are asked for: a device refuses some of the hundred in found.attributes, and
    # compute-sanitizer reports each refusal as an error.
    runtime = xp.cuda.runtime
    sms = runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, device_id)
    return Device(int(found.compute_capability), sms)


def load(name: str, config: Config, xp: ModuleType) -> Kernel:
    """The kernel cuda_src/NAME.cu, compiled for `config` and the device that `xp` computes on.

    xp  cupy: for the current device; numpy: for the executor

    Raises KernelError, with the compiler's words.
    """
    if xp is np:
        return _load_on_host(name, config, executor.mode(), executor.settings.arch)
    return _load_on_gpu(name, config, xp, xp.cuda.runtime.getDevice())


@cache
def _load_on_gpu(name: str, config: Config, xp: ModuleType, device_id: int) -> Kernel:
    gpu = device(xp)
    major = xp.cuda.runtime.runtimeGetVersion() // 1000
    try:
        function = _function(xp, compile_kernel(name, config, architecture(gpu.arch), major), name)
    except xp.cuda.driver.CUDADriverError:  # this driver does not take the cubin on disk
        function = _function(xp, compile_kernel(name, config, architecture(gpu.arch), major, afresh=True), name)
    function.max_dynamic_shared_size_bytes = gpu.smem_limit  # a launch may ask for more than 48 KiB
    if config.wants_shared_memory:
        function.preferred_shared_memory_carveout = 100
    _announce(name, config)
    if config.starts_early:
        function = dependent_launch.DependentKernel(function, xp)
    return Kernel(name, source.signature(name), _types(config), function)


def _function(xp: ModuleType, cubin: Cubin, name: str) -> Any:
    return xp.RawModule(path=str(cubin.path)).get_function(name)


def _announce(name: str, config: Config) -> None:
    if os.environ.get("CUTPQ_PRINT_CONFIGS", "0") != "0":
        print(f"cutpq: {name} {config}", file=sys.stderr)


def _types(config: Config) -> dict[str, np.dtype]:
    dtypes = {FLOAT16: np.dtype(np.float16), BFLOAT16: bfloat16, FLOAT32: np.dtype(np.float32)}
    return {name: dtypes[code] for name, code in config.types().items()}


@cache
def _load_on_host(name: str, config: Config, mode: str, arch: int) -> Kernel:
    # arch is of the key alone: executor.build compiles for settings.arch, which tests change
    unit = source.translation_unit(name, config)
    function = executor.build(name, unit, source.source_dir(), mode, early=config.starts_early)
    _announce(name, config)
    return Kernel(name, source.signature(name), _types(config), function)
