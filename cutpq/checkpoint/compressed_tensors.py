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

import numpy as np

from ..weights.weight import QuantWeight
from . import bitstream, groups
from .claims import Config, Inspection, Layout, ModuleSpec, ZeroConvention, check_bits, check_group_size
from .errors import CheckpointError
from .tensors import Tensors

SUFFIX = ".weight_packed"

_FORMAT = "pack-quantized"
_STORES_Z = ZeroConvention("v2", "v2", "compressed-tensors stores z itself")

# Whether `actorder` scatters the rows of a group. "weight" and "static" reorder while quantizing only.
_ACTORDER = {"group": True, "dynamic": True, "weight": False, "static": False}

# Bytes of a block of packed words that is read at once: bounds the memory beside the result.
_BLOCK = 1 << 22


def check_config(config: Config) -> None:
    """Raise CheckpointError unless some group of the config is pack-quantized."""
    formats = [_format(config, group) for group in _groups(config).values()]
    if _FORMAT not in formats:
        raise CheckpointError(
            f"{config.where}: expected format {_FORMAT}, found {', '.join(formats)}; "
            f"export the model again as {_FORMAT}"
        )


def claims(config: Config, module: str) -> ModuleSpec:
    """What a quantization config says of `module`, by the group whose targets name it.

    Raises CheckpointError for another layout, number of bits or group size than are read here.
    """
    group = _group_of(config, module)
    label = _format(config, group)
    if label != _FORMAT:
        raise CheckpointError(
            f"{group.where}: expected format {_FORMAT} for {module}, found {label}; export the model again as {_FORMAT}"
        )
    if not group.has("weights"):
        raise group.refuse("weights", "an object")
    weights = group.section("weights")
    if weights.word("type", "int") != "int":
        raise weights.refuse("type", "int")
    return ModuleSpec(
        format="compressed-tensors",
        label=label,
        bits=check_bits(weights.integer("num_bits"), weights.where),
        group_size=_claimed_group_size(weights),
        desc_act=_claimed_actorder(weights),
        sym=weights.flag("symmetric", True),
    )


def shape(tensors: Tensors, name: str, spec: ModuleSpec) -> tuple[int, int]:
    """(K, N) of a module."""
    layout = _layout(tensors, name, spec)
    return layout.K, layout.N


def g_idx(tensors: Tensors, name: str, spec: ModuleSpec) -> np.ndarray:
    """g_idx of a module, (K,) int32: the group of each row; k // group_size where none is stored, or only -1."""
    return _read_g_idx(tensors, _layout(tensors, name, spec))[0]


def weight(
    tensors: Tensors, name: str, spec: ModuleSpec, rows: slice | np.ndarray, columns: slice | np.ndarray
) -> QuantWeight:
    """The rows and columns asked for (slices of step 1, or integers); all groups are kept."""
    layout = _layout(tensors, name, spec)
    group_of_row, _ = _read_g_idx(tensors, layout)
    return QuantWeight(
        codes=_read_codes(tensors, f"{name}.weight_packed", layout, rows, columns),
        scales=groups.read_scales(tensors, f"{name}.weight_scale", columns, transposed=True),
        zeros=np.ascontiguousarray(_read_zeros(tensors, layout)[:, columns]),
        g_idx=group_of_row[rows],
        bits=layout.bits,
        group_size=layout.rows_per_group,
        bias=groups.read_bias(tensors, f"{name}.bias", layout.N, columns),
    )


def codes(
    tensors: Tensors, name: str, spec: ModuleSpec, rows: slice | np.ndarray, columns: slice | np.ndarray
) -> np.ndarray:
    """The codes of `weight` alone."""
    return _read_codes(tensors, f"{name}.weight_packed", _layout(tensors, name, spec), rows, columns)


