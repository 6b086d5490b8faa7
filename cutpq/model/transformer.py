"""A whole decoder-only transformer over tensor-parallel ranks: prefill, decode, and nothing else.

    model = cq.load_model("path/to/hf-folder", comm)
    cache = model.new_cache(batch=2, length=1024)
    logits = model([[0, 17, 5], [0, 4]], cache)       # prefill, sequences of any lengths
    logits = model([[9], [31]], cache)                # decode: one more token each

Attention is cut by heads, the MLP by its features, embedding and head by the vocabulary. Two all_reduces in a block
add the ranks' parts, and may carry a codec; what they add to, the norm that follows and the order of columns that the
next weight wants belong to the same step. Everything else is exact or rounded once. Where there are fewer
key/value heads than ranks, ranks hold copies of those that their query heads need.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..array import Array, array_module, bfloat16
from ..checkpoint.errors import CheckpointError
from ..checkpoint.folder import Checkpoint, open_checkpoint
from ..checkpoint.mlp_names import mlp_modules
from ..codecs.codec import Codec
from ..codecs.codec import codec as find_codec
from ..layers.linear import ColumnParallelLinear, RowParallelLinear
from ..layers.mlp import Mlp
from ..layers.plan import plan
from ..ops.gather import gather_columns, rmsnorm_gather
from ..ranks.all_reduce import ALGOS, all_reduce, all_reduce_rmsnorm
from ..ranks.init import Communicator
from ..trace import span
from ..weights.schemes import SCHEMES
from ..weights.shard import even_bounds
from ..weights.weight import PlainWeight
from . import bigcode, llama, phi3
from . import formulas as ref
from .attention import Angles, attention
from .cache import Batch, Cache, Kept
from .decoder import Config, Decoder
from .reader import Parts, head_bounds

# By model_type.
FAMILIES = {
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "granite": llama,
    "gpt_bigcode": bigcode,
    "phi3": phi3,
}

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": bfloat16, "float32": np.dtype(np.float32)}


def load_model(
    folder: str | Path | Checkpoint,
    comm: Communicator,
    codec: str | Codec | None = None,
    *,
    algo: str = "auto",
    scheme: str = "auto",
    dtype: Any = None,
    link: str = "a100-nvlink",
) -> Transformer:
    """The model in a Hugging Face folder, each rank its part; to be called on every rank alike.

    codec, algo  of the two all_reduces in a block, see all_reduce
    scheme       of the row-parallel layers, one of cutpq.SCHEMES, or "auto": what `plan` chooses for this `link`.
                 Where it is impossible for attention's output (tp-aware always, others on more ranks than groups),
                 that layer takes the plan's.
    dtype        of the activations: float16, bfloat16 or float32; default: the config's, float16 where that is
                 float32 or missing

    Quantized and plain modules may be mixed. Raises CheckpointError for an unknown architecture, a config or a
    tensor that is missing or wrong, ValueError for more ranks than heads.
    """
    ckpt = open_checkpoint(folder) if isinstance(folder, (str, Path)) else folder
    decoder = read_decoder(ckpt)
    if scheme not in (*SCHEMES, "auto"):
        raise ValueError(f"scheme {scheme!r} is not one of auto, {', '.join(SCHEMES)}")
    if algo not in ALGOS:
        raise ValueError(f"algo {algo!r} is not one of {', '.join(ALGOS)}")
    codec = None if codec is None else find_codec(codec)
    planned = {layer.name: layer.chosen for layer in plan(ckpt, comm.size, link)}
    parts = Parts(ckpt, decoder, comm, scheme, planned, codec, algo)
    return Transformer(parts, _activation_dtype(ckpt, dtype))


def read_decoder(ckpt: Checkpoint) -> Decoder:
    """What kind of transformer a checkpoint holds. Raises CheckpointError for one that cannot be run."""
    config = Config(ckpt.config, str(ckpt.folder / "config.json"))
    family = config.word("model_type", "")
    if family not in FAMILIES:
        raise config.refuse("model_type", f"one of {', '.join(FAMILIES)}")
    decoder: Decoder = FAMILIES[family].read(config)
    if decoder.heads % decoder.kv_heads:
        raise CheckpointError(
            f"{config.where}: expected a number of key/value heads that divides {decoder.heads} heads, "
            f"found {decoder.kv_heads}"
        )
    return decoder


class Transformer:
    """What load_model gives.

    decoder  its sizes and formulas
    comm     its ranks
    dtype    of activations, cache and logits
    """

    def __init__(self, parts: Parts, dtype: np.dtype):
        self.decoder, self.comm, self.dtype = parts.decoder, parts.comm, dtype
        self.embedding = Embedding(parts, dtype)
        self.blocks = [Block(parts, layer, dtype) for layer in range(parts.decoder.layers)]
        self.head = Head(parts, self.embedding)
        self.norm = Norm(parts, parts.decoder.last_norm, self.head.linear, dtype)

    def __call__(self, tokens: Any, cache: Cache, *, last_only: bool = False) -> Array:
        """Logits after each of the new tokens, which are appended to the cache: (M, vocabulary), on all ranks equal.

        tokens     for each of the cache's sequences one token or more: (batch, T) integers or a list of such rows of
                   any lengths, the same on every rank
        last_only  logits after each sequence's last token only: (batch, vocabulary)

        M counts the tokens of all sequences, one sequence after the other. Raises ValueError, on every rank and
        before anything is computed, for a token out of range and a cache that is full.
        """
        batch = Batch.of(tokens, cache, self.decoder.vocabulary, self.comm.xp)
        angles = _cos_and_sin(self.decoder.rope, batch.at[1])
        x = self.embedding(batch)
        norms = [*(block.first_norm for block in self.blocks), self.norm]
        y = norms[0](x)
        for block, kept, next_norm in zip(self.blocks, cache.layers, norms[1:], strict=True):
            y = block(x, y, batch, kept, angles, next_norm)
        cache.lengths += batch.counts
        if last_only:
            y = y[self.comm.xp.asarray(np.cumsum(batch.counts) - 1)]
        return self.head(y)

    def use_codec(self, codec: str | Codec | None, algo: str = "auto") -> None:
        """From now on the two all_reduces of each block carry this codec; to be called on every rank alike."""
        for block in self.blocks:
            for layer in (block.attention.output, block.mlp.down):
                layer.codec, layer.algo = codec, algo

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` sequences of at most `length` tokens each."""
        if self.decoder.positions is not None and length > self.decoder.max_positions:
            raise ValueError(f"length={length} is more than the {self.decoder.max_positions} positions of the model")
        heads = [block.attention.kv_heads for block in self.blocks]
        return Cache(batch, length, heads, self.decoder.head_dim, self.dtype, self.comm.xp)


