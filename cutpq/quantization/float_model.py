"""The blocks of a float model, one at a time: their modules, and what each computes from the rows of some sequences.

Everything is float32. A block is two halves, attention and MLP. Each half is: a norm, the modules that read it (q, k
and v; gate and up), a function of their outputs, and the module that reads that (o; down), whose result is added. Where
there are experts the second half is as many, each for the tokens that choose it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from types import ModuleType

import numpy as np

from ..array import Array, array_module, to_numpy
from ..checkpoint.errors import CheckpointError
from ..checkpoint.folder import Checkpoint
from ..checkpoint.mlp_names import MlpModules, expert_modules, mlp_modules
from ..convert.reader import Reader
from ..model import formulas
from ..model.decoder import Decoder
from ..ops import formulas as ops_formulas
from ..ops.engine import elementwise as engine
from ..ops.engine.attention import attention as engine_attention
from ..ops.engine.choice import uses_engine
from ..ops.engine.product import product
from ..ops.formulas import route

# So many bytes of the files at most are in memory beside the tensors read from them.
_SHOWN_BYTES = 1 << 28


@dataclass(frozen=True)
class Linear:
    """x @ weight + bias: weight (K, N) float32, bias (N,) float32 or None."""

    weight: Array
    bias: Array | None

    def __call__(self, x: Array) -> Array:
        y = product(x, self.weight)
        if self.bias is not None:
            y += self.bias
        return y


class FloatModel:
    """A checkpoint of float weights, read tensor by tensor when they are needed.

    ckpt     not quantized
    decoder  its sizes, formulas and names
    length   of the sequences that it will be given
    xp       numpy or cupy, where it computes
    """

    def __init__(self, ckpt: Checkpoint, decoder: Decoder, length: int, xp: ModuleType):
        self.ckpt, self.decoder, self.length, self.xp = ckpt, decoder, length, xp
        self._reader = Reader(ckpt.folder, _SHOWN_BYTES)

    def embed(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The embedding of the tokens (n,) of each chunk of whole sequences, in host memory: (n, hidden) float32."""
        d = self.decoder
        table = self._tensor(d.embedding + ".weight", (d.vocabulary, d.hidden))
        for tokens in chunks:
            x = table[tokens].astype(np.float32)
            if d.positions is not None:
                positions = self._tensor(d.positions + ".weight", (d.max_positions, d.hidden))
                x += np.tile(positions[: self.length].astype(np.float32), (len(tokens) // self.length, 1))
            x *= np.float32(d.embedding_scale)
            yield x

    def block(self, layer: int) -> Block:
        """One decoder layer."""
        return Block(self, layer)

    def linear(self, name: str, K: int, N: int) -> Linear:
        """A module of these sizes. Raises CheckpointError where a number is not finite."""
        weight = self._finite(name + ".weight", (N, K))
        bias = self._finite(name + ".bias", (N,)) if self.ckpt.has(name + ".bias") else None
        return Linear(self.xp.asarray(np.ascontiguousarray(weight.T)), None if bias is None else self.xp.asarray(bias))

    def vector(self, name: str) -> Array:
        """A norm's weight or bias."""
        return self.xp.asarray(self._finite(name, (self.decoder.hidden,)))

    def _finite(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        a = self._tensor(name, shape).astype(np.float32)
        if not np.isfinite(a).all():
            at = tuple(map(int, np.argwhere(~np.isfinite(a))[0]))
            raise CheckpointError(f"{self.ckpt.folder}: {name}: expected finite numbers, found {a[at]} at {at}")
        return a

    def _tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        found = self.ckpt.tensor_shape(name)
        if found != shape:
            raise CheckpointError(f"{self.ckpt.folder}: {name}: expected shape {shape} by config.json, found {found}")
        return self._reader.before(4 * math.prod(shape)).tensor(name)

    @cached_property
    def angles(self) -> formulas.Angles | None:
        """cos and sin of the angles at each position, (length, head_dim / 2) float32; None without rotation."""
        return formulas.cos_and_sin(self.decoder.rope, self.xp.arange(self.length))


@dataclass(frozen=True)
class Tokens:
    """Which rows of some an expert sees, as an index, and by what its results are multiplied, (rows, 1) float32."""

    rows: slice | np.ndarray
    weight: Array | None

    def of(self, x: Array) -> Array:
        """These rows of x (M, ...)."""
        return x if isinstance(self.rows, slice) else x[array_module(x).asarray(self.rows)]

    def weighed(self, y: Array) -> Array:
        """Their results y, multiplied."""
        return y if self.weight is None else y * self.weight


# Every row, with weight 1: what all modules see that are no experts.
ALL = Tokens(slice(None), None)


@dataclass(frozen=True)
class Half:
    """x += write(act(read(norm(x)))), for all tokens or for those that choose an expert.

    read    names of the modules that read the norm: q, k, v or one that holds all three; gate and up, or one
    write   name of the module whose result is added
    norm    x (M, hidden) -> what the readers multiply
    act     the readers' outputs (M, ...) of whole sequences -> what the writer multiplies
    choose  norm(x) -> the tokens that are meant; None for ALL
    """

    read: tuple[str, ...]
    write: str
    norm: Callable[[Array], Array]
    act: Callable[[list[Array]], Array]
    choose: Callable[[Array], Tokens] | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that can be quantized."""
        return (*self.read, self.write)

    def tokens(self, x: Array) -> Tokens:
        """Those of x (M, hidden) that are meant."""
        return ALL if self.choose is None else self.choose(self.norm(x))


class Block:
    """One decoder layer: its halves `attention` and `mlp`, of which there are several where there are experts."""

    def __init__(self, model: FloatModel, layer: int):
        self.model, d = model, model.decoder
        at = d.block.format(layer) + "."
        norms = Norm(model, at + d.first_norm), Norm(model, at + d.second_norm)
        self.attention = Half(tuple(at + name for name in d.qkv), at + d.output, norms[0], self._attend)
        self._router = at + d.router
        self._mlps = expert_modules(model.ckpt, layer, d.experts) if d.experts else [mlp_modules(model.ckpt, layer)]
        self.mlp = [
            Half(m.first, m.down, norms[1], partial(_activate, m), partial(self._choose, e) if d.experts else None)
            for e, m in enumerate(self._mlps)
        ]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that can be quantized."""
        return tuple(name for half in (self.attention, *self.mlp) for name in half.modules)

    def shape(self, name: str) -> tuple[int, int]:
        """(K, N) of one of the modules."""
        d, first = self.model.decoder, self.attention.read
        if name in first:
            heads = (d.heads, d.kv_heads, d.kv_heads)
            return d.hidden, d.head_dim * (sum(heads) if len(first) == 1 else heads[first.index(name)])
        if name == self.attention.write:
            return d.heads * d.head_dim, d.hidden
        mlp = next(m for m in self._mlps if name in (*m.first, m.down))
        hidden = self.model.ckpt.tensor_shape(mlp.down + ".weight")[-1]
        return (hidden, d.hidden) if name == mlp.down else (d.hidden, hidden * (2 if mlp.fused else 1))

    def linear(self, name: str) -> Linear:
        """The float weight of one of the modules."""
        return self.model.linear(name, *self.shape(name))

    def _attend(self, qkv: list[Array]) -> Array:
        """q, k, v (M, ...) of whole sequences, or [q | k | v] -> (M, heads * head_dim)."""
        d, L = self.model.decoder, self.model.length
        xp = array_module(*qkv)
        fast = uses_engine(xp)
        heads = [part.reshape(len(part), -1, d.head_dim) for part in qkv]
        q, k, v = np.split(heads[0], [d.heads, d.heads + d.kv_heads], axis=1) if len(heads) == 1 else heads
        if self.model.angles is not None:
            cos, sin = (xp.tile(a, (len(q) // L, 1)) for a in self.model.angles)
            if fast:
                q, k = (engine.rotate(part, *engine.spread(cos, sin, part.shape[1])) for part in (q, k))
            else:
                q, k = (formulas.rotate(part, cos, sin) for part in (q, k))
        q, k, v = (part.reshape(-1, L, *part.shape[1:]) for part in (q, k, v))
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        positions = np.tile(np.arange(L), (len(q), 1))
        if fast:
            y = engine_attention(q, k, v, positions, d.attention_scale, d.window)
        else:
            kv_of_head = xp.asarray(np.arange(d.heads) // (d.heads // d.kv_heads))
            y = formulas.attention(q, k, v, positions, kv_of_head, d.attention_scale, d.window)
        return y.reshape(-1, d.heads * d.head_dim)

    def _choose(self, expert: int, h: Array) -> Tokens:
        """The tokens that choose an expert, of h (M, hidden)."""
        d = self.model.decoder
        experts, weights = route(to_numpy(self._route(h)), d.chosen_experts)
        tokens, place = np.nonzero(experts == expert)
        return Tokens(tokens, self.model.xp.asarray(weights[tokens, place])[:, None])

    @cached_property
    def _route(self) -> Linear:
        return self.model.linear(self._router, self.model.decoder.hidden, self.model.decoder.experts)

    def add(self, x: Array, y: Array) -> Array:
        """x + residual_scale * y, the scale being the family's."""
        scale = self.model.decoder.residual_scale
        return x + (y if scale == 1 else y * np.float32(scale))

    def lacking(self, x: Array, x0: Array) -> Array:
        """The y with which `add` would make x0 of x."""
        return (x0 - x) / np.float32(self.model.decoder.residual_scale)


def _activate(mlp: MlpModules, outputs: list[Array]) -> Array:
    """gate and up (M, ...), or [gate | up], or up alone -> what down multiplies."""
    if mlp.fused:
        outputs = np.split(outputs[0], 2, axis=1)
    compute = engine.activate if uses_engine(array_module(*outputs)) else ops_formulas.activate
    return compute(mlp.activation, *outputs)


class Norm:
    """RMSNorm or LayerNorm in float32."""

    def __init__(self, model: FloatModel, name: str):
        self.eps = np.float32(model.decoder.eps)
        self.weight = model.vector(name + ".weight")
        self.bias = model.vector(name + ".bias") if model.decoder.norm == "layer" else None

    def __call__(self, x: Array) -> Array:
        if uses_engine(array_module(x)):
            return engine.norm(x, self.weight, self.bias, float(self.eps))
        if self.bias is not None:
            return ops_formulas.layer_norm(x, self.weight, self.bias, float(self.eps))
        xp = array_module(x)
        y = x * (1 / xp.sqrt(xp.square(x).mean(axis=-1, keepdims=True) + self.eps))
        y *= self.weight
        return y
