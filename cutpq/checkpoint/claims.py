"""What a config claims of a quantized module, and what the module's tensors really hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .errors import CheckpointError

Key = str | tuple[str, ...]

# No width, number of layers, vocabulary or context of a model is as large; arrays of so many numbers are allocated.
LARGEST_SIZE = 1 << 24


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

    label    what the config's label means, "v1" or "v2"
    decided  the convention that is used to read the module
    why      the reason for it, in a few words
    """

    label: str
    decided: str
    why: str

    @property
    def contradicts(self) -> bool:
        """Whether the values showed that the label is wrong."""
        return self.label != self.decided


@dataclass(frozen=True)
class Inspection:
    """What the tensors of one module hold, beside what `spec` claims.

    group_size  rows of a group; K where one group holds all rows
    order_kind  "act-order": rows of the groups are scattered;  "trivial": row k is in group k // group_size;
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
    order_kind: str
    zeros: ZeroConvention
    sym: bool
    notes: tuple[str, ...]

    @classmethod
    def of(cls, name: str, spec: ModuleSpec, layout: Layout, **found: Any) -> Inspection:
        """The inspection of a module of these sizes; `found` are the last four fields."""
        return cls(name, spec, layout.K, layout.N, layout.G, layout.bits, layout.rows_per_group, **found)


class Config:
    """A JSON object of claims, key by key: each value of the kind that it must be, else CheckpointError.

    where  the file, and the keys above this object, for messages

    A key may be a tuple of synonyms: the first that is there counts. null counts as missing. A missing key without
    a default is an error too.
    """

    def __init__(self, values: dict[str, Any], where: str):
        self.values, self.where = values, where

    def count(self, key: Key, default: int | None = None) -> int:
        """A whole number above 0, and small enough to be the size of something."""
        expected = f"a whole number from 1 to {LARGEST_SIZE}"
        return self._get(key, default, expected, lambda v: type(v) is int and 0 < v <= LARGEST_SIZE)

    def integer(self, key: Key, default: int | None = None) -> int:
        """A whole number of either sign."""
        return self._get(key, default, "an integer", lambda v: type(v) is int)

    def number(self, key: Key, default: float | None = None) -> float:
        """A finite number."""
        return float(self._get(key, default, "a number", lambda v: type(v) in (int, float) and _is_finite(v)))

    def flag(self, key: Key, default: bool) -> bool:
        """true or false."""
        return self._get(key, default, "true or false", lambda v: type(v) is bool)

    def word(self, key: Key, default: str | None = None) -> str:
        """A string."""
        return self._get(key, default, "a string", lambda v: type(v) is str)

    def words(self, key: Key) -> list[str]:
        """A list of strings; an empty one where it is missing. Raises CheckpointError for anything else."""
        found = self._get(key, [], "a list", lambda v: type(v) is list)
        if not all(isinstance(word, str) for word in found):
            raise self.refuse(key, "a list of strings")
        return found

    def section(self, key: Key) -> Config:
        """An object; an empty one where it is missing."""
        values = self._get(key, {}, "an object", lambda v: type(v) is dict)
        return Config(values, f"{self.where}: {self._present(key)}")

    def sections(self) -> dict[str, Config]:
        """Every value by its key. Raises CheckpointError where one is no object."""
        missing = [key for key, value in self.values.items() if value is None]
        if missing:
            raise self.refuse(missing[0], "an object")
        return {key: self.section(key) for key in self.values}

    def has(self, key: Key) -> bool:
        """Whether there is such a key and it is not null."""
        return self.values.get(self._present(key)) is not None

    def refuse(self, key: Key, expected: str) -> CheckpointError:
        """The error to raise about a value that is not supported."""
        key = self._present(key)
        found = f"found {self.values[key]!r:.60}" if self.has(key) else "found no such key"
        return CheckpointError(f"{self.where}: {key}: expected {expected}, {found}")

    def _present(self, key: Key) -> str:
        keys = (key,) if isinstance(key, str) else key
        return next((k for k in keys if self.values.get(k) is not None), keys[0])

    def _get(self, key: Key, default: Any, expected: str, fits: Callable[[Any], bool]) -> Any:
        value = self.values.get(self._present(key))
        if value is None and default is not None:
            return default
        if value is None or not fits(value):
            raise self.refuse(key, expected)
        return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False


@dataclass(frozen=True)
class Layout:
    """Sizes of a quantized module whose tensors were found to agree with each other and with the config.

    group_size  as claimed: -1 where one group holds all rows
    g_idx       name of the tensor that holds it, None where there is none
    zeros       the same of the zero points
    """

    K: int
    N: int
    G: int
    bits: int
    group_size: int
    g_idx: str | None = None
    zeros: str | None = None

    @property
    def rows_per_group(self) -> int:
        """The group size as QuantWeight has it: K where one group holds all rows."""
        return self.K if self.G == 1 else self.group_size


def check_bits(bits: int, where: str, known: tuple[int, ...] = (2, 3, 4, 8)) -> int:
    """`bits`. Raises CheckpointError where codes of this width are not read here."""
    if bits not in known:
        raise CheckpointError(f"{where}: expected bits to be one of {', '.join(map(str, known))}, found {bits}")
    return bits


def check_group_size(group_size: int, where: str) -> int:
    """`group_size`. Raises CheckpointError unless it is -1 or a positive multiple of 8."""
    if group_size != -1 and (group_size <= 0 or group_size % 8):
        raise CheckpointError(f"{where}: expected group_size to be -1 or a positive multiple of 8, found {group_size}")
    return group_size