def words(tensors: Tensors, name: str, spec: ModuleSpec, rows: slice, columns: slice | np.ndarray) -> np.ndarray:
    """The words that hold the codes of these rows, from a multiple of 32 on: (words, columns) int32."""
    own = slice(rows.start * spec.bits // 32, bitstream.words_for(rows.stop, spec.bits))
    if isinstance(columns, slice):
        return tensors.read(f"{name}.weight_packed", columns, own).T
    return tensors.read(f"{name}.weight_packed", slice(None), own)[columns].T


def inspect(tensors: Tensors, name: str, spec: ModuleSpec) -> Inspection:
    """What the tensors of a module hold, against what the config claims."""
    layout = _layout(tensors, name, spec)
    _, kind = _read_g_idx(tensors, layout)
    sym = bool((_read_zeros(tensors, layout) == 1 << (layout.bits - 1)).all())
    notes = []
    if spec.desc_act != (kind == "act-order"):
        notes.append(f"actorder is claimed to be {'' if spec.desc_act else 'not '}by group, but the order is {kind}")
    if spec.sym and not sym:
        notes.append("symmetric is claimed true, but zero points differ from the middle")
    return Inspection.of(name, spec, layout, order_kind=kind, zeros=_STORES_Z, sym=sym, notes=tuple(notes))


def repack(tensors: Tensors, name: str, spec: ModuleSpec, w: QuantWeight) -> dict[str, np.ndarray]:
    """`w` as the tensors of module `name`: the inverse of `weight`.

    weight_g_idx is among them where the module had one, or where k // group_size would not say the same.
    """
    layout = _layout(tensors, name, spec)
    packed = packed_tensors(name, w, sym=layout.zeros is None)
    packed[f"{name}.weight_scale"] = packed[f"{name}.weight_scale"].astype(
        tensors.read(f"{name}.weight_scale", slice(0, 1)).dtype
    )
    if layout.g_idx is not None:
        in_order = packed.pop(f"{name}.weight_g_idx", None) is None
        unset = in_order and (tensors.read(layout.g_idx) == -1).all()
        packed[layout.g_idx] = np.full_like(w.g_idx, -1) if unset else w.g_idx
    if w.bias is not None:
        packed[f"{name}.bias"] = w.bias.astype(tensors.read(f"{name}.bias", slice(0, 1)).dtype)
    return packed


def packed_tensors(name: str, w: QuantWeight, sym: bool) -> dict[str, np.ndarray]:
    """`w` without its bias as tensors of this format, weight_g_idx among them where the rows are not in order."""
    packed = {
        f"{name}.weight_packed": np.ascontiguousarray(bitstream.pack(w.codes, w.bits).T),
        f"{name}.weight_scale": np.ascontiguousarray(w.scales.T),
        f"{name}.weight_shape": np.array([w.N, w.K], np.int64),
    }
    if not sym:
        packed[f"{name}.weight_zero_point"] = bitstream.pack(np.ascontiguousarray(w.zeros.T), w.bits)
    if not np.array_equal(w.g_idx, groups.trivial_order(w.K, w.group_size)):
        packed[f"{name}.weight_g_idx"] = w.g_idx
    return packed


def _groups(config: Config) -> dict[str, Config]:
    found = config.section("config_groups").sections()
    if not found:
        raise config.refuse("config_groups", "an object of objects")
    return found


def _group_of(config: Config, module: str) -> Config:
    """The config group for a module: by its name, else by a pattern "re:...", else by its class, Linear.

    A class the tensors cannot show: where no target fits and there is one group only, it is that.
    """
    found = _groups(config)
    ranked = [
        (rank, key)
        for key, group in found.items()
        for target in group.words("targets")
        if (rank := _rank(target, module, group.where)) is not None
    ]
    if ranked:
        return found[min(ranked, key=lambda entry: entry[0])[1]]
    if len(found) == 1:
        return next(iter(found.values()))
    raise CheckpointError(f"{config.where}: expected a config group whose targets name {module}, found none")


def _rank(target: str, module: str, where: str) -> int | None:
    """How closely a target names a module: 0 by name, 1 by pattern, 2 by class, None not at all."""
    if target == module:
        return 0
    if target.startswith("re:"):
        try:
            return 1 if re.match(target[3:], module) else None
        except re.error as e:
            raise CheckpointError(f"{where}: targets: expected a regular expression, found {target!r:.60} ({e})") from e
    return 2 if target == "Linear" else None


def _format(config: Config, group: Config) -> str:
    return group.word("format", "") or config.word("format", _FORMAT)


def _claimed_group_size(weights: Config) -> int:
    group_size = weights.integer("group_size", -1)
    strategy = weights.word("strategy", "channel" if group_size == -1 else "group")
    if strategy not in ("group", "channel"):
        raise weights.refuse("strategy", "group or channel")
    if strategy == "group" and group_size == -1:
        raise weights.refuse("group_size", "the size for strategy group")
    return -1 if strategy == "channel" else check_group_size(group_size, weights.where)


def _claimed_actorder(weights: Config) -> bool:
    actorder = weights.values.get("actorder")
    if actorder is None or isinstance(actorder, bool):
        return bool(actorder)
    if not isinstance(actorder, str) or actorder.lower() not in _ACTORDER:
        raise weights.refuse("actorder", f"true, false, null or one of {', '.join(_ACTORDER)}")
    return _ACTORDER[actorder.lower()]


def _layout(tensors: Tensors, name: str, spec: ModuleSpec) -> Layout:
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
    return Layout(K, N, G, spec.bits, spec.group_size, g_idx, zeros if zeros in tensors else None)


def _read_g_idx(tensors: Tensors, layout: Layout) -> tuple[np.ndarray, str]:
    """g_idx, and its order_kind as claims.Inspection has it."""
    K, G = layout.K, layout.G
    if layout.g_idx is None:
        return groups.trivial_order(K, layout.group_size), "absent"
    stored = groups.read_g_idx(tensors, layout.g_idx)
    if (stored == -1).all():
        return groups.trivial_order(K, layout.group_size), "unset"
    g_idx = groups.check_g_idx(tensors, layout.g_idx, stored, G)
    return g_idx, groups.order_kind(g_idx, layout.group_size)


def _read_zeros(tensors: Tensors, layout: Layout) -> np.ndarray:
    """(G, N) uint8."""
    if layout.zeros is None:
        return np.full((layout.G, layout.N), 1 << (layout.bits - 1), np.uint8)
    return bitstream.unpack(tensors.read(layout.zeros), layout.bits, layout.N).T


def _read_codes(
    tensors: Tensors, tensor: str, layout: Layout, rows: slice | np.ndarray, columns: slice | np.ndarray
) -> np.ndarray:
    """Codes of some rows and columns, block by block along N, which is the first axis of the file's tensor."""
    columns = np.arange(layout.N)[columns]
    first, end = 0, layout.K
    if isinstance(rows, slice):
        first, end = rows.start // 32 * 32, rows.stop  # 32 rows are whole words, of any width
        rows = slice(rows.start - first, end - first)
    words = slice(first * layout.bits // 32, bitstream.words_for(end, layout.bits))
    codes = np.empty((len(np.arange(end - first)[rows]), len(columns)), np.uint8)
    if not codes.size:
        return codes
    place = np.argsort(columns, kind="stable")
    wanted = columns[place]
    step = max(1, _BLOCK // (4 * (words.stop - words.start)))
    last = int(wanted[-1]) + 1
    for start in range(int(wanted[0]), last, step):
        stop = min(start + step, last)
        own = slice(*np.searchsorted(wanted, (start, stop)))
        if own.start < own.stop:
            packed = tensors.read(tensor, slice(start, stop), words)[wanted[own] - start]
            block = bitstream.unpack(np.ascontiguousarray(packed.T), layout.bits, end - first)
            target = place[own]
            if np.array_equal(target, np.arange(target[0], target[0] + len(target))):
                codes[:, target[0] : target[0] + len(target)] = block[rows]  # ten times faster than the line below
            else:
                codes[:, target] = block[rows]
    return codes
