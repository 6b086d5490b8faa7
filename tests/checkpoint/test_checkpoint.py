"""A folder as a checkpoint: where the config is, which modules there are, and what is said of wrong names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assertions import assert_exact
from make_checkpoint import edit_tensors, write_checkpoint
from safetensors.numpy import save_file

from cutpq.checkpoint import bitstream
from cutpq.checkpoint.errors import CheckpointError
from cutpq.checkpoint.folder import open_checkpoint

DOWN = "model.layers.0.mlp.down_proj"
TINY_LLAMA = Path(__file__).parents[1] / "data" / "tiny-llama"


def test_real_checkpoint() -> None:
    ckpt = open_checkpoint(TINY_LLAMA)
    assert ckpt.folder == TINY_LLAMA
    assert ckpt.config["model_type"] == "llama"
    assert len(ckpt.weights()) == 4 * 7
    assert ckpt.weights()[0] == DOWN
    assert ckpt.shape(DOWN) == (1024, 256)
    assert ckpt.has("lm_head.weight")
    assert ckpt.tensor("lm_head.weight").shape == (1024, 256)
    assert_exact(ckpt.tensor("lm_head.weight", slice(3, 5)), ckpt.tensor("lm_head.weight")[3:5])
    found = ckpt.inspect(DOWN)
    assert (found.order_kind, found.G, found.group_size, found.sym, found.notes) == ("act-order", 8, 128, True, ())


def test_layers_are_counted_not_spelled(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, layers=11, hidden=32, intermediate=32, head_dim=32)
    layers = [int(name.split(".")[2]) for name in open_checkpoint(tmp_path).weights()]
    assert layers == sorted(layers)
    assert set(layers) == set(range(11))


@pytest.mark.parametrize(("family", "modules"), [("bigcode", 4), ("phi3", 4), ("mixtral", 4 + 2 * 3), ("llama", 7)])
def test_families(tmp_path: Path, family: str, modules: int) -> None:
    written = write_checkpoint(tmp_path, family=family, layers=2, shards=3)
    ckpt = open_checkpoint(tmp_path)
    assert len(ckpt.weights()) == 2 * modules
    assert len(ckpt.files()) == 3
    for module in written:
        assert_exact(ckpt.weight(module.name).codes, module.codes)


def test_without_quantization(tmp_path: Path) -> None:
    """A float16 model is a checkpoint too, with or without a config.json."""
    save_file({"a.weight": np.ones((2, 2), np.float16)}, tmp_path / "model.safetensors")
    ckpt = open_checkpoint(tmp_path)
    assert (ckpt.weights(), ckpt.config, ckpt.tensors()) == ([], {}, ["a.weight"])
    (tmp_path / "config.json").write_text('{"model_type": "llama", "quantization_config": null}')
    assert open_checkpoint(tmp_path).weights() == []
    with pytest.raises(CheckpointError, match=r"expected the name of a quantized module, found 'a'; there are 0"):
        ckpt.weight("a")


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_config_within_config_json(tmp_path: Path, key: str) -> None:
    write_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[key] = config.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(tmp_path).spec(DOWN).group_size == 32


def test_config_beside_config_json(tmp_path: Path) -> None:
    """quantize_config.json, as AutoGPTQ wrote it, counts where config.json says nothing."""
    write_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "quantize_config.json").write_text(json.dumps({**config["quantization_config"], "group_size": 64}))
    assert open_checkpoint(tmp_path).spec(DOWN).group_size == 32
    (tmp_path / "config.json").unlink()
    ckpt = open_checkpoint(tmp_path)
    assert ckpt.spec(DOWN).group_size == 64
    with pytest.raises(CheckpointError, match=r"found 4 groups"):
        ckpt.weight(DOWN)


def test_base_name_of_the_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    shutil.move(tmp_path / "model.safetensors", tmp_path / "gptq_model-4bit-32g.safetensors")
    save_file({"a": np.zeros(1)}, tmp_path / "adapter.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["model_file_base_name"] = "gptq_model-4bit-32g"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert DOWN in open_checkpoint(tmp_path).weights()


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '"x"', '{"quantization_config": 3}', "\x00", "[" * 100_000])
def test_config_that_is_none(tmp_path: Path, text: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json.*: expected"):
        open_checkpoint(tmp_path)


def test_config_that_is_no_text(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(CheckpointError, match=r"config.json: expected a JSON object"):
        open_checkpoint(tmp_path)


def test_packed_weights_without_a_config(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"qweight: expected a quantization config in config.json"):
        open_checkpoint(tmp_path)


def test_marlin_tensors_without_a_flag(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{DOWN}.B"] = tensors.pop(f"{DOWN}.qweight")
        tensors[f"{DOWN}.s"] = tensors.pop(f"{DOWN}.scales")

    edit_tensors(tmp_path, change)
    with pytest.raises(CheckpointError, match=r"down_proj.B: expected a row-packed format, found .* the Marlin kernel"):
        open_checkpoint(tmp_path)


def test_wrong_name_gets_close_names(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    ckpt = open_checkpoint(tmp_path)
    for ask in (ckpt.weight, ckpt.g_idx, ckpt.shape, ckpt.spec, ckpt.inspect):
        with pytest.raises(CheckpointError, match=f"found 'model.layers.0.mlp.down'; close names: {DOWN}"):
            ask("model.layers.0.mlp.down")
    with pytest.raises(CheckpointError, match=f"name of a tensor, found '{DOWN}.weight'; close names: .*down_proj"):
        ckpt.tensor(f"{DOWN}.weight")


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        (np.array([0, 128]), "rows must be within 0 .. 127, got 0 .. 128"),
        (np.array([-1]), "rows must be within 0 .. 127, got -1 .. -1"),
        (np.array([0.5]), "rows must be None, a slice or a vector of integers, got float64"),
        (np.zeros((2, 2), int), "got int64 of \\(2, 2\\)"),
        (np.array([True] * 128), "got bool"),
    ],
)
def test_selection_of_what_is_not_there(tmp_path: Path, rows: Any, error: str) -> None:
    write_checkpoint(tmp_path)
    with pytest.raises((TypeError, ValueError), match=error):
        open_checkpoint(tmp_path).weight(DOWN, rows=rows)


def test_selections_mean_what_numpy_means(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    ckpt = open_checkpoint(tmp_path)
    w = ckpt.weight(DOWN)
    for chosen in (slice(-8, None), slice(100, 999), slice(20, 10), slice(None, None, -1), slice(3, 50, 7), [5, 5, 0]):
        assert (ckpt.weight(DOWN, rows=chosen).codes == w.codes[chosen]).all()
        assert ckpt.weight(DOWN, rows=chosen).codes.shape == w.codes[chosen].shape


def test_result_does_not_hold_the_file(tmp_path: Path) -> None:
    """What was read is a copy: another file under the same name changes nothing."""
    write_checkpoint(tmp_path)
    w = open_checkpoint(tmp_path).weight(DOWN)
    before = w.codes.copy(), w.scales.copy()
    write_checkpoint(tmp_path / "other", seed=1)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    assert_exact(w.codes, before[0])
    assert_exact(w.scales, before[1])


@pytest.mark.parametrize(
    "options",
    [
        {"format": "gptq", "bits": 3},
        {"format": "gptq"},
        {"format": "awq", "sym": False},
        {"format": "compressed-tensors"},
    ],
    ids=str,
)
def test_codes_alone_are_those_that_were_written(tmp_path: Path, options: dict) -> None:
    """In any rows and columns: a slice inside a word, none, and a permutation."""
    written = write_checkpoint(tmp_path, **options)[-1]
    ckpt, (K, N) = open_checkpoint(tmp_path), written.codes.shape
    rng = np.random.default_rng(7)
    for rows in None, slice(5, 39), slice(32, K), slice(0), rng.permutation(K), np.array([K - 1, 3]):
        for columns in None, slice(3, 21), slice(0), rng.permutation(N), np.array([N - 1, 1]):
            want = written.codes[slice(None) if rows is None else rows][:, slice(None) if columns is None else columns]
            assert_exact(ckpt.codes(written.name, rows, columns), want)


@pytest.mark.parametrize("options", [{"format": "gptq", "bits": 3}, {"format": "compressed-tensors"}], ids=str)
def test_words_hold_the_codes_of_their_rows_and_columns(tmp_path: Path, options: dict) -> None:
    written = write_checkpoint(tmp_path, **options)[-1]
    ckpt, (K, N) = open_checkpoint(tmp_path), written.codes.shape
    bits = ckpt.spec(written.name).bits
    for rows in slice(0, K), slice(32, K), slice(32, 64):
        for columns in None, slice(3, 21), np.random.default_rng(7).permutation(N):
            want = written.codes[rows][:, slice(None) if columns is None else columns]
            assert_exact(ckpt.words(written.name, rows, columns), bitstream.pack(want, bits))
    with pytest.raises(ValueError, match="multiple of 32"):
        ckpt.words(written.name, slice(16, K))


def test_words_of_awq_are_refused(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path, format="awq", sym=False)[-1]
    with pytest.raises(CheckpointError, match=r"expected codes packed along K, found AWQ's"):
        open_checkpoint(tmp_path).words(written.name, slice(0, 32))
