"""bench/ttft.py: what ran, what was projected, that the two are kept apart, and that its check can fail."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ttft
from models.random_model import RandomModel
from models.shapes import TRANSFORMERS
from models.silent import SilentCommunicator
from predict.ttft import projected_lines, projected_rows

import cutpq as cq
from cutpq.ops.dequant import dequantize
from cutpq.ranks.alone import SelfCommunicator

ROOT = Path(__file__).resolve().parents[2]

SMALL = replace(TRANSFORMERS["llama-3-8b"], layers=3, hidden=64, heads=8, kv_heads=2, head_dim=16, intermediate=256,
                vocabulary=96)  # fmt: skip
SMALL_GRANITE = replace(SMALL, name="granite-20b", kv_heads=1, head_dim=8, gated=False)


def launch(*flags: str, ranks: int = 1) -> subprocess.CompletedProcess:
    launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, str(ROOT / "bench" / "ttft.py"), *flags]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[str, list[dict], list[dict]]:
    """`python bench/ttft.py --smoke`, once: what it prints, measured and projected rows."""
    path = tmp_path_factory.mktemp("ttft") / "rows.json"
    done = launch("--smoke", "--json", str(path), "--codec", "mxfp4")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return done.stdout, [r for r in rows if not r["projected"]], [r for r in rows if r["projected"]]


def test_the_carried_model_runs_for_real(smoke) -> None:
    _, measured, _ = smoke
    assert [(r["model"], r["tp"], r["batch"], r["length"], r["codec"]) for r in measured] == [
        ("tiny-llama", 2, 2, 8, "none"), ("tiny-llama", 2, 2, 8, "mxfp4")]  # fmt: skip
    for row in measured:
        assert row["check"] == "ok"
        assert row["ttft_ms"] > 0
        assert row["tpot_ms"] > 0
        assert set(row["block_us"]) == set(ttft.PARTS)
        assert all(us > 0 for us in row["block_us"].values())
        assert sum(row["block_us"].values()) * 4 < 20e3 * row["ttft_ms"]


def test_projected_numbers_stand_apart(smoke) -> None:
    printed, measured, projected = smoke
    assert "PROJECTED" in printed
    assert not any(key.startswith("projected_") for row in measured for key in row)
    assert not any(key in row for row in projected for key in ("ttft_ms", "tpot_ms", "check"))
    assert {r["link"] for r in projected} == {"l4-pcie-2s", "l4-pcie", "a100-nvlink", "h100-nvlink"}
    assert {r["model"] for r in projected} == {"llama-3-8b", "llama-2-70b", "granite-20b"}
    assert {(r["batch"], r["length"]) for r in projected} == {(1, 128), (16, 128), (8, 1024)}


def test_processes_run_the_same(tmp_path) -> None:
    pytest.importorskip("mpi4py")
    path = tmp_path / "rows.json"
    done = launch("--smoke", "--codec", "none", "--tp", "8", "--json", str(path), ranks=3)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = [row for line in path.read_text().splitlines() if not (row := json.loads(line))["projected"]]
    assert [(r["tp"], r["check"]) for r in measured] == [(3, "ok")]


def test_projection_is_the_sum_of_its_columns_and_compression_helps_where_links_are_slow() -> None:
    codecs = [None, cq.codec("mxfp4")]
    rows = projected_rows(["llama-2-70b"], ["int4"], ["l4-pcie", "h100-nvlink"], [1, 8], [(1, 16), (8, 1024)], codecs)
    assert len(rows) == 2 * (1 + 2) * 2
    for row in rows:
        total = row["projected_compute_ms"] + row["projected_collectives_ms"]
        assert row["projected_ttft_ms"] == pytest.approx(total)
        assert (row["projected_collectives_ms"] == 0) == (row["tp"] == 1)

    def gain(link: str, batch: int) -> float:
        some = [r for r in rows if (r["link"], r["tp"], r["batch"]) == (link, 8, batch)]
        plain, compressed = (r["projected_ttft_ms"] for r in some)
        return plain / compressed

    assert gain("l4-pcie", 8) > gain("h100-nvlink", 8) > 1 > gain("h100-nvlink", 1)


def test_too_big_a_model_says_so() -> None:
    rows = projected_rows(["llama-3-70b"], ["int4", "fp16"], ["l4-pcie"], [1, 8], [(1, 16)], [None])
    assert [(r["weights"], r["tp"], r["fits"]) for r in rows] == [
        ("int4", 1, False), ("int4", 8, True), ("fp16", 1, False), ("fp16", 8, True)]  # fmt: skip
    assert sum("too big" in line for line in projected_lines(rows)) == 2


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("shape", [SMALL, SMALL_GRANITE], ids=["llama", "bigcode"])
def test_random_weights_make_one_model_on_any_number_of_ranks(shape, bits) -> None:
    random = RandomModel(shape, 2, bits, group_size=16)
    tokens = np.arange(24).reshape(2, 12)

    def run(comm):
        model = cq.load_model(random, comm, dtype="float32")
        return model(tokens, model.new_cache(2, 12))

    alone = run(SelfCommunicator())
    assert 0.01 < alone.std() < 10
    for tp in (3, 8):
        np.testing.assert_allclose(cq.run_threads(tp, run)[0], alone, rtol=0, atol=1e-4)


def test_random_tensors_are_the_same_by_any_selection() -> None:
    random = RandomModel(SMALL, 2)
    name = "model.layers.1.mlp.down_proj"
    part = random.weight(name, rows=slice(3, 9), columns=np.array([5, 1]))
    np.testing.assert_array_equal(dequantize(part), dequantize(random.weight(name))[3:9, [5, 1]])
    table = random.tensor("lm_head.weight")
    assert table.shape == (96, 64)
    np.testing.assert_array_equal(random.tensor("lm_head.weight", slice(7, 20)), table[7:20])
    other = random.weight("model.layers.0.mlp.down_proj")
    assert (other.codes != random.weight(name).codes).mean() > 0.5, "blocks must not share weights"


def shards(monkeypatch, tps: str) -> list[dict]:
    """What one GPU gives for a small model, on the CPU: one rank with silent peers."""
    monkeypatch.setitem(TRANSFORMERS, "llama-3-8b", SMALL)
    args = ttft.parse(["--model", "llama-3-8b", "--tp", tps, "--smoke", "--codec", "mxfp4", "--link", "l4-pcie"])
    job = ttft.Job(RandomModel(SMALL, 2, 4, group_size=16), SMALL.name, "int4", SMALL.layers)
    return [row for tp in args.tp for row in ttft.run_shard(SelfCommunicator(), args, job, tp)]


def test_one_ranks_compute_is_measured_and_its_collectives_projected(monkeypatch) -> None:
    rows = shards(monkeypatch, "2,4")
    assert [(r["tp"], r["codec"], r["link"]) for r in rows] == [
        (tp, codec, "l4-pcie") for tp in (2, 4) for codec in ("none", "mxfp4")
    ]
    for row in rows:
        assert row["check"] == "ok"
        assert row["projected"] == "collectives"
        assert row["ttft_projected_ms"] == row["compute_ms"] + row["projected_collectives_ms"]
        assert row["projected_collectives_ms"] > 0
        assert "ttft_ms" not in row
    assert all(ttft.MIXED.line(ttft.flat(row)).endswith("ok") for row in rows)


def test_a_job_has_all_its_blocks_from_a_few() -> None:
    job = ttft.Job(RandomModel(SMALL, 2, 4, group_size=16), SMALL.name, "int4", SMALL.layers)
    model = ttft.load(job, SilentCommunicator(2, SelfCommunicator()))
    assert [model.blocks.index(block) for block in model.blocks] == [0, 1, 0]


def test_silent_peers_send_zeros() -> None:
    comm = SilentCommunicator(3, SelfCommunicator())
    x = np.arange(1, 4, dtype=np.float16)
    assert comm.all_gather(x).tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 0]]
    assert comm.all_gather(x, [3, 1, 2]).tolist() == [1, 2, 3, 0, 0, 0]
    assert comm.all_to_all(x, [1, 2, 0], [1, 2, 1]).tolist() == [1, 0, 0, 0]
    assert comm.all_reduce(x).tolist() == [1, 2, 3]
    assert comm.sent_bytes == 12 + 12 + 4


def test_parts_of_a_block_do_not_count_twice() -> None:
    seconds = {
        ("norm",): 1e-6, ("qkv",): 2e-6, ("qkv", "gemm 1"): 2e-6, ("attention",): 4e-6, ("o_proj",): 10e-6,
        ("o_proj", "all_reduce"): 7e-6, ("mlp",): 20e-6, ("mlp", "gemm 2"): 5e-6, ("mlp", "all_reduce"): 8e-6,
        ("head",): 99e-6}  # fmt: skip
    want = dict(zip(ttft.PARTS, (0.5, 1, 2, 1.5, 3.5, 6, 4), strict=True))
    assert ttft.breakdown(seconds, 2) == pytest.approx(want)


@pytest.mark.parametrize("damage", ["nan", "ranks"])
def test_a_wrong_result_fails(damage, monkeypatch, capsys) -> None:
    time_prompt = ttft.time_prompt

    def damaged(model, comm, *args):
        figures, logits = time_prompt(model, comm, *args)
        if damage == "nan" or comm.rank == 1:
            logits[0, 0] = np.nan if damage == "nan" else 7
        return figures, logits

    monkeypatch.setattr(ttft, "time_prompt", damaged)
    assert ttft.main(["--smoke", "--codec", "none"]) == 1
    assert " FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--prompt", "8"], "'8' is not a list of prompts"),
        (["--model", "gpt-5"], "'gpt-5' is not one of llama-2-7b"),
        (["--link", "ethernet"], "'ethernet' is not one of"),
        (["--codec", "zip"], "no codec is called 'zip'"),
        (["--tp", "0"], "'0' is not a list of whole numbers"),
    ],
)
def test_a_wrong_flag_is_told(flags, said, capsys) -> None:
    with pytest.raises(SystemExit):
        ttft.main(flags)
    assert said in capsys.readouterr().err


def test_a_missing_checkpoint_is_told(tmp_path, capsys) -> None:
    assert ttft.main(["--checkpoint", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "block.png"
    assert ttft.main(["--smoke", "--codec", "mxfp4", "--link", "l4-pcie", "--plot", str(path)]) == 0
    assert path.stat().st_size > 10_000
