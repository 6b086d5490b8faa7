"""GPTQ's tensors of one linear layer, as AutoGPTQ and GPTQModel write them ("gptq" and "gptq_v2").

    qweight  (K*bits/32, N)  int32   codes of a column, a bitstream along K
    qzeros   (G, N*bits/32)  int32   zero points of a group, a bitstream along N; v1 stores z - 1, v2 stores z
    scales   (G, N)          float
    g_idx    (K,)            int32   group of each row; may be absent
    bias     (N,)            float   may be absent

The config's flags are claims, the tensors are the truth: a contradiction that the tensors do not settle is an error.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np

from ..weights.weight import QuantWeight
from . import bitstream, groups
from .claims import Config, Inspection, Layout, ModuleSpec, ZeroConvention, check_bits, check_group_size
from .errors import CheckpointError, CheckpointWarning
from .tensors import Tensors

SUFFIX = ".qweight"

# Layouts that other tools write under the same method. Each is another arrangement of the same tensor names or others.
_REFUSED = {
    "gptq_p": "the planar layout of GPTQModel",
    "marlin": "the layout of the Marlin kernel",
    "bitblas": "the layout of the BitBLAS kernels",
}
_LABELS = {"gptq": "v1", "gptq_v2": "v2"}

# Bytes of a block of packed words that is read at once: bounds the memory beside the result.
_BLOCK = 1 << 22


def check_config(config: Config) -> None:
    """Raise CheckpointError for a config whose layout is not read here; warn where `sym` is missing."""
    claims(config, "")
    if not config.has("sym"):
        warnings.warn(f"{config.where}: sym is missing; assumed true", CheckpointWarning, stacklevel=2)


def claims(config: Config, module: str) -> ModuleSpec:
    """What a quantization config says of `module`, overrides of its `dynamic` section included.

    Raises CheckpointError for another layout, number of bits or group size than are read here.
    """
    where, method = config.where, config.word(("quant_method", "method"), "gptq")
    label = config.word(("checkpoint_format", "format"), "gptq").lower()
    if method.lower() == "marlin" or config.flag("is_marlin_format", False):
        label = "marlin"
    if label not in _LABELS:
        raise CheckpointError(
            f"{where}: expected checkpoint_format gptq or gptq_v2, found {label} ({_REFUSED.get(label, 'unknown')}); "
            "export the model again in the row-packed format gptq"
        )
    config = Config({**config.values, **_override(config, module)}, where)
    bits = config.integer(("bits", "w_bit", "wbits"))
    if bits in (5, 6, 7):
        raise CheckpointError(
            f"{where}: expected bits to be one of 2, 3, 4, 8, found {bits}, which is stored in the planar layout of "
            "GPTQModel; export the model again with another number of bits"
        )
    return ModuleSpec(
        format="gptq",
        label=label,
        bits=check_bits(bits, where),
        group_size=check_group_size(config.integer(("group_size", "q_group_size"), -1), where),
        desc_act=config.flag("desc_act", False),
        sym=config.flag("sym", True),
    )


def _override(config: Config, module: str) -> dict[str, Any]:
    """The entry of `dynamic` for a module: patterns are tried in order, each matched at the start of the name.

    A pattern that begins with "-:" leaves a module unquantized. Whether it is quantized the tensors say; so such an
    entry changes nothing.
    """
    dynamic = config.section("dynamic")
    for pattern, values in dynamic.values.items():
        try:
            matches = re.match(re.sub(r"^[-+]:", "", pattern), module)
        except re.error as e:
            raise CheckpointError(f"{dynamic.where}: expected a regular expression, found {pattern!r} ({e})") from e
        if matches:
            if pattern.startswith("-:"):
                return {}
            if not isinstance(values, dict):
                raise CheckpointError(f"{dynamic.where}: {pattern}: expected an object, found {values!r:.60}")
            return values
    return {}


def shape(tensors: Tensors, name: str, spec: ModuleSpec) -> tuple[int, int]:
    """(K, N) of a module."""
    layout = _layout(tensors, name, spec)
    return layout.K, layout.N


def g_idx(tensors: Tensors, name: str, spec: ModuleSpec) -> np.ndarray:
    """g_idx of a module, (K,) int32: the group of each row.

    Absent, or all 0 although there are more groups (as old tools wrote it for rows in order): k // group_size.
    A negative value -i means G - i, as some writers count; a warning says that it was so.
    """
    return _read_g_idx(tensors, name, _layout(tensors, name, spec))[0]


def weight(
    tensors: Tensors, name: str, spec: ModuleSpec, rows: slice | np.ndarray, columns: slice | np.ndarray
) -> QuantWeight:
    """The rows and columns asked for (slices of step 1, or integers); all groups are kept."""
    layout = _layout(tensors, name, spec)
    group_of_row, _ = _read_g_idx(tensors, name, layout)
    stored = _stored_zeros(tensors, name, layout)
    return QuantWeight(
        codes=_read_codes(tensors, name, layout, rows, columns),
        scales=groups.read_scales(tensors, f"{name}.scales", columns),
        zeros=np.ascontiguousarray(_true_zeros(stored, zero_convention(stored, spec), layout.bits)[:, columns]),
        g_idx=group_of_row[rows],
        bits=layout.bits,
        group_size=layout.rows_per_group,
        bias=groups.read_bias(tensors, f"{name}.bias", layout.N, columns),
    )


def codes(
    tensors: Tensors, name: str, spec: ModuleSpec, rows: slice | np.ndarray, columns: slice | np.ndarray
) -> np.ndarray:
    """The codes of `weight` alone."""
    return _read_codes(tensors, name, _layout(tensors, name, spec), rows, columns)


def words(tensors: Tensors, name: str, spec: ModuleSpec, rows: slice, columns: slice | np.ndarray) -> np.ndarray:
    """The words that hold the codes of these rows, from a multiple of 32 on: (words, columns) int32."""
    own = _words_of(rows, spec.bits)
    if isinstance(columns, slice):
        return tensors.read(f"{name}.qweight", own, columns)
    return tensors.read(f"{name}.qweight", own).take(columns, axis=1)


def zero_convention(stored: np.ndarray, spec: ModuleSpec) -> ZeroConvention:
    """Whether `stored` zero points are z - 1 (v1) or z (v2).

    A symmetric weight's zero point is 2**(bits-1). So where one value fills the tensor of a module that is claimed
    symmetric, the value decides: some writers label v2 files as v1. Elsewhere the label is all there is.
    """
    label = _LABELS[spec.label]
    middle = 1 << (spec.bits - 1)
    only = int(stored.flat[0]) if (stored == stored.flat[0]).all() else None
    if spec.sym and only in (middle - 1, middle):
        decided = "v1" if only == middle - 1 else "v2"
        return ZeroConvention(label, decided, f"symmetric, and every stored value is {only}")
    return ZeroConvention(label, label, f"checkpoint_format is {spec.label}")


def inspect(tensors: Tensors, name: str, spec: ModuleSpec) -> Inspection:
    """What the tensors of a module hold, against what the config claims."""
    layout = _layout(tensors, name, spec)
    _, kind = _read_g_idx(tensors, name, layout)
    stored = _stored_zeros(tensors, name, layout)
    convention = zero_convention(stored, spec)
    sym = bool((_true_zeros(stored, convention, layout.bits) == 1 << (layout.bits - 1)).all())
    notes = tuple(_notes(tensors, name, spec, layout, kind, stored, convention, sym))
    return Inspection.of(name, spec, layout, order_kind=kind, zeros=convention, sym=sym, notes=notes)


def repack(tensors: Tensors, name: str, spec: ModuleSpec, w: QuantWeight) -> dict[str, np.ndarray]:
    """`w` as the tensors of module `name`: same convention of zeros, same dtypes. The inverse of `weight`.

    g_idx is among them where the module had one, or where k // group_size would not say the same.
    """
    layout = _layout(tensors, name, spec)
    convention = zero_convention(_stored_zeros(tensors, name, layout), spec)
    packed = packed_tensors(name, w, convention.decided)
    packed[f"{name}.scales"] = w.scales.astype(tensors.read(f"{name}.scales", slice(0, 1)).dtype)
    if f"{name}.g_idx" not in tensors and np.array_equal(w.g_idx, groups.trivial_order(w.K, w.group_size)):
        del packed[f"{name}.g_idx"]
    if w.bias is not None:
        packed[f"{name}.bias"] = w.bias.astype(tensors.read(f"{name}.bias", slice(0, 1)).dtype)
    return packed


def packed_tensors(name: str, w: QuantWeight, zeros: str) -> dict[str, np.ndarray]:
    """`w` without its bias as tensors of this format, g_idx among them; zeros "v1" (z - 1 is stored) or "v2" (z)."""
    stored = (w.zeros - np.uint8(zeros == "v1")) & np.uint8((1 << w.bits) - 1)
    return {
        f"{name}.qweight": bitstream.pack(w.codes, w.bits),
        f"{name}.qzeros": np.ascontiguousarray(bitstream.pack(stored.T, w.bits).T),
        f"{name}.scales": w.scales,
        f"{name}.g_idx": w.g_idx,
    }


def _layout(tensors: Tensors, name: str, spec: ModuleSpec) -> Layout:
    """The sizes of a module, or CheckpointError where its tensors contradict each other or the config."""
    words, N = tensors.check(f"{name}.qweight", ("K*bits/32", "N"), "I32")
    G, _ = tensors.check(f"{name}.scales", ("G", N), *groups.FLOATS)
    _, zero_words = tensors.check(f"{name}.qzeros", (G, "N*bits/32"), "I32")
    if zero_words * 32 != N * spec.bits:
        raise tensors.error(
            f"{name}.qzeros",
            f"shape ({G}, N*bits/32) for N={N} and the config's bits={spec.bits}",
            f"shape ({G}, {zero_words}), which is of {zero_words * 32 / N:g} bits",
        )
    K, rest = divmod(words * 32, spec.bits)
    if rest:
        raise tensors.error(f"{name}.qweight", f"K*bits/32 rows for the config's bits={spec.bits}", f"{words} rows")
    if f"{name}.g_idx" in tensors:
        tensors.check(f"{name}.g_idx", (K,), "I32", "I64")
    groups.check_group_count(tensors, f"{name}.scales", G, K, spec.group_size)
    return Layout(K, N, G, spec.bits, spec.group_size)


def _read_g_idx(tensors: Tensors, name: str, layout: Layout) -> tuple[np.ndarray, str]:
    """g_idx, and its order_kind as claims.Inspection has it."""
    tensor = f"{name}.g_idx"
    K, G, group_size = layout.K, layout.G, layout.group_size
    if tensor not in tensors:
        return groups.trivial_order(K, group_size), "absent"
    stored = groups.read_g_idx(tensors, tensor)
    if G > 1 and not stored.any():
        return groups.trivial_order(K, group_size), "unset"
    if (stored < 0).any():
        warnings.warn(f"{tensor} counts some groups from the end; G={G} was added", CheckpointWarning, stacklevel=2)
    g_idx = groups.check_g_idx(tensors, tensor, np.where(stored < 0, stored + G, stored), G)
    return g_idx, groups.order_kind(g_idx, group_size)


def _stored_zeros(tensors: Tensors, name: str, layout: Layout) -> np.ndarray:
    return bitstream.unpack(tensors.read(f"{name}.qzeros").T, layout.bits, layout.N).T


def _true_zeros(stored: np.ndarray, convention: ZeroConvention, bits: int) -> np.ndarray:
    """Zero points of 0 .. 2**bits - 1.

    Under v1, z = 0 was stored as -1, which the writer's mask made 2**bits - 1; adding 1 modulo 2**bits is the only
    inverse. Engines that add without the mask read 2**bits there, which no writer can have meant.
    """
    return (stored + np.uint8(convention.decided == "v1")) & np.uint8((1 << bits) - 1)


def _read_codes(
    tensors: Tensors, name: str, layout: Layout, rows: slice | np.ndarray, columns: slice | np.ndarray
) -> np.ndarray:
    """Codes of some rows and columns, block by block along K, so that little beside the result is held."""
    rows = np.arange(layout.K)[rows]
    of_file = columns if isinstance(columns, slice) else slice(0, layout.N)
    width = of_file.stop - of_file.start
    codes = np.empty((len(rows), width if isinstance(columns, slice) else len(columns)), np.uint8)
    if not codes.size:
        return codes
    first, end = int(rows.min()) // 32 * 32, int(rows.max()) + 1  # 32 rows are whole words, of any width
    step = 32 * max(1, _BLOCK // (4 * layout.bits * width))

    def block(start: int, stop: int) -> np.ndarray:
        packed = tensors.read(f"{name}.qweight", _words_of(slice(start, stop), layout.bits), of_file)
        chosen = packed if isinstance(columns, slice) else packed.take(columns, axis=1)
        return bitstream.unpack(chosen, layout.bits, stop - start)

    if end - first <= step:
        return block(first, end)[rows - first]
    place = np.argsort(rows, kind="stable")
    wanted = rows[place]
    for start in range(first, end, step):
        stop = min(start + step, end)
        own = slice(*np.searchsorted(wanted, (start, stop)))
        if own.start < own.stop:
            codes[place[own]] = block(start, stop)[wanted[own] - start]
    return codes


def _words_of(rows: slice, bits: int) -> slice:
    return slice(rows.start * bits // 32, bitstream.words_for(rows.stop, bits))


def _notes(
    tensors: Tensors,
    name: str,
    spec: ModuleSpec,
    layout: Layout,
    order_kind: str,
    stored: np.ndarray,
    convention: ZeroConvention,
    sym: bool,
) -> list[str]:
    notes = []
    if spec.desc_act and order_kind != "act-order":
        notes.append(f"desc_act is claimed, but the order is {order_kind}")
    if not spec.desc_act and order_kind == "act-order":
        notes.append("desc_act is not claimed, but the rows of the groups are scattered")
    if f"{name}.g_idx" in tensors and (tensors.read(f"{name}.g_idx") < 0).any():
        notes.append(f"g_idx holds negative groups, read as counted from the end (G={layout.G} added)")
    if convention.contradicts:
        notes.append(f"labelled {convention.label}, but zero points are {convention.decided}: {convention.why}")
    if spec.sym != sym:
        held = "every zero point is the middle" if sym else "zero points differ from the middle"
        notes.append(f"sym is claimed {str(spec.sym).lower()}, but {held}")
    wrapped = int((stored == (1 << layout.bits) - 1).sum())
    if convention.decided == "v1" and wrapped:
        notes.append(
            f"{wrapped} zero points are 0, stored wrapped as {(1 << layout.bits) - 1}; some engines read "
            f"them as {1 << layout.bits}"
        )
    return notes
