"""Who computes on NumPy arrays: the engine, unless the environment names the formulas or the kernels.

Environment:
    CUTPQ_HOST=formulas   the float64 specification in formulas.py
    CUTPQ_HOST_KERNELS=1  the CUDA kernels, see kernels/executor.py
"""

from __future__ import annotations

import os
from types import ModuleType

import numpy as np

from ...kernels import load as kernels


def uses_engine(xp: ModuleType) -> bool:
    """Whether the engine computes on arrays of `xp`. Raises ValueError for a CUTPQ_HOST that names nothing."""
    if xp is not np:
        return False
    asked = os.environ.get("CUTPQ_HOST", "")
    if asked not in ("", "engine", "formulas"):
        raise ValueError(f"CUTPQ_HOST={asked!r} is not one of engine, formulas")
    return asked != "formulas" and not kernels.usable(np)
