"""A transformer's MLP over tensor-parallel ranks, in the five schemes of `linear`."""

from __future__ import annotations

from ..array import Array
from ..checkpoint.folder import Checkpoint
from ..checkpoint.mlp_names import MlpModules, mlp_modules
from ..codecs.codec import Codec
from ..ops import formulas as ref
from ..ranks.communicator import Communicator
from ..weights.schemes import count_groups
from ..weights.weight import Weight
from .linear import ColumnParallelLinear, RowParallelLinear
from .source import Source, WeightInFile


class Mlp:
    """y = act(x @ gate) * (x @ up) @ down, or act(x @ up) @ down without a gate; biases where the weights have them.

    The first product is column-parallel and makes the columns that the second, row-parallel one takes. Under
    `tp-aware` these columns are permuted when the layer is built, so that nothing is left to do when it runs. The
    result is the same array on every rank, bit for bit.

    Make one with `from_checkpoint` or `from_weights`, on every rank alike.
    """

    def __init__(self, first: ColumnParallelLinear, down: RowParallelLinear):
        self.first, self.down = first, down

    @classmethod
    def from_checkpoint(
        cls,
        ckpt: Checkpoint,
        layer: int = 0,
        *,
        comm: Communicator,
        scheme: str = "auto",
        modules: MlpModules | None = None,
        codec: str | Codec | None = None,
        algo: str = "auto",
    ) -> Mlp:
        """The MLP of decoder layer `layer`, or the one that `modules` names (experts: see cutpq.mlps).

        Every rank reads its own part from the files. `scheme`: one of cutpq.SCHEMES, or "auto".
        `codec` and `algo` are those of the all_reduce. Modules that are not quantized run too.
        Raises CheckpointError where the checkpoint has no such MLP or the shapes of its modules contradict each other,
        ValueError for an unknown scheme or activation, and for a scheme that needs more groups than there are.
        """
        modules = mlp_modules(ckpt, layer) if modules is None else modules
        gate: WeightInFile | None = None
        up = WeightInFile.whole(ckpt, modules.up)
        if modules.fused:
            gate, up = up.halves()
        elif modules.gate is not None:
            gate = WeightInFile.whole(ckpt, modules.gate)
        down = WeightInFile.whole(ckpt, modules.down)
        if gate is not None:
            gate.expect(up.K, up.N, f"as {modules.up} has")
        down.expect(up.N, None, f"for the columns of {modules.up}")
        return cls._build(gate, up, down, comm, scheme, modules.activation, codec, algo)

    @classmethod
    def from_weights(
        cls,
        gate: Weight | None,
        up: Weight,
        down: Weight,
        comm: Communicator,
        scheme: str = "auto",
        activation: str = "silu",
        codec: str | Codec | None = None,
        algo: str = "auto",
    ) -> Mlp:
        """From whole weights in memory: gate and up (H, I), down (I, N); gate None for a non-gated MLP.

        Raises ValueError as from_checkpoint does.
        """
        return cls._build(gate, up, down, comm, scheme, activation, codec, algo)

    @classmethod
    def _build(
        cls,
        gate: Source | None,
        up: Source,
        down: Source,
        comm: Communicator,
        scheme: str,
        activation: str,
        codec: str | Codec | None,
        algo: str,
    ) -> Mlp:
        _check(gate, up, down, activation)
        scheme = choose_scheme(down, comm.size) if scheme == "auto" else scheme
        row = RowParallelLinear(down, comm, scheme, codec=codec, algo=algo)
        sources = [up] if gate is None else [gate, up]
        sort = row.scheme != "unordered"
        return cls(ColumnParallelLinear(sources, comm, row.x_columns, sort=sort, activation=activation), row)

    @property
    def scheme(self) -> str:
        """The scheme in use, one of cutpq.SCHEMES: what "auto" became."""
        return self.down.scheme

    @property
    def perm(self) -> Array | None:
        """The order of x's columns that spares `partial` a gather, (K,) int32; None for the order on disk."""
        return self.first.perm

    def __call__(self, x: Array) -> Array:
        """x (M, H) float16, bfloat16 or float32, the same on every rank -> y (M, N), the same on every rank.

        Collective. Raises TypeError for another dtype, ValueError for another width.
        """
        return self.down(self.first(x))

    def partial(self, x: Array, *, permuted: bool = False) -> Array:
        """This rank's term of the sum y, (M, N). `permuted`: x is given as x[:, perm]."""
        return self.down.partial(self.first(x, permuted=permuted))


def choose_scheme(down: Source, tp: int) -> str:
    """What "auto" means for an MLP: `tp-aware`, which is free, or `local` where there are more ranks than groups."""
    return "tp-aware" if tp <= count_groups(down.g_idx) else "local"


def _check(gate: Source | None, up: Source, down: Source, activation: str) -> None:
    if activation not in ref.ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not one of {', '.join(ref.ACTIVATIONS)}")
    if up.N != down.K:
        raise ValueError(f"up makes N={up.N} features but down takes K={down.K}: they must be equal")
    if gate is not None and (gate.K, gate.N) != (up.K, up.N):
        raise ValueError(f"gate is (K, N) = ({gate.K}, {gate.N}) but up is ({up.K}, {up.N}): they must be equal")
