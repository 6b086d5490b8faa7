"""NumPy or CuPy: which of the two an array belongs to, and the checks that every public operation makes."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

# An array of either library. CuPy has no type that a checker could know without CuPy installed.
Array = Any

bfloat16 = np.dtype(ml_dtypes.bfloat16)


def array_module(*arrays: Array) -> ModuleType:
    """numpy or cupy: the one library that all of `arrays` belong to (None is ignored).

    Raises TypeError for anything else, and for a mixture. Never imports cupy on its own account.
    """
    names = {type(a).__module__.partition(".")[0] for a in arrays if a is not None}
    if names == {"numpy"}:
        return np
    if names == {"cupy"}:
        import cupy

        return cupy
    raise TypeError(
        f"arrays must all be NumPy or all be CuPy, got {sorted(names)}; "
        "move them with numpy.asarray, cupy.asarray or cupy.asnumpy"
    )


def check_array(name: str, a: Array, shape: tuple[int | str, ...], *dtypes: Any) -> Array:
    """Return `a` if it has this shape and one of these dtypes, else say what it has and what it needs.

    shape   a number fixes a dimension, a letter such as "M" leaves it free
    dtypes  anything that numpy.dtype accepts; none means any

    Raises TypeError for what is no array or has another dtype, ValueError for another shape.
    """
    if not hasattr(a, "shape") or not hasattr(a, "dtype"):
        raise TypeError(f"{name} must be a NumPy or CuPy array, got {type(a).__name__}")
    fits = len(a.shape) == len(shape) and all(
        isinstance(want, str) or want == have for want, have in zip(shape, a.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(a.shape)}")
    if dtypes and a.dtype not in dtypes:
        wanted = " or ".join(np.dtype(d).name for d in dtypes)
        raise TypeError(f"{name} must be {wanted}, got {a.dtype}; convert it with .astype")
    return a


def to_numpy(a: Array) -> np.ndarray:
    """`a` in host memory; waits for the GPU if it came from there."""
    return a.get() if array_module(a) is not np else a