class Block:
    """x + output(attention(norm(x))), then x + mlp(norm(x)).

    A sum over the ranks, what it adds to x, and the norm that follows, in the order of columns that its reader wants,
    are one step: see Norm.after.
    """

    def __init__(self, parts: Parts, layer: int, dtype: np.dtype):
        at, d = parts.decoder.block.format(layer) + ".", parts.decoder
        parts.check_biases(at)
        self.attention = Attention(parts, at)
        modules = mlp_modules(parts.ckpt, layer)
        self.mlp = Mlp.from_checkpoint(
            parts.ckpt, comm=parts.comm, scheme=parts.scheme, modules=modules, codec=parts.codec, algo=parts.algo
        )
        self.first_norm = Norm(parts, at + d.first_norm, self.attention.qkv, dtype)
        self.second_norm = Norm(parts, at + d.second_norm, self.mlp.first, dtype)

    def __call__(self, x: Array, y: Array, batch: Batch, kept: Kept, angles: Angles, next_norm: Norm) -> Array:
        """x (M, H), changed in place, and y = first_norm(x) -> next_norm(x)."""
        y = self.attention(y, batch, kept, angles)
        with span("o_proj"):
            y = self.second_norm.after(self.attention.output.partial(y), x, self.attention.output)
        with span("mlp"):
            return next_norm.after(self.mlp.partial(y, permuted=True), x, self.mlp.down)


class Attention:
    """What this rank's heads attend to, which `output` multiplies."""

    def __init__(self, parts: Parts, at: str):
        d, comm = parts.decoder, parts.comm
        bounds = head_bounds(d.heads, d.kv_heads, comm.size)
        heads = slice(int(bounds[comm.rank]), int(bounds[comm.rank + 1]))
        kv_of_head = np.arange(d.heads)[heads] // (d.heads // d.kv_heads)
        kv = slice(int(kv_of_head[0]), int(kv_of_head[-1]) + 1)
        output = parts.source(at + d.output, d.heads * d.head_dim, d.hidden)
        scheme = parts.output_scheme(output)
        self.qkv = ColumnParallelLinear(
            parts.qkv(at),
            comm,
            [slice(h.start * d.head_dim, h.stop * d.head_dim) for h in (heads, kv, kv)],
            sort=scheme != "unordered",
        )
        self.output = RowParallelLinear(
            output, comm, scheme, (bounds * d.head_dim).tolist(), codec=parts.codec, algo=parts.algo
        )
        self.scale, self.window = d.attention_scale, d.window
        self.kv_heads, self.kv_of_head = kv.stop - kv.start, kv_of_head - kv.start

    def __call__(self, x: Array, batch: Batch, kept: Kept, angles: Angles) -> Array:
        with span("qkv"):
            qkv = self.qkv(x, permuted=True)
        with span("attention"):
            return attention(qkv, angles, kept, batch, self.kv_of_head, self.scale, self.window)


