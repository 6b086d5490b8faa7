"""compressed-tensors' tensors of one linear layer in the format "pack-quantized".

    weight_packed      (N, ceil(K*bits/32))  int32   signed codes + 2**(bits-1), a bitstream along K
    weight_scale       (N, G)                float
    weight_zero_point  (ceil(N*bits/32), G)  int32   the same offset, a bitstream along N; absent if symmetric
    weight_shape       (2,)                  int64   N, K
    weight_g_idx       (K,)                  int32   group of each row; or g_idx; absent, or all -1, if in order
    bias               (N,)                  float   may be absent

Stored code minus stored zero point is the difference of the signed ones: the offset cancels, so that both are used
as they are stored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..weights.weight import QuantWeight
from . import bitstream, groups
from .claims import ModuleFacts, ModuleSpec, ZeroConvention, check_bits, check_group_size, claimed
from .errors import CheckpointError
from .tensors import Tensors

SUFFIX = ".weight_packed"

_FORMAT = "pack-quantized"
_STORES_Z = ZeroConvention("v2", "v2", "compressed-tensors stores z itself")

# Whether `actorder` scatters the rows of a group. "weight" and "static" reorder while quantizing only.
_ACTORDER = {"group": True, "dynamic": True, "weight": False, "static": False}

# Rows of packed words are read in blocks of about this many bytes.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class _Layout:
    """Sizes of a module whose tensors were found to agree with each other and with the config."""

    K: int
    N: int
    G: int
    bits: int
    group_size: int  # claimed
    g_idx: str | None  # the tensor's name
    zeros: str | None


def check_config(config: dict[str, Any], where: str) -> None:
    """Raise CheckpointError unless some group of the config is pack-quantized."""
    formats = [_format(config, group, f"{where}: {key}") for key, group in _groups(config, where).items()]
    if _FORMAT not in formats:
        raise CheckpointError(
            f"{where}: expected format {_FORMAT}, found {', '.join(formats)}; export the model again as {_FORMAT}"
        )


def claims(config: dict[str, Any], module: str, where: str) -> ModuleSpec:
    """What a quantization config says of `module`, by the group whose targets name it."""
    key, group = _group_of(config, module, where)
    where = f"{where}: {key}"
    label = _format(config, group, where)
    if label != _FORMAT:
        raise CheckpointError(
            f"{where}: expected format {_FORMAT} for {module}, found {label}; export the model again as {_FORMAT}"
        )
    weights = claimed(group, where, ("weights",), dict, None)
    if weights is None:
        raise CheckpointError(f"{where}: expected weights to be an object, found none")
    where += ": weights"
    if claimed(weights, where, ("type",), str, "int") != "int":
        raise CheckpointError(f"{where}: expected type int, found {weights['type']!r:.60}")
    bits = claimed(weights, where, ("num_bits",), int, None)
    if bits is None:
        raise CheckpointError(f"{where}: expected num_bits, found none")
    return ModuleSpec(
        format="compressed-tensors",
        label=label,
        bits=check_bits(bits, where),
        group_size=_claimed_group_size(weights, where),
        desc_act=_claimed_actorder(weights, where),
        sym=claimed(weights, where, ("symmetric",), bool, True),
    )


def shape(tensors: Tensors, name: str, spec: ModuleSpec) -> tuple[int, int]:
    """(K, N) of a module."""
    layout = _layout(tensors, name, spec)
    return layout.K, layout.N


def order(tensors: Tensors, name: str, spec: ModuleSpec) -> np.ndarray:
    """g_idx of a module, (K,) int32: the group of each row; k // group_size where none is stored, or only -1."""
    return _read_order(tensors, _layout(tensors, name, spec))[0]


def weight(
    tensors: Tensors, name: str, spec: ModuleSpec, rows: slice | np.ndarray, columns: slice | np.ndarray
) -> QuantWeight:
    """The rows and columns asked for (slices of step 1, or integers); all groups are kept."""
    layout = _layout(tensors, name, spec)
    g_idx, _ = _read_order(tensors, layout)
    return QuantWeight(
        codes=_read_codes(tensors, f"{name}.weight_packed", layout, rows, np.arange(layout.N)[columns]),
        scales=groups.read_scales(tensors, f"{name}.weight_scale", columns, transposed=True),
        zeros=np.ascontiguousarray(_read_zeros(tensors, layout)[:, columns]),
        g_idx=g_idx[rows],
        bits=layout.bits,
        group_size=groups.rows_per_group(layout.K, layout.G, layout.group_size),
        bias=groups.read_bias(tensors, f"{name}.bias", layout.N, columns),
    )


