"""A checkpoint, seen from one rank that builds its part of a model: what it reads, checked against config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from ..array import Array, round_to, to_float32
from ..checkpoint.errors import CheckpointError
from ..checkpoint.folder import Checkpoint
from ..checkpoint.mlp_names import MlpModules, expert_modules, mlp_modules
from ..codecs.codec import Codec
from ..layers.mlp import Mlp
from ..layers.moe import Moe
from ..layers.source import WeightInFile
from ..ranks.communicator import Communicator
from ..weights.schemes import GROUP_ALIGNED, count_groups
from ..weights.shard import even_bounds
from .decoder import Decoder


@dataclass(frozen=True)
class Reader:
    """What the modules of a model read themselves from.

    scheme       of the row-parallel layers, as the caller asked for it
    plan_scheme  what `plan` chose for each module, by name
    codec, algo  of the two all_reduces in a block

    All methods raise CheckpointError, which names folder and tensor, for what is missing or has another shape.
    """

    ckpt: Checkpoint
    decoder: Decoder
    comm: Communicator
    scheme: str
    plan_scheme: dict[str, str]
    codec: Codec | None
    algo: str

    @property
    def vocabulary(self) -> tuple[int, int]:
        """First row of this rank's part of the vocabulary, and the row after its last."""
        bounds = even_bounds(self.decoder.vocabulary, self.comm.size)
        return int(bounds[self.comm.rank]), int(bounds[self.comm.rank + 1])

    def source(self, name: str, K: int, N: int) -> WeightInFile:
        """A module that must be (K, N)."""
        source = WeightInFile.whole(self.ckpt, name)
        source.expect(K, N, "by config.json")
        return source

    def qkv(self, prefix: str) -> Sequence[WeightInFile]:
        """q, k and v of the block whose modules begin with `prefix`: three modules, or columns of one."""
        d = self.decoder
        ends = [0, *accumulate(n * d.head_dim for n in (d.heads, d.kv_heads, d.kv_heads))]
        if len(d.qkv) == 1:
            fused = self.source(prefix + d.qkv[0], d.hidden, ends[-1])
            return [fused.columns(i, j) for i, j in pairwise(ends)]
        return [self.source(prefix + name, d.hidden, j - i) for name, (i, j) in zip(d.qkv, pairwise(ends), strict=True)]

    def mlp(self, layer: int) -> Mlp | Moe:
        """A block's MLP, or its experts."""
        d = self.decoder
        if not d.experts:
            return self._mlp(mlp_modules(self.ckpt, layer))
        router = f"{d.block.format(layer)}.{d.router}.weight"
        self.check(router, (d.experts, d.hidden))
        experts = [self._mlp(modules) for modules in expert_modules(self.ckpt, layer, d.experts)]
        return Moe(to_float32(self.comm.xp.asarray(self.ckpt.tensor(router))).T, experts, d.chosen_experts)

    def _mlp(self, modules: MlpModules) -> Mlp:
        """Modules that must read and make the hidden features of config.json."""
        for name in modules.first:
            WeightInFile.whole(self.ckpt, name).expect(self.decoder.hidden, None, "by config.json")
        WeightInFile.whole(self.ckpt, modules.down).expect(None, self.decoder.hidden, "by config.json")
        return Mlp.from_checkpoint(
            self.ckpt, comm=self.comm, scheme=self.scheme, modules=modules, codec=self.codec, algo=self.algo
        )

    def output_scheme(self, output: WeightInFile) -> str:
        """The scheme of attention's output projection: the one asked for, or the plan's where that is impossible."""
        planned = self.plan_scheme.get(output.name, "local")
        impossible = self.scheme in GROUP_ALIGNED and self.comm.size > count_groups(output.g_idx)
        if self.scheme in ("auto", "tp-aware") or impossible:
            return "local" if planned == "none" else planned
        return self.scheme

    def table(self, name: str, rows: int, wanted: slice, dtype: np.dtype) -> Array:
        """The rows `wanted` of an embedding's (rows, hidden) table, rounded to dtype unless they are narrower.

        A narrower table stays as it is, to save memory: the few rows of a pass are then widened.
        """
        name += ".weight"
        self.check(name, (rows, self.decoder.hidden))
        stored = self.ckpt.tensor(name, rows=wanted)
        return self.comm.xp.asarray(stored if stored.dtype.itemsize < dtype.itemsize else round_to(stored, dtype))

    def vector(self, name: str, size: int) -> Array:
        """A tensor of `size` numbers."""
        self.check(name, (size,))
        return self.comm.xp.asarray(self.ckpt.tensor(name))

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise unless there is a float tensor of this name and shape."""
        found = self.ckpt.tensor_shape(name)
        if found != shape:
            raise CheckpointError(f"{self.ckpt.folder}: {name}: expected shape {shape} by config.json, found {found}")
        self.ckpt.check_tensor(name, shape)

    def check_biases(self, prefix: str) -> None:
        """Raise where a module of the block lacks the bias that its family has."""
        for name in self.decoder.biased:
            self.ckpt.tensor_shape(prefix + name + ".bias")
