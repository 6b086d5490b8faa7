"""GPTQ: packing, zero points, orders, overrides, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest
from assertions import assert_exact
from make_checkpoint import Module, edit_config, edit_tensors, write_checkpoint

from cutpq.checkpoint import bitstream, gptq
from cutpq.checkpoint.claims import ModuleSpec
from cutpq.checkpoint.errors import CheckpointError, CheckpointWarning
from cutpq.checkpoint.folder import Checkpoint, open_checkpoint

DOWN = "model.layers.0.mlp.down_proj"
TINY_LLAMA = Path(__file__).parents[1] / "data" / "tiny-llama"


def written(folder: Path, **options: Any) -> tuple[Checkpoint, Module]:
    """A new checkpoint, and what its down_proj was meant to be."""
    modules = write_checkpoint(folder, **options)
    return open_checkpoint(folder), next(m for m in modules if m.name == DOWN)


# Packing, by hand.


def test_eight_rows_of_four_bits_in_a_word() -> None:
    words = np.array([[0x76543210, -0x01234568]], np.int32)  # the second is 0xFEDCBA98
    want = np.array([range(8), range(8, 16)], np.uint8).T
    assert_exact(bitstream.unpack(words, 4, 8), want)
    assert_exact(bitstream.pack(want, 4), words)


def test_sixteen_rows_of_two_bits_and_four_of_eight() -> None:
    two = np.array([[0, 1, 2, 3] * 4], np.uint8).T
    assert_exact(bitstream.unpack(np.array([[0xE4E4E4E4]], np.uint32).view(np.int32), 2, 16), two)
    eight = np.array([[0x01, 0x80, 0xFF, 0x7F]], np.uint8).T
    assert_exact(bitstream.unpack(np.array([[0x7FFF8001]], np.int32), 8, 4), eight)


def test_three_bits_straddle_words() -> None:
    """Row 10 has its low two bits on top of word 0, row 21 its low bit on top of word 1."""
    codes = np.zeros((32, 1), np.uint8)
    codes[[9, 10, 21, 31], 0] = 1, 0b101, 0b110, 0b111
    words = np.array([[(1 << 27) | (0b01 << 30)], [0b1 | (0 << 31)], [0b11 | (0b111 << 29)]], np.uint32)
    assert_exact(bitstream.unpack(words.view(np.int32), 3, 32), codes)
    assert_exact(bitstream.pack(codes, 3), words.view(np.int32))


@pytest.mark.parametrize("bits", range(1, 9))
def test_fields_are_what_unpack_gives_in_their_order(bits: int) -> None:
    """Counts that end within a word too, where some fields are shorter."""
    for count in (1, 31, 32, 77, 128):
        words = np.random.default_rng(bits).integers(0, 2**32, (bitstream.words_for(count, bits), 3), np.uint32)
        words = words.view(np.int32)
        have = np.concatenate([field.copy() for field in bitstream.fields(words, bits, count)])
        order = bitstream.order_of_fields(bits, count)
        assert_exact(np.sort(order), np.arange(count))
        assert_exact(have, bitstream.unpack(words, bits, count)[order])


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 33, 75])
def test_pack_is_the_inverse_of_unpack(bits: int, count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 1 << bits, (count, 5)).astype(np.uint8)
    words = bitstream.pack(codes, bits)
    assert words.shape == (bitstream.words_for(count, bits), 5)
    assert_exact(bitstream.unpack(words, bits, count), codes)
    rows = np.random.default_rng(bits).permutation(count)[: count // 2 + 1]
    assert_exact(bitstream.take(words, bits, rows), codes[rows])
    assert [oracle.bit_stream(words[:, n].tolist(), bits, count) for n in range(5)] == codes.T.tolist()


# Whole modules against the oracle.


@pytest.mark.parametrize("child", ["mlp.down_proj", "mlp.gate_proj", "self_attn.o_proj"])
def test_real_checkpoint(child: str) -> None:
    name = f"model.layers.1.{child}"
    ckpt = open_checkpoint(TINY_LLAMA)
    tensors = {t: ckpt.tensor(t) for t in ckpt.tensors() if t.startswith(name)}
    w = ckpt.weight(name)
    oracle.assert_same_weight(w, oracle.gptq(tensors, name, 4, 128, True, "gptq"))
    assert not w.is_ordered
    assert_exact(ckpt.g_idx(name), w.g_idx)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 2},
        {"bits": 3, "sym": False},
        {"bits": 4, "sym": False},
        {"bits": 8, "sym": False},
        {"bits": 3, "format": "gptq_v2", "sym": False},
        {"bits": 4, "format": "gptq_v2", "sym": False},
        {"group_size": -1},
        {"group_size": 40},  # the last group is short
        {"group_size": 8},
        {"group_size": 256},  # longer than K
        {"desc_act": False},
        {"scale_dtype": np.float32},
        {"scale_dtype": ml_dtypes.bfloat16},
        {"shards": 3},
    ],
    ids=str,
)
def test_variant(tmp_path: Path, options: dict[str, Any]) -> None:
    ckpt, module = written(tmp_path, **options)
    assert_as_written(ckpt, module)
    asked = {"bits": 4, "group_size": 32, "sym": True, "format": "gptq", **options}
    want = oracle.gptq(oracle.load(tmp_path), DOWN, asked["bits"], asked["group_size"], asked["sym"], asked["format"])
    oracle.assert_same_weight(ckpt.weight(DOWN), want)


def assert_as_written(ckpt: Checkpoint, module: Module) -> None:
    """As written; scales that are not float16 come as float32."""
    w = ckpt.weight(module.name)
    for field in ("codes", "zeros", "g_idx"):
        assert_exact(getattr(w, field), getattr(module, field))
    assert_exact(w.scales, module.scales if module.scales.dtype == np.float16 else module.scales.astype(np.float32))
    assert (w.bits, w.group_size) == (module.bits, module.group_size)


@pytest.mark.parametrize("bits", [3, 4])
def test_rows_and_columns_over_block_borders(tmp_path: Path, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 32 rows: selections in one block, in several, out of order, with repetitions, empty."""
    monkeypatch.setattr(gptq, "_BLOCK", 1)
    ckpt, module = written(tmp_path, bits=bits, intermediate=160)
    w = ckpt.weight(DOWN)
    assert_exact(w.codes, module.codes)
    selections = [
        (slice(70, 75), slice(3, 9)),
        (slice(5, 133), np.array([9, 0, 9, 63])),
        (np.array([159, 0, 31, 32, 159, 64]), None),
        (np.random.default_rng(0).permutation(160), slice(None, None, 3)),
    ]
    for rows, columns in selections:
        part = ckpt.weight(DOWN, rows, columns)
        chosen = slice(None) if columns is None else columns
        assert_exact(part.codes, w.codes[rows][:, chosen])
        assert_exact(part.g_idx, w.g_idx[rows])
        assert_exact(part.scales, w.scales[:, chosen])
        assert_exact(part.zeros, w.zeros[:, chosen])
    assert ckpt.weight(DOWN, slice(8, 8)).codes.shape == (0, 64)