def facts(tensors: Tensors, name: str, spec: ModuleSpec) -> ModuleFacts:
    """What the tensors of a module hold, against what the config claims."""
    layout = _layout(tensors, name, spec)
    _, kind = _read_order(tensors, layout)
    sym = bool((_read_zeros(tensors, layout) == 1 << (layout.bits - 1)).all())
    notes = []
    if spec.desc_act != (kind == "act-order"):
        notes.append(f"actorder is claimed to be {'' if spec.desc_act else 'not '}by group, but the order is {kind}")
    if spec.sym and not sym:
        notes.append("symmetric is claimed true, but zero points differ from the middle")
    group_size = groups.rows_per_group(layout.K, layout.G, layout.group_size)
    return ModuleFacts(
        name, spec, layout.K, layout.N, layout.G, layout.bits, group_size, kind, _STORES_Z, sym, tuple(notes)
    )


def repack(tensors: Tensors, name: str, spec: ModuleSpec, w: QuantWeight) -> dict[str, np.ndarray]:
    """`w` as the tensors of module `name`: the inverse of `weight`.

    weight_g_idx is among them where the module had one, or where k // group_size would not say the same.
    """
    layout = _layout(tensors, name, spec)
    packed = {
        f"{name}.weight_packed": np.ascontiguousarray(bitstream.pack(w.codes, w.bits).T),
        f"{name}.weight_scale": np.ascontiguousarray(
            w.scales.T.astype(tensors.read(f"{name}.weight_scale", slice(0, 1)).dtype)
        ),
        f"{name}.weight_shape": np.array([w.N, w.K], np.int64),
    }
    if layout.zeros is not None:
        packed[layout.zeros] = bitstream.pack(np.ascontiguousarray(w.zeros.T), w.bits)
    in_order = np.array_equal(w.g_idx, groups.trivial_order(w.K, w.group_size))
    if layout.g_idx is not None or not in_order:
        unset = layout.g_idx is not None and in_order and (tensors.read(layout.g_idx) == -1).all()
        packed[layout.g_idx or f"{name}.weight_g_idx"] = np.full_like(w.g_idx, -1) if unset else w.g_idx
    if w.bias is not None:
        packed[f"{name}.bias"] = w.bias.astype(tensors.read(f"{name}.bias", slice(0, 1)).dtype)
    return packed


def _groups(config: dict[str, Any], where: str) -> dict[str, dict[str, Any]]:
    found = claimed(config, where, ("config_groups",), dict, {})
    if not found or not all(isinstance(group, dict) for group in found.values()):
        raise CheckpointError(f"{where}: expected config_groups to be an object of objects, found {found!r:.60}")
    return found


def _group_of(config: dict[str, Any], module: str, where: str) -> tuple[str, dict[str, Any]]:
    """The config group for a module: by its name, else by a pattern "re:...", else by its class, Linear.

    A class the tensors cannot show: where no target fits and there is one group only, it is that.
    """
    found = _groups(config, where)
    ranked = [
        (rank, key)
        for key, group in found.items()
        for target in claimed(group, f"{where}: {key}", ("targets",), list, [])
        if (rank := _rank(target, module, f"{where}: {key}: targets")) is not None
    ]
    if ranked:
        key = min(ranked, key=lambda entry: entry[0])[1]
    elif len(found) == 1:
        key = next(iter(found))
    else:
        raise CheckpointError(f"{where}: expected a config group whose targets name {module}, found none")
    return key, found[key]


def _rank(target: object, module: str, where: str) -> int | None:
    """How closely a target names a module: 0 by name, 1 by pattern, 2 by class, None not at all."""
    if not isinstance(target, str):
        raise CheckpointError(f"{where}: expected strings, found {target!r:.60}")
    if target == module:
        return 0
    if target.startswith("re:"):
        try:
            return 1 if re.match(target[3:], module) else None
        except re.error as e:
            raise CheckpointError(f"{where}: expected a regular expression, found {target!r:.60} ({e})") from e
    return 2 if target == "Linear" else None


def _format(config: dict[str, Any], group: dict[str, Any], where: str) -> str:
    return claimed(group, where, ("format",), str, None) or claimed(config, where, ("format",), str, _FORMAT)


