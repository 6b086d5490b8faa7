"""bench/all_reduce.py as a user runs it, and that its check can fail."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import all_reduce as bench
import codec_kernels
import numpy as np
import pytest
import slow_link
from jobs import MPIRUN, needs_mpi, run
from predict import peers
from predict.machine_code import TileCode, count_tile
from truth import verifiable

import cutpq as cq
from cutpq.array import bfloat16
from cutpq.codecs import formulas as ref_codec
from cutpq.codecs.codec import Codec, codec
from cutpq.cost.all_reduce import oneshot_sent, twoshot_sent
from cutpq.ranks.alone import SelfCommunicator
from cutpq.ranks.communicator import Communicator
from cutpq.ranks.discovery import find_gpu
from cutpq.ranks.threads import run_threads

ROOT = Path(__file__).resolve().parents[2]
KEYS = (
    "size count type redop root algo codec bits time_us host_us algbw busbw wrong wire_bytes ratio rel_err "
    "expected_err check ranks backend projected"
)
FLAGS = ["-b", "250", "-e", "70K", "-f", "64", "--codecs", "mxfp4,int4-b8"]


@needs_mpi
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_run(ranks: int, tmp_path: Path) -> None:
    """Sizes that no block divides: every row is right, with the bytes of the formulas."""
    path = tmp_path / "rows.json"
    script = [sys.executable, str(ROOT / "bench" / "all_reduce.py"), "--smoke", *FLAGS]
    command = [MPIRUN, "-n", str(ranks), *script, "--json", str(path)]
    job = run(command, PYTHONPATH=str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    assert job.status == 0, job.out + job.err

    every = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in every if not row["projected"]]
    cases = [(None, "plain"), *[(c, algo) for c in ("mxfp4", "int4-b8") for algo in ("oneshot", "twoshot")]]
    assert [(r["count"], r["codec"], r["algo"]) for r in rows] == [(n, *case) for n in (125, 8000) for case in cases]
    for row in rows:
        assert set(row) == set(KEYS.split())
        assert (row["wrong"], row["check"], row["ranks"], row["size"]) == (0, "ok", ranks, 2 * row["count"])
        assert row["wire_bytes"] == expected_bytes(row)
        plain = next(r["wire_bytes"] for r in rows if r["count"] == row["count"] and r["algo"] == "plain")
        assert row["ratio"] == pytest.approx(plain / row["wire_bytes"], abs=1e-4)
        assert row["algbw"] == pytest.approx(row["size"] / row["time_us"] / 1e3, rel=0.02, abs=1e-6)
        assert row["busbw"] == pytest.approx(row["algbw"] * 2 * (ranks - 1) / ranks, rel=0.02, abs=2e-6)
        assert row["rel_err"] < (0.001 if row["algo"] == "plain" else 0.25)
    errors = {r["algo"]: r["rel_err"] for r in rows if r["codec"] in (None, "mxfp4")}
    assert errors["plain"] < 0.01 < errors["oneshot"] < errors["twoshot"], "a second rounding shows"

    assert {row["link"] for row in every if row["projected"]} == set(bench.PROJECTED_LINKS)
    lines = job.out.splitlines()
    assert sum(line.split()[-1] == "ok" for line in lines) == len(rows)
    assert "# Out of bounds values : 0 OK" in lines
    assert any(line.startswith(f"# proj(us): PROJECTED, not measured, for {ranks} GPUs") for line in lines)
    assert max(map(len, lines)) <= 160


def expected_bytes(row: dict) -> int:
    """Of the rank that sends most: by cost.py, and for plain by Communicator.all_reduce."""
    n, count = row["ranks"], row["count"]
    if row["algo"] == "plain":
        return 2 * (count + (n - 2) * -(-count // n))
    if row["algo"] == "oneshot":
        return oneshot_sent(count, n, codec(row["codec"]))
    return max(twoshot_sent(count, n, rank, codec(row["codec"])) for rank in range(n))


def parse(flags: str) -> argparse.Namespace:
    return bench.parse(flags.split())


# --- the check -----------------------------------------------------------------------------------------------------


def verdict(damage: Callable[[np.ndarray, int], None], name: str = "mxfp4") -> verifiable.Verdict:
    """What `verify` says of a right sum on 3 ranks that was damaged on each."""
    c, count, size = codec(name), 1000, 3

    def call(comm: Communicator) -> verifiable.Verdict:
        y = cq.all_reduce(verifiable.term(1, comm.rank, 0, count, np.dtype(np.float16)), comm, c, "twoshot")
        damage(y, comm.rank)
        mine = verifiable.slices(count, size)[comm.rank]
        terms = [verifiable.term(1, rank, *mine, np.dtype(np.float16)) for rank in range(size)]
        right = verifiable.rounded_sum(terms, c, "twoshot")
        return verifiable.verify(y, *verifiable.sum_and_bound(terms, c, "twoshot"), right, comm)

    verdicts = run_threads(size, call)
    assert len({v.wrong for v in verdicts}) == 1, "the verdict is the same on all ranks"
    return verdicts[0]


def test_a_right_sum_has_nothing_wrong() -> None:
    found = verdict(lambda y, rank: None)
    assert (found.wrong, found.check) == (0, "ok")
    assert 0.1 < found.rel_err < 0.25
    assert found.rel_err == pytest.approx(found.expected_err, rel=1e-3)


@pytest.mark.parametrize("at", [0, 383, 384, 999], ids=["first", "end_of_slice", "start_of_slice", "last"])
def test_one_bit_on_one_rank_is_one_wrong_element(at: int) -> None:
    def flip(y: np.ndarray, rank: int) -> None:
        y.view(np.uint16)[at] ^= rank == 2

    assert verdict(flip).wrong == 1


@pytest.mark.parametrize("value", [30.0, np.nan, np.inf])
def test_values_outside_the_bound_are_wrong_even_where_ranks_agree(value: float) -> None:
    def set_two(y: np.ndarray, rank: int) -> None:
        y[[0, 999]] = value

    assert verdict(set_two).wrong == 2


def test_a_sum_that_lacks_a_rank_is_wrong() -> None:
    def subtract(y: np.ndarray, rank: int) -> None:
        y -= verifiable.term(1, 1, 0, y.size, y.dtype)

    assert verdict(subtract, "mxint8").wrong > 900
    few = verdict(subtract)
    assert few.wrong < 300, "the bound of mxfp4 is as wide as its steps"
    assert few.rel_err > 2 * few.expected_err


class LastTermLost(Communicator):
    """A communicator's ranks, of which the last brings zeros into a oneshot sum."""

    def __init__(self, comm: Communicator, codec: Codec):
        super().__init__(comm.rank, comm.size, "damaged")
        self.backend, self._comm, self._codec = comm.backend, comm, codec

    def barrier(self) -> None:
        self._comm.barrier()

    def bcast(self, obj: Any, root: int = 0) -> Any:
        return self._comm.bcast(obj, root)

    def split(self, color: int, key: int = 0) -> Communicator:
        raise NotImplementedError

    def _exchange(self, x: np.ndarray, *counts: list[int]) -> np.ndarray:
        if self.rank == self.size - 1:
            x = np.zeros_like(x)
        return self._comm._exchange(x, *counts)


