"""bench/mlp.py as a user runs it, and that its check can fail."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlp
import numpy as np
import pytest
from assertions import assert_exact
from harness.report import Column, Table, time_us, write_json
from models.shapes import MODELS, RandomCheckpoint
from predict.mlp import projected_lines, projected_rows

import cutpq as cq
from cutpq.codecs.codec import codec
from cutpq.cost.all_reduce import oneshot_sent, twoshot_sent
from cutpq.ranks.threads import run_threads

ROOT = Path(__file__).resolve().parents[2]
KEYS = "scheme codec tp M K H N group_size time_us host_us wire_bytes max_err rel_err check speedup"


def bench(*flags: str, ranks: int = 1, timeout: int = 120) -> subprocess.CompletedProcess:
    """Run the script, with mpirun where there are ranks to run."""
    launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, str(ROOT / "bench" / "mlp.py"), *flags]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, check=False)


def read(path: Path) -> tuple[list[dict], list[dict]]:
    """Measured and projected rows of a JSON file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [r for r in rows if not r["projected"]], [r for r in rows if r["projected"]]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess, list[dict], list[dict]]:
    """`mpirun -n 2 python bench/mlp.py --smoke`, once for all tests."""
    pytest.importorskip("mpi4py")
    path = tmp_path_factory.mktemp("bench") / "rows.json"
    done = bench("--smoke", "--json", str(path), ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, *read(path)


def test_smoke_runs_every_scheme_and_every_check_is_ok(smoke) -> None:
    _, rows, _ = smoke
    assert [(r["M"], r["scheme"]) for r in rows] == [(M, s) for M in (1, 16) for s in cq.SCHEMES]
    assert {r["check"] for r in rows} == {"ok"}
    assert all(set(KEYS.split()) <= set(r) for r in rows)
    assert {(r["tp"], r["K"], r["H"], r["N"], r["group_size"]) for r in rows} == {(2, 256, 1024, 256, 128)}
    assert all(r["time_us"] > 0 and 0 < r["max_err"] < 0.1 for r in rows)


def test_smoke_counts_the_bytes_of_the_formulas(smoke) -> None:
    """all_reduce sends M N 2 bytes on 2 ranks; all_gather the rank's half of M H 2; all_to_all what is needed of it."""
    _, rows, _ = smoke
    for row in rows:
        reduced, half = row["M"] * 256 * 2, row["M"] * 512 * 2
        if row["scheme"] == "all-to-all":
            assert reduced < row["wire_bytes"] < reduced + half
        else:
            assert row["wire_bytes"] == reduced + (half if row["scheme"] == "naive" else 0)


def test_speedup_is_over_naive_at_the_same_m(smoke) -> None:
    _, rows, _ = smoke
    for row in rows:
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert row["scheme"] != "naive" or row["speedup_low"] == row["speedup_high"] == 1


def result(*times: float) -> mlp.Result:
    return mlp.Result(float(np.median(times)), None, 0, [], [], times)


def test_speedup_is_the_median_of_the_ratios_of_rounds() -> None:
    """A machine that is ten times slower in every second round changes no ratio, though it changes all medians."""
    slow = np.tile([1.0, 10.0], 20)
    found = mlp.speedup(result(*(slow * 3)), result(*(slow * 2)))
    assert found == {"speedup": 1.5, "speedup_low": 1.5, "speedup_high": 1.5, "interval": "1.50..1.50"}


def test_the_interval_holds_the_true_ratio_of_95_runs_in_100() -> None:
    rng, held, runs, rounds = np.random.default_rng(5), 0, 2000, 25
    for _ in range(runs):
        found = mlp.speedup(result(*(1.2 * rng.lognormal(0, 0.3, rounds))), result(*rng.lognormal(0, 0.3, rounds)))
        held += found["speedup_low"] <= 1.2 <= found["speedup_high"]
    assert 0.94 < held / runs < 0.99


def test_the_line_below_the_table_names_what_is_beyond_the_spread() -> None:
    facts = {"local": (1.1, 1.3), "unordered": (0.7, 0.9), "tp-aware": (0.9, 1.2), "naive": (1.0, 1.0)}
    rows = [dict(M=4, scheme=s, codec=None, speedup_low=low, speedup_high=high) for s, (low, high) in facts.items()]
    (line,) = mlp.beyond_the_spread(rows)
    assert line == "# M=4: quicker than naive: local; slower: unordered; no telling: tp-aware"


def test_only_rank_0_prints_and_the_check_is_the_last_column(smoke) -> None:
    done, rows, _ = smoke
    lines = done.stdout.splitlines()
    headings = [line for line in lines if "wire_bytes" in line]
    assert len(headings) == 1
    assert headings[0].split()[-1] == "check"
    assert sum(line.endswith(" ok") for line in lines) == len(rows)
    assert all(line.startswith("#") or line.split()[0].isdigit() or "int4" in line or "fp16" in line for line in lines)


def test_projected_rows_are_labelled(smoke) -> None:
    done, _, projected = smoke
    assert "PROJECTED" in done.stdout
    assert {r["link"] for r in projected} == {"a100-nvlink", "h100-nvlink", "l4-pcie"}
    assert {r["model"] for r in projected} == {"llama-70b", "granite-20b"}
    assert {(r["tp"], r["M"]) for r in projected} == {(tp, M) for tp in (1, 2, 4, 8) for M in (1, 16)}
    assert all("max_err" not in r for r in projected), "nothing projected was checked"


def test_a_wrong_argument_is_told_without_a_traceback(tmp_path: Path) -> None:
    for flags, said in (
        (["--layer", "9"], "no quantized MLP in layer 9; layers that have: [0, 1, 2, 3]"),
        (["--checkpoint", str(tmp_path)], str(tmp_path)),
        (["--m", "1,x"], "'1,x' is not a list of whole numbers"),
        (["--schemes", "fast"], "'fast' is not one of unordered"),
        (["--codec", "mxfp5"], "no codec is called 'mxfp5'"),
        (["--project", "ethernet"], "'ethernet' is not one of a100-nvlink"),
    ):
        done = bench(*flags)
        assert done.returncode == 2, done.stdout
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def measure_smoke(comm, *flags: str) -> tuple[list[dict], dict[str, str]]:
    args = mlp.parse(["--smoke", "--m", "1", *flags])
    return mlp.measure(mlp.load(args), args, comm)


def test_more_ranks_than_groups_leaves_schemes_out_and_says_so() -> None:
    rows, refused = run_threads(9, measure_smoke)[0]
    assert [r["scheme"] for r in rows] == ["unordered", "local"]
    assert {r["check"] for r in rows} == {"ok"}
    assert [r["speedup"] for r in rows] == [None, None]
    assert set(refused) == {"naive", "all-to-all", "tp-aware"}
    assert all("tp=9 is more than 8 groups" in why for why in refused.values())


@pytest.fixture(scope="module")
def right() -> tuple[mlp.Result, list[mlp.Target]]:
    """A right result of one layer at M=2, as rank 0 of 2 has it, and its target."""
    job = mlp.load(mlp.parse(["--smoke"]))
    modules = job.mlps[0]
    x = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float16)
    target = mlp.target(job, modules, x, 2, np.arange(256))

    def call(comm) -> mlp.Result:
        layer = cq.Mlp.from_checkpoint(job.ckpt, comm=comm, scheme="tp-aware", modules=modules)
        return mlp.run([layer], x[:2], comm, smoke=True)

    return run_threads(2, call)[0], [target]


