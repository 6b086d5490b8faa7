"""The five schemes: each within the bound of the unsharded float64 formula, and alike where they must be."""

from dataclasses import replace

import numpy as np
import pytest
from assertions import assert_bounded, assert_exact, assert_same_on_ranks
from make_checkpoint import write_checkpoint
from random_weight import act_order, random_weight
from truth.reference import Features, reference_mlp

from cutpq.array import bfloat16, to_numpy
from cutpq.checkpoint.folder import open_checkpoint
from cutpq.checkpoint.mlp_names import mlps
from cutpq.layers.mlp import Mlp
from cutpq.ops import formulas as ref
from cutpq.ops.dequant import dequantize
from cutpq.ranks.threads import run_threads
from cutpq.weights.permutation import sorting_permutation
from cutpq.weights.schemes import GROUP_ALIGNED, SCHEMES
from cutpq.weights.shard import even_bounds, group_bounds


def random_mlp(H=64, I=144, N=48, group_size=16, *, seed=0, gated=True, bias=False, same_order=True, **kinds):
    """gate (None if not gated), up and down, act-ordered. 144 rows in groups of 16: nine, uneven on most tp."""
    rng = np.random.default_rng(seed)
    order = act_order(H, group_size, rng)
    up = random_weight(H, I, group_size, seed=seed + 1, g_idx=order, bias=bias, **kinds)
    gate_order = order if same_order else act_order(H, group_size, rng)
    gate = random_weight(H, I, group_size, seed=seed + 2, g_idx=gate_order, **kinds) if gated else None
    return gate, up, random_weight(I, N, group_size, seed=seed + 3, bias=bias, **kinds)


def run(weights, x, tp, scheme, activation="silu", xp=np):
    """The result of each rank."""

    def rank(comm):
        return to_numpy(Mlp.from_weights(*weights, comm, scheme, activation)(xp.asarray(x)))

    return run_threads(tp, rank, xp=xp)


def formula(weights, x, tp, activation="silu"):
    plain = (None if w is None else dequantize(w, x.dtype) for w in weights)
    gate_bias, up_bias, down_bias = (None if w is None else w.bias for w in weights)
    return reference_mlp(x, [Features(*plain, gate_bias, up_bias)], activation, tp, down_bias)


def tokens(M, H, seed=9, dtype=np.float16):
    return np.random.default_rng(seed).standard_normal((M, H)).astype(dtype)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tp", range(1, 9))
def test_uneven_shards_agree_with_the_formula_on_every_rank(xp, tp, scheme):
    weights, x = random_mlp(), tokens(3, 64)
    results = run(weights, x, tp, scheme, xp=xp)
    assert_bounded(results[0], *formula(weights, x, tp))
    if tp > 1:
        assert_same_on_ranks(results)


