"""compressed-tensors "pack-quantized": the bitstream, the offset, g_idx by both names, config groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest
from assertions import assert_exact
from make_checkpoint import edit_config, edit_tensors, write_checkpoint

from cutpq.checkpoint import compressed_tensors
from cutpq.checkpoint.errors import CheckpointError
from cutpq.checkpoint.folder import open_checkpoint
from cutpq.checkpoint.tensors import Tensors

DOWN = "model.layers.0.mlp.down_proj"
UP = "model.layers.0.mlp.up_proj"


def test_by_hand(tmp_path: Path) -> None:
    """Two columns of nine rows: signed -8 .. 0 and 7 .. -1, stored with 8 added, the ninth in a second word."""
    from safetensors.numpy import save_file

    signed = np.array([[-8, -7, -6, -5, -4, -3, -2, -1, 0], [7, 6, 5, 4, 3, 2, 1, 0, -1]])
    tensors = {
        "m.weight_packed": np.array([[0x76543210, 0x8], [-0x76543211, 0x7]], np.int32),  # 0x89ABCDEF
        "m.weight_scale": np.array([[1.0, 2.0], [0.5, 4.0]], np.float16),
        "m.weight_shape": np.array([2, 9]),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    weights = {"num_bits": 4, "group_size": 8, "strategy": "group"}
    config = {"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["Linear"], "weights": weights}}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    w = open_checkpoint(tmp_path).weight("m")
    assert_exact(w.codes, (signed.T + 8).astype(np.uint8))
    assert_exact(w.zeros, np.full((2, 2), 8, np.uint8))
    assert_exact(w.scales, np.array([[1.0, 0.5], [2.0, 4.0]], np.float16))
    assert w.g_idx.tolist() == [0] * 8 + [1]


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 2},
        {"bits": 3, "sym": False},
        {"bits": 4, "sym": False},
        {"bits": 8, "sym": False},
        {"bits": 3, "intermediate": 104, "hidden": 40, "sym": False},  # neither K nor N fills its words
        {"group_size": -1},
        {"group_size": 40},
        {"desc_act": False},
        {"scale_dtype": ml_dtypes.bfloat16},
        {"shards": 2},
    ],
    ids=str,
)
def test_variant(tmp_path: Path, options: dict[str, Any]) -> None:
    modules = write_checkpoint(tmp_path, format="compressed-tensors", **options)
    ckpt = open_checkpoint(tmp_path)
    w = ckpt.weight(DOWN)
    want = oracle.compressed(oracle.load(tmp_path), DOWN, options.get("bits", 4), options.get("group_size", 32))
    oracle.assert_same_weight(w, want)
    for field in ("codes", "zeros", "g_idx"):
        assert_exact(getattr(w, field), getattr(modules[-1], field))
    assert w.group_size == modules[-1].group_size


def test_rows_and_columns_over_block_borders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed_tensors, "_BLOCK", 200)
    write_checkpoint(tmp_path, format="compressed-tensors", bits=3, sym=False)
    ckpt = open_checkpoint(tmp_path)
    w = ckpt.weight(DOWN)
    for rows, columns in ((slice(2, 7), slice(3, 13)), (np.array([127, 0, 3, 4, 127]), np.array([63, 0, 9, 9]))):
        part = ckpt.weight(DOWN, rows, columns)
        assert_exact(part.codes, w.codes[rows][:, columns])
        assert_exact(part.zeros, w.zeros[:, columns])
        assert_exact(part.scales, w.scales[:, columns])
        assert_exact(part.g_idx, w.g_idx[rows])


def set_order(folder: Path, tensor: str, g_idx: np.ndarray) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors.pop(f"{DOWN}.weight_g_idx")
        tensors[f"{DOWN}.{tensor}"] = g_idx

    edit_tensors(folder, change)


SCATTERED = np.random.default_rng(1).permutation(np.arange(128) // 32).astype(np.int32)


@pytest.mark.parametrize("tensor", ["weight_g_idx", "g_idx"])
def test_order_by_either_name(tmp_path: Path, tensor: str) -> None:
    write_checkpoint(tmp_path, format="compressed-tensors")
    set_order(tmp_path, tensor, SCATTERED)
    ckpt = open_checkpoint(tmp_path)
    assert_exact(ckpt.g_idx(DOWN), SCATTERED)
    assert ckpt.inspect(DOWN).order_kind == "act-order"
    packed = ckpt.repack(DOWN, ckpt.weight(DOWN))
    assert_exact(packed[f"{DOWN}.{tensor}"], SCATTERED)


def test_order_of_minus_ones_is_unset(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, format="compressed-tensors")
    set_order(tmp_path, "weight_g_idx", np.full(128, -1, np.int32))
    ckpt = open_checkpoint(tmp_path)
    assert_exact(ckpt.g_idx(DOWN), (np.arange(128) // 32).astype(np.int32))
    found = ckpt.inspect(DOWN)
    assert found.order_kind == "unset"
    assert found.notes == ("actorder is claimed to be by group, but the order is unset",)
    assert (ckpt.repack(DOWN, ckpt.weight(DOWN))[f"{DOWN}.weight_g_idx"] == -1).all()


@pytest.mark.parametrize("wrong", [-1, 4, -4])
def test_one_group_out_of_range(tmp_path: Path, wrong: int) -> None:
    """-1 in one place among groups is a contradiction, not the last group."""
    write_checkpoint(tmp_path, format="compressed-tensors")
    g_idx = SCATTERED.copy()
    g_idx[5] = wrong
    set_order(tmp_path, "weight_g_idx", g_idx)
    with pytest.raises(CheckpointError, match=f"weight_g_idx: expected groups 0 to 3, found {wrong} for row 5"):
        open_checkpoint(tmp_path).weight(DOWN)


ACTORDER = {True: True, "group": True, "dynamic": True, False: False, None: False, "weight": False, "static": False}


@pytest.mark.parametrize(("actorder", "claimed"), ACTORDER.items())
def test_actorder_words(tmp_path: Path, actorder: Any, claimed: bool) -> None:
    write_checkpoint(tmp_path, format="compressed-tensors")
    edit_config(tmp_path, lambda c: c["config_groups"]["group_0"]["weights"].update(actorder=actorder))
    assert open_checkpoint(tmp_path).spec(DOWN).desc_act is claimed


def test_zero_points_of_a_weight_that_claims_none(tmp_path: Path) -> None:
    """The tensor is there, so it counts."""
    modules = write_checkpoint(tmp_path, format="compressed-tensors", sym=False)
    edit_config(tmp_path, lambda c: c["config_groups"]["group_0"]["weights"].update(symmetric=True))
    ckpt = open_checkpoint(tmp_path)
    assert_exact(ckpt.weight(DOWN).zeros, modules[-1].zeros)
    assert "symmetric is claimed true, but zero points differ from the middle" in ckpt.inspect(DOWN).notes


def test_wrong_zero_points_of_a_weight_that_claims_none(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, format="compressed-tensors")
    edit_tensors(tmp_path, lambda t: t.update({f"{DOWN}.weight_zero_point": np.zeros((64, 4), np.int8)}))
    with pytest.raises(CheckpointError, match=r"weight_zero_point: expected I32 of shape \(8, 4\), found I8"):
        open_checkpoint(tmp_path).weight(DOWN)


def test_wrong_length_of_the_order(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, format="compressed-tensors")
    set_order(tmp_path, "weight_g_idx", SCATTERED[:-1])
    with pytest.raises(CheckpointError, match=r"weight_g_idx: expected I32 or I64 of shape \(128\)"):
        open_checkpoint(tmp_path).shape(DOWN)


def test_groups_of_the_config_by_name_then_pattern_then_class(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, format="compressed-tensors")

    def change(config: dict[str, Any]) -> None:
        def group(targets: list[str], group_size: int) -> dict[str, Any]:
            weights = {"num_bits": 4, "group_size": group_size, "strategy": "group"}
            return {"targets": targets, "weights": weights}

        config["config_groups"] = {
            "all": group(["Linear"], 8),
            "mlp": group([r"re:.*mlp\..*"], 16),
            "down": group([DOWN], 32),
        }

    edit_config(tmp_path, change)
    ckpt = open_checkpoint(tmp_path)
    names = ("model.layers.0.self_attn.o_proj", UP, DOWN)
    assert [ckpt.spec(name).group_size for name in names] == [8, 16, 32]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="float-quantized"), "expected format pack-quantized, found float-quantized"),
        (lambda c: c.update(format="marlin-24"), "found marlin-24; export the model again as pack-quantized"),
        (lambda c: c["config_groups"]["group_0"].update(format="int-quantized"), "found int-quantized"),
        (lambda c: c.pop("config_groups"), "config_groups: expected an object of objects, found no such key"),
        (lambda c: c.update(config_groups={"group_0": 3}), "config_groups: group_0: expected an object, found 3"),
    ],
)
def test_config_is_refused_when_opened(tmp_path: Path, change: Any, message: str) -> None:
    write_checkpoint(tmp_path, format="compressed-tensors")
    edit_config(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"num_bits": 8}, r"weight_packed: expected .*\(64, 128\) and the config's bits=8, found .*\(64, 16\)"),
        ({"num_bits": 5}, "expected bits to be one of 2, 3, 4, 8, found 5"),
        ({"num_bits": None}, "num_bits: expected an integer, found no such key"),
        ({"type": "float"}, "type: expected int, found 'float'"),
        ({"strategy": "tensor"}, "strategy: expected group or channel, found 'tensor'"),
        (
            {"strategy": "group", "group_size": None},
            "group_size: expected the size for strategy group, found no such key",
        ),
        ({"strategy": "channel"}, "weight_scale: expected 1 groups, .* found 4 groups"),
        ({"group_size": 64}, "weight_scale: expected 2 groups, .* group_size=64, found 4 groups"),
        ({"symmetric": False}, "expected tensor .*weight_zero_point, found no such tensor"),
        ({"actorder": "sideways"}, "actorder: expected true, false, null or one of"),
    ],
    ids=str,
)
def test_claim_is_refused(tmp_path: Path, claim: dict[str, Any], message: str) -> None:
    write_checkpoint(tmp_path, format="compressed-tensors")
    edit_config(tmp_path, lambda c: c["config_groups"]["group_0"]["weights"].update(claim))
    ckpt = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        ckpt.weight(DOWN)


@pytest.mark.parametrize("shape", [[64, 129], [65, 128], [64, -128], [0, 0], [64, 1 << 62]])
def test_weight_shape_against_the_words(tmp_path: Path, shape: list[int]) -> None:
    write_checkpoint(tmp_path, format="compressed-tensors")
    edit_tensors(tmp_path, lambda t: t.update({f"{DOWN}.weight_shape": np.array(shape)}))
    with pytest.raises(CheckpointError, match=r"weight_packed: expected .* for weight_shape .* found shape \(64, 16\)"):
        open_checkpoint(tmp_path).weight(DOWN)


@pytest.mark.parametrize("tensor", ["weight_scale", "weight_shape", "weight_zero_point"])
def test_missing_tensor(tmp_path: Path, tensor: str) -> None:
    write_checkpoint(tmp_path, format="compressed-tensors", sym=False)
    edit_tensors(tmp_path, lambda t: t.pop(f"{DOWN}.{tensor}"))
    with pytest.raises(CheckpointError, match=f"expected tensor {DOWN}.{tensor}, found no such tensor"):
        open_checkpoint(tmp_path).weight(DOWN)


@pytest.mark.parametrize(
    "options",
    [{"sym": False}, {"bits": 3, "intermediate": 104}, {"scale_dtype": ml_dtypes.bfloat16}, {"family": "bigcode"}],
    ids=str,
)
def test_repack_gives_the_stored_tensors(tmp_path: Path, options: dict[str, Any]) -> None:
    write_checkpoint(tmp_path, format="compressed-tensors", **options)
    ckpt = open_checkpoint(tmp_path)
    for name in ckpt.weights():
        packed = ckpt.repack(name, ckpt.weight(name))
        assert packed.keys() == {t for t in ckpt.tensors() if t.startswith(f"{name}.")}
        for tensor, array in packed.items():
            assert_exact(array, ckpt.tensor(tensor))


def test_repack_keeps_a_new_order(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, format="compressed-tensors", desc_act=False)
    ckpt = open_checkpoint(tmp_path)
    rows = np.arange(128)[::-1]
    packed = ckpt.repack(DOWN, ckpt.weight(DOWN, rows))
    assert_exact(packed[f"{DOWN}.weight_g_idx"], ckpt.g_idx(DOWN)[rows])
    assert f"{DOWN}.weight_packed" in Tensors(tmp_path)