def systematic(name: str, algo: str, damage: str, monkeypatch: pytest.MonkeyPatch, size: int = 8) -> verifiable.Verdict:
    """The verdict on a sum of 8 ranks that is wrong in the same way everywhere."""
    c, count, dtype = codec(name), 8192, np.dtype(np.float16)

    def call(comm: Communicator) -> verifiable.Verdict:
        x = verifiable.term(1, comm.rank, 0, count, dtype)
        y = cq.all_reduce(x, LastTermLost(comm, c) if damage == "term lost" else comm, c, algo)
        mine = verifiable.slices(count, size)[comm.rank]
        terms = [verifiable.term(1, rank, *mine, dtype) for rank in range(size)]
        right = verifiable.rounded_sum(terms, c, algo)
        return verifiable.verify(y, *verifiable.sum_and_bound(terms, c, algo), right, comm)

    scale_codes = ref_codec.scale_codes
    with monkeypatch.context() as patch:
        if damage in ("scale too large", "scale too small"):  # by one, before the block is divided by it
            step = 1 if damage == "scale too large" else -1
            patch.setenv("CUTPQ_HOST", "formulas")
            patch.setattr(
                ref_codec, "scale_codes", lambda *facts: (scale_codes(*facts).astype(int) + step).astype(np.uint8)
            )
        return run_threads(size, call)[0]