def test_judge_accepts_a_right_result(right) -> None:
    result, targets = right
    max_err, why = mlp.judge(result, targets, twin=result)
    assert why == []
    assert 0 < max_err < 0.1


def damaged(result: mlp.Result, at: tuple[int, int], value: float) -> mlp.Result:
    y = result.ys[0].copy()
    y[at] = value
    return replace(result, ys=[y])


@pytest.mark.parametrize("at", [(0, 0), (1, 255)], ids=["first", "last"])
def test_judge_refuses_one_element_just_outside_its_bound(right, at: tuple[int, int]) -> None:
    result, (target,) = right
    outside = target.exact[at] + 1.5 * target.bound[at]
    _, why = mlp.judge(damaged(result, at, outside), [target], twin=None)
    assert why == ["layer 0: 1 of 512 elements outside the bound"]


def test_judge_refuses_nan_and_shows_it(right) -> None:
    result, targets = right
    max_err, why = mlp.judge(damaged(result, (1, 7), math.nan), targets, twin=None)
    assert why == ["layer 0: 1 of 512 elements outside the bound"]
    assert math.isnan(max_err)


def test_judge_refuses_columns_in_another_order(right) -> None:
    result, targets = right
    _, why = mlp.judge(replace(result, ys=[result.ys[0][:, ::-1]]), targets, twin=None)
    assert "outside the bound" in why[0]