def test_bias_follows_the_columns(tmp_path: Path) -> None:
    modules = write_checkpoint(tmp_path, family="bigcode")
    c_fc = next(m for m in modules if m.name.endswith("c_fc"))
    assert c_fc.bias is not None
    bias = open_checkpoint(tmp_path).weight(c_fc.name, columns=np.array([5, 1])).bias
    assert bias is not None
    assert_exact(bias, c_fc.bias[[5, 1]])


# Zero points.


@pytest.mark.parametrize(("bits", "middle"), [(2, 2), (3, 4), (4, 8), (8, 128)])
@pytest.mark.parametrize(("truth", "label"), [("gptq", "gptq_v2"), ("gptq_v2", "gptq")])
def test_symmetric_zeros_tell_their_convention(tmp_path: Path, bits: int, middle: int, truth: str, label: str) -> None:
    write_checkpoint(tmp_path, format=truth, bits=bits)
    edit_config(tmp_path, lambda config: config.update(checkpoint_format=label))
    ckpt = open_checkpoint(tmp_path)
    assert (ckpt.weight(DOWN).zeros == middle).all()
    found = ckpt.inspect(DOWN)
    assert found.zeros.contradicts
    assert found.zeros.decided == ("v1" if truth == "gptq" else "v2")
    assert any("zero points are v" in note for note in found.notes)


def test_convention_is_of_the_module_not_of_the_columns_read(tmp_path: Path) -> None:
    """Columns 0 .. 7 alone look like v1 of a symmetric weight; the whole tensor does not."""
    write_checkpoint(tmp_path, format="gptq_v2")

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{DOWN}.qzeros"][:, 0] = 0x77777777

    edit_tensors(tmp_path, change)
    ckpt = open_checkpoint(tmp_path)
    assert (ckpt.weight(DOWN, columns=slice(0, 8)).zeros == 7).all()
    assert "sym is claimed true, but zero points differ from the middle" in ckpt.inspect(DOWN).notes


