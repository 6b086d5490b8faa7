"""Files that are whole, and files that are not."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from assertions import assert_exact
from safetensors.numpy import save_file

from cutpq.checkpoint.errors import CheckpointError
from cutpq.checkpoint.tensors import Tensors

A = np.arange(12, dtype=np.int32).reshape(4, 3)
B = np.linspace(-1, 1, 6).astype(ml_dtypes.bfloat16).reshape(2, 3)


def write_raw(path: Path, header: object, data: bytes = b"") -> None:
    """A safetensors file of any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_shards(folder: Path) -> Path:
    save_file({"a": A}, folder / "one.safetensors")
    save_file({"b": B}, folder / "two.safetensors")
    return write_index(folder, {"a": "one.safetensors", "b": "two.safetensors"})


def write_index(folder: Path, weight_map: object) -> Path:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_reads_whole_and_by_rows(tmp_path: Path) -> None:
    save_file({"a": A, "b": B, "scalar": np.array(7, np.int64)}, tmp_path / "model.safetensors")
    tensors = Tensors(tmp_path)
    assert tensors.names() == ["a", "b", "scalar"]
    assert (tensors.shape("a"), tensors.dtype("a"), tensors.file_of("a")) == ((4, 3), "I32", "model.safetensors")
    assert_exact(tensors.read("a"), A)
    assert_exact(tensors.read("a", slice(1, 3)), A[1:3])
    assert_exact(tensors.read("a", slice(3, 99)), A[3:])
    assert tensors.read("a", slice(2, 2)).shape == (0, 3)
    assert_exact(tensors.read("b", slice(1, 2)), B[1:])
    assert_exact(tensors.read("scalar"), np.array(7, np.int64))


def test_reads_what_has_no_elements(tmp_path: Path) -> None:
    write_raw(tmp_path / "model.safetensors", {"e": {"dtype": "F16", "shape": [0, 3], "data_offsets": [0, 0]}})
    tensors = Tensors(tmp_path)
    for read in (tensors.read("e"), tensors.read("e", slice(0, 5))):
        assert (read.shape, read.dtype) == ((0, 3), np.float16)
    write_raw(tmp_path / "model.safetensors", {"e": {"dtype": "F16", "shape": [3, 0], "data_offsets": [0, 0]}})
    assert Tensors(tmp_path).read("e", slice(1, 3)).shape == (2, 0)


def test_shards_of_an_index(tmp_path: Path) -> None:
    write_shards(tmp_path)
    tensors = Tensors(tmp_path)
    assert tensors.files() == ["one.safetensors", "two.safetensors"]
    assert tensors.file_of("b") == "two.safetensors"
    assert_exact(tensors.read("b"), B)


@pytest.mark.parametrize("name", ["gptq_model-4bit-128g.safetensors", "pytorch.safetensors"])
def test_one_file_of_any_name(tmp_path: Path, name: str) -> None:
    save_file({"a": A}, tmp_path / name)
    assert Tensors(tmp_path).names() == ["a"]


def test_preferred_of_several_files(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "gptq_model-4bit-128g.safetensors")
    save_file({"b": B}, tmp_path / "draft.safetensors")
    assert Tensors(tmp_path, prefer="gptq_model-4bit-128g").names() == ["a"]
    with pytest.raises(CheckpointError, match=r"draft.safetensors, gptq_model-4bit-128g.safetensors and no index"):
        Tensors(tmp_path)


def test_no_folder_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: expected a folder"):
        Tensors(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"expected model.safetensors.*found none"):
        Tensors(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x07",
        struct.pack("<Q", 1 << 62) + b"{}",  # a header that no machine holds
        struct.pack("<Q", 1 << 26) + b"{}",  # a header longer than the file
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"\xff\xff",
    ],
    ids=["empty", "one_byte", "absurd_header", "header_beyond_file", "header_is_a_list", "header_not_utf8"],
)
def test_what_is_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model.safetensors: expected a whole .* found {len(content)} bytes"):
        Tensors(tmp_path)


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [([4, 3], [0, 44]), ([4, 3], [0, 52]), ([4, 1 << 62], [0, 48]), ([1 << 33, 1 << 33], [0, 48]), ([4, -3], [0, 48])],
)
def test_header_that_does_not_fit_its_data(tmp_path: Path, shape: list[int], offsets: list[int]) -> None:
    header = {"a": {"dtype": "I32", "shape": shape, "data_offsets": offsets}}
    write_raw(tmp_path / "model.safetensors", header, bytes(48))
    with pytest.raises(CheckpointError, match=r"expected a whole safetensors file"):
        Tensors(tmp_path)


def test_truncated(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": A, "b": B}, path)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) - 13, len(whole) // 2, 9, 4):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"found {length} bytes"):
            Tensors(tmp_path)


def test_missing_shard(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"two.safetensors: expected a safetensors file, found no such file"):
        Tensors(tmp_path)


def test_index_names_a_tensor_that_is_elsewhere_or_nowhere(tmp_path: Path) -> None:
    write_shards(tmp_path)
    write_index(tmp_path, {"a": "two.safetensors", "b": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"tensor b in one.safetensors.*found it in two.safetensors"):
        Tensors(tmp_path)
    write_index(tmp_path, {"a": "one.safetensors", "c": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"tensor c in two.safetensors.*found it in no shard"):
        Tensors(tmp_path)


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    save_file({"a": A, "b": B}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"two.safetensors: expected each tensor once, found a in one.safe"):
        Tensors(tmp_path)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/x.safetensors", "sub/one.safetensors", "one.bin", "", 3])
def test_index_leaves_the_folder(tmp_path: Path, file: object) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": A}, tmp_path / "secret.safetensors")
    write_index(folder, {"a": file})
    with pytest.raises(CheckpointError, match=r"a: expected the name of a \*.safetensors file in this folder"):
        Tensors(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"weight_map": []}', '{"weight_map": {}}', "{}", "[" * 100_000])
def test_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index.json: expected"):
        Tensors(tmp_path)


def test_dtype_is_refused_only_when_read(tmp_path: Path) -> None:
    header = {"f8": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    write_raw(tmp_path / "model.safetensors", header, bytes(4))
    tensors = Tensors(tmp_path)
    assert tensors.names() == ["f8"]
    with pytest.raises(CheckpointError, match=r"f8: expected a dtype of F64, .* found F8_E4M3"):
        tensors.read("f8")


def test_unknown_name(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"expected tensor b, found no such tensor in model.safetensors"):
        Tensors(tmp_path).read("b")


def test_check_names_both_sides(tmp_path: Path) -> None:
    save_file({"a": A}, tmp_path / "model.safetensors")
    tensors = Tensors(tmp_path)
    assert tensors.check("a", ("K", 3), "I32") == (4, 3)
    for shape, dtype in ((("K", 4), "I32"), (("K",), "I32"), (("K", 3), "F16")):
        with pytest.raises(CheckpointError, match=r"model.safetensors: a: expected .* found I32 of shape \(4, 3\)"):
            tensors.check("a", shape, dtype)


def test_check_refuses_what_has_no_elements(tmp_path: Path) -> None:
    write_raw(tmp_path / "model.safetensors", {"e": {"dtype": "I32", "shape": [0, 1 << 40], "data_offsets": [0, 0]}})
    with pytest.raises(CheckpointError, match=r"e: expected I32 of shape"):
        Tensors(tmp_path).check("e", ("K", "N"), "I32")
