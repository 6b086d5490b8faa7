"""The products of a model's MLP on one of `tp` ranks, and how each scheme orders their rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutpq.array import ceil_div
from cutpq.weights.shard import even_bounds, group_bounds
from models.shapes import MODELS, random_order

SCHEMES = ("plain", "tp-aware", "local", "unordered")
GROUP_SIZE = 128


@dataclass(frozen=True)
class Layer:
    """One product: (M, K) @ (K, N) on rank 0 of `tp`, which never has less than another rank.

    total_K  rows of the whole weight: K of a column-parallel layer, K times tp or so of a row-parallel one
    bits     of a code in kernel order: 4 or 8
    """

    model: str
    layer: str
    tp: int
    K: int
    N: int
    total_K: int
    bits: int = 4

    @property
    def zero(self) -> int:
        """The zero point of all groups: the weight is symmetric."""
        return 1 << (self.bits - 1)

    @property
    def shares_rows(self) -> bool:
        """Whether ranks have different rows: a row-parallel layer, of more than one rank."""
        return self.layer == "down" and self.tp > 1

    @property
    def groups_in_order(self) -> int:
        """Groups that this rank's rows belong to where they were sorted before they were shared out."""
        return ceil_div(self.K, GROUP_SIZE)

    @property
    def groups_in_disk_order(self) -> int:
        """Groups that this rank's rows belong to where the ranks share the rows as they come."""
        return min(self.K, ceil_div(self.total_K, GROUP_SIZE))

    def g_idx(self) -> np.ndarray:
        """g_idx of the whole weight as act-order leaves it."""
        return random_order(f"order of {self.layer}", self.total_K, GROUP_SIZE)

    def rows(self, scheme: str) -> slice:
        """Rank 0's rows: of the sorted weight where the scheme sorts first, of the weight on disk elsewhere."""
        if not self.shares_rows:
            return slice(0, self.K)
        sorted_first = scheme in ("plain", "tp-aware")
        bounds = group_bounds(self.g_idx(), self.tp) if sorted_first else even_bounds(self.total_K, self.tp, 8)
        return slice(0, int(bounds[1]))


def layers(models: tuple[str, ...], tps: tuple[int, ...], bits: int = 4) -> list[Layer]:
    """gate and up side by side (up alone where there is no gate), and down, of every model at every tp."""
    found = []
    for name in models:
        mlp = MODELS[name]
        for tp in tps:
            width = int(group_bounds(np.arange(mlp.H) // GROUP_SIZE, tp)[1])
            found.append(Layer(name, "gate_up", tp, mlp.K, (2 if mlp.gated else 1) * width, mlp.K, bits))
            found.append(Layer(name, "down", tp, width, mlp.N, mlp.H, bits))
    return found
