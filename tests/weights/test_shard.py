"""Bounds on group borders, and shards that put together are the whole."""

import itertools

import numpy as np
import pytest
from assertions import assert_exact
from random_weight import random_weight

from cutpq.ops.dequant import dequantize
from cutpq.weights.permutation import sort_groups
from cutpq.weights.shard import even_bounds, group_bounds, head_bounds, shard_columns, shard_rows


def test_qwen2_72b_over_8_ranks():
    bounds = group_bounds(np.repeat(np.arange(231), 128), 8)
    assert (np.diff(bounds) // 128).tolist() == [29] * 7 + [28]


@pytest.mark.parametrize("tp", range(1, 9))
def test_every_tp_up_to_G_gets_whole_groups(tp):
    g_idx = np.random.default_rng(0).permutation(8 * 16 + 5) // 16  # nine groups, the last one short
    bounds = group_bounds(g_idx, tp)
    sorted_groups = np.sort(g_idx)
    assert bounds[0] == 0
    assert bounds[-1] == len(g_idx)
    sizes = [len(np.unique(sorted_groups[a:b])) for a, b in itertools.pairwise(bounds)]
    assert sum(sizes) == 9, "a group on two ranks would be counted twice"
    assert max(sizes) - min(sizes) <= 1


def test_groups_without_rows_do_not_count():
    g_idx = np.array([0, 0, 7, 7, 9, 9])
    assert group_bounds(g_idx, 3).tolist() == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="tp=4 is more than 3 groups"):
        group_bounds(g_idx, 4)


@pytest.mark.parametrize("tp", [0, -1])
def test_tp_below_one_raises(tp):
    with pytest.raises(ValueError, match=f"tp={tp} must be at least 1"):
        group_bounds(np.zeros(8, int), tp)
    with pytest.raises(ValueError, match=f"tp={tp} must be at least 1"):
        even_bounds(8, tp)


@pytest.mark.parametrize(
    ("K", "tp", "multiple", "bounds"),
    [(10, 3, 1, [0, 4, 7, 10]), (40, 3, 8, [0, 16, 32, 40]), (20, 2, 8, [0, 16, 20]), (8, 1, 8, [0, 8])],
)
def test_even_bounds(K, tp, multiple, bounds):
    assert even_bounds(K, tp, multiple).tolist() == bounds


def test_even_bounds_refuse_an_empty_share():
    with pytest.raises(ValueError, match="tp=3 ranks cannot share K=16 in multiples of 8"):
        even_bounds(16, 3, 8)


@pytest.mark.parametrize("tp", [1, 3, 5])
def test_row_shards_are_the_whole_with_only_their_own_groups(tp):
    w, _ = sort_groups(random_weight(K=80, N=8, group_size=16))
    bounds = group_bounds(w.g_idx, tp)
    shards = [shard_rows(w, slice(a, b)) for a, b in itertools.pairwise(bounds)]
    assert_exact(np.concatenate([dequantize(s) for s in shards]), dequantize(w))
    assert sum(s.G for s in shards) == w.G


def test_scattered_rows_keep_their_order_and_drop_other_groups():
    w = random_weight(K=64, N=8, group_size=16)
    rows = np.flatnonzero(w.g_idx != 2)[::-1]
    shard = shard_rows(w, rows)
    assert_exact(dequantize(shard), dequantize(w)[rows])
    assert shard.G == 3


def test_column_shards_take_bias_along():
    w = random_weight(K=32, N=24, group_size=16, bias=True)
    columns = np.array([5, 0, 23])
    shard = shard_columns(w, columns)
    assert_exact(dequantize(shard), dequantize(w)[:, columns])
    assert_exact(shard.bias, w.bias[columns])


def test_bounds_of_heads_follow_the_key_value_heads_while_there_are_enough() -> None:
    assert head_bounds(16, 8, 3).tolist() == [0, 6, 12, 16]
    assert head_bounds(16, 8, 8).tolist() == list(range(0, 17, 2))
    assert head_bounds(8, 2, 3).tolist() == [0, 3, 6, 8]
    assert head_bounds(48, 1, 5).tolist() == [0, 10, 20, 30, 39, 48]
