"""The tensors of a Hugging Face folder by name: one safetensors file or many, read lazily from the memory map."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ..array import bfloat16
from .errors import CheckpointError

# Dtypes that NumPy with ml_dtypes has. Tensors of other dtypes are listed, and refused when they are read.
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": bfloat16,
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

_INDEX = ".safetensors.index.json"


class Tensors:
    """The tensors of a folder's safetensors files, each by its name.

    folder  holds model.safetensors, or a *.safetensors.index.json with its shards, or one other *.safetensors file
    prefer  base name of the file to take where several are there (`model_file_base_name` in old GPTQ configs)

    Opening reads the headers alone. Every reading copies what was asked for out of the memory map, so that a large
    tensor can be walked in blocks of rows.

    Raises CheckpointError, here and when reading, for whatever is wrong with the files.
    """

    def __init__(self, folder: str | Path, prefer: str | None = None) -> None:
        self.folder = Path(folder)
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: expected a folder with *.safetensors, found no such folder")
        index = self._find_index()
        claims = {self._find_file(prefer): set()} if index is None else self._read_index(index)
        for file in claims:
            self._open(file)
        for file, names in claims.items():
            for name in sorted(names):
                if self._file_of.get(name) != file:
                    raise CheckpointError(
                        f"{index}: expected tensor {name} in {file}, where the index has it; "
                        f"found it in {self._file_of.get(name, 'no shard')}"
                    )

    def names(self) -> list[str]:
        """Every tensor's name, in the order of the files and then of the alphabet."""
        return list(self._file_of)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def files(self) -> list[str]:
        """Names of the files, within the folder."""
        return list(self._files)

    def file_of(self, name: str) -> str:
        """Name of the file that holds tensor `name`. Raises CheckpointError where no file has it."""
        if name not in self._file_of:
            raise CheckpointError(f"{self.folder}: expected tensor {name}, found no such tensor in {self._where()}")
        return self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The file's own word for the dtype of a tensor: F16, BF16, I32, ..."""
        return str(self._slice(name).get_dtype())

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> np.ndarray:
        """A tensor, or `rows` of its first and `columns` of its second axis; bfloat16 as ml_dtypes.bfloat16.

        rows, columns  slices of step 1; columns with rows alone

        Raises CheckpointError for a dtype that NumPy lacks and for data that cannot be read.
        """
        dtype = self.dtype(name)
        if dtype not in _DTYPES:
            raise self.error(name, f"a dtype of {', '.join(_DTYPES)}", dtype)
        shape = self.shape(name)
        start, stop, _ = (rows or slice(None)).indices(shape[0] if shape else 0)
        wanted = (max(0, stop - start), *shape[1:]) if shape else ()
        try:
            if columns is not None:
                return self._slice(name)[start:stop, columns]
            if wanted == shape:
                return self._files[self.file_of(name)].get_tensor(name)
            return self._slice(name)[start:stop]
        except (SafetensorError, OSError) as e:
            raise self.error(name, f"{dtype} of shape {shape}", f"unreadable data ({e})") from e

    def check(self, name: str, shape: tuple[int | str, ...], *dtypes: str) -> tuple[int, ...]:
        """The shape of a tensor that must be there with this shape and one of these dtypes (in the file's words).

        A letter in `shape` leaves a dimension free. Raises CheckpointError otherwise, and for a dimension of 0.
        """
        have, dtype = self.shape(name), self.dtype(name)
        fits = len(have) == len(shape) and all(
            h > 0 and (isinstance(want, str) or h == want) for h, want in zip(have, shape, strict=True)
        )
        if not fits or dtype not in dtypes:
            wanted = " or ".join(dtypes) + " of shape (" + ", ".join(map(str, shape)) + ")"
            raise self.error(name, wanted, f"{dtype} of shape {have}")
        return have

    def error(self, name: str, expected: str, found: str) -> CheckpointError:
        """The error to raise about tensor `name`."""
        return CheckpointError(f"{self.folder / self.file_of(name)}: {name}: expected {expected}, found {found}")

    def _find_index(self) -> Path | None:
        if (self.folder / "model.safetensors").is_file():
            return None
        indices = sorted(self.folder.glob("*" + _INDEX))
        preferred = self.folder / ("model" + _INDEX)
        if len(indices) > 1 and preferred not in indices:
            raise CheckpointError(f"{self.folder}: expected one {'*' + _INDEX}, found {_listed(indices)}")
        return preferred if preferred in indices else indices[0] if indices else None

    def _find_file(self, prefer: str | None) -> str:
        files = sorted(self.folder.glob("*.safetensors"))
        for wanted in ("model.safetensors", f"{prefer}.safetensors"):
            if self.folder / wanted in files:
                return wanted
        if len(files) == 1:
            return files[0].name
        found = f"{_listed(files)} and no index" if files else "none"
        raise CheckpointError(
            f"{self.folder}: expected model.safetensors, shards with model{_INDEX}, or one *.safetensors; found {found}"
        )

    def _read_index(self, index: Path) -> dict[str, set[str]]:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: expected weight_map to be an object of names, found {_brief(weight_map)}")
        shards: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise CheckpointError(
                    f"{index}: {name}: expected the name of a *.safetensors file in this folder, found {_brief(file)}"
                )
            shards.setdefault(file, set()).add(name)
        return {file: shards[file] for file in sorted(shards)}

    def _open(self, file: str) -> None:
        path = self.folder / file
        if not path.is_file():
            raise CheckpointError(f"{path}: expected a safetensors file, found no such file")
        try:
            opened = safe_open(path, framework="np")
            names = sorted(opened.keys())
        except (SafetensorError, OSError, UnicodeError) as e:
            raise CheckpointError(
                f"{path}: expected a whole safetensors file, found {path.stat().st_size} bytes that are not one ({e})"
            ) from e
        for name in names:
            if name in self._file_of:
                raise CheckpointError(f"{path}: expected each tensor once, found {name} in {self._file_of[name]} too")
            self._file_of[name] = file
        self._files[file] = opened

    def _slice(self, name: str) -> Any:
        return self._files[self.file_of(name)].get_slice(name)

    def _where(self) -> str:
        return ", ".join(self._files) if len(self._files) < 4 else f"{len(self._files)} shards"


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sorting key of names that counts: layers.2 before layers.10. Longer numbers than int64's count by 18 digits."""
    return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(re.split(r"([0-9]{1,18})", name))]


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; CheckpointError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: expected a JSON object, found what cannot be read as JSON ({e})") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {_brief(value)}")
    return value


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(paths: list[Path]) -> str:
    return ", ".join(p.name for p in paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
