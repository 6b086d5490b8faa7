"""Programmatic dependent launch (PDL), on sm_90 and newer: a kernel starts while the one before it in its stream runs.

What the kernel may do before it waits is written in cuda_src/ptx/dependent_launch.cuh. CuPy has no cuLaunchKernelEx, so
the driver is called here, through ctypes: NVIDIA's cuda-bindings would be one more package for this one function. In a
captured stream the driver makes a programmatic edge of the launch (CUDA 12.3 and newer).

Environment:
    CUTPQ_PDL=1  launch gemm_w4a16 so; off by default, because no GPU has run it yet, and a driver or kernel that breaks
                 the order of two kernels gives wrong numbers without an error. A device below sm_90 ignores it.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from .config import Device
from .source import KernelError

# CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION of cuda.h
_PROGRAMMATIC_STREAM_SERIALIZATION = 6


def is_wanted(device: Device) -> bool:
    """Whether kernels that can are to start early on this device. ValueError where CUTPQ_PDL is neither 0 nor 1."""
    wanted = os.environ.get("CUTPQ_PDL", "0")
    if wanted not in ("0", "1"):
        raise ValueError(f"CUTPQ_PDL must be 0 or 1, got {wanted!r}; or unset it")
    return wanted == "1" and device.arch >= 90


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: an id, four bytes of padding, and a union of 64 bytes, here its int."""

    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60)]


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("smem_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    ]


class DependentKernel:
    """A cupy.RawKernel that is launched with the attribute of PDL, on CuPy's current stream; called as a RawKernel.

    in_order  the RawKernel, which starts when all before it has ended
    """

    def __init__(self, kernel: Any, xp: ModuleType):
        self.in_order = kernel
        self._function = ctypes.c_void_p(kernel.kernel.ptr)
        self._current_stream = xp.cuda.get_current_stream

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int = 0
    ) -> None:
        values = [_bytes_of(arg) for arg in args]
        pointers = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
        attribute = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION, b"", 1, b"")
        shape = [(ctypes.c_uint * 3)(*(*dims, 1, 1)[:3]) for dims in (grid, block)]
        stream = self._current_stream().ptr
        config = _LaunchConfig(*shape, shared_mem, stream, ctypes.pointer(attribute), 1)
        status = _driver().cuLaunchKernelEx(ctypes.byref(config), self._function, pointers, None)
        if status:
            raise KernelError(
                f"cuLaunchKernelEx failed with CUresult {status}: grid {grid}, block {block}, {shared_mem} bytes of "
                "shared memory; CUTPQ_PDL=0 launches without it"
            )


def _bytes_of(arg: Any) -> np.ndarray:
    """A kernel's argument as it lies in memory: a number, or the address of an array."""
    return np.array(arg) if isinstance(arg, np.generic) else np.array(arg.data.ptr, np.uint64)


@cache
def _driver() -> ctypes.CDLL:
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuLaunchKernelEx.argtypes = [ctypes.c_void_p] * 4
    return driver
