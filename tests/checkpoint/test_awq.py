"""AWQ "gemm": interleaved nibbles, true zero points, and the other layouts refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from assertions import assert_exact
from make_checkpoint import edit_config, edit_tensors, write_checkpoint

from cutpq.checkpoint import awq
from cutpq.checkpoint.errors import CheckpointError
from cutpq.checkpoint.folder import open_checkpoint

DOWN = "model.layers.0.mlp.down_proj"


def test_eight_columns_in_a_word() -> None:
    """Nibbles from the lowest are columns 0, 2, 4, 6, 1, 3, 5, 7."""
    words = np.array([[0x75316420]], np.int32)
    codes = np.arange(8, dtype=np.uint8)[None]
    assert_exact(awq.unpack(words, np.arange(8)), codes)
    assert_exact(awq.pack(codes), words)
    assert_exact(awq.unpack(np.array([[-0x10000000]], np.int32), np.array([7, 6])), np.array([[15, 0]], np.uint8))


@pytest.mark.parametrize("options", [{}, {"group_size": -1}, {"group_size": 40}, {"scale_dtype": np.float32}], ids=str)
def test_variant(tmp_path: Path, options: dict[str, Any]) -> None:
    modules = write_checkpoint(tmp_path, format="awq", sym=False, **options)
    ckpt = open_checkpoint(tmp_path)
    assert ckpt.weights() == [m.name for m in sorted(modules, key=lambda m: m.name)]
    w = ckpt.weight(DOWN)
    oracle.assert_same_weight(w, oracle.awq(oracle.load(tmp_path), DOWN, options.get("group_size", 32)))
    assert_exact(w.codes, modules[-1].codes)
    assert_exact(w.zeros, modules[-1].zeros)
    assert w.is_ordered
    assert ckpt.inspect(DOWN).notes == ()


def test_rows_and_columns_over_block_borders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awq, "_BLOCK", 200)
    write_checkpoint(tmp_path, format="awq", sym=False)
    ckpt = open_checkpoint(tmp_path)
    w = ckpt.weight(DOWN)
    for rows, columns in ((slice(2, 7), slice(3, 13)), (np.array([127, 0, 3, 4, 127]), np.array([63, 0, 9, 9]))):
        part = ckpt.weight(DOWN, rows, columns)
        assert_exact(part.codes, w.codes[rows][:, columns])
        assert_exact(part.zeros, w.zeros[:, columns])
        assert_exact(part.scales, w.scales[:, columns])
        assert_exact(part.g_idx, w.g_idx[rows])


def test_config_of_autoawq(tmp_path: Path) -> None:
    """quant_config.json with AutoAWQ's words, no quantization_config in config.json."""
    write_checkpoint(tmp_path, format="awq", sym=False)
    want = open_checkpoint(tmp_path).weight(DOWN)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "quant_config.json").write_text(
        '{"zero_point": true, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}'
    )
    ckpt = open_checkpoint(tmp_path)
    assert_exact(ckpt.weight(DOWN).codes, want.codes)
    assert ckpt.spec(DOWN).format == "awq"


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"version": "gemv"}, "expected AWQ version gemm, found gemv.*export the model again"),
        ({"version": "gemv_fast"}, "found gemv_fast"),
        ({"version": "llm-awq"}, "found llm-awq"),
        ({"bits": 8}, "expected bits to be one of 4, found 8"),
        ({"zero_point": 1}, "zero_point: expected true or false, found 1"),
    ],
    ids=str,
)
def test_config_is_refused_when_opened(tmp_path: Path, claim: dict[str, Any], message: str) -> None:
    write_checkpoint(tmp_path, format="awq")
    edit_config(tmp_path, lambda config: config.update(claim))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("label", "other"), [("gptq", "awq"), ("awq", "gptq")])
def test_one_format_is_not_read_as_the_other(tmp_path: Path, label: str, other: str) -> None:
    """Both call their tensors qweight, qzeros and scales; the shapes tell."""
    write_checkpoint(tmp_path, format=other)
    claims = {"quant_method": label, "checkpoint_format": None, "version": None, "sym": True}
    edit_config(tmp_path, lambda config: config.update(claims))
    with pytest.raises(CheckpointError, match=r"down_proj.scales: expected .* of shape \(G, \d+\), found"):
        open_checkpoint(tmp_path).weight(DOWN)


def test_zero_point_false_against_the_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, format="awq", sym=False)
    edit_config(tmp_path, lambda config: config.update(zero_point=False))
    assert open_checkpoint(tmp_path).inspect(DOWN).notes == (
        "zero_point is claimed false, but zero points differ from the middle",
    )


def test_wrong_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, format="awq")
    edit_tensors(tmp_path, lambda t: t.update({f"{DOWN}.qzeros": t[f"{DOWN}.qzeros"][:, :-1]}))
    ckpt = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"qzeros: expected I32 of shape \(4, 8\), found I32 of shape \(4, 7\)"):
        ckpt.weight(DOWN)
    edit_config(tmp_path, lambda config: config.update(group_size=64))
    with pytest.raises(CheckpointError, match=r"down_proj.qzeros"):
        open_checkpoint(tmp_path).weight(DOWN)
    with pytest.raises(CheckpointError, match=r"up_proj.scales: expected 1 groups, .* group_size=64, found 2 groups"):
        open_checkpoint(tmp_path).weight("model.layers.0.mlp.up_proj")


def test_repack_gives_the_stored_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, format="awq", sym=False, family="bigcode")
    ckpt = open_checkpoint(tmp_path)
    for name in ckpt.weights():
        packed = ckpt.repack(name, ckpt.weight(name))
        assert packed.keys() == {t for t in ckpt.tensors() if t.startswith(f"{name}.")}
        for tensor, array in packed.items():
            assert_exact(array, ckpt.tensor(tensor))


def test_repack_refuses_an_order(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, format="awq")
    ckpt = open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"AWQ has no g_idx; sort the rows by group first"):
        ckpt.repack(DOWN, ckpt.weight(DOWN, np.arange(128)[::-1]))
