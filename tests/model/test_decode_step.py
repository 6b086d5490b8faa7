"""Transformer.decode: on a GPU a captured graph with the bits of the eager path, elsewhere the eager path itself."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from assertions import assert_exact
from make_model import write_model

from cutpq.array import to_numpy
from cutpq.model import decode_step
from cutpq.model.decode_step import bucket_of
from cutpq.model.transformer import load_model
from cutpq.ranks.alone import SelfCommunicator
from cutpq.ranks.threads import run_threads

TOKENS = np.random.default_rng(5).integers(0, 101, (30, 2))
PROMPTS = [[1, 2, 3], [4]]


def eagerly(model, steps: int, length: int) -> list[np.ndarray]:
    cache = model.new_cache(2, length)
    model(PROMPTS, cache)
    return [to_numpy(model(row[:, None], cache)) for row in TOKENS[:steps]]


def test_buckets() -> None:
    assert [bucket_of(n, 10_000) for n in (1, 256, 257, 512, 513, 9000)] == [256, 256, 512, 512, 1024, 10_000]
    assert bucket_of(3, 40) == 40


@pytest.mark.parametrize("tp", [1, 2])
def test_decode_is_the_eager_path_where_nothing_can_be_captured(xp, tp, tmp_path, capsys) -> None:
    """NumPy has no graphs, ranks as threads wait on the host, and 12 features a head have no kernel."""
    write_model(tmp_path, quantized=True)

    def rank(comm):
        model = load_model(tmp_path, comm)
        want, cache = eagerly(model, 3, 16), model.new_cache(2, 16)
        model(PROMPTS, cache)
        got = [to_numpy(model.decode(row, cache)) for row in TOKENS[:3]]
        assert cache.lengths.tolist() == [6, 4]
        return got, want

    for got, want in run_threads(tp, rank, xp=xp):
        for a, b in zip(got, want, strict=True):
            assert_exact(a, b)
    said = capsys.readouterr().out.count("decode runs eagerly, without a CUDA graph")
    assert said == (xp is not np), "once, and where there could be a graph"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 101], "token 101 is out of range: the vocabulary is 0 .. 100"),
        ([[1], [2]], "tokens must be a row of one integer or more, got int64 of shape (2, 1)"),
        ([1.0, 2.0], "tokens must be a row of one integer or more, got float64"),
        ([1], "tokens of 1 sequences do not fit a cache of 2"),
    ],
)
def test_wrong_tokens_are_named_and_change_nothing(xp, tokens, message, tmp_path) -> None:
    write_model(tmp_path, quantized=True)
    model = load_model(tmp_path, SelfCommunicator(xp=xp, device=None if xp is np else 0))
    cache = model.new_cache(2, 4)
    model(PROMPTS, cache)
    with pytest.raises(ValueError) as error:
        model.decode(tokens, cache)
    assert message in str(error.value)
    assert cache.lengths.tolist() == [3, 1]
    model.decode([1, 1], cache)
    with pytest.raises(ValueError, match="the cache is full: sequence 0 has 4 tokens"):
        model.decode([1, 1], cache)


# ---- on a GPU


@pytest.fixture
def cupy():
    from harness.gpu_clock import gpu_module

    return gpu_module()


FAMILIES = {
    "llama": {"head_dim": 16},
    "mistral": {},  # a window
    "granite": {"head_dim": 16},  # multipliers
    "gpt_bigcode": {"n_head": 4},  # LayerNorm, learned positions, biases
}


@pytest.mark.gpu
def test_a_sequence_that_leaves_takes_its_graphs_with_it(cupy, tmp_path: Path) -> None:
    """Graphs are captured for a number of sequences: after one has left, another graph runs, on the same memory."""
    write_model(tmp_path, quantized=True, head_dim=16)
    model = load_model(tmp_path, SelfCommunicator(xp=cupy, device=0), dtype="float16")
    caches = [model.new_cache(2, 16) for _ in range(2)]
    for cache in caches:
        model(PROMPTS, cache)
    for step, row in enumerate(TOKENS[:6]):
        if step == 3:
            for cache in caches:
                cache.remove(0)
        tokens = row[: len(caches[0].lengths)]
        assert_exact(to_numpy(model.decode(tokens, caches[1])), to_numpy(model(tokens[:, None], caches[0])))
    assert caches[1].lengths.tolist() == [7]


@pytest.mark.gpu
def test_another_codec_is_another_graph(cupy, tmp_path: Path) -> None:
    """Sums by another codec have other bits, which a graph of the old one would not give."""
    write_model(tmp_path, quantized=True, head_dim=16)
    model = load_model(tmp_path, SelfCommunicator(xp=cupy, device=0), dtype="float16")
    caches = [model.new_cache(2, 16) for _ in range(2)]
    for cache in caches:
        model(PROMPTS, cache)
    for row, codec in zip(TOKENS, (None, None, "mxfp4", "mxfp4", None, None), strict=False):
        model.use_codec(codec, "oneshot" if codec else "auto")
        assert_exact(to_numpy(model.decode(row, caches[1])), to_numpy(model(row[:, None], caches[0])))


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_replays_have_the_bits_of_the_eager_path_across_buckets(cupy, family, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(decode_step, "FIRST_BUCKET", 8)
    write_model(tmp_path, family, quantized=True, **FAMILIES[family])
    model = load_model(tmp_path, SelfCommunicator(xp=cupy, device=0), dtype="float16")
    want, cache = eagerly(model, 16, 32), model.new_cache(2, 32)
    model(PROMPTS, cache)
    captured = []
    original = decode_step.DecodeStep._capture
    monkeypatch.setattr(decode_step.DecodeStep, "_capture", lambda *a: captured.append(1) or original(*a))
    for step, (row, expected) in enumerate(zip(TOKENS, want, strict=False)):
        tokens = row if step % 2 else cupy.asarray(row)  # from the host and on the GPU
        assert_exact(to_numpy(model.decode(tokens, cache)), expected)
    assert cache.lengths.tolist() == [19, 17]
    assert len(captured) == 3, "one graph each for 8, 16 and 32 keys"


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [3, 4, 8, 16])
def test_a_captured_step_is_one_launch(cupy, bits, tmp_path: Path, monkeypatch) -> None:
    """Of a graph that holds the head, and the products of plain weights by cuBLAS."""
    write_model(tmp_path, quantized=bits < 16, bits=bits, head_dim=16)
    model = load_model(tmp_path, SelfCommunicator(xp=cupy, device=0), dtype="float16")
    want, cache = eagerly(model, 3, 16), model.new_cache(2, 16)
    model(PROMPTS, cache)
    assert_exact(to_numpy(model.decode(TOKENS[0], cache)), want[0])

    def nothing(*_):
        raise AssertionError("something was computed outside of the graph")

    monkeypatch.setattr(type(model), "_forward", nothing)
    monkeypatch.setattr(type(model.head), "__call__", nothing)
    second = model.decode(TOKENS[1], cache)
    assert_exact(to_numpy(model.decode(TOKENS[2], cache)), want[2])
    assert_exact(to_numpy(second), want[1])  # not overwritten by the step after it


@pytest.mark.gpu
def test_experts_are_decoded_eagerly_which_is_said_once(cupy, tmp_path: Path, capsys) -> None:
    write_model(tmp_path, "mixtral", quantized=True, head_dim=16)
    model = load_model(tmp_path, SelfCommunicator(xp=cupy, device=0), dtype="float16")
    want, cache = eagerly(model, 3, 16), model.new_cache(2, 16)
    model(PROMPTS, cache)
    for row, expected in zip(TOKENS, want, strict=False):
        assert_exact(to_numpy(model.decode(row, cache)), expected)
    said = "# cutpq: decode runs eagerly, without a CUDA graph: the host chooses each token's experts"
    assert capsys.readouterr().out.count(said) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ["none", "mxfp4"])
@pytest.mark.parametrize("backend", ["nccl", "ipc"])
def test_graphs_hold_the_sums_of_ranks(cupy, backend, codec, tmp_path: Path) -> None:
    """Two ranks with a GPU each, two buckets of lengths."""
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    pytest.importorskip("mpi4py")
    write_model(tmp_path, "mistral", quantized=True, num_key_value_heads=2)
    worker = Path(__file__).parents[1] / "helpers" / "decode_worker.py"
    command = ["mpirun", "-n", "2", sys.executable, str(worker), str(tmp_path), codec]
    done = subprocess.run(
        command, env=os.environ | {"CUTPQ_COMM": backend}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
