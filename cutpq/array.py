"""NumPy or CuPy: which of the two an array belongs to, checks that every public operation makes, exact conversions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

# An array of either library. CuPy has no type that a checker could know without CuPy installed.
Array = Any

bfloat16 = np.dtype(ml_dtypes.bfloat16)
float16, float32 = np.dtype(np.float16), np.dtype(np.float32)


def array_module(*arrays: Array) -> ModuleType:
    """numpy or cupy: the one library that all of `arrays` belong to (None is ignored).

    Raises TypeError for anything else, and for a mixture. Never imports cupy on its own account.
    """
    if _library_of(*map(type, arrays)) == "numpy":
        return np
    import cupy

    return cupy


@cache
def _library_of(*types: type) -> str:
    """The library of arrays of these types, "numpy" or "cupy"; kept, since every launch asks."""
    names = {t.__module__.partition(".")[0] for t in types if t is not type(None)}
    if names in ({"numpy"}, {"cupy"}):
        return names.pop()
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
    try:
        have, dtype = a.shape, a.dtype
    except AttributeError:
        raise TypeError(f"{name} must be a NumPy or CuPy array, got {type(a).__name__}") from None
    if have != shape:
        fits = len(have) == len(shape)
        for wants, has in zip(shape, have, strict=False):  # a loop: every launch comes here, and all() takes longer
            fits = fits and (wants == has or isinstance(wants, str))
        if not fits:
            wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
            raise ValueError(f"{name} must have shape ({wanted}), got {tuple(have)}")
    if dtypes and dtype not in dtypes:
        wanted = " or ".join(np.dtype(d).name for d in dtypes)
        raise TypeError(f"{name} must be {wanted}, got {dtype}; convert it with .astype")
    return a


def once_per_kind(check: Callable[..., None]) -> Callable[..., None]:
    """Decorates check(*arrays), which looks at their types, shapes and dtypes alone: equal ones are checked once."""
    passed: set[tuple[Any, ...]] = set()

    @wraps(check)
    def check_new(*arrays: Array) -> None:
        try:
            kind = tuple([(type(a), a.shape, a.dtype) for a in arrays])
        except AttributeError:  # one is no array: let the check say so
            kind = ()
        if kind in passed:
            return
        check(*arrays)
        if len(passed) >= 4096:  # lengths of prompts are many
            passed.clear()
        if kind:
            passed.add(kind)

    return check_new


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
    if not a.flags.c_contiguous:
        a = array_module(a).ascontiguousarray(a)
    return a if address(a) % 16 == 0 else a.copy()


def address(a: Array) -> int:
    """Where the first byte of an array lies."""
    return int(a.ctypes.data if isinstance(a, np.ndarray) else a.data.ptr)


# Numbers that a conversion works through at a time, so that each of its steps finds them in a core's cache.
_PIECE = 1 << 17


def to_float32(a: Array, out: np.ndarray | None = None) -> Array:
    """`a` (float16, bfloat16 or float32) in float32, exactly; a float32 array itself, not a copy.

    out  for NumPy float16 only: contiguous float32 of a's shape, which is returned
    """
    if a.dtype == float32:
        return a
    xp = array_module(a)
    if xp is np:
        return _float16_to_float32(a, out) if a.dtype == np.float16 else a.astype(np.float32)
    if a.dtype == bfloat16:  # a bfloat16 is the upper half of a float32's bits
        return (a.view(xp.uint16).astype(xp.uint32) << 16).view(xp.float32)
    return a.astype(xp.float32)


def round_to(v: Array, dtype: Any) -> Array:
    """float32 numbers rounded to nearest even in float16 or bfloat16, Inf beyond their range; float32 as they are."""
    if v.dtype == dtype:
        return v
    with np.errstate(over="ignore", invalid="ignore"):  # Inf, and NaN of any kind, are numbers like others here
        if array_module(v) is np and v.dtype == np.float32 and dtype == np.float16:
            return _float32_to_float16(v)
        return v.astype(dtype)


# NumPy converts float16 one number at a time, in 2 to 3 ns. On the bits of whole arrays it takes a third of that, but
# some twelve steps, each of which costs a microsecond: a few thousand numbers are left to NumPy.
_FEW = 1 << 12


def _float16_to_float32(a: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """`spread_float16`, whose product with 2^112 is exact for subnormals too."""
    if a.size <= _FEW:
        if out is None:
            return a.astype(np.float32)
        np.copyto(out, a)
        return out
    flat = np.ascontiguousarray(a).reshape(-1)
    v = np.empty(flat.size, np.float32) if out is None else out.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = slice(start, start + _PIECE)
        finite = spread_float16(flat[piece], v[piece])
        v[piece] *= np.float32(2.0**112)
        if not finite:  # Inf and NaN keep the largest exponent
            special = np.abs(v[piece]) >= 65536
            v.view(np.int32)[piece][special] |= 0x7F800000
    return v.reshape(a.shape)


# Arrays of one number, which NumPy takes in half the time of Python's: exponent and mantissa go to a float32's places,
# and these and the sign are kept.
_SHIFT, _KEPT = np.array(13, np.int32), np.array(-0x70002000, np.int32)


def spread_float16(a: np.ndarray, out: np.ndarray) -> bool:
    """out[:] = a 2^-112, exactly: float16's bits in a float32's places. False where Inf or NaN became 65536 and more.

    a (n,) float16, contiguous; out (n,) float32. A product with 2^112 would move the exponent's bias.
    """
    bits, signed = out.view(np.int32), a.view(np.int16)
    bits[:] = signed  # the sign fills the upper half
    np.left_shift(bits, _SHIFT, bits)
    np.bitwise_and(bits, _KEPT, bits)
    # As integers, what is not finite is the largest of the positive numbers, and of the negative ones without a sign.
    largest = np.maximum.reduce
    return bool(largest(signed, initial=0) < 0x7C00 and largest(a.view(np.uint16), initial=0) < 0xFC00)


def keep_11_bits(v: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """float32 v, rounded in place to nearest even in the 11 bits of a float16's mantissa; its exponent stays as it is.

    Dekker's splitting of a number into an upper and a lower part (1971), of which this is the upper. It need not break
    ties to even in general, but does for 11 of 24 bits, which a test shows for all mantissas. |v| below 2^114.

    scratch  float32 of v's shape
    """
    np.multiply(v, np.float32(2**13 + 1), out=scratch)
    v -= scratch
    v += scratch
    return v


def _float32_to_float16(v: np.ndarray) -> np.ndarray:
    """Round to 11 bits and shift the bits to a float16's places; the rare rest goes to NumPy."""
    if v.size <= _FEW:
        return v.astype(np.float16)
    flat = np.ascontiguousarray(v).reshape(-1)
    a = np.empty(flat.size, np.uint16)
    room = np.empty((2, min(_PIECE, flat.size)), np.float32)
    for start in range(0, flat.size, _PIECE):
        part = flat[start : start + _PIECE]
        scaled, other = room[:, : part.size]
        np.multiply(part, np.float32(2.0**-112), out=scaled)  # moves the exponent's bias
        bits = keep_11_bits(scaled, other).view(np.int32)
        sign = other.view(np.int32)
        np.right_shift(part.view(np.int32), 16, out=sign)
        sign &= -0x8000
        bits >>= 13
        bits |= sign
        out = a[start : start + _PIECE]
        np.copyto(out, bits, casting="unsafe")
        _mend_float16(out, part, other.view(np.uint32))
    return a.view(np.float16).reshape(v.shape)


def _mend_float16(out: np.ndarray, part: np.ndarray, scratch: np.ndarray) -> None:
    """Numbers outside [2^-14, 2^16) again: subnormals would be rounded twice, and what is larger has no such bits."""
    np.bitwise_and(part.view(np.uint32), 0x7FFFFFFF, out=scratch)
    scratch -= np.uint32(113 << 23)  # below 2^-14 this wraps around
    outside = scratch >= np.uint32(30 << 23)
    found = np.count_nonzero(outside)
    if found > part.size // 64:
        outside &= part != 0  # a zero has its bits already, and what was decoded is often zero
        found = np.count_nonzero(outside)
    if found:
        where = slice(None) if found > part.size // 4 else np.flatnonzero(outside)
        out[where] = part[where].astype(np.float16).view(np.uint16)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
