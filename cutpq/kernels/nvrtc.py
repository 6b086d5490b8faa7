"""NVIDIA's run-time compiler, through ctypes: CUDA source in, cubin out. Needs neither a GPU nor a driver."""

from __future__ import annotations

import ctypes
import os
import re
import site
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

INSTALL = (
    "install it with `pip install nvidia-cuda-nvrtc nvidia-cuda-runtime` (CUDA 13) or "
    "`pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12` (CUDA 12), or set CUDA_PATH to a CUDA installation"
)


class NvrtcMissing(ImportError):
    """No NVRTC library, or no CUDA headers, on this machine."""


class CompileError(Exception):
    """The compiler refused the source; the message holds its words, with file and line."""


@dataclass(frozen=True)
class Nvrtc:
    """A loaded NVRTC library and the headers that belong to it."""

    library: Path
    include: Path
    version: tuple[int, int]
    _lib: ctypes.CDLL

    def architectures(self) -> frozenset[int]:
        """The compute capabilities that it compiles for, as 80, 90, 100."""
        count = ctypes.c_int()
        self._check(self._lib.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        numbers = (ctypes.c_int * count.value)()
        self._check(self._lib.nvrtcGetSupportedArchs(numbers))
        return frozenset(numbers)

    def compile(self, source: str, name: str, options: Sequence[str], result: str = "CUBIN") -> tuple[bytes, str]:
        """The cubin, or the PTX, and what the compiler had to say. `name` stands for the source in messages."""
        program = ctypes.c_void_p()
        self._check(self._lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None))
        try:
            texts = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
            status = self._lib.nvrtcCompileProgram(program, len(options), texts)
            log = self._read(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
            if status:
                raise CompileError(log or self._lib.nvrtcGetErrorString(status).decode())
            return self._read(program, result), log
        finally:
            self._lib.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._lib, f"nvrtcGet{what}")(program, text))
        return text.raw

    def _check(self, status: int) -> None:
        if status:
            raise CompileError(f"NVRTC: {self._lib.nvrtcGetErrorString(status).decode()}")


@cache
def find(major: int | None = None) -> Nvrtc:
    """The NVRTC of CUDA_PATH, a pip wheel, conda, or /usr/local/cuda: the first that has headers beside it.

    major  take only this CUDA version, as 12 or 13: the one that CuPy was built for

    Raises NvrtcMissing, which says what to install.
    """
    for library, include in _candidates():
        if major is not None and _major(library) not in (major, None):
            continue
        if (include / "cuda_fp16.h").is_file():
            return _load(library, include)
    wanted = "NVRTC" if major is None else f"NVRTC of CUDA {major}"
    raise NvrtcMissing(f"kernels are compiled by {wanted}, which is not on this machine: {INSTALL}")


def _candidates() -> Iterator[tuple[Path, Path]]:
    roots = [Path(os.environ[v]) for v in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(v)]
    for root in roots:
        yield from _in_toolkit(root)
    packages = [Path(p) / "nvidia" for p in (*site.getsitepackages(), site.getusersitepackages(), *sys.path)]
    for nvidia in packages:
        for library in sorted(nvidia.glob("cu*/lib/libnvrtc.so.*"), reverse=True):
            yield library, library.parent.parent / "include"
        for library in sorted(nvidia.glob("cuda_nvrtc/lib/libnvrtc.so.*"), reverse=True):
            yield library, nvidia / "cuda_runtime" / "include"
    for prefix in (os.environ.get("CONDA_PREFIX"), sys.prefix, "/usr/local/cuda"):
        if prefix:
            yield from _in_toolkit(Path(prefix))


def _in_toolkit(root: Path) -> Iterator[tuple[Path, Path]]:
    for lib in (root / "lib64", root / "lib", root / "targets" / "x86_64-linux" / "lib"):
        for library in sorted(lib.glob("libnvrtc.so*")):
            yield library, root / "include"
            yield library, root / "targets" / "x86_64-linux" / "include"


def _major(library: Path) -> int | None:
    found = re.search(r"\.so\.(\d+)", library.resolve().name)
    return int(found[1]) if found else None


def _load(library: Path, include: Path) -> Nvrtc:
    for builtins in library.parent.glob("libnvrtc-builtins.so*"):  # NVRTC looks for it by name, not by place
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    lib = ctypes.CDLL(str(library))
    lib.nvrtcGetErrorString.restype = ctypes.c_char_p
    major, minor = ctypes.c_int(), ctypes.c_int()
    lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return Nvrtc(library, include, (major.value, minor.value), lib)
