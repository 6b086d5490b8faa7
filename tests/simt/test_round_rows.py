"""round_rows on the CPU and on a GPU: the bits of its formula, and that of a whole layer solved with it."""

import numpy as np
import pytest
from assertions import assert_exact

from cutpq.array import to_numpy
from cutpq.quantization import formulas
from cutpq.quantization.round_rows import round_rows
from cutpq.quantization.solver import quantize_weight


@pytest.fixture(autouse=True)
def _kernels_on_the_host(monkeypatch):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")


def operands(R, N, G=3, bits=3, seed=0):
    """v, coupling, scales, zeros, group, and what the rows were before"""
    rng = np.random.default_rng([seed, R, N])
    v, before = rng.standard_normal((2, R, N)).astype(np.float32)
    coupling = (rng.standard_normal((R, R)) / 4).astype(np.float32)
    scales = rng.uniform(0.1, 0.6, (G, N)).astype(np.float32)
    zeros = rng.integers(0, 2**bits, (G, N)).astype(np.float32)
    return v, coupling, scales, zeros, rng.integers(0, G, R).astype(np.int32), before


# One row, rows that are no multiple of the lanes, columns that end inside a warp or inside a block, many blocks.
SHAPES = [(1, 8), (7, 5), (30, 33), (128, 72)]


@pytest.mark.parametrize("sweep", [False, True], ids=["gptq", "descent"])
@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize(("R", "N"), SHAPES)
def test_the_bits_of_the_formula(xp, settings, R, N, bits, sweep):
    settings.seed = 5
    v, coupling, scales, zeros, group, before = operands(R, N, bits=bits)
    before = before if sweep else None
    want = formulas.round_rows(v.copy(), coupling, scales, zeros, group, bits, before)
    there = [xp.array(a) for a in (v, coupling, scales, zeros, group)]
    got = round_rows(*there, bits, None if before is None else xp.asarray(before))
    for mine, formula in zip(got, want, strict=True):
        assert_exact(to_numpy(mine), formula)


def test_halves_go_to_the_even_code(xp):
    v = np.arange(-4, 12, dtype=np.float32)[None] / 2
    one, seven = np.ones((1, 16), np.float32), np.full((1, 16), 2, np.float32)
    there = [xp.asarray(a) for a in (v, np.zeros((1, 1), np.float32), one, seven, np.zeros(1, np.int32))]
    codes = to_numpy(round_rows(*there, 3)[0])
    assert codes[0].tolist() == [0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 6, 6, 7, 7]


@pytest.mark.parametrize("order", ["static", "act"])
def test_a_layer_has_the_bits_of_the_formulas(xp, order, monkeypatch):
    """All but the products, whose order of additions is a library's, is the same."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((600, 144))
    H, W = (X.T @ X / 300).astype(np.float32), rng.standard_normal((144, 40)).astype(np.float32)
    solved = quantize_weight(xp.asarray(W), xp.asarray(H), bits=3, group_size=24, order=order)
    monkeypatch.delenv("CUTPQ_HOST_KERNELS")
    want = quantize_weight(W, H, bits=3, group_size=24, order=order)
    if xp is np:
        assert_exact(solved.weight.codes, want.weight.codes)
    assert (to_numpy(solved.weight.codes) == want.weight.codes).mean() > 0.99
    assert abs(solved.loss - want.loss) < 0.01 * want.loss


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({0: np.zeros((4, 8))}, TypeError, "v must be float32, got float64"),
        ({1: np.zeros((4, 5), np.float32)}, ValueError, r"coupling must have shape \(4, 4\)"),
        ({3: np.zeros((3, 8), np.float16)}, TypeError, "zeros must be float32"),
        ({4: np.zeros(4, np.int64)}, TypeError, "group must be int32"),
    ],
)
def test_wrong_operands(change, error, message):
    given = list(operands(4, 8))[:5]
    for i, array in change.items():
        given[i] = array
    with pytest.raises(error, match=message):
        round_rows(*given, 3)