def test_judge_refuses_ranks_that_differ(right) -> None:
    result, targets = right
    first, second = result.digests[0]
    _, why = mlp.judge(replace(result, digests=[[first, second[::-1]]]), targets, twin=None)
    assert why == ["layer 0: ranks hold different results"]


def test_judge_refuses_tp_aware_that_is_not_naive(right) -> None:
    result, targets = right
    other = replace(result, digests=[[b"other", b"other"]])
    _, why = mlp.judge(result, targets, twin=other)
    assert why == ["layer 0: tp-aware and naive differ"]


def test_only_tp_aware_must_have_the_bits_of_naive(right) -> None:
    result, targets = right
    other = replace(result, digests=[[b"other", b"other"]])
    assert mlp.outcome(result, other, targets, twins=True)["check"] == "FAIL"
    assert mlp.outcome(result, other, targets, twins=False)["check"] == "ok"


CODECS = ("mxint8", "mxfp4", "int4-b8")


@pytest.mark.parametrize("size, algo", [(1, "oneshot"), (3, "oneshot"), (3, "twoshot")])
def test_codecs_are_rows_of_tp_aware(size: int, algo: str) -> None:
    """Checked against the codec's bound and between ranks, with the bytes of the formulas and the error stated."""
    flags = ["--m", "1,16", "--schemes", "naive,tp-aware", "--codec", ",".join(CODECS), "--algo", algo]
    rows, _ = run_threads(size, measure_smoke, *flags)[0]
    ways = [("naive", None), ("tp-aware", None), *(("tp-aware", name) for name in CODECS)]
    assert [(r["M"], r["scheme"], r["codec"]) for r in rows] == [(M, *way) for M in (1, 16) for way in ways]
    assert {r["check"] for r in rows} == {"ok"}
    for row in rows:
        if row["codec"] is None:
            assert row["rel_err"] < 0.001
            continue
        c, count = codec(row["codec"]), row["M"] * 256
        sent = [oneshot_sent(count, size, c)] if algo == "oneshot" else []
        assert row["wire_bytes"] == max(sent or [twoshot_sent(count, size, rank, c) for rank in range(size)])
        assert 0.002 < row["rel_err"] < (0.02 if row["codec"] == "mxint8" else 0.25)
        assert row["speedup"] > 0


def test_a_codec_alone_is_of_tp_aware_and_refused_with_it() -> None:
    rows, refused = run_threads(9, measure_smoke, "--schemes", "local", "--codec", "mxfp4")[0]
    assert {(r["scheme"], r["codec"]) for r in rows} == {("local", None)}
    assert set(refused) == {"tp-aware"}
    rows, _ = run_threads(2, measure_smoke, "--schemes", "local", "--codec", "mxfp4")[0]
    assert {(r["scheme"], r["codec"]) for r in rows} == {("local", None), ("tp-aware", "mxfp4")}


@pytest.fixture(scope="module")
def coded() -> tuple[mlp.Result, mlp.Target, mlp.Target]:
    """A right result on 2 ranks with mxint8 by twoshot, its target, and that of a plain all_reduce."""
    args = mlp.parse(["--smoke", "--codec", "mxint8"])
    job = mlp.load(args)
    x = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float16)
    found = mlp.targets_by_codec(job, x, 2, args.codec, args.algo)
    ((plain,), (target,)) = found.values()

    def call(comm) -> mlp.Result:
        how = {"scheme": "tp-aware", "codec": "mxint8", "algo": "twoshot"}
        layer = cq.Mlp.from_checkpoint(job.ckpt, comm=comm, modules=job.mlps[0], **how)
        return mlp.run([layer], x[:3], comm, smoke=True)

    return run_threads(2, call)[0], target, plain


