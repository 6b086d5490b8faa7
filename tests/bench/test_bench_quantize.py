"""bench/quantize.py: its figures, against ones computed here, and its exit status."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import quantize as bench
from calibration import calibration
from make_model import write_model

from cutpq.model.transformer import load_model
from cutpq.quantization.quantize import quantize
from cutpq.ranks.alone import SelfCommunicator


@pytest.fixture
def models(tmp_path):
    """A float model, a quantized one, and tokens to score."""
    write_model(tmp_path / "float")
    quantize(tmp_path / "float", tmp_path / "w8", calibration(), bits=8, group_size=32, sym=False)
    np.save(tmp_path / "eval.npy", calibration(sequences=5).ravel())
    return tmp_path


def flags(models, *more):
    checkpoints = ",".join(str(models / name) for name in ("float", "w8"))
    return ["--model", str(models / "float"), "--checkpoints", checkpoints, "--eval", str(models / "eval.npy"),
            "--window", "24", "--windows", "3", "--first", "2", "--json", str(models / "rows.json"), *more]  # fmt: skip


def logits(folder, window):
    model = load_model(folder, SelfCommunicator(), dtype="float32")
    found = model([window], model.new_cache(1, len(window))).astype(np.float64)[:-1]
    return found - np.log(np.exp(found).sum(1, keepdims=True))


def test_figures(models, capsys):
    assert bench.main(flags(models)) == 0
    rows = [json.loads(line) for line in (models / "rows.json").read_text().splitlines()]
    assert [row["setting"] for row in rows] == ["float", "float", "w8"]
    assert rows[1]["kl"] == 0
    windows = np.load(models / "eval.npy")[48:120].reshape(3, 24)
    pairs = [(logits(models / "float", w), logits(models / "w8", w), w[1:]) for w in windows]
    kl = np.mean([(np.exp(p) * (p - q)).sum(1) for p, q, _ in pairs])
    nll = -np.mean([q[np.arange(23), following] for _, q, following in pairs])
    assert rows[2]["kl"] == pytest.approx(kl, rel=1e-3)
    assert rows[2]["perplexity"] == pytest.approx(np.exp(nll), rel=1e-5)
    assert rows[2]["bits"] == pytest.approx(8 + (16 + 8) / 32)
    assert rows[0]["bits"] == 16
    assert "w8" in capsys.readouterr().out


def test_other_windows_have_a_figure_of_their_own(models):
    def rows(*more):
        assert bench.main(flags(models, *more)) == 0
        return [json.loads(line) for line in (models / "rows.json").read_text().splitlines()]

    both = rows("--windows", "2", "--others", "1")[2]
    first, others = rows("--windows", "2")[2], rows("--windows", "1", "--first", "4")[2]
    assert "kl_others" not in first
    assert (both["kl"], both["perplexity"]) == pytest.approx((first["kl"], first["perplexity"]), rel=1e-6)
    assert both["kl_others"] == pytest.approx(others["kl"], rel=1e-6)


def test_a_compressed_run_differs_more(models):
    def kl(*more):
        assert bench.main(flags(models, *more)) == 0
        return [json.loads(line)["kl"] for line in (models / "rows.json").read_text().splitlines()]

    alone, ranks, compressed = kl(), kl("--tp", "2"), kl("--tp", "2", "--codec", "mxfp4")
    assert max(ranks[:2]) < 1e-9
    assert ranks[2] == pytest.approx(alone[2], rel=1e-3)
    assert min(compressed[1:]) > 10 * alone[2]


def test_a_kl_above_its_target_fails(models, monkeypatch):
    monkeypatch.setitem(bench.TARGETS, "w8", 0.0)
    assert bench.main(flags(models)) == 0
    assert bench.main(flags(models, "--targets")) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's account of a process")
def test_time_and_memory_are_those_of_the_process_that_quantizes(models):
    """Not of this one, which holds 600 MB here."""
    np.save(models / "tokens.npy", calibration())
    args = SimpleNamespace(model=models / "float", tokens=models / "tokens.npy")
    held = np.ones(600_000_000, np.uint8)
    found = bench.quantize(args, ["--bits", "8", "--group-size", "32"], models / "new")
    assert (models / "new" / "config.json").exists()
    assert held.nbytes / 2**20 > 2 * found["rss_mb"] > 40
    assert 0.1 < found["cpu_s"] < 60
