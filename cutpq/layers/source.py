"""Where a layer's weight comes from: memory or a checkpoint, quantized or plain. A rank reads only what it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..array import Array, array_module, move
from ..checkpoint.errors import CheckpointError
from ..checkpoint.folder import Checkpoint
from ..trace import span
from ..weights.shard import shard_columns, shard_rows
from ..weights.weight import PlainWeight, QuantWeight, Weight

Index = slice | Array
EVERYTHING = slice(None)


@dataclass(frozen=True)
class WeightInFile:
    """Columns first .. last of a checkpoint's module, quantized (its tensors) or plain (its `.weight`, (N, K))."""

    ckpt: Checkpoint
    name: str
    first: int
    last: int

    @classmethod
    def whole(cls, ckpt: Checkpoint, name: str) -> WeightInFile:
        """All columns of the module `name`. Raises CheckpointError where it is missing or no matrix."""
        plain = name + ".weight"
        if not ckpt.has(plain) and name not in ckpt.weights():
            raise CheckpointError(f"{ckpt.folder}: expected a quantized module {name} or {plain}, found neither")
        if ckpt.has(plain):
            N, _ = ckpt.check_tensor(plain, ("N", "K"))
            if ckpt.has(name + ".bias"):
                ckpt.check_tensor(name + ".bias", (N,))
        found = cls(ckpt, name, 0, 0)
        return replace(found, last=found.shape[1])

    def expect(self, K: int | None, N: int | None, why: str) -> None:
        """Raise CheckpointError, which names file and tensor, unless the shape is (K, N); None leaves one free."""
        if K in (None, self.K) and N in (None, self.N):
            return
        place, name = self.ckpt.folder, self.name
        if self.is_plain:
            name += ".weight"
            place /= self.ckpt.file_of(name)
        wanted = f"({'K' if K is None else K}, {'N' if N is None else N})"
        raise CheckpointError(f"{place}: {name}: expected (K, N) = {wanted} {why}, found ({self.K}, {self.N})")

    def columns(self, first: int, last: int) -> WeightInFile:
        """Columns first .. last of these columns: one part of a fused module."""
        return replace(self, first=self.first + first, last=self.first + last)

    def halves(self) -> tuple[WeightInFile, WeightInFile]:
        """Left and right half of the columns, where fused modules hold gate and up."""
        return self.columns(0, self.N // 2), self.columns(self.N // 2, self.N)

    @property
    def is_plain(self) -> bool:
        """Whether the module is not quantized."""
        return self.ckpt.has(self.name + ".weight")

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N) of the whole module."""
        if self.is_plain:
            N, K = self.ckpt.tensor_shape(self.name + ".weight")
            return K, N
        return self.ckpt.shape(self.name)

    @property
    def K(self) -> int:
        """Input features."""
        return self.shape[0]

    @property
    def N(self) -> int:
        """Output features: the columns first .. last."""
        return self.last - self.first

    @cached_property
    def g_idx(self) -> np.ndarray:
        """(K,) int32 group of each row; each row of a plain weight is its own group."""
        return np.arange(self.K, dtype=np.int32) if self.is_plain else self.ckpt.g_idx(self.name)


Source = QuantWeight | PlainWeight | WeightInFile


def take(source: Source, rows: Index = EVERYTHING, columns: Index = EVERYTHING) -> Weight:
    """The part of a whole weight at these rows and columns, with the scales of just the groups it touches.

    rows, columns  a slice, or integers in the order wanted

    Raises CheckpointError for a tensor that is missing or has another dtype.
    """
    if isinstance(source, WeightInFile):
        if isinstance(columns, slice):
            start, stop, _ = columns.indices(source.N)
            columns = slice(source.first + start, source.first + stop)
        else:
            columns = source.first + columns
        with span("load"):
            if source.is_plain:
                return _read_plain(source, rows, columns)
            return shard_rows(source.ckpt.weight(source.name, rows=rows, columns=columns), EVERYTHING)
    xp = array_module(source.weight if isinstance(source, PlainWeight) else source.codes)
    rows, columns = (i if isinstance(i, slice) else move(i, xp) for i in (rows, columns))
    if isinstance(source, PlainWeight):
        bias = None if source.bias is None else source.bias[columns]
        return PlainWeight(source.weight[rows][:, columns], bias)
    return shard_rows(shard_columns(source, columns), rows)


def _read_plain(source: WeightInFile, rows: Index, columns: Index) -> PlainWeight:
    """Some rows and columns of a module's `.weight`, which is stored transposed, and of its bias."""
    name = source.name + ".weight"
    window = columns if isinstance(columns, slice) else slice(int(columns.min()), int(columns.max()) + 1)
    stored = source.ckpt.tensor(name, rows=window)
    if not isinstance(columns, slice):
        stored = stored[columns - window.start]
    # Some rows are copied: a view of them would keep the whole matrix in memory.
    weight = stored.T if isinstance(rows, slice) and rows == EVERYTHING else np.ascontiguousarray(stored[:, rows]).T
    bias = source.name + ".bias"
    return PlainWeight(weight, source.ckpt.tensor(bias)[columns] if source.ckpt.has(bias) else None)