@pytest.mark.parametrize("algo", ["oneshot", "twoshot"])
@pytest.mark.parametrize("name", ["int2", "e1m1", "e3m0-b128", "mxfp4", "nvfp4", "mxint8"])
def test_a_sum_that_is_wrong_everywhere_but_bounded_fails(
    monkeypatch: pytest.MonkeyPatch, name: str, algo: str
) -> None:
    damages = ["scale too large", "scale too small"] + ["term lost"] * (algo == "oneshot")
    if name == "nvfp4":
        damages.remove("scale too large")  # by one of its steps, an eighth: rounding hides it
    assert systematic(name, algo, "none", monkeypatch).check == "ok"
    for damage in damages:
        found = systematic(name, algo, damage, monkeypatch)
        assert found.check == "FAIL", (damage, found)


EVERY_KIND = [
    *("mxfp4", "mxfp6-e2m3", "mxfp8-e4m3", "mxfp8-e5m2", "mxint8", "nvfp4", "mxfp4+hadamard", "int3-b16+hadamard"),
    *("e2m1-rceil", "e2m1-even", "e3m1-b8-e4m0", "e2m0-b128-e5m0-rceil", "int4-float16", "int5-b64-e4m3-floor"),
    "e2m2-b16-float16-rceil",
]


@pytest.mark.parametrize("name", EVERY_KIND)
def test_rounding_by_the_definitions_is_the_codecs(name: str) -> None:
    """Another way to the same numbers, save where float32 rounds a ratio or a rotated number the other way."""
    c = codec(name)
    x = (verifiable.term(5, 0, 0, 8192 + 40, np.dtype(np.float16)) * np.float16(3)).astype(np.float16)
    x[256:512] = 0
    have, want = verifiable.rounded(x.astype(np.float64), c)[: x.size], c.decode(c.encode(x)).astype(np.float64)
    differs = ~np.isclose(have, want, rtol=1e-5, atol=1e-12)
    assert differs.mean() < 0.001


def test_a_nan_is_no_small_error() -> None:
    assert verifiable.Verdict(0, float("nan"), 0.1).check == "FAIL"
    assert verifiable.Verdict(0, 0.1019, 0.1).check == "ok"
    assert verifiable.Verdict(0, 0.1021, 0.1).check == verifiable.Verdict(0, 0.0979, 0.1).check == "FAIL"
    assert verifiable.Verdict(0, 0.9, None).check == "ok"


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32])
@pytest.mark.parametrize("algo", ["plain", "oneshot", "twoshot"])
def test_the_bound_holds_and_is_not_lavish(dtype: type, algo: str) -> None:
    """An error of a few bounds is seen, so that the bound is one of this codec and dtype."""
    c, size = codec("mxfp8-e4m3"), 4
    terms = [verifiable.term(3, rank, 0, 4096, np.dtype(dtype)) for rank in range(size)]
    y = run_threads(size, lambda comm: cq.all_reduce(terms[comm.rank], comm, c, algo))[0].astype(np.float64)
    exact, bound = verifiable.sum_and_bound(terms, c, algo)
    used = np.abs(y - exact) / bound
    assert (used <= 1).all()
    assert used.max() > 0.15


def test_nccl_may_round_at_every_step_but_no_more() -> None:
    terms = [np.full(8, 1 + 2.0**-10, np.float16)] * 4
    _, once = verifiable.sum_and_bound(terms, None, "plain")
    _, every = verifiable.sum_and_bound(terms, None, "plain", each_step=True)
    assert (every > once).all()
    assert every.max() < 5 * 2.0**-11 * 4.01


def test_data_is_the_same_by_any_selection() -> None:
    dtype = np.dtype(np.float32)
    whole = verifiable.term(7, 2, 0, 2 * verifiable.CHUNK + 5, dtype)
    for start, stop in ((0, 3), (verifiable.CHUNK - 1, verifiable.CHUNK + 1), (100, len(whole)), (9, 9)):
        assert (verifiable.term(7, 2, start, stop, dtype) == whole[start:stop]).all()
    assert abs(whole.std() - 1) < 0.01
    assert not np.array_equal(whole, verifiable.term(7, 1, 0, len(whole), dtype))
    assert not np.array_equal(whole, verifiable.term(8, 2, 0, len(whole), dtype))
    assert len(np.unique(whole)) > 0.9 * len(whole)


def test_slices_hold_every_element_once_and_begin_with_a_block() -> None:
    for count, size in ((1, 8), (128, 2), (1000, 3), (4096, 5), (0, 2)):
        found = verifiable.slices(count, size)
        assert len(found) == size
        assert [i for start, stop in found for i in range(start, stop)] == list(range(count))
        assert all(start % 128 == 0 for start, stop in found if start < stop)