def test_the_bound_of_a_codec_is_its_own(coded) -> None:
    """It holds, is used well, and the plain bound would not do."""
    result, target, plain = coded
    assert mlp.judge(result, [target], twin=None)[1] == []
    assert (np.abs(result.ys[0] - target.exact[:3]) / target.bound[:3]).max() > 0.25
    assert mlp.judge(result, [plain], twin=None)[1] != []
    assert (target.bound > 2 * plain.bound).all()


def test_judge_refuses_what_is_outside_a_codecs_bound_or_differs_between_ranks(coded) -> None:
    result, target, _ = coded
    outside = target.exact[2, 255] + 1.5 * target.bound[2, 255]
    _, why = mlp.judge(damaged(result, (2, 255), outside), [target], twin=None)
    assert why == ["layer 0: 1 of 768 elements outside the bound"]
    first, second = result.digests[0]
    row = mlp.outcome(replace(result, digests=[[first, second[::-1]]]), None, [target], twins=False)
    assert (row["check"], row["why"]) == ("FAIL", ["layer 0: ranks hold different results"])


def test_targets_of_all_mlps_come_to_rank_0() -> None:
    args = mlp.parse(["--codec", "mxfp4"])
    job = mlp.load(args)
    x = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float16)
    want = mlp.targets_by_codec(job, x, 3, args.codec, args.algo)
    first, *others = run_threads(3, lambda comm: mlp.shared_targets(job, x, comm, args.codec, args.algo))
    assert first.keys() == want.keys()
    for c, targets in want.items():
        assert len(targets) == 4
        for have, target in zip(first[c], targets, strict=True):
            assert_exact(have.exact, target.exact)
            assert_exact(have.bound, target.bound)
    assert [list(found.values()) for found in others] == [[[], []]] * 2


