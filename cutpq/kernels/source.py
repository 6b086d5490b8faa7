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
    """A digest of all CUDA sources, by which a table says what it is about."""
    root = source_dir().resolve()
    return _digest(root, sorted(p for p in root.rglob("*") if p.suffix in (".cu", ".cuh")))


def _digest(root: Path, files: list[Path]) -> str:
    h = hashlib.sha256()
    for path in files:
        h.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()[:16]


_INCLUDE = re.compile(r'^[ \t]*#include "([^"]+)"', re.M)


def included_files(text: str, folder: Path) -> list[Path]:
    """The files that a source includes by "name", and those that they include in turn, sorted.

    folder  where the source lies, and where names are looked up that are not beside the file that includes them
    """
    found: set[Path] = set()
    waiting = [(text, folder)]
    while waiting:
        text, beside = waiting.pop()
        for name in _INCLUDE.findall(text):
            path = next((p.resolve() for p in (beside / name, folder / name) if p.is_file()), None)
            if path is not None and path not in found:  # the compiler complains of one that is nowhere
                found.add(path)
                waiting.append((path.read_text(encoding="utf-8"), path.parent))
    return sorted(found)


def translation_unit(name: str, config: Config) -> str:
    """The text that is compiled: a digest of the files, the constants of `config`, and the kernel's file.

    The digest makes the text another one, and so the key of what is compiled, where a header has changed.
    """
    root, include = source_dir().resolve(), f'#include "{name}.cu"\n'
    digest = _digest(root, included_files(include, root))
    constants = "".join(f"constexpr int {f.name} = {int(getattr(config, f.name))};\n" for f in fields(config))
    return f"// {digest}\n{constants}{include}"


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
