"""What a config claims of a quantized module, and what the module's tensors really hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import CheckpointError


@dataclass(frozen=True)
class ModuleSpec:
    """The claims of a config about one module.

    format      "gptq", "awq" or "compressed-tensors"
    label       the layout within the format: "gptq", "gptq_v2", "gemm", "pack-quantized"
    group_size  rows of a group; -1 where one group holds all rows
    desc_act    whether the rows of a group are scattered ("act-order")
    sym         whether every zero point is the middle, 2**(bits-1)
    """

    format: str
    label: str
    bits: int
    group_size: int
    desc_act: bool
    sym: bool


@dataclass(frozen=True)
class ZeroConvention:
    """How the zero points of a module are stored: "v1" holds z - 1, "v2" holds z.

    label          what the config's label means, "v1" or "v2"
    decided        what was taken
    why            in a few words
    """

    label: str
    decided: str
    why: str

    @property
    def contradicts(self) -> bool:
        """Whether the values showed that the label is wrong."""
        return self.label != self.decided


@dataclass(frozen=True)
class ModuleFacts:
    """What the tensors of one module hold, beside what `spec` claims.

    group_size  rows of a group; K where one group holds all rows
    order       "act-order": rows of the groups are scattered;  "trivial": row k is in group k // group_size;
                "ordered": groups ascend, with other borders;  "absent" and "unset" (all 0 where there are more groups,
                or all -1): read as trivial
    zeros       how zero points are stored
    sym         whether every zero point is the middle, 2**(bits-1)
    notes       contradictions and oddities, a sentence each
    """

    name: str
    spec: ModuleSpec
    K: int
    N: int
    G: int
    bits: int
    group_size: int
    order: str
    zeros: ZeroConvention
    sym: bool
    notes: tuple[str, ...]


def claimed(config: dict[str, Any], where: str, keys: tuple[str, ...], kind: type, default: Any) -> Any:
    """The value of the first of `keys` (synonyms) that a config has, else `default`.

    Raises CheckpointError for a value of another type than `kind`; null counts as missing.
    """
    for key in keys:
        value = config.get(key)
        if value is not None:
            if type(value) is not kind:
                raise CheckpointError(f"{where}: {key}: expected {_KINDS[kind]}, found {value!r:.60}")
            return value
    return default


def check_bits(bits: int, where: str, known: tuple[int, ...] = (2, 3, 4, 8)) -> int:
    """`bits` if codes of this width are read here."""
    if bits not in known:
        raise CheckpointError(f"{where}: expected bits to be one of {', '.join(map(str, known))}, found {bits}")
    return bits


def check_group_size(group_size: int, where: str) -> int:
    """`group_size` if it is one: -1, or a positive multiple of 8."""
    if group_size != -1 and (group_size <= 0 or group_size % 8):
        raise CheckpointError(f"{where}: expected group_size to be -1 or a positive multiple of 8, found {group_size}")
    return group_size


_KINDS = {int: "an integer", bool: "true or false", str: "a string", dict: "an object", list: "a list"}
