"""The checkpoint that a quantized model is written as: a file a layer, the rest, an index, and the configs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ..array import to_numpy
from ..checkpoint import compressed_tensors, gptq
from ..checkpoint.folder import open_checkpoint
from ..weights.weight import QuantWeight
from .job import Job, QuantizationError
from .streams import dequantized

# A file has at most so many bytes, unless a single tensor has more.
SHARD_BYTES = 4 << 30

# Not copied beside the weights: other forms of them, what describes them, and what they were quantized with before.
_WEIGHT_FILES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack"}
_LEFT = {"config.json", "quantize_config.json", "model.safetensors.index.json"}


class Writer:
    """Writes to a folder; every file appears by renaming, when it is whole and on disk."""

    def __init__(self, job: Job, folder: Path):
        self.job, self.folder = job, folder
        self._prefixes = [job.decoder.block.format(layer) + "." for layer in range(job.decoder.layers)]

    def layer(self, layer: int, weights: dict[str, QuantWeight]) -> None:
        """The tensors of a decoder layer: those of the weights given, and all others as they are."""
        tensors: dict[str, np.ndarray] = {}
        for name, w in weights.items():
            if self.job.format == "compressed-tensors":
                tensors |= compressed_tensors.packed_tensors(name, w.to(np), self.job.options.sym)
            else:
                tensors |= gptq.packed_tensors(name, w.to(np), "v1" if self.job.format == "gptq" else "v2")
        replaced = {f"{name}.weight" for name in weights}
        names = [n for n in self.job.ckpt.tensors() if n.startswith(self._prefixes[layer]) and n not in replaced]
        self._shards(f"layer-{layer:05}", tensors | {name: self.job.ckpt.tensor(name) for name in names})

    def rest(self) -> None:
        """What belongs to no layer: embedding, head, norms."""
        prefixes = tuple(self._prefixes)
        names = [name for name in self.job.ckpt.tensors() if not name.startswith(prefixes)]
        self._shards("rest", {name: self.job.ckpt.tensor(name) for name in names})

    def finish(self, weights: list[str], losses: dict[str, float]) -> None:
        """Give the files their names, write index and configs, copy tokenizer and the like."""
        files = sorted(self.folder.glob("rest-*")) + sorted(self.folder.glob("layer-*"))
        weight_map: dict[str, str] = {}
        size = 0
        for number, path in enumerate(files, 1):
            name = f"model-{number:05}-of-{len(files):05}.safetensors"
            header = _header(path)
            weight_map |= dict.fromkeys(header, name)
            size += sum(end - start for start, end in (entry["data_offsets"] for entry in header.values()))
            path.rename(self.folder / name)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(self.folder / "model.safetensors.index.json", index)
        claims = self._compressed_config(weights) if self.job.format == "compressed-tensors" else self._config(weights)
        claims["meta"] = self._meta(losses)
        _write_json(self.folder / "config.json", self.job.ckpt.config | {"quantization_config": claims})
        if self.job.format != "compressed-tensors":
            _write_json(self.folder / "quantize_config.json", claims)
        for path in sorted(self.job.src.iterdir()):
            if path.is_file() and path.suffix not in _WEIGHT_FILES and path.name not in _LEFT:
                shutil.copyfile(path, self.folder / path.name)

    def _config(self, weights: list[str]) -> dict[str, Any]:
        options = self.job.options
        plain = sorted(set(self._linears()) - set(weights))
        return {
            "quant_method": "gptq",
            "checkpoint_format": self.job.format,
            "bits": options.bits,
            "group_size": options.group_size,
            "desc_act": options.order == "act",
            "sym": options.sym,
            "damp_percent": options.damp,
            "lm_head": False,
            "pack_dtype": "int32",
        } | ({"dynamic": {f"-:^{_escape(name)}$": {} for name in plain}} if plain else {})

    def _compressed_config(self, weights: list[str]) -> dict[str, Any]:
        options = self.job.options
        scheme = {
            "num_bits": options.bits,
            "type": "int",
            "symmetric": options.sym,
            "strategy": "channel" if options.group_size == -1 else "group",
            "group_size": None if options.group_size == -1 else options.group_size,
            "actorder": {"act": "group", "none": None}.get(options.order, "static"),
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme}},
            "ignore": sorted((set(self._linears()) - set(weights)) | {self.job.decoder.head}),
        }

    def _linears(self) -> list[str]:
        """Modules of the layers with a matrix as their weight."""
        names = [n for n in self.job.ckpt.tensors() if n.startswith(tuple(self._prefixes)) and n.endswith(".weight")]
        return [n.removesuffix(".weight") for n in names if len(self.job.ckpt.tensor_shape(n)) == 2]

    def _meta(self, losses: dict[str, float]) -> dict[str, Any]:
        from importlib.metadata import version

        return {
            "quantizer": [f"cutpq:{version('cutpq')}"],
            "options": asdict(self.job.options) | {"asymmetric_target": self.job.asymmetric},
            "calibration": {"sequences": len(self.job.tokens), "length": self.job.tokens.shape[1]},
            "losses": losses,
        }

    def _shards(self, name: str, tensors: dict[str, np.ndarray]) -> None:
        shards: list[dict[str, np.ndarray]] = [{}]
        size = 0
        for key, array in tensors.items():
            if shards[-1] and size + array.nbytes > SHARD_BYTES:
                shards.append({})
                size = 0
            shards[-1][key] = np.ascontiguousarray(array)
            size += array.nbytes
        for number, shard in enumerate(shards):
            path = self.folder / f"{name}-{number:03}.safetensors"
            temporary = path.with_name(f".{path.name}")
            save_file(shard, temporary, metadata={"format": "pt"})
            settle(temporary, path)


def digest(w: QuantWeight) -> str:
    """sha256 of a weight's parts and of what it dequantizes to, which two weights share if all bits are the same."""
    found = hashlib.sha256()
    w = w.to(np)
    for part in (w.codes, w.scales, w.zeros, w.g_idx, to_numpy(dequantized(w))):
        found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def prove(folder: Path, digests: dict[str, str]) -> None:
    """Raise QuantizationError unless the folder's quantized modules are these, read back by the loader, bit for bit."""
    ckpt = open_checkpoint(folder)
    if set(ckpt.weights()) != set(digests):
        wrong = sorted(set(ckpt.weights()) ^ set(digests))
        raise QuantizationError(f"proof failed: {folder}: {wrong[0]} is quantized only in the file or only in memory")
    for name, want in digests.items():
        if digest(ckpt.weight(name)) != want:
            raise QuantizationError(f"proof failed: {name} in {folder} is not what was solved")


def settle(temporary: Path, path: Path) -> None:
    """Give a file its name when it is on disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    settle(temporary, path)


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def _escape(name: str) -> str:
    return name.replace(".", r"\.")