def test_label_decides_for_asymmetric_weights(tmp_path: Path) -> None:
    """All zero points 8 in an asymmetric v1 file are 9: nothing but the label can tell."""
    write_checkpoint(tmp_path, sym=False)
    edit_tensors(tmp_path, lambda tensors: tensors[f"{DOWN}.qzeros"].fill(-0x77777778))  # 0x88888888
    assert (open_checkpoint(tmp_path).weight(DOWN).zeros == 9).all()


def test_zero_point_zero_wraps_under_v1(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, sym=False)

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{DOWN}.qzeros"][0, 0] = 0x7654321F

    edit_tensors(tmp_path, change)
    ckpt = open_checkpoint(tmp_path)
    assert ckpt.weight(DOWN).zeros[0, :8].tolist() == [0, 2, 3, 4, 5, 6, 7, 8]
    assert any(note.startswith("1 zero points are 0, stored wrapped as 15") for note in ckpt.inspect(DOWN).notes)


def test_old_tgi_files_have_their_config_in_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, bits=8, group_size=16)
    truth = open_checkpoint(tmp_path).weight(DOWN)
    edit_tensors(
        tmp_path, lambda t: t.update(gptq_bits=np.array([8]), gptq_groupsize=np.array(16), gptq_sym=np.array(True))
    )
    (tmp_path / "config.json").write_text("{}")
    ckpt = open_checkpoint(tmp_path)
    assert_exact(ckpt.weight(DOWN).codes, truth.codes)
    assert ckpt.spec(DOWN) == ModuleSpec("gptq", "gptq", 8, 16, desc_act=False, sym=True)


# Orders.


def set_order(folder: Path, g_idx: np.ndarray | None) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        if g_idx is None:
            del tensors[f"{DOWN}.g_idx"]
        else:
            tensors[f"{DOWN}.g_idx"] = g_idx

    edit_tensors(folder, change)


