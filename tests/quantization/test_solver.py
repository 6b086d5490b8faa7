"""The layer solver: against GPTQModel's on a layer of the real small Llama, and against a slow textbook of its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from assertions import assert_exact

from cutpq.array import to_numpy
from cutpq.ops.dequant import dequantize
from cutpq.quantization import solver
from cutpq.quantization.factor import inverse_factor
from cutpq.quantization.order import ORDERS, row_order
from cutpq.quantization.scales import choose_scales
from cutpq.quantization.solver import Options, System, panels, quantize_weight

# W (512, 64) and the lower triangle of H of an o_proj, and what GPTQModel 7.7.0 made of them with damp 0.05.
GOLDEN = np.load(Path(__file__).parents[1] / "data" / "gptq_solver.npz")
SETTINGS = {
    "w4g128s": {"bits": 4, "group_size": 128, "sym": True},
    "w2g32a": {"bits": 2, "group_size": 32, "sym": False},
}
PLAIN = {"scale": "minmax", "sweeps": 0}


def golden_hessian():
    H = np.zeros((512, 512), np.float32)
    H[np.tril_indices(512)] = GOLDEN["H"]
    return H + np.tril(H, -1).T


def layer(K, N, seed=0, n=4096):
    """Weights and a Hessian of correlated inputs, some of them much larger than others."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, K)) @ (np.eye(K) + 0.3 * rng.standard_normal((K, K)) / np.sqrt(K))
    X *= np.exp(rng.standard_normal(K))
    W = rng.standard_normal((K, N)).astype(np.float32)
    return W, (2 / n * X.T @ X).astype(np.float32), X


def squared_error(W, H, codes, scales, zeros, g_idx):
    E = (codes.astype(np.float64) - zeros[g_idx]) * scales.astype(np.float64)[g_idx] - W.astype(np.float64)
    return float((E * (H.astype(np.float64) @ E)).sum())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", SETTINGS)
def test_plain_gptq_is_gptqmodels(xp, name, order):
    W, H = GOLDEN["W"], golden_hessian()
    want = {part: GOLDEN[f"{name} {order} {part}"] for part in ("codes", "scales", "zeros", "g_idx")}
    solved = quantize_weight(
        xp.asarray(W), xp.asarray(H), order=order, damp=0.05, scale_dtype=np.float32, **SETTINGS[name], **PLAIN
    )
    w = solved.weight.to(np)
    assert_exact(w.g_idx, want["g_idx"])
    assert solved.damp == 0.05
    if order == "static":
        assert_exact(w.scales, want["scales"])
        assert (w.codes == want["codes"]).mean() >= 0.999
    ours = squared_error(W, H, w.codes, w.scales, w.zeros, w.g_idx)
    assert ours <= 1.005 * squared_error(W, H, **want)


def textbook(W, H, scales, zeros, group, bits, damp):
    """GPTQ with the inverse Hessian itself, a row at a time, in float64: rows in the order given."""
    A = H.astype(np.float64) + damp * np.diag(H).mean() * np.eye(len(H))
    inverse, W, codes = np.linalg.inv(A), W.astype(np.float64), []
    for i, g in enumerate(group):
        code = np.clip(np.rint(W[i] / scales[g]) + zeros[g], 0, 2**bits - 1)
        codes.append(code.astype(np.uint8))
        error = (W[i] - (code - zeros[g]) * scales[g]) / inverse[i, i]
        W -= inverse[:, i, None] * error
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return np.array(codes)


