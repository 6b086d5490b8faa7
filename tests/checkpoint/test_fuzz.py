"""Mutated checkpoints: CheckpointError or the right weights may come out of the loader, and nothing else.

Thousands of small checkpoints are damaged in one or two places: bytes of the header, of the data and of the JSON
files, lengths, offsets, shapes, dtypes, names, config values, index entries, whole files. Where the loader accepts
what is left, every number must be the one that the oracle reads in the damaged files.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from assertions import assert_exact
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from make_checkpoint import write_checkpoint

from cutpq.checkpoint import groups
from cutpq.checkpoint.errors import CheckpointError
from cutpq.checkpoint.folder import open_checkpoint

MUTATIONS = 2400

# Sizes so small that the oracle's loops cost a millisecond a module; one layer of two modules.
_SMALL: dict[str, Any] = {"family": "bigcode", "hidden": 32, "intermediate": 64, "attention": False}

BASES: dict[str, dict[str, Any]] = {
    "gptq-asym": {"format": "gptq", "sym": False},
    "gptq-sym": {"format": "gptq", "desc_act": False, "group_size": 40},
    "gptq_v2-3bit": {"format": "gptq_v2", "bits": 3, "sym": False},
    "gptq-8bit-one-group": {"format": "gptq", "bits": 8, "group_size": -1},
    "awq": {"format": "awq", "sym": False},
    "compressed-3bit": {"format": "compressed-tensors", "bits": 3, "sym": False},
    "compressed-sym": {"format": "compressed-tensors", "desc_act": False},
    "gptq-sharded": {"format": "gptq", "shards": 2},
}

Files = dict[str, bytes]

_JUNK = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, -2, 2, 3, 4, 5, 8, 16, 32, 64, 1 << 31, 1 << 62, -(1 << 63), 1e308]),
    st.sampled_from(["", "gptq", "gptq_v2", "gptq_p", "awq", "marlin", "gemm", "gemv", "compressed-tensors", "4"]),
    st.sampled_from([[], {}, [1], ["Linear"], ["re:("], {"a": {}}, {".*": {"bits": 8}}, {"-:.*mlp": {}}, {"(": {}}]),
    st.text(max_size=4),
)
_FRACTION = st.floats(0, 1, exclude_max=True, width=32)


def change_byte(files: Files, file: str, at: float, value: int) -> None:
    data = bytearray(files[file])
    if data:
        data[int(at * len(data))] = value
    files[file] = bytes(data)


def change_header_byte(files: Files, file: str, at: float, value: int) -> None:
    if not file.endswith(".safetensors"):
        return change_byte(files, file, at, value)
    data, n = bytearray(files[file]), 8 + _header_size(files[file])
    data[int(at * n)] = value
    files[file] = bytes(data)
    return None


def set_header_size(files: Files, file: str, at: float, value: int) -> None:
    files[file] = struct.pack("<Q", [0, 1, 7, value, 1 << 27, 1 << 40, (1 << 64) - 1][int(at * 7)]) + files[file][8:]


def truncate(files: Files, file: str, at: float, value: int) -> None:
    files[file] = files[file][: int(at * len(files[file]))]


def append(files: Files, file: str, at: float, value: int) -> None:
    files[file] += bytes([value]) * (1 + int(at * 16))


def remove_file(files: Files, file: str, at: float, value: int) -> None:
    files[file] = b""
    if at < 0.5:
        del files[file]


def set_number(files: Files, file: str, at: float, value: int) -> None:
    """Four bytes of one tensor become a small number of either sign: of g_idx, zero points, shapes, scales."""
    if file.endswith(".safetensors"):
        begin = 8 + _header_size(files[file])
        entries = sorted(json.loads(files[file][8:begin]).items())
        first, last = entries[int(at * len(entries))][1]["data_offsets"]
        where = begin + first + int(at * 1000 % 1 * (last - first) / 4) * 4
        files[file] = files[file][:where] + struct.pack("<i", value - 128) + files[file][where + 4 :]


def change_header(files: Files, file: str, at: float, value: int) -> None:
    """One entry of the header in another way that may still be a valid file."""
    if not file.endswith(".safetensors"):
        return
    size = _header_size(files[file])
    header, data = json.loads(files[file][8 : 8 + size]), files[file][8 + size :]
    name = sorted(header)[int(at * len(header))]
    entry = header[name]
    swaps = {"I32": ["F32", "U32", "I16"], "F16": ["BF16", "I16", "F32"], "I64": ["F64", "U64", "I32"]}
    match value % 10:
        case 0 if "shape" in entry:
            entry["shape"].reverse()
        case 1 if "shape" in entry:
            entry["shape"] = [1, *entry["shape"]]
        case 2 if "shape" in entry:
            entry["shape"] = [value << 40, *entry["shape"][1:]]
        case 3 if "shape" in entry:
            entry["shape"] = [0, value << 40]
        case 4 if entry.get("dtype") in swaps:
            entry["dtype"] = swaps[entry["dtype"]][value % 3]
        case 5:
            del header[name]
        case 6:
            header[name + "x" if value % 2 else name[1:]] = header.pop(name)
        case 7:
            other = sorted(header)[value % len(header)]
            header[name], header[other] = header[other], header[name]
        case 8 if "data_offsets" in entry:
            entry["data_offsets"][value % 2] += value - 100
        case _:
            header[name] = value
    text = json.dumps(header).encode()
    files[file] = struct.pack("<Q", len(text)) + text + data


def drop_tensor(files: Files, file: str, at: float, value: int) -> None:
    """The file without one tensor, otherwise valid; or with one tensor under another name."""
    if not file.endswith(".safetensors"):
        return
    size = _header_size(files[file])
    header, data = json.loads(files[file][8 : 8 + size]), files[file][8 + size :]
    kept, begin = {}, 0
    chunks = []
    gone = sorted(header)[int(at * len(header))]
    for name, entry in header.items():
        if name == gone and value % 2:
            continue
        a, b = entry["data_offsets"]
        kept[name + ".g_idx" if name == gone else name] = {**entry, "data_offsets": [begin, begin + b - a]}
        chunks.append(data[a:b])
        begin += b - a
    text = json.dumps(kept).encode()
    files[file] = struct.pack("<Q", len(text)) + text + b"".join(chunks)


BINARY = [
    change_byte,
    change_header_byte,
    set_header_size,
    truncate,
    append,
    remove_file,
    set_number,
    change_header,
    drop_tensor,
]


def change_json(files: Files, file: str, at: float, value: Any) -> None:
    """Another value at one place of a JSON file; the value "" removes the key."""
    tree = json.loads(files[file])
    places = list(_places(tree))
    parent, key = places[int(at * len(places))]
    if value == "":
        del parent[key]
    else:
        parent[key] = value
    files[file] = json.dumps(tree).encode()


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, list[tuple[Any, ...]]]:
    """A base, and one or two mutations (function, number of the file, place, value) of its files."""
    base = draw(st.sampled_from(sorted(BASES)))
    binary = st.tuples(st.sampled_from(BINARY), st.integers(0, 9), _FRACTION, st.integers(0, 255))
    text = st.tuples(st.just(change_json), st.integers(0, 9), _FRACTION, _JUNK)
    return base, draw(st.lists(st.one_of(binary, binary, text), min_size=1, max_size=2))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    made = {}
    for name, options in BASES.items():
        folder = tmp_path_factory.mktemp(name)
        write_checkpoint(folder, **_SMALL, **options)
        made[name] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return made


def test_undamaged_is_accepted(bases: dict[str, Files], tmp_path: Path) -> None:
    for name, files in bases.items():
        assert outcome(files, tmp_path / name) == "accepted"


def test_mutations(bases: dict[str, Files], tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    @settings(
        max_examples=MUTATIONS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # a failing example is small as it is; shrinking it would take minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(damages())
    def mutate(damage: tuple[str, list[tuple[Any, ...]]]) -> None:
        base, mutations = damage
        files = dict(bases[base])
        try:
            for change, number, at, value in mutations:
                names = sorted(n for n in files if change is not change_json or n.endswith(".json"))
                change(files, names[number % len(names)], at, value)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, struct.error):
            pass  # the second mutation found nothing left to change
        seen[outcome(files, tmp_path) if files != bases[base] else "unchanged"] += 1

    mutate()
    print(f"mutations: {dict(seen)}")
    assert seen["refused"] + seen["accepted"] >= 2000
    assert min(seen["refused"], seen["accepted"]) >= 200, "a fuzz that sees one outcome only shows nothing"


def test_a_wrong_value_would_be_seen(bases: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = groups.read_scales
    monkeypatch.setattr(groups, "read_scales", lambda *args, **kwargs: right(*args, **kwargs) * np.float16(1.001))
    with pytest.raises(AssertionError):
        outcome(bases["gptq-asym"], tmp_path)


def test_another_exception_would_be_seen(
    bases: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "check_group_count", lambda *args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        outcome(bases["awq"], tmp_path)


def outcome(files: Files, folder: Path) -> str:
    """ "refused" with CheckpointError, or "accepted" and everything in it as the oracle reads it; else an exception."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    loaded, refusal = None, ""
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = _load_all(folder)
    except CheckpointError as e:
        refusal = str(e)
    (_, used), total = tracemalloc.get_traced_memory(), sum(map(len, files.values()))
    tracemalloc.stop()
    assert used < 40 * total + (1 << 20), f"{used} bytes of memory for {total} bytes of files"
    if loaded is None:
        assert str(folder) in refusal, f"the error does not name the place: {refusal}"
        return "refused"
    stored = oracle.load(folder)
    plain, weights = loaded
    assert plain.keys() == stored.keys()
    for name, array in plain.items():
        assert_exact(array, stored[name])
    for name, (w, part) in weights.items():
        oracle.assert_same_weight(w, _oracle_weight(folder, stored, name))
        assert np.isfinite(w.scales).all()
        assert -(-w.K // w.group_size) == w.G, "the groups are not of the size that is said"
        assert_exact(part.codes, w.codes[3:9][:, [5, 0]])
        assert_exact(part.zeros, w.zeros[:, [5, 0]])
    return "accepted"


def _load_all(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every tensor and every quantized module, the latter whole and in part, by every function a reader has."""
    ckpt = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="nowhere"):
        ckpt.weight("nowhere")
    weights = {}
    for name in ckpt.weights():
        ckpt.facts(name)
        w = ckpt.weight(name)
        assert ckpt.shape(name) == w.codes.shape
        assert_exact(ckpt.order(name), w.g_idx)
        ckpt.repack(name, w)
        weights[name] = w, ckpt.weight(name, slice(3, 9), np.array([5, 0]))
    return {name: ckpt.tensor(name) for name in ckpt.tensors()}, weights


def _oracle_weight(folder: Path, tensors: dict[str, np.ndarray], name: str) -> oracle.Weight:
    """The module as the oracle reads it with what the damaged config says; null is what a missing key is."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("quantization_config") or config["compression_config"]

    def said(key: str, default: Any, place: dict[str, Any] = config) -> Any:
        return default if place.get(key) is None else place[key]

    if f"{name}.weight_packed" in tensors:
        weights = next(iter(config["config_groups"].values()))["weights"]
        return oracle.compressed(tensors, name, weights["num_bits"], said("group_size", -1, weights))
    if said("quant_method", "awq" if "zero_point" in config else "gptq").lower() == "awq":
        return oracle.awq(tensors, name, said("group_size", 128))
    for pattern, change in said("dynamic", {}).items():
        config = {**config, **(change if pattern == ".*" else {})}
    sym, label = said("sym", True, config), said("checkpoint_format", "gptq", config)
    return oracle.gptq(tensors, name, config["bits"], said("group_size", -1, config), sym, label)


def _header_size(data: bytes) -> int:
    return min(struct.unpack("<Q", data[:8])[0], len(data) - 9)


def _places(tree: Any) -> Any:
    """(parent, key) of every value in a JSON tree."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from _places(tree[key])