def test_a_wrong_sum_prints_fail_and_exits_with_1(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    reduce = bench.reduce

    def wrong(x: np.ndarray, comm: Communicator, case: bench.Case) -> np.ndarray:
        y = reduce(x, comm, case)
        y[5] += case.algo == "oneshot"
        return y

    monkeypatch.setattr(bench, "reduce", wrong)
    path = tmp_path / "rows.json"
    flags = ["--smoke", "-b", "512", "-e", "512", "--codecs", "mxfp8-e4m3", "--project", "none"]
    assert bench.main([*flags, "--json", str(path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in printed if not line.startswith("#")] == ["ok", "FAIL", "ok"]
    assert "# Out of bounds values : 1 FAILED" in printed
    assert not [line for line in printed if "rounding makes it" in line]
    assert [json.loads(line)["wrong"] for line in path.read_text().splitlines()] == [0, 1, 0]
    assert bench.main([*flags, "-c", "0"]) == 0, "unchecked"
    assert "FAIL" not in capsys.readouterr().out


def test_a_sum_of_too_much_noise_prints_why_it_fails(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """On one rank: each number moved by a tenth of the codec's bound, the whole by more than rounding does."""
    reduce = bench.reduce

    def noisy(x: np.ndarray, comm: Communicator, case: bench.Case) -> np.ndarray:
        y = reduce(x, comm, case)
        return y if case.algo != "twoshot" else (y + np.float16(0.1) * np.sign(y)).astype(y.dtype)

    monkeypatch.setattr(bench, "reduce", noisy)
    assert bench.main(["--smoke", "-b", "8K", "-e", "8K", "--codecs", "mxfp4", "--project", "none"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in printed if not line.startswith("#")] == ["ok", "ok", "FAIL"]
    assert "# Out of bounds values : 0 OK" in printed
    assert any(line.startswith("# 8192 bytes, twoshot mxfp4: rel_err ") and line.endswith("FAILED") for line in printed)


# --- a slow link ---------------------------------------------------------------------------------------------------


def slow(*flags: str, **environment: str) -> SimpleNamespace:
    path = str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", "")
    return run([sys.executable, str(ROOT / "bench" / "slow_link.py"), *flags], PYTHONPATH=path, **environment)


@needs_mpi
@pytest.mark.slow("a cable that carries 20 Mbit/s")
def test_a_slow_link_carries_what_the_ranks_say(tmp_path: Path) -> None:
    """At 20 Mbit/s two messages of 32 KiB take 26 ms, or 13 if the buckets were full: no copy in memory is as slow."""
    if slow_link.obstacle():
        pytest.skip(slow_link.obstacle())
    path = tmp_path / "rows.json"
    flags = "--ranks 2 --rates 20mbit -b 64K -e 64K -n 1 --codecs mxfp4 --algos plain,oneshot --json"
    job = slow(*flags.split(), str(path))
    assert job.status == 0, job.out + job.err
    plain, coded = [json.loads(line) for line in path.read_text().splitlines()]
    assert {plain["check"], coded["check"]} == {"ok"}
    for row, wire in ((plain, 65536), (coded, 17408)):
        assert row["wire_bytes"] == wire <= row["cable_bytes"] < 1.1 * wire + 2000
    assert min(plain["predicted_us"], plain["time_us"]) > 12_000
    assert coded["speedup"] == pytest.approx(plain["time_us"] / coded["time_us"], abs=1e-3)
    assert not [line for line in job.out.splitlines() if not line.startswith("#") and not line.endswith(" ok")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="says something else")
def test_a_slow_link_says_what_is_missing(tmp_path: Path) -> None:
    job = slow(PATH=str(tmp_path))
    assert job.status == 2
    assert "slow_link.py: needs ip (iproute2), tc (iproute2), unshare (util-linux)" in job.err
    assert "Traceback" not in job.err


def test_a_cable_that_carried_less_than_was_sent_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As when MPI uses shared memory: the counter stands still."""
    counter = tmp_path / "tx_bytes"
    counter.write_text("1000")
    monkeypatch.setattr(slow_link, "COUNTER", counter)
    args = parse("-b 64 -e 64 --algos plain")
    moved = run_threads(2, lambda comm: slow_link.carried(32, bench.Case("plain", None), args, comm))
    assert moved == [(False, 0)] * 2


# --- flags and tables ----------------------------------------------------------------------------------------------


def test_flags_are_those_of_nccl_tests() -> None:
    args = parse("-b 8K -e 2M -f 16 -n 7 -w 3 -c 0 -d bfloat16 --algos twoshot,plain --codecs nvfp4")
    assert (args.minbytes, args.maxbytes, args.stepfactor, args.iters, args.warmup_iters) == (8192, 2**21, 16, 7, 3)
    assert (args.check, args.datatype, args.algos) == (0, "bfloat16", ("plain", "twoshot"))
    assert bench.counts(args) == [4096, 65536, 1048576]
    assert [case.codec and case.codec.name for case in bench.cases(args)] == [None, "nvfp4"]
    long = "--minbytes 8K --maxbytes 2M --stepfactor 16 --iters 7 -x 3 --check 0 --datatype bfloat16"
    assert vars(parse(long)) | {"algos": 0, "codecs": 0} == vars(args) | {"algos": 0, "codecs": 0}
    alone = bench.parse(["-b", "1G"])
    assert (alone.minbytes, alone.maxbytes) == (2**30, 2**30)


@pytest.mark.parametrize(
    "flags, said",
    [
        ("-b 1X", "'1X' is not a number of bytes such as 512, 64K, 4M or 1G"),
        ("-b 2M -e 1M", "-e 1048576 is less than -b 2097152"),
        ("-b 1", "-b 1 is less than one float16"),
        ("-f 1", "'1' is not a whole number of at least 2"),
        ("-n 0", "'0' is not a whole number of at least 1"),
        ("--codecs mxfp5", "no codec is called 'mxfp5'"),
        ("--algos ring", "'ring' is not one of plain, oneshot, twoshot, auto"),
        ("--project ethernet", "'ethernet' is not one of a100-nvlink"),
    ],
)
def test_a_wrong_flag_is_told(flags: str, said: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(flags)
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_exactly_the_iterations_and_warmups_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    reduce = bench.reduce
    monkeypatch.setattr(bench, "reduce", lambda *given: calls.append(1) or reduce(*given))
    bench.measure(parse("-b 64 -e 64 -n 30 -w 5 --algos plain"), SelfCommunicator())
    assert len(calls) == 1 + 5 + 1 + 30, "the checked one, the warm-ups, time_us's own, the timed"


def test_auto_is_measured_and_not_projected(capsys) -> None:
    args = parse("-b 256 -e 256 -n 1 --algos auto --codecs mxfp4")
    (row,) = run_threads(2, lambda comm: bench.measure(args, comm))[0]
    assert (row["algo"], row["check"], row["wire_bytes"]) == ("auto", "ok", 256)
    assert list(bench.project(args, 2)) == []


def test_plot_has_two_panels(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    args = parse("-b 256 -e 1K -f 4 -n 1 --codecs mxfp4")
    bench.plot(tmp_path / "plot.png", bench.measure(args, SelfCommunicator()))
    assert (tmp_path / "plot.png").stat().st_size > 5000
    times, errors = pyplot.gcf().axes
    assert [len(line.get_xdata()) for line in times.get_lines()] == [2, 2, 2]
    assert sorted(float(line.get_xdata()[0]) for line in errors.get_lines()) == [4.25, 4.25], "plain: no error"
    pyplot.close()


def test_projected_times_are_of_eight_ranks_where_there_is_one() -> None:
    args = parse("-b 1M -e 1M --codecs mxfp4 --project l4-pcie")
    rows = list(bench.project(args, 1))
    assert [(r["algo"], r["ranks"]) for r in rows] == [("plain", 8), ("oneshot", 8), ("twoshot", 8)]
    assert rows[0]["speedup"] == 1 < rows[2]["speedup"]
    assert all("wrong" not in r and "rel_err" not in r for r in rows)


def test_projected_columns_stand_beside_the_measured_ones_and_are_marked() -> None:
    args = parse("-b 1M -e 1M --codecs mxfp4 --algos plain,twoshot,auto --project a100-nvlink,l4-pcie")
    kinds = [("plain", None), ("twoshot", "mxfp4"), ("auto", "mxfp4")]
    measured = [
        {"size": 1 << 20, "algo": algo, "codec": name, "time_us": 7.25, "wrong": 0, "busbw": 1.0, "check": "ok"}
        for algo, name in kinds
    ]
    projected = list(bench.project(args, 4))
    lines = bench.table(measured, projected, args)
    at = next(i for i, line in enumerate(lines) if "time" in line and "algbw" in line)
    assert "".join(lines[1:at]).startswith(
        "# proj(us): PROJECTED, not measured, for 4 GPUs on that link, by cutpq/cost"
    )
    heading = lines[at].splitlines()
    assert heading[0].split()[-4:] == ["rel_err", "a100-nvlink", "l4-pcie", "check"]
    assert heading[1].split()[-2:] == ["proj(us)"] * 2
    shown = [line.split()[-3:] for line in lines[at + 1 : at + 4]]
    want = [[f"{row['time_us']:.1f}" for row in projected if row["algo"] == algo] for algo in ("plain", "twoshot")]
    assert shown == [[*want[0], "ok"], [*want[1], "ok"], ["-", "-", "ok"]], "auto is one of the others"
    assert all(line.split()[7] == "7.2" for line in lines[at + 1 : at + 4]), "measured"


def test_no_projected_column_where_none_is_wanted() -> None:
    args = parse("-b 1M -e 1M --project none")
    text = "\n".join(bench.table([], list(bench.project(args, 4)), args))
    assert "proj" not in text.lower()
    assert "nvlink" not in text


# --- kernels alone -------------------------------------------------------------------------------------------------


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels for the CPU")


@needs_compiler
def test_kernel_rows_count_what_must_move_and_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    n = 1 << 12
    rows = codec_kernels.rows([codec("mxfp4")], np, [2 * n])
    wire = n * 17 // 32
    assert [(r["kernel"], r["ranks"], r["moved_bytes"]) for r in rows] == [
        ("copy", 1, 4 * n),
        ("encode", 1, 2 * n + wire),
        *[("decode_sum", ranks, ranks * wire + 2 * n) for ranks in (1, 2, 4, 8)],
        *[("decode_sum_encode", ranks, (ranks + 1) * wire) for ranks in (2, 4, 8)],
    ]
    assert {r["check"] for r in rows} == {"ok"}
    assert rows[0]["of_copy"] == 1
    assert all(r["of_copy"] == pytest.approx(r["gb_s"] / rows[0]["gb_s"]) for r in rows)
    assert len(codec_kernels.lines(rows)) == 3 + len(rows)
    assert codec_kernels.lines([]) == []


@needs_compiler
@pytest.mark.parametrize("name", ["encode", "decode_sum", "decode_sum_encode"])
@pytest.mark.parametrize("at", [3, -1], ids=["first", "last"])
def test_a_kernel_with_one_wrong_bit_fails_its_row(monkeypatch: pytest.MonkeyPatch, name: str, at: int) -> None:
    """In numbers that the check takes from both ends of an array that is longer than those."""
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    monkeypatch.setattr(codec_kernels, "CHECKED", 512)
    right = getattr(codec_kernels.wire, name)

    def wrong(*given: object, **options: object) -> np.ndarray:
        out = right(*given, **options)
        out.view(np.uint8)[at] ^= 1
        return out

    monkeypatch.setattr(codec_kernels.wire, name, wrong)
    rows = codec_kernels.rows([codec("int4-b8-e5m0")], np, [8000])
    if name == "encode":  # whose wires the others are given, and are right about
        rows = rows[:2]
    assert {r["kernel"] for r in rows if r["check"] == "FAIL"} == {name}


def test_kernels_run_smoke_from_the_command_line() -> None:
    script = [sys.executable, str(ROOT / "bench" / "codec_kernels.py"), "--smoke", "-b", "4K", "--codecs", "mxfp4"]
    path = str(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", "")
    if shutil.which("g++"):
        job = run(script, PYTHONPATH=path, CUTPQ_HOST_KERNELS="1")
        assert job.status == 0, job.err
        assert sum(line.endswith(" ok") for line in job.out.splitlines()) == 9
    if find_gpu(0).device is None:
        job = run(script, PYTHONPATH=path, CUTPQ_HOST_KERNELS="0")
        assert job.status == 2
        assert "needs a GPU and CuPy" in job.err
        assert "CUTPQ_HOST_KERNELS=1 with --smoke" in job.err
        assert "Traceback" not in job.err


# As nvdisasm prints it: a start, a loop whose way forks for words that are not aligned, and an end.
TILE_LOOP = """
        /*0000*/                   IMAD R0, R1, R2, R3 ;
        /*0010*/              @P0  EXIT ;
.L_x_1:
        /*0020*/                   ISETP.GE.AND P0, PT, R4, R5, PT ;
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/                   LDG.E.U8.CONSTANT R6, desc[UR4][R2.64] ;
        /*0050*/                   LDG.E.U8.CONSTANT R7, desc[UR4][R2.64+0x1] ;
        /*0060*/                   LOP3.LUT R6, R6, R7, RZ, 0xfc, !PT ;
        /*0070*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*0080*/                   LDG.E.CONSTANT R6, desc[UR4][R2.64] ;
.L_x_3:
        /*0090*/                   FADD R6, R6, R7 ;
        /*00a0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*00b0*/                   IADD3 R4, R4, 0x1, RZ ;
        /*00c0*/              @!P1 BRA `(.L_x_1) ;
        /*00d0*/                   EXIT ;
.L_x_4:
        /*00e0*/                   BRA `(.L_x_4) ;
"""


def test_instructions_of_a_tile_are_those_of_its_usual_way() -> None:
    assert count_tile(TILE_LOOP) == TileCode(instructions=7, integer=2, outside=3)
    with pytest.raises(ValueError, match="no loop"):
        count_tile("        /*0000*/   IMAD R0, R1, R2, R3 ;\n        /*0010*/   EXIT ;\n")


# The same for a loop of two ways to add: fused in half2, or, where a branch says so, converted and fused in float32.
TWO_WAYS = """
.L_x_1:
        /*0020*/                   LDG.E.CONSTANT R6, desc[UR4][R2.64] ;
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/                   HADD2.F32 R8, -RZ, R6.H0_H0 ;
        /*0050*/                   FFMA R9, R8, R7, R9 ;
        /*0060*/                   FFMA R10, R8, R7, R9 ;
        /*0070*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*0080*/                   HFMA2.MMA R9, R6, R7, R9 ;
.L_x_3:
        /*00a0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*00c0*/              @!P1 BRA `(.L_x_1) ;
        /*00d0*/                   EXIT ;
"""


def test_instructions_of_a_tile_whose_scales_are_far_apart() -> None:
    assert count_tile(TWO_WAYS) == TileCode(instructions=5, integer=0, outside=1)
    assert count_tile(TWO_WAYS, far=True) == TileCode(instructions=8, integer=0, outside=1)


# The shuffles of a warp stand a second time behind the end, for lanes that have parted.
PARTED = """
.L_x_1:
        /*0020*/                   LDG.E.CONSTANT R6, desc[UR4][R2.64] ;
        /*0030*/                   BRA.DIV UR6, `(.L_x_2) ;
        /*0040*/                   SHFL.BFLY PT, R5, R4, 0x1, 0x1f ;
.L_x_3:
        /*00a0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*00c0*/              @!P1 BRA `(.L_x_1) ;
        /*00d0*/                   EXIT ;
.L_x_2:
        /*00e0*/                   WARPSYNC.COLLECTIVE R43, `(.L_x_4) ;
        /*00f0*/                   SHFL.BFLY P0, R43, R40, R44, R47 ;
        /*0100*/                   BRA `(.L_x_3) ;
"""


def test_instructions_of_a_tile_are_those_of_a_whole_warp() -> None:
    assert count_tile(PARTED) == TileCode(instructions=5, integer=0, outside=1)


def test_prediction_takes_the_slowest_of_memory_issue_and_integer_units(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(integer: int) -> None:
        """100 instructions for eight numbers a thread, so many of them integer ones."""

        def tile_code(kernel: str, config: Any, arch: str, far: bool = False) -> TileCode:
            return TileCode(100 * config.groups, integer * config.groups, 0)

        monkeypatch.setattr(codec_kernels, "tile_code", tile_code)

    count(25)
    h200 = codec_kernels.MACHINES["h200"]
    found = {(r["kernel"], r["ranks"]): r for r in codec_kernels.predicted(codec("mxfp4"), h200)}
    slots = 132 * 4 * 1.83 * 0.75
    adding = found["decode_sum_encode", 2]
    assert (adding["bytes"], adding["bound"]) == (3 * 136, "issue")
    assert adding["gb_s"] == pytest.approx(3 * 136 * slots / 100)
    assert found["decode_sum", 8]["bound"] == "memory"
    assert found["decode_sum", 8]["of_copy"] == 1
    count(75)
    found = {(r["kernel"], r["ranks"]): r for r in codec_kernels.predicted(codec("mxfp4"), h200)}
    assert found["decode_sum_encode", 2]["bound"] == "integer"


def test_constants_of_sums_by_peers_follow_published_ones() -> None:
    """A plain one-shot sum within 15 %; of a two-shot sum at least a half, and at most all of it."""
    h100 = codec_kernels.MACHINES["h100"]
    for nbytes, us in peers.PUBLISHED_ONESHOT:
        assert peers.reading_in_place_us(nbytes, 6, "oneshot", h100) == pytest.approx(us, rel=0.15)
        assert peers.predict(nbytes, 6, "oneshot", None, h100).time_us == pytest.approx(us, rel=0.15)
    for nbytes, us in peers.PUBLISHED_TWOSHOT:
        assert us / 2 < peers.reading_in_place_us(nbytes, 6, "twoshot", h100) <= us


def test_predicted_sums_count_bytes_and_take_the_slowest_of_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    h100, size, c = codec_kernels.MACHINES["h100"], 64 << 20, codec("mxfp4")
    slow_send = lambda kernel, config, arch, far: TileCode(10**6 if config.STEP == 1 else 0, 0, 0)  # noqa: E731
    monkeypatch.setattr(peers.machine_code, "tile_code", slow_send)
    twoshot = peers.predict(size, 8, "twoshot", c, h100)
    assert twoshot.link_bytes == pytest.approx(2 * 7 / 8 * size * 4.25 / 16)
    assert twoshot.bound == "issue"
    turns = 63  # of the busiest block: 8 shares of 2048 tiles by 264 blocks; by two teams 32 rounds
    instructions = 10**6 / 2 * (turns + 1) / 2  # of a warp, two tiles of its team in a round of the loop
    assert twoshot.parts["issue"] == pytest.approx(2 * instructions / (1.83e3 * 0.22))
    link = twoshot.link_bytes / 2 / 370.8e3
    assert twoshot.parts["link"] == pytest.approx(link, rel=1e-3)
    monkeypatch.setattr(peers.machine_code, "tile_code", lambda *given: TileCode(0, 0, 0))
    oneshot = peers.predict(size, 8, "oneshot", None, h100)
    assert (oneshot.link_bytes, oneshot.bound) == (7 * size, "link")
    assert oneshot.of_link == pytest.approx(7 * size / oneshot.time_us / 370.8e3, rel=1e-3)


def test_part_of_a_tile_takes_a_block_as_long_as_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of 265 tiles: the block that adds two takes twice as long as with 264, and nobody sends much longer."""
    h100, c = codec_kernels.MACHINES["h100"], codec("mxfp4")

    def us(step: int, tiles: int) -> float:
        slow = lambda kernel, config, arch, far: TileCode(10**6 if step == config.STEP else 0, 0, 0)  # noqa: E731
        monkeypatch.setattr(peers.machine_code, "tile_code", slow)
        return peers.predict(tiles * 2048 * 8 * 2, 8, "twoshot", c, h100).time_us

    assert us(2, 265) == pytest.approx(2 * us(2, 264), rel=0.01)
    assert us(1, 265) == pytest.approx(10 / 8 * us(1, 264), rel=0.01)  # two teams: 10 turns as 9


def test_halves_of_a_predicted_twoshot_sum_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small: the chain of one half. Large: the links are busy but at the start and for a latency between the steps."""
    monkeypatch.setattr(peers.machine_code, "tile_code", lambda *given: TileCode(0, 0, 0))
    h100 = codec_kernels.MACHINES["h100"]
    chain = 1.5 + 0.7 + (1.5 + 0.7 + 1.5) + 1.0  # launch and latency, the meetings about the sum, the link's latency
    assert peers.predict(8 << 10, 8, "twoshot", None, h100).time_us == pytest.approx(chain, abs=0.1)
    large = peers.predict(256 << 20, 8, "twoshot", None, h100)
    assert large.time_us == pytest.approx(1.5 + 0.7 + large.link_bytes / 370.8e3 + 1.0)
    monkeypatch.setattr(peers.machine_code, "tile_code", lambda *given: TileCode(300, 0, 0))  # 212 to 260 are counted
    for name in ("h100", "a100"):
        assert peers.predict(4 << 20, 8, "twoshot", None, codec_kernels.MACHINES[name]).of_link > 0.8


@pytest.mark.gpu
def test_smoke_of_the_codecs_kernels_is_few_launches(monkeypatch) -> None:
    """Not the thousands that a cache of 60 MB asks for of 64 KiB: on the software device they took minutes."""
    counts = []
    monkeypatch.setattr(codec_kernels, "graph_us", lambda call, count, xp: counts.append(count) or 1.0)
    assert codec_kernels.main(["--smoke", "--codecs", "mxfp4"]) == 0
    assert counts == [2] * len(counts)
    assert len(counts) >= 4
