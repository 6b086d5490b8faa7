"""The door to what runs kernels on NumPy arrays: the executor of their PTX, or another runtime.

Environment:
    CUTPQ_HOST_KERNELS=1  NumPy arrays go through the kernels; "check" for the runtime's slower mode that finds races
    CUTPQ_HOST_RUNTIME    another runtime than executor.py: a Python file with `default_mode` and
                          build(name, text, folder, mode), which compiles the text of a kernel (its headers are in the
                          folder) and returns a function to be called as a CuPy RawKernel. tests/ and bench/ set it to
                          tests/simt/cpu_cuda.py
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from threading import Lock
from typing import Any

from . import executor
from .source import KernelError

_once = Lock()


def is_asked_for() -> bool:
    """Whether NumPy arrays are to go through kernels."""
    return os.environ.get("CUTPQ_HOST_KERNELS", "0") != "0"


def mode() -> str:
    """How the runtime is to run a kernel: "check", or its own default."""
    return "check" if os.environ.get("CUTPQ_HOST_KERNELS") == "check" else runtime().default_mode


def runtime() -> Any:
    """The executor, or the module that CUTPQ_HOST_RUNTIME names. Raises KernelError where that is none."""
    if not os.environ.get("CUTPQ_HOST_RUNTIME"):
        return executor
    path = Path(os.environ["CUTPQ_HOST_RUNTIME"])
    with _once:  # ranks may be threads
        if path.stem in sys.modules:
            return sys.modules[path.stem]
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise KernelError(
                f"CUTPQ_HOST_RUNTIME={str(path)!r} must be the path of a runtime, as tests/simt/cpu_cuda.py of a "
                "checkout of cutpq; unset, the package executes kernels itself"
            )
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
