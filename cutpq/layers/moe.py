"""A mixture of experts over tensor-parallel ranks: each token passes through a few of many MLPs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..array import Array, array_module, round_to, to_float32, to_numpy
from ..ops.formulas import route
from ..trace import span
from .linear import RowParallelLinear
from .mlp import Mlp


class Moe:
    """y = sum over the experts that a token chooses of weight * expert(x), by one all_reduce for all of them.

    router  (H, experts) float32, the same on every rank
    experts  each cut over all ranks, as an Mlp in any scheme
    chosen  how many experts a token passes through: those of the largest x @ router, whose softmax gives the weights

    Every rank has the same x, chooses alike, and takes part in every expert that some token chose. The host reads
    x @ router to find each expert's tokens, so a CUDA graph cannot hold this layer.
    """

    perm = None  # experts may differ in their orders, and each gathers its own columns of x

    def __init__(self, router: Array, experts: Sequence[Mlp], chosen: int):
        self.router, self.experts, self.chosen = router, experts, chosen

    @property
    def down(self) -> RowParallelLinear:
        """The layer whose codec and algo the one all_reduce takes."""
        return self.experts[0].down

    def partial(self, x: Array, *, permuted: bool = False) -> Array:
        """This rank's term of the sum y, (M, H), of x (M, H): what is left to do is one all_reduce.

        Terms are added in float32 in the order of the experts and rounded once. Under `naive` and `all-to-all`
        collective. Waits for the GPU. `permuted` has no effect: perm is None.
        """
        xp = array_module(x)
        with span("router"):
            experts, weights = route(to_numpy(to_float32(x) @ self.router), self.chosen)
        y = xp.zeros(x.shape, xp.float32)
        for number, expert in enumerate(self.experts):
            tokens, place = np.nonzero(experts == number)
            if len(tokens):
                rows = xp.asarray(tokens)
                term = to_float32(expert.partial(x[rows]))
                y[rows] += term * xp.asarray(weights[tokens, place])[:, None]
        return round_to(y, x.dtype)
