"""bench/perplexity.py: the known figure, the formulas behind its columns, and that a wrong result shows."""

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import perplexity as bench
import pytest

import cutpq as cq

ROOT = Path(__file__).resolve().parents[2]

SHORT = ["--windows", "2", "--window", "32"]


def run(tmp_path: Path, *flags: str) -> list[dict]:
    """The rows of a run that must succeed."""
    path = tmp_path / "rows.json"
    assert bench.main([*flags, "--json", str(path)]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_carried_model_has_its_known_perplexity(tmp_path, capsys) -> None:
    (row,) = run(tmp_path, "--codec", "none")
    assert round(row["perplexity"], 4) == 24.1865
    assert (row["tp"], row["windows"], row["window"], row["check"]) == (2, 24, 512, "ok")
    assert "24.1865" in capsys.readouterr().out


@pytest.mark.skipif("CUTPQ_TINY_LLAMA" not in os.environ, reason="CUTPQ_TINY_LLAMA names no folder with all versions")
@pytest.mark.parametrize(
    "version, known", [("fp16", 24.1085), ("gptq-w4-g32-act-asym", 24.1325), ("gptq-w4-g128-noact", 24.2218)]
)
def test_other_versions_have_theirs(version, known, tmp_path) -> None:
    folder = Path(os.environ["CUTPQ_TINY_LLAMA"])
    tokens = str(bench.CARRIED / "eval_tokens.npy")
    (row,) = run(tmp_path, "--checkpoint", str(folder / version), "--tokens", tokens, "--codec", "none")
    assert round(row["perplexity"], 4) == known


def test_a_row_for_each_tp_scheme_and_codec(tmp_path) -> None:
    rows = run(tmp_path, *SHORT, "--tp", "1,2,3", "--scheme", "local,tp-aware", "--codec", "mxint8,mxfp4")
    codecs = ["none", "mxint8", "mxfp4"]
    assert [(r["tp"], r["scheme"], r["codec"]) for r in rows] == [
        (tp, scheme, codec)
        for tp in (1, 2, 3)
        for scheme in ("local", "tp-aware")
        for codec in (codecs if tp > 1 else codecs[:1])  # one rank adds nothing, and compresses nothing
    ]
    plain = [r for r in rows if r["codec"] == "none"]
    assert {r["kl"] for r in plain} == {r["difference"] for r in plain} == {0.0}
    assert np.ptp([r["perplexity"] for r in plain]) < 1e-4
    for fine, coarse in pairwise(rows):
        if (fine["codec"], coarse["codec"]) == ("mxint8", "mxfp4"):
            assert 0 < 10 * fine["kl"] < coarse["kl"] < 0.1
    assert {(r["codec"], r["bits"], r["ratio"]) for r in rows} == {
        ("none", None, None), ("mxint8", 8.25, 1.9394), ("mxfp4", 4.25, 3.7647)}  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 3])
def test_figures_are_their_formulas(ranks) -> None:
    """Two windows of random logits, against sums written out; ranks share the positions."""
    rng = np.random.default_rng(1)
    windows = [(*rng.standard_normal((2, 70, 11)).astype(np.float32), rng.integers(0, 11, 70)) for _ in range(2)]

    def score(comm) -> tuple[dict, float]:
        tally, plain = bench.Tally(cq.codec("mxfp4")), bench.Tally(None)
        mine = bench.share(70, comm)
        for p, q, window in windows:
            without = bench.Plain(bench.log_softmax(p[mine]))
            plain.add(without.log_p, without, window[1:][mine])
            tally.add(bench.log_softmax(q[mine]), without, window[1:][mine])
        plain.sum_over_ranks(comm)
        tally.sum_over_ranks(comm)
        return tally.row(plain, bench.parse([])), bench.perplexity_of(plain)

    nll, kl = [], []
    for p, q, window in windows:
        for t in range(69):
            a, b = (np.exp(v[t].astype(np.float64)) / np.exp(v[t].astype(np.float64)).sum() for v in (p, q))
            nll.append(-math.log(b[window[t + 1]]))
            kl.append(sum(a[i] * math.log(a[i] / b[i]) for i in range(11)))
    for row, perplexity_of_plain in cq.run_threads(ranks, score):
        assert row["perplexity"] == pytest.approx(math.exp(sum(nll) / 138), rel=1e-12)
        assert row["kl"] == pytest.approx(sum(kl) / 138, rel=1e-12)
        assert row["difference"] == row["perplexity"] - perplexity_of_plain
        assert row["check"] == "ok"


@pytest.mark.parametrize("number", [None, 0, 16, 17, 32])
def test_one_bit_that_differs_on_a_rank_is_seen_by_all(number) -> None:
    def same(comm) -> bool:
        logits = np.arange(33, dtype=np.float32).reshape(3, 11)
        if comm.rank == 2 and number is not None:
            logits.reshape(-1).view(np.uint32)[number] ^= 1
        tally = bench.Tally(None)
        tally.same = bench.same_part(logits, comm)
        tally.sum_over_ranks(comm)
        return tally.same

    assert cq.run_threads(3, same) == [number is None] * 3


