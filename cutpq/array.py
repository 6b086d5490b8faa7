"""NumPy or CuPy: which of the two an array belongs to, checks that every public operation makes, exact conversions."""

from __future__ import annotations

from functools import cache
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


def move(a: Array, xp: ModuleType) -> Array:
    """`a` as an array of `xp` (numpy or cupy): `a` itself where it is one, else a copy."""
    if xp is array_module(a):
        return a
    return to_numpy(a) if xp is np else xp.asarray(a)


def aligned(a: Array) -> Array:
    """`a`, or a copy where it is not contiguous or does not begin at a multiple of 16 bytes, as kernels read it."""
    a = array_module(a).ascontiguousarray(a)
    return a if address(a) % 16 == 0 else a.copy()


def address(a: Array) -> int:
    """Where the first byte of an array lies."""
    return int(a.ctypes.data if isinstance(a, np.ndarray) else a.data.ptr)


def to_float32(a: Array) -> Array:
    """`a` (float16, bfloat16 or float32) in float32, exactly; a float32 array itself, not a copy."""
    xp = array_module(a)
    if a.dtype == bfloat16:  # a bfloat16 is the upper half of a float32's bits
        return (a.view(xp.uint16).astype(xp.uint32) << 16).view(xp.float32)
    if a.dtype == np.float16 and xp is np:  # a table of all float16 numbers is twice as fast as NumPy's astype
        return _float16_values().take(a.view(np.uint16))
    return a.astype(xp.float32, copy=False)


@cache
def _float16_values() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
