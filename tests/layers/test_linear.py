"""Row-parallel layers with features cut elsewhere than the groups, as attention heads cut them."""

from dataclasses import replace

import numpy as np
import pytest
from assertions import assert_bounded, assert_exact, assert_gemm_close, assert_same_on_ranks
from random_weight import random_weight

from cutpq.array import to_numpy
from cutpq.layers.linear import ColumnParallelLinear, RowParallelLinear
from cutpq.ops.dequant import dequantize
from cutpq.ops.gemm import matmul
from cutpq.ranks.alone import SelfCommunicator
from cutpq.ranks.threads import run_threads
from cutpq.weights.pack import PackedWeight
from cutpq.weights.schemes import SCHEMES

X = np.random.default_rng(5).integers(-1, 2, (3, 128)).astype(np.float16)


def features(comm, bounds):
    return comm.xp.asarray(X[:, bounds[comm.rank] : bounds[comm.rank + 1]])


@pytest.mark.parametrize("bounds", [[0, 32, 64, 96, 128], [0, 56, 56, 72, 128]], ids=["even", "rank_without_features"])
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "tp-aware"])
def test_heads_cut_across_groups(xp, scheme, bounds):
    w = random_weight(128, 24, 16, exact=True, bias=False)  # eight groups on four ranks; exact data: sums are equal

    def layer(comm):
        return to_numpy(RowParallelLinear(w, comm, scheme, x_bounds=bounds)(features(comm, bounds)))

    results = run_threads(4, layer, xp=xp)
    assert_same_on_ranks(results)
    assert_exact(results[0], (X.astype(np.float64) @ dequantize(w)).astype(np.float16))


def test_tp_aware_says_which_columns_it_wants(xp):
    w = random_weight(128, 24, 16, exact=True)

    def layer(comm):
        row = RowParallelLinear(w, comm, "tp-aware")
        return row.x_columns, to_numpy(row(xp.asarray(X[:, row.x_columns])))

    wanted, results = zip(*run_threads(3, layer, xp=xp), strict=True)
    assert sorted(np.concatenate(wanted).tolist()) == list(range(128))
    assert_exact(results[0], (X.astype(np.float64) @ dequantize(w)).astype(np.float16))


@pytest.mark.parametrize("tp", [1, 3, 8])
def test_column_shards_side_by_side_are_the_product(xp, tp):
    w = random_weight(128, 72, 16, bias=True)
    results = run_threads(tp, lambda comm: to_numpy(ColumnParallelLinear(w, comm)(xp.asarray(X))), xp=xp)
    assert_gemm_close(np.concatenate(results, axis=1), X, dequantize(w), w.bias)


def test_sources_in_one_order_become_one_product(monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST", "formulas")  # a BLAS sums a column in an order that depends on its place
    one = random_weight(128, 16, 16, seed=1)
    same = random_weight(128, 16, 16, seed=2, g_idx=one.g_idx)
    other = random_weight(128, 16, 16, seed=3)
    for second, products in ((same, 1), (other, 2)):
        layer = run_threads(1, lambda comm, second=second: ColumnParallelLinear([one, second], comm))[0]
        assert len(layer.products) == products
        assert_exact(layer(X), np.concatenate([matmul(X, one), matmul(X, second)], axis=1))


GATE = dict(K=128, N=16, group_size=16, bias=True)


@pytest.mark.parametrize(
    ("kinds", "other", "together"),
    [
        (GATE, {}, True),
        (GATE | dict(bits=3), {}, True),
        (GATE | dict(N=12), {}, False),
        (GATE, dict(bias=False), False),
        (GATE, dict(g_idx=np.arange(128) // 16), False),
    ],
    ids=["alike", "three_bits", "ragged_N", "one_bias", "other_order"],
)
def test_gate_and_up_are_one_product_where_they_are_alike(xp, kinds, other, together):
    gate = random_weight(**kinds, seed=1)
    up = random_weight(**({"g_idx": gate.g_idx} | kinds | other), seed=2)
    layer = run_threads(1, lambda comm: ColumnParallelLinear([gate, up], comm, activation="silu"), xp=xp)[0]
    assert layer.is_fused == together
    a, b = (X.astype(np.float64) @ dequantize(w) + (0 if w.bias is None else w.bias) for w in (gate, up))
    exact = a / (1 + np.exp(-a)) * b
    # gate and up may be rounded; the derivative of silu is below 1.1
    bound = 2.0**-11 * (1.1 * np.abs(a * b) + 2 * np.abs(exact)) * (1 + 2.0**-8) + 2.0**-24
    assert_bounded(to_numpy(layer(xp.asarray(X))), exact, bound)


def test_x_permuted_for_the_layer_needs_no_gather(xp, monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST", "formulas")  # the engine for NumPy arrays takes x in any order
    x = xp.asarray(X)
    one = random_weight(128, 16, 16, seed=1)
    other = random_weight(128, 16, 16, seed=3)
    layer = run_threads(1, lambda comm: ColumnParallelLinear(one, comm), xp=xp)[0]
    assert_exact(to_numpy(layer(x[:, layer.perm], permuted=True)), to_numpy(layer(x)))
    layer = run_threads(1, lambda comm: ColumnParallelLinear([one, other], comm), xp=xp)[0]
    assert layer.perm is None
    assert_exact(to_numpy(layer(x, permuted=True)), to_numpy(layer(x)))


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


@pytest.mark.parametrize("kind", [RowParallelLinear, ColumnParallelLinear])
def test_scales_that_are_no_float16_numbers_are_settled_when_a_layer_is_made(xp, kind, monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    w = random_weight(64, 48, 32)
    w = replace(w, scales=w.scales.astype(np.float32) * np.float32(1.0001))
    with pytest.warns(UserWarning, match=r"a weight of shape \(64, 48\): some scales are no float16 numbers"):
        layer = kind(w.to(xp), SelfCommunicator("", xp))
    prepared = layer.weight if kind is RowParallelLinear else layer.products[0].weight
    assert isinstance(prepared, PackedWeight)