def test_largest_terms_are_the_partial_sums_of_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each just above what its rank brings to the all_reduce."""
    monkeypatch.setattr("cutpq.layers.linear.all_reduce", lambda y, *_: y)
    job = mlp.load(mlp.parse(["--smoke"]))
    x = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float16)
    how = {"scheme": "tp-aware", "modules": job.mlps[0]}
    partial = run_threads(3, lambda comm: cq.Mlp.from_checkpoint(job.ckpt, comm=comm, **how)(x))
    for y, largest in zip(partial, mlp.largest_terms(job, job.mlps[0], x, 3, np.arange(256)), strict=True):
        assert (np.abs(y) <= largest).all()
        assert (largest - np.abs(y) < 0.01 * np.abs(y).max()).all()


def test_relative_error_is_of_all_layers() -> None:
    y, target = np.float16([[3, 4]]), mlp.Target(np.arange(2), np.array([[3.0, 5.0]]), np.zeros((1, 2)))
    result = mlp.Result(1.0, None, 0, [y, y], [[], []])
    assert mlp.relative_error(result, [target, target]) == pytest.approx(math.sqrt(2 / 68))


def test_checked_columns_of_a_wide_layer_are_whole_blocks() -> None:
    assert mlp.whole_blocks(256).tolist() == list(range(256))
    assert len(mlp.whole_blocks(1000)) == 1000
    assert len(mlp.whole_blocks(1100)) == 1100, "blocks straddle rows: all columns"
    wide = mlp.whole_blocks(8192)
    assert len(wide) == 1024
    assert (wide.reshape(8, 128) == wide[::128, None] + np.arange(128)).all()
    assert (wide[::128] % 128 == 0).all()
    assert wide[0] == 0
    assert wide[-1] == 8191


def test_several_layers_are_one_row_per_mlp() -> None:
    """All four layers of the carried checkpoint: all are checked, bytes are those of one."""
    args = mlp.parse(["--m", "1", "--schemes", "tp-aware"])
    job = mlp.load(args)
    assert len(job.mlps) == 4
    (row,), _ = run_threads(2, lambda comm: mlp.measure(job, args, comm))[0]
    assert row["wire_bytes"] == 256 * 2
    assert row["check"] == "ok"


def test_a_wrong_result_prints_fail_and_exits_with_1(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    run = mlp.run
    monkeypatch.setattr(mlp, "run", lambda *args: damaged(run(*args), (0, 3), 100.0))
    path = tmp_path / "rows.json"
    assert mlp.main(["--smoke", "--m", "1", "--schemes", "local", "--project", "none", "--json", str(path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].split()[-1] == "FAIL"
    assert printed[-1] == "# FAIL local M=1: layer 0: 1 of 256 elements outside the bound"
    assert [row["check"] for row in read(path)[0]] == ["FAIL"]


def test_random_weights_are_the_same_by_any_selection() -> None:
    """A rank makes only its part, and the parts of all ranks are parts of one weight."""
    random = RandomCheckpoint(replace(MODELS["granite-20b"], K=64, H=256, N=32), group_size=32)
    rows = np.array([200, 3, 17])
    for name, columns in (("up", slice(32, 96)), ("down", np.array([5, 31, 0]))):
        whole = random.weight(name)
        K = random.shape(name)[0]
        part = random.weight(name, rows=rows % K, columns=columns)
        assert (part.codes == whole.codes[rows % K][:, columns]).all()
        assert (part.scales == whole.scales[:, columns]).all()
        assert (part.bias == whole.bias[columns]).all()
        assert (part.g_idx == whole.g_idx[rows % K]).all()
        assert len(np.unique(whole.codes)) == 16
        assert not whole.is_ordered


def test_a_random_model_runs_and_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(MODELS["granite-20b"], K=64, H=640, N=128)
    monkeypatch.setitem(mlp.MODELS, "granite-20b", small)
    monkeypatch.setattr(mlp, "CHECKED_COLUMNS", 16)  # a sample of the columns, as for large models
    rows, _ = run_threads(3, measure_smoke, "--model", "granite-20b")[0]
    assert [r["scheme"] for r in rows] == list(cq.SCHEMES)
    assert {r["check"] for r in rows} == {"ok"}


def test_projection_says_by_how_much_it_differs_from_the_paper() -> None:
    rows = projected_rows(["llama-70b"], ["a100-nvlink", "h100-nvlink"], [1, 16])
    best = max(r["speedup"] for r in rows if r["paper_speedup"] and r["scheme"] == "tp-aware")
    assert {r["paper_speedup"] for r in rows} == {1.81, None}
    assert {(r["weights"], r["gated"]) for r in rows} == {("fp16", False), ("int4", True)}
    assert any(f"at most {best:.2f}x here" in line and "1.81x" in line for line in projected_lines(rows))


def test_plot_of_measured_and_of_projected_times(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows, _ = run_threads(2, measure_smoke, "--schemes", "naive,tp-aware")[0]
    for name, shown in (("measured", rows), ("projected", projected_rows(["llama-70b"], ["l4-pcie"], [1, 16]))):
        mlp.plot(tmp_path / f"{name}.png", shown)
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_json_is_one_object_a_line_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_json(path, [{"M": 1}, {"M": 2}])
    assert path.read_text() == '{"M": 1}\n{"M": 2}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_json_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"
    path.write_text("before")

    def write_half(target: Path, text: str) -> None:
        with target.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="no space"):
        write_json(path, [{"M": 1}])
    assert path.read_text() == "before"


def test_a_time_is_that_of_the_slowest_rank() -> None:
    def run(comm) -> float:
        return time_us(lambda: time.sleep(0.03 * comm.rank), comm, iterations=3, budget_s=1).time_us

    times = run_threads(2, run)
    assert times[0] == times[1]
    assert times[0] >= 30_000


def test_table_keeps_its_columns() -> None:
    table = Table((Column("a", "a_us", 8, ".1f"), Column("b", "b", 5)))
    assert table.heading() == "#   a_us     b"
    assert table.line({"a": 3.14159}) == "     3.1     -"
