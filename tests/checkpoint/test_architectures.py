"""Which modules form an MLP, by the names that real models have."""

import pytest
from make_checkpoint import edit_tensors, write_checkpoint

from cutpq.checkpoint.errors import CheckpointError
from cutpq.checkpoint.folder import open_checkpoint
from cutpq.checkpoint.mlp_names import MlpModules, layer_number, mlp_modules, mlps, module_role


def names(folder):
    return [(m.gate, m.up, m.down, m.activation) for m in mlps(open_checkpoint(folder))]


def test_llama(tmp_path):
    write_checkpoint(tmp_path, family="llama", layers=2)
    at = "model.layers.{}.mlp.{}_proj"
    assert names(tmp_path) == [(at.format(i, "gate"), at.format(i, "up"), at.format(i, "down"), "silu") for i in (0, 1)]


def test_bigcode_has_no_gate_and_its_attention_is_no_mlp(tmp_path):
    write_checkpoint(tmp_path, family="bigcode", layers=1)
    assert names(tmp_path) == [(None, "transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj", "gelu_tanh")]


def test_phi3_is_fused(tmp_path):
    write_checkpoint(tmp_path, family="phi3", layers=1)
    (modules,) = mlps(open_checkpoint(tmp_path))
    assert modules.fused
    assert modules.first == ("model.layers.0.mlp.gate_up_proj",)


def test_mixtral_experts_are_mlps_and_must_be_named(tmp_path):
    write_checkpoint(tmp_path, family="mixtral", layers=1)
    ckpt = open_checkpoint(tmp_path)
    experts = mlps(ckpt)
    assert len(experts) > 1
    at = "model.layers.0.block_sparse_moe.experts.0."
    assert experts[0] == MlpModules(at + "w1", at + "w3", at + "w2", "silu")
    with pytest.raises(CheckpointError, match=r"layer 0 has \d+ MLPs .* pass modules="):
        mlp_modules(ckpt, 0)


def test_layer_without_mlp_is_named(tmp_path):
    write_checkpoint(tmp_path, family="llama", layers=2)
    with pytest.raises(CheckpointError, match="no MLP in layer 7; layers 0 to 1 have one"):
        mlp_modules(open_checkpoint(tmp_path), 7)


@pytest.mark.parametrize("number", ["²", "٣", "9" * 5000], ids=["superscript", "arabic digit", "5000 digits"])
def test_a_layer_whose_number_is_none_is_sorted_too(tmp_path, number):
    """int() refuses the first and the last, isdigit() does not."""
    write_checkpoint(tmp_path, family="llama", layers=2)
    edit_tensors(tmp_path, lambda tensors: rename(tensors, "layers.1", f"layers.{number}"))
    found = [down for _, _, down, _ in names(tmp_path)]
    assert sorted(found) == sorted(f"model.layers.{n}.mlp.down_proj" for n in ("0", number))
    with pytest.raises(CheckpointError, match="found no MLP in layer 1; "):
        mlp_modules(open_checkpoint(tmp_path), 1)


def rename(tensors, old, new):
    for name in list(tensors):
        tensors[name.replace(old, new)] = tensors.pop(name)


def test_layers_are_in_natural_order(tmp_path):
    write_checkpoint(tmp_path, family="llama", layers=11)
    assert [m.layer for m in mlps(open_checkpoint(tmp_path))] == list(range(11))


@pytest.mark.parametrize(
    "name, role",
    [
        ("model.layers.0.self_attn.q_proj", "column"),
        ("model.layers.0.self_attn.o_proj", "row"),
        ("model.layers.0.mlp.gate_up_proj", "column"),
        ("model.layers.0.mlp.down_proj", "row"),
        ("transformer.h.0.attn.c_attn", "column"),
        ("transformer.h.0.attn.c_proj", "row"),
        ("transformer.h.0.mlp.c_fc", "column"),
        ("transformer.h.0.mlp.c_proj", "row"),
        ("transformer.h.0.self_attention.query_key_value", "column"),
        ("transformer.h.0.self_attention.dense", "row"),
        ("transformer.h.0.mlp.dense_4h_to_h", "row"),
        ("model.layers.0.block_sparse_moe.experts.3.w2", "row"),
        ("model.layers.0.block_sparse_moe.experts.3.w3", "column"),
        ("model.layers.0.block_sparse_moe.gate", "other"),
        ("transformer.h.0.mlp.w2", "column"),  # Qwen 1: the gate
        ("lm_head", "other"),
    ],
)
def test_roles(name, role):
    assert module_role(name) == role


@pytest.mark.parametrize("name, number", [("model.layers.12.mlp.down_proj", 12), ("h.3", 3), ("lm_head", None)])
def test_layer_number(name, number):
    assert layer_number(name) == number
