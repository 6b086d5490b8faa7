"""Models that the benches know by name: their shapes, and random weights of an MLP's.

Sizes are those of each model's public config.json.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cutpq.array import ceil_div
from cutpq.checkpoint.mlp_names import MlpModules
from cutpq.cost.mlp import MlpShape
from cutpq.cost.transformer import ModelShape
from cutpq.weights.weight import QuantWeight

MODELS = {
    shape.name: shape
    for shape in (
        MlpShape("llama-7b", 4096, 11008, 4096, gated=True),
        MlpShape("llama-70b", 8192, 28672, 8192, gated=True),
        MlpShape("qwen2-72b", 8192, 29568, 8192, gated=True),
        MlpShape("granite-20b", 6144, 24576, 6144, gated=False),
    )
}

TRANSFORMERS = {
    shape.name: shape
    for shape in (
        ModelShape("llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32000),
        ModelShape("llama-2-13b", 40, 5120, 40, 40, 128, 13824, 32000),
        ModelShape("llama-2-70b", 80, 8192, 64, 8, 128, 28672, 32000),
        ModelShape("llama-3-8b", 32, 4096, 32, 8, 128, 14336, 128256),
        ModelShape("llama-3-70b", 80, 8192, 64, 8, 128, 28672, 128256),
        ModelShape("granite-20b", 52, 6144, 48, 1, 128, 24576, 49152, gated=False),
    )
}

Selection = slice | np.ndarray | None


@dataclass(frozen=True)
class RandomCheckpoint:
    """One act-ordered 4-bit MLP with a model's shape, read like a checkpoint: only what is asked for comes to be.

    A code is a hash of its row and its column, so that each rank makes its own shard and all mean the same weight.
    `gate` and `up` share an order, `down` has another. Symmetric; biases where the MLP has no gate (Granite, GPT).
    """

    mlp: MlpShape
    group_size: int = 128

    folder = Path("random weights")
    bits = 4

    @property
    def modules(self) -> MlpModules:
        """What Mlp.from_checkpoint takes as modules=."""
        if self.mlp.gated:
            return MlpModules("gate", "up", "down", "silu")
        return MlpModules(None, "up", "down", "gelu_tanh")

    def shape(self, name: str) -> tuple[int, int]:
        """(K, N) of gate, up or down."""
        return (self.mlp.H, self.mlp.N) if name == "down" else (self.mlp.K, self.mlp.H)

    def g_idx(self, name: str) -> np.ndarray:
        """g_idx as act-order leaves it: full groups, scattered."""
        what = "order of down" if name == "down" else "order of gate and up"
        return random_order(what, self.shape(name)[0], self.group_size)

    def weights(self) -> list[str]:
        """Names of the quantized modules."""
        return [*self.modules.first, self.modules.down]

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name: all modules here are quantized, and none has a plain weight."""
        return False

    def weight(self, name: str, rows: Selection = None, columns: Selection = None) -> QuantWeight:
        """gate, up or down, or these rows and columns of it; g_idx and scales as Checkpoint.weight gives them."""
        return random_weight(
            name, self.shape(name), self.g_idx(name), self.group_size, rows, columns, not self.mlp.gated
        )


def random_weight(
    name: str,
    shape: tuple[int, int],
    order: np.ndarray,
    group_size: int,
    rows: Selection,
    columns: Selection,
    biased: bool,
) -> QuantWeight:
    """Rows and columns of the 4-bit weight that `name` stands for, (K, N) = shape; symmetric."""
    K, N = shape
    rows = slice(None) if rows is None else rows
    columns = slice(None) if columns is None else columns
    codes, rng = hashed(name, shape, rows, columns)
    G = ceil_div(K, group_size)
    # A code is spread over -8 .. 7 times its scale: weights of standard deviation about 1/2 / sqrt(K).
    scales = np.ascontiguousarray((rng.uniform(0.5, 1.5, (G, N)) / (8 * K**0.5)).astype(np.float16)[:, columns])
    bias = (rng.standard_normal(N) / 8).astype(np.float16) if biased else None
    return QuantWeight(
        codes=codes,
        scales=scales,
        zeros=np.full(scales.shape, 8, np.uint8),
        g_idx=order[rows],
        bits=4,
        group_size=group_size,
        bias=None if bias is None else bias[columns],
    )


def hashed(
    name: str, shape: tuple[int, int], rows: Selection, columns: Selection
) -> tuple[np.ndarray, np.random.Generator]:
    """Rows and columns of a matrix of numbers 0 .. 15, uint8, and the generator with which to go on."""
    rng = _rng(name)
    of_row, of_column = (rng.integers(0, 2**32, n, np.uint32) | np.uint32(1) for n in shape)
    return (of_row[rows, None] * of_column[None, columns] >> np.uint32(28)).astype(np.uint8), rng


def random_order(what: str, K: int, group_size: int) -> np.ndarray:
    """g_idx as act-order leaves it: full groups, scattered."""
    return (_rng(what).permutation(K) // group_size).astype(np.int32)


def _rng(what: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(what.encode()))
