"""bench/quantize_memory.py on a small shape: its row, and that a run beyond the limit is killed."""

import json
import multiprocessing
import os
import time

import pytest
import quantize_memory as bench
from models.shapes import TRANSFORMERS

from cutpq.cost.transformer import ModelShape


@pytest.mark.parametrize(("ranks", "limit", "ended"), [("8", "60", "yes"), ("1", "0", "no")])
def test_a_row(tmp_path, monkeypatch, ranks, limit, ended):
    monkeypatch.setitem(TRANSFORMERS, "llama-2-7b", ModelShape("small", 2, 512, 16, 8, 32, 768, 1000))
    flags = ["--model", "llama-2-7b", "--work", str(tmp_path), "--json", str(tmp_path / "rows.json"), "--length", "16"]
    flags += ["--divide", "2"]
    monkeypatch.setattr(bench, "at_least", lambda least: int)  # a limit of 0 seconds
    assert bench.main([*flags, "--ranks", ranks, "--limit", limit]) == 0
    [row] = map(json.loads, (tmp_path / "rows.json").read_text().splitlines())
    assert (row["ranks"], row["tokens"], row["ended"]) == (int(ranks), 128, ended)
    assert 0 < row["peak_gb"] <= row["projected_gb"] < 2
    assert (tmp_path / "quantized").exists() == (ended == "yes")
    assert [phase["until"] for phase in row["phases"]][-2:] == (
        ["model.layers.1.mlp.down_proj", "the end"] if ended == "yes" else []
    )
    if ended == "yes":
        assert row["peak_gb"] > 0.01  # NumPy alone; a process just killed may not have loaded it
    assert row["peak_gb"] >= max([phase["peak_gb"] for phase in row["phases"]], default=0)


def test_the_parents_memory_does_not_count(tmp_path):
    """A process started by one of 500 MB tells its own peak, of some 10 MB."""
    large = bytearray(b"x") * 500_000_000
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    child.start()
    try:
        assert 0 < bench.peak_resident(child.pid) < 0.3 < 0.5 < bench.peak_resident(os.getpid())
    finally:
        child.kill()
        child.join()
    assert len(large) == 500_000_000
