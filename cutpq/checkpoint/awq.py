"""AutoAWQ's tensors of one linear layer in the layout "gemm".

    qweight  (K, N/8)  int32   4-bit codes of eight neighbouring columns, interleaved
    qzeros   (G, N/8)  int32   zero points, the same way; z itself is stored
    scales   (G, N)    float
    bias     (N,)      float   may be absent

Row k is in group k // group_size. AWQ's other layouts (gemv, gemv_fast, llm-awq) are refused by name.
"""

from __future__ import annotations

import numpy as np

from ..weights.weight import QuantWeight
from . import groups
from .claims import Config, Inspection, Layout, ModuleSpec, ZeroConvention, check_bits, check_group_size
from .errors import CheckpointError
from .tensors import Tensors

SUFFIX = ".qweight"

# Bits 4i .. 4i+3 of a word hold column _COLUMN[i] of its eight; so column c is found at bit _SHIFT[c].
_COLUMN = np.array([0, 2, 4, 6, 1, 3, 5, 7])
_SHIFT = (4 * np.argsort(_COLUMN)).astype(np.uint32)

_STORES_Z = ZeroConvention("v2", "v2", "AWQ stores z itself")

# Codes of a block of rows that is unpacked at once: bounds the memory beside the result.
_BLOCK = 1 << 22


def check_config(config: Config) -> None:
    """Raise CheckpointError for a config whose layout is not read here."""
    claims(config, "")


def claims(config: Config, module: str) -> ModuleSpec:
    """What a quantization config says; AWQ has no overrides by module.

    Raises CheckpointError for another layout, number of bits or group size than are read here.
    """
    where, label = config.where, config.word(("version", "checkpoint_format", "format"), "gemm").lower()
    if label != "gemm":
        raise CheckpointError(
            f"{where}: expected AWQ version gemm, found {label}, another layout; export the model again as gemm"
        )
    return ModuleSpec(
        format="awq",
        label=label,
        bits=check_bits(config.integer(("bits", "w_bit", "wbits"), 4), where, (4,)),
        group_size=check_group_size(config.integer(("group_size", "q_group_size"), 128), where),
        desc_act=False,
        sym=not config.flag("zero_point", True),
    )


def shape(tensors: Tensors, name: str, spec: ModuleSpec) -> tuple[int, int]:
    """(K, N) of a module."""
    layout = _layout(tensors, name, spec)
    return layout.K, layout.N


def g_idx(tensors: Tensors, name: str, spec: ModuleSpec) -> np.ndarray:
    """(K,) int32: row k is in group k // group_size."""
    return groups.trivial_order(_layout(tensors, name, spec).K, spec.group_size)


def weight(
    tensors: Tensors, name: str, spec: ModuleSpec, rows: slice | np.ndarray, columns: slice | np.ndarray
) -> QuantWeight:
    """The rows and columns asked for (slices of step 1, or integers); all groups are kept."""
    layout = _layout(tensors, name, spec)
    chosen = np.arange(layout.N)[columns]
    return QuantWeight(
        codes=_read_codes(tensors, f"{name}.qweight", np.arange(layout.K)[rows], chosen),
        scales=groups.read_scales(tensors, f"{name}.scales", columns),
        zeros=unpack(tensors.read(f"{name}.qzeros"), chosen),
        g_idx=groups.trivial_order(layout.K, spec.group_size)[rows],
        bits=spec.bits,
        group_size=layout.rows_per_group,
        bias=groups.read_bias(tensors, f"{name}.bias", layout.N, columns),
    )


def codes(
    tensors: Tensors, name: str, spec: ModuleSpec, rows: slice | np.ndarray, columns: slice | np.ndarray
) -> np.ndarray:
    """The codes of `weight` alone."""
    layout = _layout(tensors, name, spec)
    return _read_codes(tensors, f"{name}.qweight", np.arange(layout.K)[rows], np.arange(layout.N)[columns])


def words(tensors: Tensors, name: str, spec: ModuleSpec, rows: slice, columns: slice | np.ndarray) -> np.ndarray:
    """AWQ packs codes along N."""
    raise CheckpointError(f"{tensors.folder}: {name}: expected codes packed along K, found AWQ's, packed along N")


def inspect(tensors: Tensors, name: str, spec: ModuleSpec) -> Inspection:
    """What the tensors of a module hold, against what the config claims."""
    layout = _layout(tensors, name, spec)
    sym = bool((unpack(tensors.read(f"{name}.qzeros"), np.arange(layout.N)) == 1 << (spec.bits - 1)).all())
    notes = ("zero_point is claimed false, but zero points differ from the middle",) if spec.sym and not sym else ()
    return Inspection.of(name, spec, layout, order_kind="absent", zeros=_STORES_Z, sym=sym, notes=notes)


def repack(tensors: Tensors, name: str, spec: ModuleSpec, w: QuantWeight) -> dict[str, np.ndarray]:
    """`w` as the tensors of module `name`: the inverse of `weight`.

    Raises ValueError for a weight whose rows are not in the order of their groups, which AWQ cannot say.
    """
    if not np.array_equal(w.g_idx, groups.trivial_order(w.K, w.group_size)):
        raise ValueError(f"{name}: AWQ has no g_idx; sort the rows by group first")
    packed = {
        "qweight": pack(w.codes),
        "qzeros": pack(w.zeros),
        "scales": w.scales.astype(tensors.read(f"{name}.scales", slice(0, 1)).dtype),
    }
    if w.bias is not None:
        packed["bias"] = w.bias.astype(tensors.read(f"{name}.bias", slice(0, 1)).dtype)
    return {f"{name}.{tensor}": array for tensor, array in packed.items()}


def unpack(words: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some columns of packed words: (rows, N/8) int32 and integers within 0 .. N-1 -> (rows, len(columns)) uint8."""
    fields = words.view(np.uint32)[:, columns // 8]
    fields >>= _SHIFT[columns % 8]
    fields &= np.uint32(15)
    return fields.astype(np.uint8)


def pack(codes: np.ndarray) -> np.ndarray:
    """The inverse of unpack for all columns: (rows, N) uint8 below 16, N a multiple of 8 -> (rows, N/8) int32."""
    words = np.zeros((len(codes), codes.shape[1] // 8), np.uint32)
    for column, shift in enumerate(_SHIFT):
        words |= codes[:, column::8].astype(np.uint32) << shift
    return words.view(np.int32)


def _layout(tensors: Tensors, name: str, spec: ModuleSpec) -> Layout:
    """The sizes of a module, or CheckpointError where its tensors contradict each other or the config."""
    K, words = tensors.check(f"{name}.qweight", ("K", "N/8"), "I32")
    G, N = tensors.check(f"{name}.scales", ("G", words * 8), *groups.FLOATS)
    tensors.check(f"{name}.qzeros", (G, words), "I32")
    groups.check_group_count(tensors, f"{name}.scales", G, K, spec.group_size)
    return Layout(K, N, G, spec.bits, spec.group_size)


def _read_codes(tensors: Tensors, tensor: str, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Codes of some rows and columns, block by block along K."""
    place = np.argsort(rows, kind="stable")
    wanted = rows[place]
    codes = np.empty((len(rows), len(columns)), np.uint8)
    step = max(1, _BLOCK // max(1, len(columns)))
    K = tensors.shape(tensor)[0]
    for start in range(0, K, step):
        first, last = np.searchsorted(wanted, (start, start + step))
        if first < last:
            words = tensors.read(tensor, slice(start, min(start + step, K)))
            codes[place[first:last]] = unpack(words[wanted[first:last] - start], columns)
    return codes