def test_windows_that_go_together_are_scored_apart(tmp_path, monkeypatch) -> None:
    """Three windows of 32: at once, and the last one alone."""
    flags = ["--windows", "3", "--window", "32", "--codec", "mxint8"]
    plain, coarse = run(tmp_path, *flags)
    monkeypatch.setattr(bench, "_LOGITS", 2 * 32 * 1024)
    other_plain, other_coarse = run(tmp_path, *flags)
    assert plain["perplexity"] == pytest.approx(other_plain["perplexity"], rel=1e-5)
    for row in (coarse, other_coarse):
        assert row["kl"] < 1e-3  # beside another window's distribution it would be above 0.1


def tally_of(logits: np.ndarray, same: bool = True, flags: tuple[str, ...] = ()) -> dict:
    tally = bench.Tally(None)
    tally.same = same
    plain = bench.Plain(bench.log_softmax(logits))
    tally.add(plain.log_p, plain, np.zeros(len(logits), np.int64))
    return tally.row(tally, bench.parse(flags))


def test_a_wrong_result_fails() -> None:
    right = np.zeros((3, 4), np.float32)
    assert tally_of(right, flags=("--windows", "1"))["why"] == ""
    assert tally_of(right, same=False, flags=("--windows", "1"))["why"] == "ranks hold different logits"
    assert "not finite" in tally_of(np.full((3, 4), np.nan, np.float32), flags=("--windows", "1"))["why"]
    assert tally_of(right)["why"] == "perplexity is 4.0000, must be 24.1865"
    assert tally_of(right)["check"] == "FAIL"


def test_a_failed_check_is_exit_status_1(monkeypatch, capsys) -> None:
    monkeypatch.setitem(bench.KNOWN, ("float32", 32, 2), 1.0)
    assert bench.main([*SHORT, "--codec", "none"]) == 1
    assert "# FAIL none tp=2: perplexity is" in capsys.readouterr().out


def test_the_front_has_what_no_other_beats() -> None:
    rows = [{"bits": b, "kl": k} for b, k in ((None, 0.0), (8, 0.1), (4, 0.3), (5, 0.4), (4, 0.35), (6, 0.2))]
    assert [(r["bits"], r["kl"]) for r in bench.pareto(rows)] == [(4, 0.3), (6, 0.2), (8, 0.1)]


def test_labels_of_the_kept_figure_overlap_nothing() -> None:
    """Neither each other nor a point, of all 16 codecs."""
    pytest.importorskip("matplotlib")
    rows = [json.loads(line) for line in (ROOT / "bench" / "results" / "kl.json").read_text().splitlines()]
    figure, labels = bench.draw(rows)
    figure.draw_without_rendering()
    (axis,) = figure.axes
    measured = [row for row in rows if row["bits"] is not None]
    assert sorted(label.get_text() for label in labels) == sorted({row["codec"] for row in measured})
    boxes = [label.get_window_extent() for label in labels]
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * len(boxes)  # itself
    points = axis.transData.transform([(row["bits"], row["kl"]) for row in measured])
    assert not any(box.contains(*point) for box in boxes for point in points)
    assert all(axis.bbox.contains(*corner) for box in boxes for corner in box.corners())


def test_plot(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    run(tmp_path, *SHORT, "--codec", "mxfp4,mxint8", "--plot", str(tmp_path / "kl.png"))
    assert (tmp_path / "kl.png").stat().st_size > 5000


def launch(*flags: str, ranks: int = 1) -> subprocess.CompletedProcess:
    launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, str(ROOT / "bench" / "perplexity.py"), *flags]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


def test_ranks_as_processes_give_what_threads_give(tmp_path) -> None:
    pytest.importorskip("mpi4py")
    path = tmp_path / "rows.json"
    done = launch(*SHORT, "--codec", "mxfp4", "--json", str(path), ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    processes = [json.loads(line) for line in path.read_text().splitlines()]
    assert processes == run(tmp_path, *SHORT, "--codec", "mxfp4")
    refused = launch("--tp", "4", ranks=2)
    assert refused.returncode == 2
    assert refused.stderr == "perplexity.py: 2 processes were started, so --tp is 2\n"


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--windows", "1000"], "at most --windows 299"),
        (["--checkpoint", "nowhere", "--tokens", str(bench.CARRIED / "eval_tokens.npy")], "nowhere"),
        (["--tokens", "nowhere.npy"], "nowhere.npy"),
        ([*SHORT, "--tp", "17"], "tp=17 ranks cannot share 16 attention heads"),
    ],
)
def test_a_wrong_argument_is_told_without_a_traceback(flags, said, capsys) -> None:
    assert bench.main(flags) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--codec", "zip"], "no codec is called 'zip'"),
        (["--scheme", "fast"], "'fast' is not one of all, auto, unordered"),
        (["--tp", "2,x"], "'2,x' is not a list of whole numbers"),
        (["--window", "1"], "the first token is not scored"),
    ],
)
def test_a_wrong_flag_is_told(flags, said, capsys) -> None:
    with pytest.raises(SystemExit):
        bench.main(flags)
    assert said in capsys.readouterr().err
