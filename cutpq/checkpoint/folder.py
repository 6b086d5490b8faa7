"""A Hugging Face folder as a checkpoint: its config, its quantized modules and its other tensors, read lazily."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..weights.weight import QuantWeight
from . import awq, compressed_tensors, gptq
from .claims import Config, Inspection, ModuleSpec
from .errors import CheckpointError
from .groups import FLOATS
from .tensors import Tensors, natural_key, read_json

# A selection of rows or columns: all, a slice, or integers in the order wanted.
Selection = slice | np.ndarray | None

# By quant_method. AutoGPTQ called its Marlin layout a method; gptq refuses it by name.
_FORMATS: dict[str, ModuleType] = {
    "gptq": gptq,
    "marlin": gptq,
    "awq": awq,
    "compressed-tensors": compressed_tensors,
}


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """The checkpoint in `folder`: config.json, and safetensors in one file or in shards with an index.

    Only headers are read. Quantized modules may be GPTQ (v1 and v2), AWQ "gemm" or compressed-tensors
    "pack-quantized"; a folder without any is a checkpoint too.

    Raises CheckpointError, naming file, tensor, expected and found, for whatever else the folder holds.
    """
    return Checkpoint(folder)


class Checkpoint:
    """What open_checkpoint gives.

    folder  Path
    config  config.json; {} where there is none
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "config.json"
        self.config: dict[str, Any] = read_json(path) if path.is_file() else {}
        self._quantization = _find_quantization(self.folder, self.config)
        base = self._quantization.word("model_file_base_name", "")
        self._tensors = Tensors(self.folder, base or None)
        if not self._quantization.values:
            self._quantization = _tensors_for_config(self._tensors)
        self._format = _find_format(self._quantization) if self._quantization.values else None
        self._modules = _find_modules(self._tensors, self._format)
        self._specs: dict[str, ModuleSpec] = {}

    def weights(self) -> list[str]:
        """Names of the quantized modules, layer 2 before layer 10."""
        return list(self._modules)

    def weight(self, name: str, rows: Selection = None, columns: Selection = None) -> QuantWeight:
        """A quantized module; with `rows` or `columns`, only these are unpacked and kept.

        rows, columns  None for all, a slice, or an array of integers in the order wanted
        g_idx keeps its global group numbers, and all G rows of scales and zeros are kept, whatever the rows.
        """
        K, N = self.shape(name)
        return self._ask("weight", name, _selection("rows", rows, K), _selection("columns", columns, N))

    def codes(self, name: str, rows: Selection = None, columns: Selection = None) -> np.ndarray:
        """The codes of a quantized module alone, (rows, columns) uint8: of a slice no more is read than it needs."""
        K, N = self.shape(name)
        return self._ask("codes", name, _selection("rows", rows, K), _selection("columns", columns, N))

    def words(self, name: str, rows: slice, columns: Selection = None) -> np.ndarray:
        """The codes of a quantized module as they are packed along K: (words, columns) int32, see bitstream.

        rows  a slice that starts at a multiple of 32, where words of any width begin

        Raises CheckpointError for AWQ, which packs along N.
        """
        K, N = self.shape(name)
        own = range(K)[rows]
        if own.start % 32 or own.step != 1:
            raise ValueError(f"rows must start at a multiple of 32 and have step 1, got {rows}")
        return self._ask("words", name, slice(own.start, own.stop), _selection("columns", columns, N))

    def shape(self, name: str) -> tuple[int, int]:
        """(K, N) of a quantized module."""
        return self._ask("shape", name)

    def g_idx(self, name: str) -> np.ndarray:
        """The group of each row of a quantized module, without its codes: (K,) int32."""
        return self._ask("g_idx", name)

    def spec(self, name: str) -> ModuleSpec:
        """What the config claims of a quantized module."""
        if name not in self._specs:
            self._check_module(name)
            assert self._format is not None
            self._specs[name] = self._format.claims(self._quantization, name)
        return self._specs[name]

    def inspect(self, name: str) -> Inspection:
        """What the tensors of a quantized module hold, against what the config claims."""
        return self._ask("inspect", name)

    def repack(self, name: str, w: QuantWeight) -> dict[str, np.ndarray]:
        """`w` as the tensors that this checkpoint's format has for module `name`, by their full names."""
        return self._ask("repack", name, w)

    def tensors(self) -> list[str]:
        """Names of all tensors as they are stored."""
        return self._tensors.names()

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._tensors

    def tensor(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A tensor as it is stored, or some rows of it; bfloat16 as ml_dtypes.bfloat16."""
        self._check_known(name, self._tensors.names(), "tensor")
        return self._tensors.read(name, rows)

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor as it is stored, from the header."""
        self._check_known(name, self._tensors.names(), "tensor")
        return self._tensors.shape(name)

    def check_tensor(self, name: str, shape: tuple[int | str, ...]) -> tuple[int, ...]:
        """The shape of a float tensor (float16, bfloat16 or float32) that must have this one; a letter leaves it free.

        Raises CheckpointError, naming file and tensor, for another shape or dtype and for a dimension of 0.
        """
        self._check_known(name, self._tensors.names(), "tensor")
        return self._tensors.check(name, shape, *FLOATS)

    def files(self) -> list[str]:
        """Names of the safetensors files within the folder."""
        return self._tensors.files()

    def file_of(self, name: str) -> str:
        """Name of the file that holds a tensor."""
        return self._tensors.file_of(name)

    def _ask(self, what: str, name: str, *args: Any) -> Any:
        """Call the function `what` of the module that knows this checkpoint's format."""
        spec = self.spec(name)  # first: it tells a name that is no module
        return getattr(self._format, what)(self._tensors, name, spec, *args)

    def _check_module(self, name: str) -> None:
        self._check_known(name, self._modules, "quantized module")

    def _check_known(self, name: str, known: Any, kind: str) -> None:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), n=3)
            hint = f"close names: {', '.join(near)}" if near else f"there are {len(known)}"
            raise CheckpointError(f"{self.folder}: expected the name of a {kind}, found {name!r}; {hint}")