def _claimed_group_size(weights: dict[str, Any], where: str) -> int:
    group_size = claimed(weights, where, ("group_size",), int, -1)
    strategy = claimed(weights, where, ("strategy",), str, "channel" if group_size == -1 else "group")
    if strategy not in ("group", "channel"):
        raise CheckpointError(f"{where}: expected strategy group or channel, found {strategy!r:.60}")
    if strategy == "group" and group_size == -1:
        raise CheckpointError(f"{where}: expected a group_size for strategy group, found none")
    return -1 if strategy == "channel" else check_group_size(group_size, where)


def _claimed_actorder(weights: dict[str, Any], where: str) -> bool:
    actorder = weights.get("actorder")
    if actorder is None or isinstance(actorder, bool):
        return bool(actorder)
    if not isinstance(actorder, str) or actorder.lower() not in _ACTORDER:
        raise CheckpointError(
            f"{where}: expected actorder to be true, false, null or one of {', '.join(_ACTORDER)}, "
            f"found {actorder!r:.60}"
        )
    return _ACTORDER[actorder.lower()]


def _layout(tensors: Tensors, name: str, spec: ModuleSpec) -> _Layout:
    """The sizes of a module, or CheckpointError where its tensors contradict each other or the config."""
    packed = f"{name}.weight_packed"
    N, words = tensors.check(packed, ("N", "ceil(K*bits/32)"), "I32")
    tensors.check(f"{name}.weight_shape", (2,), "I64", "I32")
    stated_N, K = (int(v) for v in tensors.read(f"{name}.weight_shape"))
    if stated_N != N or bitstream.words_for(K, spec.bits) != words:
        raise tensors.error(
            packed,
            f"shape (N, ceil(K*bits/32)) for weight_shape ({stated_N}, {K}) and the config's bits={spec.bits}",
            f"shape ({N}, {words})",
        )
    _, G = tensors.check(f"{name}.weight_scale", (N, "G"), *groups.FLOATS)
    groups.check_group_count(tensors, f"{name}.weight_scale", G, K, spec.group_size)
    zeros = f"{name}.weight_zero_point"
    if zeros in tensors or not spec.sym:
        tensors.check(zeros, (bitstream.words_for(N, spec.bits), G), "I32")
    g_idx = next((n for n in (f"{name}.weight_g_idx", f"{name}.g_idx") if n in tensors), None)
    if g_idx is not None:
        tensors.check(g_idx, (K,), "I32", "I64")
    return _Layout(K, N, G, spec.bits, spec.group_size, g_idx, zeros if zeros in tensors else None)


def _read_order(tensors: Tensors, layout: _Layout) -> tuple[np.ndarray, str]:
    """g_idx, and its kind as facts.ModuleFacts has it."""
    K, G = layout.K, layout.G
    if layout.g_idx is None:
        return groups.trivial_order(K, layout.group_size), "absent"
    stored = groups.read_order(tensors, layout.g_idx)
    if (stored == -1).all():
        return groups.trivial_order(K, layout.group_size), "unset"
    g_idx = groups.check_order(tensors, layout.g_idx, stored, G)
    return g_idx, groups.describe_order(g_idx, layout.group_size)


def _read_zeros(tensors: Tensors, layout: _Layout) -> np.ndarray:
    """(G, N) uint8."""
    if layout.zeros is None:
        return np.full((layout.G, layout.N), 1 << (layout.bits - 1), np.uint8)
    return bitstream.unpack(tensors.read(layout.zeros), layout.bits, layout.N).T


def _read_codes(
    tensors: Tensors, tensor: str, layout: _Layout, rows: slice | np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Codes of some rows and columns, block by block along N, which is the first axis of the file's tensor."""
    place = np.argsort(columns, kind="stable")
    wanted = columns[place]
    codes = np.empty((len(np.arange(layout.K)[rows]), len(columns)), np.uint8)
    step = max(1, _BLOCK // (4 * bitstream.words_for(layout.K, layout.bits)))
    for start in range(0, layout.N, step):
        first, last = np.searchsorted(wanted, (start, start + step))
        if first < last:
            words = tensors.read(tensor, slice(start, min(start + step, layout.N)))[wanted[first:last] - start]
            block = bitstream.unpack(np.ascontiguousarray(words.T), layout.bits, layout.K)
            target = place[first:last]
            if np.array_equal(target, np.arange(target[0], target[0] + len(target))):
                codes[:, target[0] : target[0] + len(target)] = block[rows]  # ten times faster than the line below
            else:
                codes[:, target] = block[rows]
    return codes
