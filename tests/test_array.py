"""Which library an array belongs to, and what a wrong array is told."""

import numpy as np
import pytest

from cutpq.array import array_module, bfloat16, check_array, once_per_kind


class ForeignArray:
    shape, dtype = (2,), np.dtype(np.float16)


ForeignArray.__module__ = "cupy"


def test_module_of_numpy_arrays():
    assert array_module(np.zeros(1), None, np.zeros(2)) is np


@pytest.mark.parametrize("other", [ForeignArray(), [1.0], 3])
def test_mixed_or_foreign_arrays_raise(other):
    with pytest.raises(TypeError, match="all be NumPy or all be CuPy"):
        array_module(np.zeros(1), other)


def test_check_array_returns_what_fits():
    a = np.zeros((3, 4), bfloat16)
    assert check_array("x", a, ("M", 4), np.float16, bfloat16) is a


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([1, 2], TypeError, "x must be a NumPy or CuPy array, got list"),
        (np.zeros((3, 5), np.float16), ValueError, r"x must have shape \(M, 4\), got \(3, 5\)"),
        (np.zeros(4, np.float16), ValueError, r"x must have shape \(M, 4\), got \(4,\)"),
        (np.zeros((3, 4), np.float32), TypeError, "x must be float16 or bfloat16, got float32"),
    ],
)
def test_check_array_names_value_and_rule(value, error, message):
    with pytest.raises(error, match=message):
        check_array("x", value, ("M", 4), np.float16, bfloat16)


def test_arguments_of_a_kind_are_checked_once_unless_they_fail():
    seen = []

    @once_per_kind
    def check(a, b):
        seen.append((a, b))
        check_array("b", b, (len(a),), np.float32)

    a, b = np.zeros(3, np.float16), np.zeros(3, np.float32)
    for _ in range(3):
        check(a, b)
    assert len(seen) == 1
    for other in (np.zeros(4, np.float32), np.zeros(3, np.float16), [0.0] * 3):
        for _ in range(2):
            with pytest.raises((TypeError, ValueError), match="b must"):
                check(a, other)
    assert len(seen) == 7
    check(np.zeros(3, np.float32), b)
    check(np.zeros(3, np.float16).view(np.recarray), b)
    assert len(seen) == 9, "another dtype, and another type"