class Norm:
    """RMSNorm or LayerNorm, on every rank alike, its columns in the order that `reader` wants."""

    def __init__(self, parts: Parts, name: str, reader: ColumnParallelLinear, dtype: np.dtype):
        d, xp = parts.decoder, parts.comm.xp
        self.eps, self.scale = d.eps, d.residual_scale
        self.weight = parts.vector(name + ".weight", d.hidden).astype(dtype)
        self.bias = parts.vector(name + ".bias", d.hidden).astype(dtype) if d.norm == "layer" else None
        self.perm = xp.arange(d.hidden, dtype=np.int32) if reader.perm is None else reader.perm

    def __call__(self, x: Array) -> Array:
        with span("norm"):
            if self.bias is None:
                return rmsnorm_gather(x, self.weight, self.perm, self.eps)
            return gather_columns(ref.layer_norm(x, self.weight, self.bias, self.eps), self.perm)

    def after(self, term: Array, x: Array, layer: RowParallelLinear) -> Array:
        """x += the sum over the ranks of the terms that `layer` gave them, in place -> norm(x)."""
        if self.scale != 1:
            term = term * term.dtype.type(self.scale)
        if self.bias is None:
            return all_reduce_rmsnorm(
                term, layer.comm, x, self.weight, self.perm, self.eps, codec=layer.codec, algo=layer.algo
            )
        with span("all_reduce"):
            x += all_reduce(term, layer.comm, layer.codec, layer.algo)
        return self(x)


class Embedding:
    """The table's row of each token, plus that of its position where positions are learned.

    A rank holds the rows of its part of the vocabulary. The sum over the ranks is exact: all but one add zero.
    """

    def __init__(self, parts: Parts, dtype: np.dtype):
        d, self.comm, self.dtype = parts.decoder, parts.comm, dtype
        self.first, last = parts.vocabulary
        self.table = parts.table(d.embedding, d.vocabulary, slice(self.first, last))
        self.positions = None if d.positions is None else parts.table(d.positions, d.max_positions, slice(None))
        self.scale = d.embedding_scale

    def __call__(self, batch: Batch) -> Array:
        xp = self.comm.xp
        with span("embedding"):
            row = xp.asarray(batch.tokens) - self.first
            mine = (row >= 0) & (row < len(self.table))
            x = self.table[xp.where(mine, row, 0)].astype(self.dtype)
            x[~mine] = 0
            x = all_reduce(x, self.comm)
            if self.positions is not None:
                x = x + self.positions[batch.at[1]].astype(self.dtype)
            return x if self.scale == 1 else x * self.dtype.type(self.scale)


class Head:
    """Logits: each rank computes those of its part of the vocabulary, then all gather them."""

    def __init__(self, parts: Parts, embedding: Embedding):
        d, self.comm = parts.decoder, parts.comm
        self.counts = np.diff(even_bounds(d.vocabulary, self.comm.size)).tolist()
        if d.tied:
            self.linear = ColumnParallelLinear(PlainWeight(embedding.table.T), self.comm, slice(None))
        else:
            source = parts.source(d.head, d.hidden, d.vocabulary)
            self.linear = ColumnParallelLinear(source, self.comm, slice(*parts.vocabulary))
        self.scale = d.logits_scale

    def __call__(self, x: Array) -> Array:
        with span("head"):
            y = self.linear(x, permuted=True)
            if self.scale != 1:
                y = y * y.dtype.type(self.scale)
            every = self.comm.all_gather(y.reshape(-1), [len(x) * count for count in self.counts])
            ends = [len(x) * n for n in accumulate(self.counts, initial=0)]
            parts = [every[i:j].reshape(len(x), -1) for i, j in pairwise(ends)]
            return self.comm.xp.concatenate(parts, axis=1)


def _activation_dtype(ckpt: Checkpoint, asked: Any) -> np.dtype:
    if asked is None:
        config = Config(ckpt.config, str(ckpt.folder / "config.json"))
        stored = config.word("dtype", config.word("torch_dtype", "float16")).removeprefix("torch.")
        return DTYPES["bfloat16" if stored == "bfloat16" else "float16"]
    name = asked if isinstance(asked, str) else np.dtype(asked).name
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name}")
    return DTYPES[name]


def _cos_and_sin(rope: np.ndarray | None, positions: Array) -> Angles:
    if rope is None:
        return None
    xp = array_module(positions)
    angle = positions[:, None] * xp.asarray(rope)
    return xp.cos(angle).astype(xp.float32), xp.sin(angle).astype(xp.float32)
