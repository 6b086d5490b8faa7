"""Plain weights, from memory and from files, through the same layers as quantized ones."""

from pathlib import Path

import numpy as np
import pytest
from assertions import assert_exact, assert_same_on_ranks
from make_checkpoint import edit_tensors
from make_model import write_model
from random_weight import random_weight

from cutpq.array import bfloat16
from cutpq.checkpoint.errors import CheckpointError
from cutpq.checkpoint.folder import open_checkpoint
from cutpq.layers.linear import ColumnParallelLinear, RowParallelLinear
from cutpq.layers.mlp import Mlp
from cutpq.layers.source import WeightInFile, take
from cutpq.ops.dequant import dequantize
from cutpq.ops.gemm import matmul
from cutpq.ranks.threads import run_threads
from cutpq.weights.schemes import SCHEMES
from cutpq.weights.weight import PlainWeight

X = np.random.default_rng(1).integers(-1, 2, (3, 64)).astype(np.float16)


def plain(K: int = 64, N: int = 40, *, bias: bool = False, dtype=np.float16, seed: int = 0) -> PlainWeight:
    """Small integers, so that sums are exact."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(-3, 4, (K, N)).astype(dtype)
    return PlainWeight(numbers, rng.integers(-3, 4, N).astype(dtype) if bias else None)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32])
def test_product_with_a_plain_weight(dtype) -> None:
    w = plain(bias=True, dtype=dtype)
    want = X.astype(np.float64) @ w.weight.astype(np.float64) + w.bias.astype(np.float64)
    assert_exact(matmul(X, w), want.astype(np.float16))
    assert_exact(matmul(X.astype(np.float32), w), want.astype(np.float32))


def test_float32_x_takes_quantized_weights_rounded_to_float16() -> None:
    w = random_weight(64, 40, 16)
    x = np.eye(64, dtype=np.float32)
    assert_exact(matmul(x, w), dequantize(w).astype(np.float32))
    assert not np.array_equal(dequantize(w).astype(np.float32), dequantize(w, np.float32))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_takes_a_plain_row_parallel_weight(scheme) -> None:
    w = plain(bias=True)

    def layer(comm):
        row = RowParallelLinear(w, comm, scheme)
        return row(X[:, row.x_columns])

    results = run_threads(5, layer)
    assert_same_on_ranks(results)
    assert_exact(results[0], matmul(X, w))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("quantized", ["gate", "up", "down"])
def test_plain_and_quantized_mix_in_an_mlp(quantized, scheme) -> None:
    sizes = {"gate": (64, 96), "up": (64, 96), "down": (96, 32)}
    weights = {n: plain(*s, seed=i) for i, (n, s) in enumerate(sizes.items())}
    weights = {n: PlainWeight((w.weight / np.float16(16)).astype(np.float16)) for n, w in weights.items()}
    weights[quantized] = random_weight(*sizes[quantized], 16)
    alone = run_threads(1, lambda comm: Mlp.from_weights(**weights, comm=comm)(X))[0]
    results = run_threads(3, lambda comm: Mlp.from_weights(**weights, comm=comm, scheme=scheme)(X))
    assert_same_on_ranks(results)
    np.testing.assert_allclose(results[0].astype(np.float64), alone.astype(np.float64), rtol=0, atol=0.02)


def test_columns_of_each_source() -> None:
    sources = [plain(seed=1), plain(N=24, seed=2), random_weight(64, 16, 16, exact=True, bias=False)]
    columns = [slice(3, 9), np.array([20, 0, 7]), slice(8, 16)]
    layer = run_threads(1, lambda comm: ColumnParallelLinear(sources, comm, columns))[0]
    want = [matmul(X, source)[:, own] for source, own in zip(sources, columns, strict=True)]
    assert_exact(layer(X), np.concatenate(want, axis=1))


def test_default_columns_are_an_even_share_of_each_source() -> None:
    sources = [plain(seed=1), plain(N=7, seed=2)]
    results = run_threads(2, lambda comm: ColumnParallelLinear(sources, comm)(X))
    assert [r.shape[1] for r in results] == [24, 23]
    assert_exact(
        np.concatenate([r[:, -n:] for r, n in zip(results, (4, 3), strict=True)], axis=1), matmul(X, sources[1])
    )


def test_plain_sources_become_one_product_unless_only_one_has_a_bias() -> None:
    for second, products in ((plain(seed=2), 1), (plain(seed=2, bias=True), 2), (plain(seed=2, dtype=np.float32), 2)):
        layer = run_threads(1, lambda comm, second=second: ColumnParallelLinear([plain(seed=1), second], comm))[0]
        assert len(layer.products) == products
        assert_exact(layer(X), np.concatenate([matmul(X, plain(seed=1)), matmul(X, second)], axis=1))


@pytest.mark.parametrize("columns", [slice(5, 30), np.array([40, 2, 17])], ids=["slice", "gather"])
@pytest.mark.parametrize("rows", [slice(None), slice(8, 24), np.array([63, 0, 5])], ids=["all", "slice", "gather"])
def test_parts_of_a_fused_module_in_a_file(rows, columns, tmp_path: Path) -> None:
    model = write_model(tmp_path, "gpt_bigcode")
    name = "transformer.h.0.attn.c_attn"
    part = take(WeightInFile.whole(open_checkpoint(tmp_path), name).columns(20, 70), rows, columns)
    stored = model.tensors[f"{name}.weight"].T[:, 20:70]
    assert_exact(part.weight, stored[rows][:, columns])
    assert_exact(part.bias, model.tensors[f"{name}.bias"][20:70][columns])


def test_wrong_plain_tensors_are_named(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    write_model(tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({name: t[name].astype(np.float64)}))
    with pytest.raises(CheckpointError, match=f"{name}: expected F16 or BF16 or F32 of .*, found F64"):
        take(WeightInFile.whole(open_checkpoint(tmp_path), name.removesuffix(".weight")))
    edit_tensors(tmp_path, lambda t: t.update({name: t[name][0]}))
    with pytest.raises(CheckpointError, match=rf"{name}: expected .* of shape \(N, K\), found F64 of shape \(64,\)"):
        WeightInFile.whole(open_checkpoint(tmp_path), name.removesuffix(".weight"))