TRIVIAL = (np.arange(128) // 32).astype(np.int32)


@pytest.mark.parametrize(
    ("g_idx", "kind"),
    [(None, "absent"), (np.zeros(128, np.int32), "unset"), (TRIVIAL, "trivial"), (TRIVIAL.astype(np.int64), "trivial")],
    ids=["absent", "all_zero", "trivial", "int64"],
)
def test_rows_in_order(tmp_path: Path, g_idx: np.ndarray | None, kind: str) -> None:
    write_checkpoint(tmp_path)
    set_order(tmp_path, g_idx)
    ckpt = open_checkpoint(tmp_path)
    assert_exact(ckpt.g_idx(DOWN), TRIVIAL)
    found = ckpt.inspect(DOWN)
    assert found.order_kind == kind
    assert f"desc_act is claimed, but the order is {kind}" in found.notes


def test_all_zero_is_real_where_there_is_one_group(tmp_path: Path) -> None:
    ckpt, _ = written(tmp_path, group_size=-1)
    assert_exact(ckpt.g_idx(DOWN), np.zeros(128, np.int32))
    found = ckpt.inspect(DOWN)
    assert (found.order_kind, found.group_size, found.G) == ("trivial", 128, 1)


def test_order_is_the_tensors_not_the_flags(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, desc_act=True)
    edit_config(tmp_path, lambda config: config.update(desc_act=False))
    found = open_checkpoint(tmp_path).inspect(DOWN)
    assert found.order_kind == "act-order"
    assert "desc_act is not claimed, but the rows of the groups are scattered" in found.notes


def test_groups_in_order_with_other_borders(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    g_idx = np.sort(np.concatenate([TRIVIAL[:120], TRIVIAL[:8]])).astype(np.int32)
    set_order(tmp_path, g_idx)
    ckpt = open_checkpoint(tmp_path)
    assert_exact(ckpt.g_idx(DOWN), g_idx)
    assert ckpt.inspect(DOWN).order_kind == "ordered"


def test_negative_groups_count_from_the_end_and_warn(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    set_order(tmp_path, np.where(TRIVIAL == 3, -1, TRIVIAL).astype(np.int32))
    ckpt = open_checkpoint(tmp_path)
    with pytest.warns(CheckpointWarning, match=r"down_proj.g_idx counts some groups from the end; G=4 was added"):
        assert_exact(ckpt.g_idx(DOWN), TRIVIAL)
    with pytest.warns(CheckpointWarning):
        assert any("negative groups" in note for note in ckpt.inspect(DOWN).notes)


@pytest.mark.parametrize("wrong", [4, -5, 2**31 - 1, -(2**31)])
@pytest.mark.filterwarnings("ignore::cutpq.checkpoint.errors.CheckpointWarning")
def test_group_out_of_range(tmp_path: Path, wrong: int) -> None:
    write_checkpoint(tmp_path)
    g_idx = TRIVIAL.copy()
    g_idx[77] = wrong
    set_order(tmp_path, g_idx)
    ckpt = open_checkpoint(tmp_path)
    for read in (ckpt.weight, ckpt.g_idx, ckpt.inspect):
        with pytest.raises(CheckpointError, match=r"down_proj.g_idx: expected groups 0 to 3, found .* for row 77"):
            read(DOWN)


# The config against the tensors.


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"bits": 8}, r"down_proj.qzeros: expected .* config's bits=8, found shape \(4, 8\), which is of 4 bits"),
        ({"bits": 3}, r"down_proj.qzeros: expected .* config's bits=3, found shape \(4, 8\), which is of 4 bits"),
        ({"group_size": 64}, "down_proj.scales: expected 2 groups, for K=128 rows .* group_size=64, found 4 groups"),
        ({"group_size": -1}, "down_proj.scales: expected 1 groups"),
    ],
)
def test_contradiction_is_refused(tmp_path: Path, claim: dict[str, Any], message: str) -> None:
    write_checkpoint(tmp_path)
    edit_config(tmp_path, lambda config: config.update(claim))
    ckpt = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        ckpt.weight(DOWN)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"bits": "4"}, "bits: expected an integer, found '4'"),
        ({"bits": True}, "bits: expected an integer, found True"),
        ({"bits": None}, "bits: expected an integer, found no such key"),
        ({"bits": 5}, "found 5, which is stored in the planar layout"),
        ({"bits": 16}, "expected bits to be one of 2, 3, 4, 8, found 16"),
        ({"group_size": 0}, "expected group_size to be -1 or a positive multiple of 8, found 0"),
        ({"group_size": 12}, "found 12"),
        ({"sym": "yes"}, "sym: expected true or false, found 'yes'"),
        ({"dynamic": []}, "dynamic: expected an object"),
        ({"dynamic": {"(": {}}}, "dynamic: expected a regular expression"),
        ({"checkpoint_format": "gptq_p"}, "found gptq_p .the planar layout.*export the model again"),
        ({"checkpoint_format": "marlin"}, "found marlin"),
        ({"is_marlin_format": True}, "found marlin"),
        ({"quant_method": "marlin"}, "found marlin"),
        ({"checkpoint_format": "bitblas"}, "found bitblas"),
        ({"checkpoint_format": "gemv"}, "found gemv .unknown"),
        ({"quant_method": "hqq"}, "quant_method: expected one of .*, found 'hqq'"),
        ({"quant_method": ["gptq"]}, "quant_method: expected a string"),
    ],
    ids=str,
)
def test_config_is_refused_when_opened(tmp_path: Path, claim: dict[str, Any], message: str) -> None:
    write_checkpoint(tmp_path)
    edit_config(tmp_path, lambda config: config.update(claim))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert "config.json: quantization_config" in str(caught.value)


