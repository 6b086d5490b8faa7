"""Row-parallel layers with features cut elsewhere than the groups, as attention heads cut them."""

import numpy as np
import pytest
from assertions import assert_exact, assert_gemm_close, assert_same_on_ranks
from random_weight import random_weight

from cutpq.comm import run_threads
from cutpq.dequant import dequantize
from cutpq.gemm import matmul
from cutpq.linear import ColumnParallelLinear, RowParallelLinear
from cutpq.shard import SCHEMES

X = np.random.default_rng(5).integers(-1, 2, (3, 128)).astype(np.float16)


def features(comm, bounds):
    return X[:, bounds[comm.rank] : bounds[comm.rank + 1]]


@pytest.mark.parametrize("bounds", [[0, 32, 64, 96, 128], [0, 56, 56, 72, 128]], ids=["even", "rank_without_features"])
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "tp-aware"])
def test_heads_cut_across_groups(scheme, bounds):
    w = random_weight(128, 24, 16, exact=True, bias=False)  # eight groups on four ranks; exact data: sums are equal

    def layer(comm):
        return RowParallelLinear(w, comm, scheme, x_bounds=bounds)(features(comm, bounds))

    results = run_threads(4, layer)
    assert_same_on_ranks(results)
    assert_exact(results[0], (X.astype(np.float64) @ dequantize(w)).astype(np.float16))


def test_tp_aware_says_which_columns_it_wants():
    w = random_weight(128, 24, 16, exact=True)

    def layer(comm):
        row = RowParallelLinear(w, comm, "tp-aware")
        return row.x_columns, row(X[:, row.x_columns])

    wanted, results = zip(*run_threads(3, layer), strict=True)
    assert sorted(np.concatenate(wanted).tolist()) == list(range(128))
    assert_exact(results[0], (X.astype(np.float64) @ dequantize(w)).astype(np.float16))


@pytest.mark.parametrize("tp", [1, 3, 8])
def test_column_shards_side_by_side_are_the_product(tp):
    w = random_weight(128, 72, 16, bias=True)
    results = run_threads(tp, lambda comm: ColumnParallelLinear(w, comm)(X))
    assert_gemm_close(np.concatenate(results, axis=1), X, dequantize(w), w.bias)


def test_sources_in_one_order_become_one_product():
    one = random_weight(128, 16, 16, seed=1)
    same = random_weight(128, 16, 16, seed=2, g_idx=one.g_idx)
    other = random_weight(128, 16, 16, seed=3)
    for second, products in ((same, 1), (other, 2)):
        layer = run_threads(1, lambda comm, second=second: ColumnParallelLinear([one, second], comm))[0]
        assert len(layer.parts) == products
        assert_exact(layer(X), np.concatenate([matmul(X, one), matmul(X, second)], axis=1))


@pytest.mark.parametrize("bounds", [[0, 64], [0, 64, 64, 128], [0, 64, 120], [8, 64, 128], [0, 130, 128]])
def test_wrong_bounds_are_named(bounds):
    with pytest.raises(ValueError, match="x_bounds must be 3 ascending numbers from 0 to K=128"):
        run_threads(2, lambda comm: RowParallelLinear(random_weight(128, 8, 16), comm, "local", x_bounds=bounds))


def test_tp_aware_refuses_bounds():
    with pytest.raises(ValueError, match="decides itself"):
        run_threads(
            2, lambda comm: RowParallelLinear(random_weight(128, 8, 16), comm, "tp-aware", x_bounds=[0, 64, 128])
        )


def test_x_of_another_width_is_named():
    with pytest.raises(ValueError, match=r"x must have shape \(M, 64\), got \(3, 128\)"):
        run_threads(2, lambda comm: RowParallelLinear(random_weight(128, 8, 16), comm, "naive")(X))
