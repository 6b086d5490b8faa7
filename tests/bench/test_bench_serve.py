"""bench/serve.py: what it prints and counts, that its lengths are what was asked for, and that its check can fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import pytest
import serve

import cutpq as cq
from cutpq.ranks.threads import run_threads

ROOT = Path(__file__).resolve().parents[2]
TINY_LLAMA = ROOT / "tests" / "data" / "tiny-llama"


def test_smoke_prints_a_row_for_each_tp_batch_and_codec(tmp_path: Path) -> None:
    path, figure = tmp_path / "rows.json", tmp_path / "rows.png"
    command = [sys.executable, str(ROOT / "bench" / "serve.py"), "--smoke", "--json", str(path), "--plot", str(figure)]
    command += ["--requests", "3"]  # in whole batches: three of one, two of two
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUTPQ_COMM": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["tp"], row["batch"], row["codec"]) for row in rows] == [
        (1, 1, "none"), (1, 2, "none"), (2, 1, "none"), (2, 1, "mxfp4"), (2, 2, "none"), (2, 2, "mxfp4")]  # fmt: skip
    assert figure.read_bytes()[:4] == b"\x89PNG"
    args = serve.parse(["--smoke"])
    wanted = {
        batch: sum(sum(serve.draw(args, batch, number, 1024).wanted) for number in range(1, 1 + batches))
        for batch, batches in ((1, 3), (2, 2))
    }
    for row in rows:
        assert row["check"] == "ok"
        assert (row["requests"], row["new_tokens"]) == ({1: 3, 2: 4}[row["batch"]], wanted[row["batch"]])
        assert 0 < row["ttft_p50_ms"] <= row["ttft_p99_ms"]
        assert 0 < row["tpot_p50_ms"] <= row["tpot_p99_ms"]
        assert (row["sent_bytes"] > 0) == (row["tp"] > 1)
    plain, coded = (row["sent_bytes"] for row in rows[4:])
    assert coded < plain
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert [line.split()[:4] for line in lines] == [
        [row["model"], str(row["tp"]), str(row["batch"]), row["codec"]] for row in rows]  # fmt: skip


def test_lengths_are_within_what_was_asked_for_and_reach_both_ends() -> None:
    args = serve.parse(["--prompt", "32-40", "--output", "16-20", "--seed", "7"])
    drawn = serve.draw(args, 32, 5, 100)
    every = [serve.draw(args, 32, number, 100) for number in range(20)]
    lengths = {len(prompt) for requests in every for prompt in requests.prompts}
    assert lengths == set(range(32, 41))
    assert {n for requests in every for n in requests.wanted} == set(range(16, 21))
    assert {token for requests in every for prompt in requests.prompts for token in prompt} == set(range(100))
    assert drawn == every[5] != every[6]


@pytest.mark.parametrize("text", ["16", "0-3", "5-4", "a-b", "1-2-3", "-4"])
def test_a_span_must_be_two_numbers_the_less_first(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not two whole numbers of at least 1, the less first"):
        serve.span(text)


def test_percentiles_are_values_that_came() -> None:
    values = [float(v) for v in np.random.default_rng(0).permutation(np.arange(1, 101))]
    assert (serve.percentile(values, 50), serve.percentile(values, 99)) == (50.0, 99.0)
    assert serve.percentile([3.0], 99) == 3.0
    assert serve.percentile([1.0, 2.0], 50) == 1.0
    assert serve.percentile([], 50) is None


def checks(change) -> list[bool]:
    """What `agrees` says on two ranks where change(model, rank) was applied before."""
    requests = serve.draw(serve.parse(["--smoke"]), 2, 0, 1024)

    def rank(comm):
        model = cq.load_model(TINY_LLAMA, comm)
        change(model, comm.rank)
        return serve.agrees(model, comm, requests)

    return run_threads(2, rank)


def test_the_check_accepts_a_good_model() -> None:
    assert checks(lambda model, rank: None) == [True, True]


def test_the_check_sees_ranks_that_differ() -> None:
    def change(model, rank):
        head = model.head
        model.head = lambda y: head(y) + np.float16(rank)

    assert checks(change) == [False, False]


def test_the_check_sees_a_decode_step_that_differs() -> None:
    """The first call of the head is the prefill's."""

    def change(model, rank):
        head, calls = model.head, []

        def late(y):
            calls.append(y)
            return head(y) + np.float16(rank * (len(calls) > 1))

        model.head = late

    assert checks(change) == [False, False]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_the_check_sees_logits_that_are_not_finite() -> None:
    def change(model, rank):
        model.norm.weight = model.norm.weight * np.float16(np.inf)

    assert not any(checks(change))


def test_random_weights_want_a_gpu() -> None:
    comm = cq.run_threads(1, lambda comm: comm)[0]
    with pytest.raises(ValueError, match="--model needs a GPU"):
        serve.measure(serve.parse(["--smoke", "--model", "llama-3-8b"]), comm)