@pytest.mark.parametrize("K, group_size", [(200, 40), (128, 128), (136, -1), (24, 8), (384, 48)])
def test_blocks_and_groups_of_any_size(K, group_size):
    W, H, _ = layer(K, 40, seed=K)
    solved = quantize_weight(W, H, bits=3, sym=False, group_size=group_size, **PLAIN).weight
    order = row_order("static", np.diag(H), K if group_size == -1 else group_size)
    codes = textbook(
        W[order.perm],
        H[np.ix_(order.perm, order.perm)],
        solved.scales.astype(np.float64),
        solved.zeros,
        order.group,
        3,
        0.01,
    )
    assert (solved.codes[order.perm] == codes).mean() >= 0.999  # float32 may round a tie to the other side
    assert_exact(solved.g_idx, (np.arange(K) // (K if group_size == -1 else group_size)).astype(np.int32))


def test_sweeps_only_lower_the_error():
    W, H, _ = layer(256, 48, seed=3)
    losses = [quantize_weight(W, H, bits=2, group_size=32, sweeps=n).loss for n in range(4)]
    assert losses[0] > losses[1] > losses[2] > losses[3]


def test_a_sweep_finds_the_best_code_of_a_row_alone():
    """After many sweeps no single code can be better: each of them is tried."""
    W, H, _ = layer(16, 8, seed=5)
    w = quantize_weight(W, H, bits=2, group_size=8, sweeps=50).weight
    A = H + np.float32(0.01) * np.diag(H).mean() * np.eye(16, dtype=np.float32)
    best = column_errors(W, A, w.codes, w)
    for k in range(16):
        for code in range(4):
            codes = w.codes.copy()
            codes[k] = code
            assert (column_errors(W, A, codes, w) >= best * (1 - 1e-4)).all()


@pytest.mark.parametrize("order", ["static", "act"])
@pytest.mark.parametrize("K, group_size", [(16, 8), (160, -1)])
def test_a_scale_fits_the_codes_of_its_group(monkeypatch, order, K, group_size):
    """With codes left alone, and after many fits, neither float16 beside a scale is better."""
    W, H, _ = layer(K, 8, seed=6)
    settings = {"bits": 3, "group_size": group_size, "order": order, "sweeps": 50}
    monkeypatch.setattr(solver, "_sweep", lambda *_: None)
    monkeypatch.setattr(solver, "_REFITS", 0)
    before = quantize_weight(W, H, **settings)
    monkeypatch.setattr(solver, "_REFITS", 50)
    after = quantize_weight(W, H, **settings)
    assert_exact(after.weight.codes, before.weight.codes)
    assert after.loss < before.loss
    kept = [quantize_weight(W, H, scale="minmax", **settings).weight.scales]
    monkeypatch.setattr(solver, "_REFITS", 0)
    assert_exact(*kept, quantize_weight(W, H, scale="minmax", **settings).weight.scales)
    A = H + np.float32(0.01) * np.diag(H).mean() * np.eye(K, dtype=np.float32)
    w = after.weight
    best = column_errors(W, A, w.codes, w)
    for group in range(len(w.scales)):
        for toward in (0, np.inf):
            scales = w.scales.copy()
            scales[group] = np.nextafter(scales[group], np.float16(toward))
            assert (column_errors(W, A, w.codes, replace(w, scales=scales)) >= best * (1 - 1e-5)).all()


def column_errors(W, A, codes, w):
    E = (codes.astype(np.float64) - w.zeros[w.g_idx]) * w.scales.astype(np.float64)[w.g_idx] - W
    return (E * (A @ E)).sum(axis=0)


@pytest.mark.parametrize("K", [128, 640])
def test_drift_is_made_up_for(K):
    """Inputs that the layers before have changed: the target is the output of the unchanged ones."""
    W, H, X = layer(K, 32, seed=7)
    rng = np.random.default_rng(8)
    X0 = X + 0.3 * X @ rng.standard_normal((K, K)) / np.sqrt(128 * K)
    drift = (2 / len(X) * X.T @ ((X0 - X) @ W)).astype(np.float32)
    wanted = X0 @ W

    def missed(**settings):
        solved = quantize_weight(W, H, bits=8, group_size=128, damp=1e-4, **settings)
        return np.square(X @ dequantize(solved.weight).astype(np.float64) - wanted).sum() / np.square(wanted).sum()

    exact = np.linalg.lstsq(X, wanted, rcond=None)[0]
    floor = np.square(X @ exact - wanted).sum() / np.square(wanted).sum()
    assert missed() > 20 * missed(drift=drift)
    assert missed(drift=drift) < floor + 1e-3


def test_rows_without_input_get_weight_zero():
    W, H, _ = layer(64, 16, seed=9)
    H[5] = H[:, 5] = 0
    weight = dequantize(quantize_weight(W, H, group_size=32).weight)
    assert not weight[5].any()
    assert weight[6].any()


def test_damping_grows_until_the_hessian_is_positive_definite():
    W, H, _ = layer(32, 8, seed=1)
    H -= np.float32(0.025) * np.diag(H).mean() * np.eye(32, dtype=np.float32) + np.linalg.eigvalsh(H)[0] * np.eye(
        32, dtype=np.float32
    )
    solved = quantize_weight(W, H, group_size=32)
    assert solved.damp == pytest.approx(0.03, abs=0.0101)
    assert solved.damp > 0.01


def test_without_a_positive_definite_hessian_weights_are_rounded_to_the_nearest():
    W, H, _ = layer(32, 8, seed=2)
    solved = quantize_weight(W, -H, group_size=32, bits=8)
    assert solved.damp is None
    assert np.abs(dequantize(solved.weight) - W).max() <= 0.5 * float(solved.weight.scales.max()) + 2e-3


@pytest.mark.parametrize("K", [300, 900], ids=["one_piece", "pieces"])
def test_factor_is_that_of_the_inverse(xp, K):
    _, H, _ = layer(K, 8, seed=4)
    U, damp = inverse_factor(xp.asarray(H), 0.01)
    U = to_numpy(U).astype(np.float64)
    A = H + damp * np.diag(H).mean() * np.eye(K)
    assert_exact(np.tril(U, -1), np.zeros((K, K)))
    np.testing.assert_allclose(U.T @ U @ A, np.eye(K), atol=1e-3)


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_searched_scales_are_no_worse_than_those_of_the_extremes(xp, bits, sym):
    rng = np.random.default_rng(bits)
    w, weight = rng.standard_normal((32, 50)).astype(np.float32), rng.uniform(0.1, 2, 32).astype(np.float32)

    def error(scales, zeros):
        scales, zeros = to_numpy(scales), to_numpy(zeros)
        q = (np.clip(np.rint(w / scales) + zeros, 0, 2**bits - 1) - zeros) * scales
        return (weight[:, None] * np.square(q - w)).sum(axis=0)

    extremes = error(*choose_scales(xp.asarray(w), bits, sym))
    searched = error(*choose_scales(xp.asarray(w), bits, sym, xp.asarray(weight)))
    assert (searched <= extremes * (1 + 1e-5)).all()
    assert bits == 8 or (searched < 0.98 * extremes).mean() > 0.5


def test_scales_are_float16_before_codes_are_chosen():
    rng = np.random.default_rng(0)
    scales, _ = choose_scales(rng.standard_normal((32, 64)).astype(np.float32), 4, True)
    assert_exact(scales, scales.astype(np.float16).astype(np.float32))
    tiny, _ = choose_scales(np.full((8, 4), 1e-9, np.float32), 4, True)
    assert (tiny == np.float32(2**-24)).all()


def test_columns_of_a_part_have_the_bits_of_the_whole():
    """What ranks rely on: panels of the same width give the same numbers, whoever computes them."""
    W, H, _ = layer(160, 72, seed=11)
    system = System.of(H, Options(bits=3, group_size=32))
    drift = np.random.default_rng(0).standard_normal(W.shape).astype(np.float32) * np.float32(0.01)
    whole = system.solve(system.in_order(W), system.in_order(drift), panels(72))
    for first, last in ((0, 2), (2, 5)):
        n = slice(panels(72)[first].start, panels(72)[last - 1].stop)
        inside = [slice(p.start - n.start, p.stop - n.start) for p in panels(72)[first:last]]
        part = system.solve(system.in_order(W[:, n]), system.in_order(drift[:, n]), inside)
        assert_exact(part.codes, whole.codes[:, n])
        assert_exact(part.scales, whole.scales[:, n])
        assert part.errors == whole.errors[first:last]


@pytest.mark.parametrize("N", [8, 72, 256, 1024, 1000])
def test_panels_are_all_columns_once(N):
    assert np.array_equal(np.concatenate([np.arange(N)[p] for p in panels(N)]), np.arange(N))
    assert len(panels(N)) <= 8


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bits": 5}, "bits=5 must be 2, 3, 4 or 8"),
        ({"group_size": 12}, "group_size=12 must be -1 or a multiple of 8"),
        ({"order": "best"}, "order='best' is not one of static, group-aware, act, none"),
        ({"damp": 0}, "damp=0 must be between 0 and 1"),
        ({"scale": "mse"}, "scale='mse' is not one of search, minmax"),
        ({"sweeps": -1}, "sweeps=-1 must not be negative"),
        ({"H": np.zeros((8, 8), np.float32)}, r"H must have shape \(16, 16\)"),
        ({"H": np.full((16, 16), np.nan, np.float32)}, "H holds NaN or infinity"),
        ({"drift": np.zeros((16, 4), np.float32)}, r"drift must have shape \(16, 8\)"),
    ],
)
def test_wrong_settings(change, message):
    settings = {"W": np.ones((16, 8), np.float32), "H": np.eye(16, dtype=np.float32)} | change
    with pytest.raises(ValueError, match=message):
        quantize_weight(**settings)
