"""Sorting into groups and permuting columns: exact, stable, and everything along."""

import numpy as np
import pytest
from assertions import assert_exact
from random_weight import random_weight

from cutpq.ops.dequant import dequantize
from cutpq.weights.permutation import invert, permute_columns, sort_groups


def test_sort_makes_groups_contiguous_and_keeps_their_order():
    w = random_weight(K=96, N=8, group_size=16)
    ws, perm = sort_groups(w)
    assert not w.is_ordered
    assert ws.is_ordered
    assert perm.dtype == np.int32
    for group in range(w.G):
        rows = perm[ws.g_idx == group]
        assert (np.diff(rows) > 0).all(), "a stable sort keeps the disk order inside a group"


def test_sorted_weight_is_the_weight_with_its_rows_permuted():
    w = random_weight(K=96, N=8, group_size=16)
    ws, perm = sort_groups(w)
    assert_exact(dequantize(ws), dequantize(w)[perm])


def test_columns_move_with_scales_zeros_and_bias():
    w = random_weight(K=64, N=40, group_size=16, bias=True)
    perm = np.random.default_rng(1).permutation(40)
    permuted = permute_columns(w, perm)
    assert_exact(dequantize(permuted), dequantize(w)[:, perm])
    assert_exact(permuted.bias, w.bias[perm])


def test_invert_undoes():
    perm = np.random.default_rng(2).permutation(50).astype(np.int32)
    assert_exact(invert(perm)[perm], np.arange(50, dtype=np.int32))
    assert_exact(perm[invert(perm)], np.arange(50, dtype=np.int32))


@pytest.mark.parametrize(
    ("perm", "message"),
    [
        ([0, 1, 1, 3], "holds 1 2 times"),
        ([0, 1, 2, 4], r"holds 0 \.\. 4"),
        ([-1, 0, 1, 2], r"holds -1 \.\. 2"),
    ],
)
def test_what_is_no_permutation_is_named(perm, message):
    with pytest.raises(ValueError, match=message):
        permute_columns(random_weight(K=32, N=4, group_size=8), np.array(perm))
    with pytest.raises(ValueError, match=message):
        invert(np.array(perm))


def test_permutation_of_other_length_or_type_raises():
    w = random_weight(K=32, N=4, group_size=8)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        permute_columns(w, np.arange(5))
    with pytest.raises(TypeError, match="integers"):
        permute_columns(w, np.arange(4.0))
