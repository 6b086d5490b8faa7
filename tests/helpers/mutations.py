"""Damage to the files of a small checkpoint: in bytes, headers, shapes, dtypes, names, JSON values, whole files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

Files = dict[str, bytes]

_JUNK = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, -2, 2, 3, 4, 5, 8, 16, 32, 64, 1 << 31, 1 << 62, -(1 << 63), 1e308]),
    st.sampled_from(["", "gptq", "gptq_v2", "gptq_p", "awq", "marlin", "gemm", "gemv", "compressed-tensors", "4"]),
    st.sampled_from([[], {}, [1], ["Linear"], ["re:("], {"a": {}}, {".*": {"bits": 8}}, {"-:.*mlp": {}}, {"(": {}}]),
    st.text(max_size=4),
)
# Parts of a name that look like the number of a layer: int() or isdigit() fail on some of them.
_NOT_QUITE_NUMBERS = ["²", "٣", "-1", "9" * 19, "9" * 5000, "1e3", "0x1", ""]
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
    match value % 12:
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
        case 9:
            for other in header:
                if other.split(".")[:-2] == name.split(".")[:-2] and "shape" in header[other]:
                    header[other]["shape"].reverse()
        case 10:
            number = _NOT_QUITE_NUMBERS[value % len(_NOT_QUITE_NUMBERS)]
            parts = [number if part.isdecimal() else part for part in name.split(".")]
            header[".".join(parts)] = header.pop(name)
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


Mutation = tuple[Any, ...]  # function, number of the file, place, value


@st.composite
def damages(draw: st.DrawFn, bases: Iterable[str]) -> tuple[str, list[Mutation]]:
    """The name of a base, and one or two mutations of its files."""
    base = draw(st.sampled_from(sorted(bases)))
    binary = st.tuples(st.sampled_from(BINARY), st.integers(0, 9), _FRACTION, st.integers(0, 255))
    text = st.tuples(st.just(change_json), st.integers(0, 9), _FRACTION, _JUNK)
    return base, draw(st.lists(st.one_of(binary, binary, text), min_size=1, max_size=2))


def damaged(files: Files, mutations: list[Mutation]) -> Files:
    """Copies of the files after the mutations; a second one that finds nothing left to change is skipped."""
    files = dict(files)
    try:
        for change, number, at, value in mutations:
            names = sorted(n for n in files if change is not change_json or n.endswith(".json"))
            change(files, names[number % len(names)], at, value)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, struct.error):
        pass
    return files


def _header_size(data: bytes) -> int:
    return min(struct.unpack("<Q", data[:8])[0], len(data) - 9)


def _places(tree: Any) -> Any:
    """(parent, key) of every value in a JSON tree."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from _places(tree[key])