def _find_quantization(folder: Path, config: dict[str, Any]) -> Config:
    """The quantization config; an empty one where the folder has none."""
    for key in ("quantization_config", "compression_config"):
        found = Config(config, str(folder / "config.json")).section(key)
        if found.values:
            return found
    for file in ("quantize_config.json", "quant_config.json"):
        if (folder / file).is_file():
            return Config(read_json(folder / file), str(folder / file))
    return Config({}, str(folder))


def _tensors_for_config(tensors: Tensors) -> Config:
    """The quantization config of old TGI files, which have it as tensors of one number; empty where there are none."""
    where = f"{tensors.folder}: tensors gptq_bits, gptq_groupsize and gptq_sym"
    if "gptq_bits" not in tensors:
        return Config({}, where)
    found: dict[str, Any] = {"quant_method": "gptq"}
    for name, key in (("gptq_bits", "bits"), ("gptq_groupsize", "group_size"), ("gptq_sym", "sym")):
        if name in tensors:
            if tensors.shape(name) not in ((), (1,)) or tensors.dtype(name) not in ("I32", "I64", "BOOL"):
                raise tensors.error(name, "one integer", f"{tensors.dtype(name)} of shape {tensors.shape(name)}")
            value = int(tensors.read(name).item())
            found[key] = bool(value) if key == "sym" else value
    return Config(found, where)


def _find_format(config: Config) -> ModuleType:
    """The module that knows the format, its config checked."""
    by_keys = "compressed-tensors" if "config_groups" in config.values else "awq"
    by_keys = by_keys if {"config_groups", "zero_point"} & config.values.keys() else "gptq"
    method = config.word(("quant_method", "method"), by_keys)
    if method.lower() not in _FORMATS:
        raise config.refuse(("quant_method", "method"), f"one of {', '.join(_FORMATS)}")
    known = _FORMATS[method.lower()]
    known.check_config(config)
    return known


def _find_modules(tensors: Tensors, known: ModuleType | None) -> list[str]:
    """Names of the quantized modules, in natural order."""
    names = tensors.names()
    for name in names:
        if name.endswith(".B") and name.removesuffix("B") + "s" in tensors:
            raise tensors.error(name, "a row-packed format", "the layout of the Marlin kernel; export the model again")
        if known is None and name.endswith((".qweight", ".weight_packed")):
            raise tensors.error(name, "a quantization config in config.json that tells its format", "no such config")
    if known is None:
        return []
    return sorted((n.removesuffix(known.SUFFIX) for n in names if n.endswith(known.SUFFIX)), key=natural_key)


def _selection(what: str, wanted: Selection, n: int) -> slice | np.ndarray:
    """`wanted` as a slice of step 1 within 0 .. n, or as integers within 0 .. n-1."""
    if wanted is None:
        return slice(0, n)
    if isinstance(wanted, slice) and wanted.step in (None, 1):
        start, stop, _ = wanted.indices(n)
        return slice(start, max(start, stop))
    chosen = np.arange(n)[wanted] if isinstance(wanted, slice) else np.asarray(wanted)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
        raise TypeError(f"{what} must be None, a slice or a vector of integers, got {chosen.dtype} of {chosen.shape}")
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < n:
        raise ValueError(f"{what} must be within 0 .. {n - 1}, got {int(chosen.min())} .. {int(chosen.max())}")
    return chosen.astype(np.int64)
