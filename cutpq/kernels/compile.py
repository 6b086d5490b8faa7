"""CUDA source to cubin by NVRTC, kept on disk: neither a GPU nor a driver is needed.

Environment:
    CUTPQ_VERBOSE=1  a line for every kernel that is compiled: architecture, registers, time
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import nvrtc, source
from .cache import cache_dir, one_at_a_time
from .config import Config
from .source import KernelError

# Variants that a kernel is compiled for; "a" opens the instructions of that architecture alone.
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a")


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of a compiled kernel."""

    registers: int
    stack_bytes: int
    spill_bytes: int


@dataclass(frozen=True)
class Cubin:
    """A compiled kernel on disk, and what the compiler said of it."""

    path: Path
    log: str = field(compare=False)  # it has times

    @property
    def resources(self) -> Resources:
        """Raises KernelError where ptxas did not report them."""
        return resources_from(self.log)


def architecture(capability: int) -> str:
    """The variant to compile for a device: 90 -> "sm_90a"."""
    return f"sm_{capability}a" if capability in (90, 100) else f"sm_{capability}"


def compile_kernel(name: str, config: Config, arch: str, major: int | None = None, *, afresh: bool = False) -> Cubin:
    """The cubin of a kernel for an architecture such as "sm_90a"; from the cache if it was compiled before.

    major   the CUDA version, as 12 or 13, or None for any that is found
    afresh  whether to replace what the cache has; what was cut short or changed there is replaced anyway

    Raises KernelError if there is no compiler, or if it refuses the kernel.
    """
    try:
        compiler = nvrtc.find(major)
    except nvrtc.NvrtcMissing as missing:
        raise KernelError(str(missing)) from None
    unit = source.translation_unit(name, config)
    # no -ftz=true: an E8M0 scale of 2^-127 is a subnormal number, and it counts
    options = [f"-arch={arch}", "-std=c++17", "-lineinfo", "--ptxas-options=-v"]
    key = hashlib.sha256(repr((unit, options, compiler.version)).encode()).hexdigest()[:24]
    folder = cache_dir() / "kernels" / f"{name}-{arch}-{key}"
    kept = None if afresh else _kept(folder, name)
    if kept is None:
        with one_at_a_time(folder.name):
            kept = None if afresh else _kept(folder, name)
            if kept is None:
                _compile_into(folder, compiler, name, config, arch, unit, options)
                kept = _kept(folder, name)
    if kept is None:
        raise KernelError(f"{folder}: the files of a kernel changed while it was compiled; is the disk full?")
    return kept


def _kept(folder: Path, name: str) -> Cubin | None:
    """What the folder holds; None where it is not whole: a full disk or a power cut may leave files cut short."""
    try:
        about = json.loads((folder / "about.json").read_text())
        cubin = (folder / f"{name}.cubin").read_bytes()
        if about["sha256"] != hashlib.sha256(cubin).hexdigest():
            return None
        return Cubin(folder / f"{name}.cubin", about["log"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _compile_into(
    folder: Path, compiler: nvrtc.Nvrtc, name: str, config: Config, arch: str, unit: str, options: list[str]
) -> None:
    """Fill a temporary folder and rename it: many ranks may compile the same kernel at once."""
    import tempfile

    start, replaces = time.perf_counter(), folder.exists()
    includes = [f"-I{source.source_dir()}", f"-I{compiler.include}"]
    try:
        # the unit must not be named NAME.cu: it includes a file of that name
        cubin, log = compiler.compile(unit, f"{name}.unit.cu", [*options, *includes])
    except nvrtc.CompileError as error:
        raise KernelError(f"{name} with {config} does not compile for {arch}:\n{error}") from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as temporary:
        unfinished = Path(temporary) / "done"
        unfinished.mkdir()
        (unfinished / f"{name}.cubin").write_bytes(cubin)
        (unfinished / f"{name}.unit.cu").write_text(unit)
        (unfinished / "options.txt").write_text("\n".join(options) + "\n")
        about = {"sha256": hashlib.sha256(cubin).hexdigest(), "log": log}
        (unfinished / "about.json").write_text(json.dumps(about))
        if replaces:
            with suppress(OSError):  # another rank has moved it away
                folder.rename(Path(temporary) / "replaced")
        try:
            unfinished.rename(folder)
        except OSError:  # another rank was faster, and its result is as good
            if _kept(folder, name) is None:
                raise
    if os.environ.get("CUTPQ_VERBOSE", "0") != "0":
        seconds = time.perf_counter() - start
        with suppress(KernelError):
            log = str(resources_from(log))
        print(f"cutpq: compiled {name} {config} for {arch}: {log}, {seconds:.2f} s", file=sys.stderr)


def resources_from(log: str) -> Resources:
    """What `ptxas -v` wrote."""
    used = re.search(r"Used (\d+) registers", log)
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if not used or not stack:
        raise KernelError(f"ptxas did not report registers and spills; it said:\n{log}")
    return Resources(int(used[1]), int(stack[1]), int(stack[2]) + int(stack[3]))