def test_missing_sym_is_assumed_true_with_a_warning(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    edit_config(tmp_path, lambda config: config.pop("sym"))
    with pytest.warns(CheckpointWarning, match=r"sym is missing; assumed true"):
        ckpt = open_checkpoint(tmp_path)
    assert ckpt.spec(DOWN).sym


def test_dynamic_overrides_by_name(tmp_path: Path) -> None:
    """down_proj of 8 bits in a 4-bit checkpoint; a pattern that excludes is no claim about what is there."""
    write_checkpoint(tmp_path / "four", group_size=32)
    write_checkpoint(tmp_path / "eight", group_size=16, bits=8, sym=False, seed=1)
    eight = oracle.load(tmp_path / "eight")
    edit_tensors(tmp_path / "four", lambda t: t.update({n: eight[n] for n in t if n.startswith(DOWN)}))
    dynamic = {"-:.*lm_head": {}, r"+:.*\.down_proj": {"bits": 8, "group_size": 16, "sym": False}, ".*": {"bits": 4}}
    edit_config(tmp_path / "four", lambda config: config.update(dynamic=dynamic))
    ckpt = open_checkpoint(tmp_path / "four")
    oracle.assert_same_weight(ckpt.weight(DOWN), oracle.gptq(eight, DOWN, 8, 16, False, "gptq"))
    assert ckpt.spec("model.layers.0.mlp.up_proj").bits == 4
    assert ckpt.weight("model.layers.0.mlp.up_proj").bits == 4


def test_first_pattern_that_matches_counts(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    dynamic = {"-:.*down_proj": {"bits": 2}, ".*up_proj": {}, ".*": {"bits": 8}}
    edit_config(tmp_path, lambda config: config.update(dynamic=dynamic))
    ckpt = open_checkpoint(tmp_path)
    bits = [ckpt.spec(f"model.layers.0.mlp.{child}_proj").bits for child in ("down", "up", "gate")]
    assert bits == [4, 4, 8]


# Tensors that are wrong.


def replace_tensor(name: str, make: Any) -> Any:
    return lambda tensors: tensors.update({f"{DOWN}.{name}": make(tensors[f"{DOWN}.{name}"])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{DOWN}.scales"), "expected tensor model.layers.0.mlp.down_proj.scales, found no"),
        (lambda t: t.pop(f"{DOWN}.qzeros"), "expected tensor model.layers.0.mlp.down_proj.qzeros"),
        (replace_tensor("qweight", lambda a: a.view(np.float32)), "qweight: expected I32 of shape .* found F32"),
        (replace_tensor("qweight", lambda a: a[None]), "qweight: expected I32 .* found I32 of shape .1, 16, 64"),
        (replace_tensor("qweight", lambda a: a[:-1]), r"g_idx: expected I32 or I64 of shape \(120\)"),
        (replace_tensor("qzeros", lambda a: a[:-1]), r"qzeros: expected .*\(4, N\*bits/32\), found .*\(3, 8\)"),
        (replace_tensor("scales", lambda a: a[:, :-1]), r"scales: expected .* \(G, 64\), found .*\(4, 63\)"),
        (replace_tensor("scales", lambda a: a.astype(np.float64)), "scales: expected F16 or BF16 or F32 .* found F64"),
        (replace_tensor("scales", lambda a: a * np.float16(np.nan)), "expected finite scales, found nan at group 0"),
        (replace_tensor("g_idx", lambda a: a[:-1]), r"g_idx: expected I32 or I64 of shape \(128\), found .*\(127,\)"),
        (replace_tensor("g_idx", lambda a: a.astype(np.float32)), "g_idx: expected I32 or I64"),
    ],
)
def test_wrong_tensor(tmp_path: Path, change: Any, message: str) -> None:
    write_checkpoint(tmp_path)
    edit_tensors(tmp_path, change)
    ckpt = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        ckpt.weight(DOWN)
    assert str(tmp_path) in str(caught.value)


def test_wrong_bias(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    edit_tensors(tmp_path, lambda tensors: tensors.update({f"{DOWN}.bias": np.zeros(63, np.float16)}))
    with pytest.raises(CheckpointError, match=r"bias: expected F16 or BF16 or F32 of shape \(64\)"):
        open_checkpoint(tmp_path).weight(DOWN)


def test_scale_is_checked_where_it_is_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{DOWN}.scales"][2, 7] = np.inf

    edit_tensors(tmp_path, change)
    ckpt = open_checkpoint(tmp_path)
    assert ckpt.weight(DOWN, columns=slice(8, 16)).N == 8
    with pytest.raises(CheckpointError, match=r"scales: expected finite scales, found inf at group 2, column 1"):
        ckpt.weight(DOWN, columns=slice(6, 16))


# Back to tensors.


@pytest.mark.parametrize(
    "options",
    [
        {"sym": False},
        {"bits": 3, "format": "gptq_v2"},
        {"scale_dtype": ml_dtypes.bfloat16, "sym": False, "bits": 8},
        {"family": "bigcode"},
        {"desc_act": False, "group_size": -1, "bits": 2},
    ],
    ids=str,
)
def test_repack_gives_the_stored_tensors(tmp_path: Path, options: dict[str, Any]) -> None:
    write_checkpoint(tmp_path, **options)
    ckpt = open_checkpoint(tmp_path)
    for name in ckpt.weights():
        packed = ckpt.repack(name, ckpt.weight(name))
        assert packed.keys() == {t for t in ckpt.tensors() if t.startswith(f"{name}.")}
        for tensor, array in packed.items():
            assert_exact(array, ckpt.tensor(tensor))


def test_repack_keeps_a_new_order(tmp_path: Path) -> None:
    """A module without g_idx gets one when its rows are scattered."""
    write_checkpoint(tmp_path, desc_act=False)
    set_order(tmp_path, None)
    ckpt = open_checkpoint(tmp_path)
    rows = np.arange(128)[::-1]
    packed = ckpt.repack(DOWN, ckpt.weight(DOWN, rows))
    assert_exact(packed[f"{DOWN}.g_idx"], TRIVIAL[::-1].copy())
    assert f"{DOWN}.g_idx" not in ckpt.repack(DOWN, ckpt.weight(DOWN))
