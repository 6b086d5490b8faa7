"""The text of a kernel: cuda_src with a configuration's constants in front, and the parameters that it declares."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from .config import Config


class KernelError(RuntimeError):
    """A kernel cannot be compiled or launched here; the message says why and what to do."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: `const half* scales` has type "half" and is a pointer to const."""

    name: str
    type: str
    pointer: bool
    const: bool


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