@pytest.mark.parametrize("tp", range(1, 9))
def test_naive_and_all_to_all_equal_tp_aware_bit_for_bit(xp, tp, monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST", "formulas")  # a BLAS sums a column in an order that depends on its place
    weights, x = random_mlp(I=1024, group_size=32), tokens(5, 64)
    tp_aware = run(weights, x, tp, "tp-aware", xp=xp)[0]
    assert_exact(run(weights, x, tp, "naive", xp=xp)[0], tp_aware)
    assert_exact(run(weights, x, tp, "all-to-all", xp=xp)[0], tp_aware)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_group_on_a_rank(xp, scheme):
    weights, x = random_mlp(I=8 * 16), tokens(2, 64)
    results = run(weights, x, 8, scheme, xp=xp)
    assert_bounded(results[0], *formula(weights, x, 8))
    assert_same_on_ranks(results)


@pytest.mark.parametrize("scheme", ["local", "unordered"])
def test_group_straddles_ranks_where_ranks_outnumber_groups(xp, scheme):
    weights, x = random_mlp(I=96, group_size=32), tokens(2, 64)
    results = run(weights, x, 8, scheme, xp=xp)
    assert_bounded(results[0], *formula(weights, x, 8))
    assert_same_on_ranks(results)


@pytest.mark.parametrize("scheme", ["naive", "all-to-all", "tp-aware"])
def test_more_ranks_than_groups_is_an_error_on_every_rank(scheme):
    weights = random_mlp(I=96, group_size=32)
    with pytest.raises(ValueError, match="tp=8 is more than 3 groups"):
        run(weights, tokens(2, 64), 8, scheme)


@pytest.mark.parametrize("host", ["formulas", "engine"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_groups_are_contiguous_on_a_rank_but_for_unordered(scheme, host, monkeypatch):
    """Kernels load a scale once per group. The engine does not, and spares the gather; exchanges sort for all."""
    monkeypatch.setenv("CUTPQ_HOST", host)

    def ordered(comm):
        mlp = Mlp.from_weights(*random_mlp(same_order=False), comm, scheme)
        return [product.weight.is_ordered for product in mlp.first.products] + [mlp.down.weight.is_ordered]

    first = host == "formulas" and scheme != "unordered"
    down = scheme in GROUP_ALIGNED or (host == "formulas" and scheme == "local")
    assert run_threads(3, ordered) == [[first, first, down]] * 3


def test_auto_is_tp_aware_and_local_beyond_the_groups():
    weights = random_mlp(I=96, group_size=32)
    chosen = {tp: run_threads(tp, lambda comm: Mlp.from_weights(*weights, comm).scheme) for tp in (1, 3, 4)}
    assert chosen == {1: ["tp-aware"], 3: ["tp-aware"] * 3, 4: ["local"] * 4}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gate_and_up_in_different_orders(xp, scheme):
    weights, x = random_mlp(same_order=False), tokens(3, 64)
    assert (weights[0].g_idx != weights[1].g_idx).any()
    results = run(weights, x, 3, scheme, xp=xp)
    assert_bounded(results[0], *formula(weights, x, 3))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("activation, tp", [("gelu", 1), ("gelu", 4), ("gelu_tanh", 3)])
def test_no_gate_with_biases_added_once(xp, scheme, activation, tp):
    weights, x = random_mlp(gated=False, bias=True), tokens(3, 64)
    exact, bound = formula(weights, x, tp, activation)
    results = run(weights, x, tp, scheme, activation, xp=xp)
    for result in results:
        assert_bounded(result, exact, bound)
    assert np.abs(weights[2].bias).max() > 4 * bound.max(), "a bias added twice or not at all must show"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("of_gate", [0.0, 0.25, None])
def test_biases_of_gate_and_up(xp, scheme, of_gate):
    gate, up, down = random_mlp(bias=True)
    gate = replace(gate, bias=None if of_gate is None else np.full(gate.N, of_gate, np.float16))
    x = tokens(2, 64)
    results = run((gate, up, down), x, 2, scheme, xp=xp)
    assert_bounded(results[0], *formula((gate, up, down), x, 2))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_trivial_order_everywhere(xp, scheme):
    weights = tuple(replace(w, g_idx=np.sort(w.g_idx)) for w in random_mlp())
    x = tokens(2, 64)
    assert_bounded(run(weights, x, 3, scheme, xp=xp)[0], *formula(weights, x, 3))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_exact_data_is_equal_in_every_scheme(xp, scheme):
    # gate = silu(large) = large and every other number a small integer times a power of two: no sum is rounded
    gate, up, down = random_mlp(exact=True, I=96)
    gate = replace(gate, codes=np.full_like(gate.codes, 9), zeros=np.full_like(gate.zeros, 8),
                   scales=np.full_like(gate.scales, 0.5))  # fmt: skip
    up = replace(up, codes=np.where(np.arange(up.K)[:, None] < 2, up.codes, up.zeros[up.g_idx]))
    x = np.ones((2, 64), np.float16)
    plain = [dequantize(w).astype(np.float64) for w in (gate, up, down)]
    want = (32.0 * (x @ plain[1])) @ plain[2]
    assert np.abs(want).max() < 65504
    assert (ref.activate("silu", np.full(1, 32, np.float16)) == 32).all()
    assert_exact(run((gate, up, down), x, 1, scheme, xp=xp)[0], want.astype(np.float16))


@pytest.mark.parametrize("M", [0, 1, 16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_number_of_tokens(xp, M, scheme):
    weights, x = random_mlp(), tokens(M, 64)
    results = run(weights, x, 3, scheme, xp=xp)
    assert results[0].shape == (M, 48)
    assert_bounded(results[0], *formula(weights, x, 3))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bfloat16(xp, scheme):
    weights, x = random_mlp(), tokens(3, 64, dtype=bfloat16)
    results = run(weights, x, 3, scheme, xp=xp)
    assert results[0].dtype == bfloat16
    assert_bounded(results[0], *formula(weights, x, 3))


def test_bytes_on_the_wire_are_what_the_schemes_promise():
    H, I, N, M, tp = 64, 1024, 48, 4, 4
    weights, x = random_mlp(H, I, N, 32), tokens(M, H)

    def sent(comm, scheme):
        mlp = Mlp.from_weights(*weights, comm, scheme)
        comm.reset_sent()
        mlp(x)
        return comm.sent_bytes

    all_reduce = 2 * (tp - 1) * M * N // tp * 2
    by_scheme = {scheme: run_threads(tp, sent, scheme) for scheme in SCHEMES}
    assert by_scheme["tp-aware"] == by_scheme["local"] == by_scheme["unordered"] == [all_reduce] * tp
    assert by_scheme["naive"] == [all_reduce + (tp - 1) * M * I // tp * 2] * tp
    # Each of the I features goes to one rank; those that stay at home are not sent.
    order = sorting_permutation(weights[2].g_idx)
    at_home = [
        np.isin(part, np.arange(r * I // tp, (r + 1) * I // tp)).sum() for r, part in enumerate(np.split(order, tp))
    ]
    assert by_scheme["all-to-all"] == [all_reduce + (I // tp - int(home)) * M * 2 for home in at_home]


@pytest.mark.parametrize("family", ["llama", "phi3", "bigcode", "mixtral"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_from_checkpoint_of_each_family(xp, tmp_path, family, scheme):
    write_checkpoint(tmp_path, family=family, layers=1, gate_up_same_order=family == "phi3", seed=3)
    ckpt = open_checkpoint(tmp_path)
    modules = mlps(ckpt)[-1]
    first = [ckpt.weight(name) for name in modules.first]
    down = ckpt.weight(modules.down)
    plain = [dequantize(w) for w in first]
    if modules.fused:
        plain = np.split(plain[0], 2, axis=1)
    gate = plain[0] if modules.gate is not None else None
    x = tokens(3, first[0].K)
    features = Features(gate, plain[-1], dequantize(down), up_bias=first[-1].bias)
    exact, bound = reference_mlp(x, [features], modules.activation, 2, down.bias)

    def rank(comm):
        return to_numpy(Mlp.from_checkpoint(ckpt, comm=comm, scheme=scheme, modules=modules)(xp.asarray(x)))

    results = run_threads(2, rank, xp=xp)
    assert_bounded(results[0], exact, bound)
    assert_same_on_ranks(results)


def test_checkpoint_and_memory_give_the_same_bits(tmp_path):
    write_checkpoint(tmp_path, layers=2, seed=4)
    ckpt = open_checkpoint(tmp_path)
    modules = mlps(ckpt)[1]
    weights = [ckpt.weight(name) for name in (modules.gate, modules.up, modules.down)]
    x = tokens(3, weights[0].K)
    from_file = run_threads(3, lambda comm: Mlp.from_checkpoint(ckpt, layer=1, comm=comm)(x))
    assert_exact(from_file[0], run(weights, x, 3, "auto")[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "fastest"}, "scheme 'fastest' is not one of unordered, naive, all-to-all, local, tp-aware"),
        ({"activation": "relu"}, "activation 'relu' is not one of"),
        ({"up": random_weight(64, 128, 16)}, "up makes N=128 features but down takes K=144"),
        ({"gate": random_weight(64, 128, 16)}, r"gate is \(K, N\) = \(64, 128\) but up is \(64, 144\)"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    gate, up, down = random_mlp()
    args = {"gate": gate, "up": up, "down": down} | change
    with pytest.raises(ValueError, match=message):
        run_threads(2, lambda comm: Mlp.from_weights(comm=comm, **args))


def test_wrong_x_is_named():
    with pytest.raises(ValueError, match=r"x must have shape \(M, 64\), got \(2, 63\)"):
        run(random_mlp(), tokens(2, 63), 2, "local")
    with pytest.raises(TypeError, match="x must be float16 or bfloat16 or float32, got float64"):
        run(random_mlp(), tokens(2, 64, dtype=np.float64), 2, "local")


def test_the_bound_rejects_one_row_with_another_scale():
    """The bound is worth something: a single wrong scale row among 512 falls outside."""
    gate, up, down = random_mlp(I=512, group_size=32)
    x = tokens(4, 64)
    g_idx = down.g_idx.copy()
    g_idx[100] = (g_idx[100] + 1) % down.G
    y = run((gate, up, replace(down, g_idx=g_idx)), x, 2, "unordered")[0]
    with pytest.raises(AssertionError, match="outside the bound"):
        assert_bounded(y, *formula((gate, up, down), x, 2))


def test_reference_in_blocks_is_the_reference():
    gate, up, down = (dequantize(w) for w in random_mlp(I=128))
    x = tokens(3, 64)
    whole = reference_mlp(x, [Features(gate, up, down)], "silu", 4)
    parts = [Features(gate[:, p], up[:, p], down[p]) for p in (slice(0, 40), slice(40, 128))]
    for blockwise, at_once in zip(reference_mlp(x, parts, "silu", 4), whole, strict=True):
        np.testing.assert_allclose(blockwise, at_once, rtol=1e-12)


def test_bounds_of_both_kinds_are_used():
    """Guards the cases above: 144 rows in nine groups are uneven, and 96 rows on 8 ranks split groups."""
    weights = random_mlp()
    assert len(set(np.diff(group_bounds(weights[2].g_idx, 4)))) == 2
    assert (even_bounds(96, 8, 8) % 32 != 0).any()


def test_tp_aware_spares_the_cable_naives_gathering(monkeypatch):
    """Over two nodes of two ranks a rank's own columns would go to both ranks of the other node."""
    monkeypatch.setenv("CUTPQ_NODES", "0,0,1,1")
    monkeypatch.setenv("CUTPQ_HOST", "formulas")  # a BLAS sums a column in an order that depends on its place
    weights, x = random_mlp(), tokens(3, 64)
    columns = np.diff(group_bounds(weights[2].g_idx, 4))

    def cable_bytes(comm, scheme):
        mlp = Mlp.from_weights(*weights, comm, scheme, codec="mxfp4", algo="hierarchical")
        comm.reset_sent()
        return to_numpy(mlp(x)), comm.cable_bytes

    naive = run_threads(4, cable_bytes, "naive")
    tp_aware = run_threads(4, cable_bytes, "tp-aware")
    for rank in range(4):
        assert_exact(tp_aware[rank][0], naive[rank][0])
        assert naive[rank][1] - tp_aware[rank][1] == 2 * 3 * columns[rank] * 2
