"""A whole decoder-only transformer over tensor-parallel ranks: prefill, decode, and nothing else.

    model = cq.load_model("path/to/hf-folder", comm)
    cache = model.new_cache(batch=2, length=1024)
    logits = model([[0, 17, 5], [0, 4]], cache)       # prefill, sequences of any lengths
    logits = model.decode([9, 31], cache)             # one more token each, on a GPU by one CUDA graph

Attention is cut by heads, the MLP by its features, embedding and head by the vocabulary. Two all_reduces in a block
add the ranks' partial sums, and may carry a codec. One fused step sums the ranks, adds the residual, normalizes, and
writes columns in the order of the next weight's rows. Everything else is exact or rounded once. Where there are fewer
key/value heads than ranks, ranks hold copies of those that their query heads need.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..array import Array, bfloat16, to_numpy
from ..checkpoint.claims import Config
from ..checkpoint.folder import Checkpoint, open_checkpoint
from ..codecs.codec import Codec
from ..codecs.codec import codec as find_codec
from ..layers.exchange import AllGather, AllToAll
from ..layers.linear import ColumnParallelLinear, RowParallelLinear
from ..layers.mlp import Mlp
from ..layers.moe import Moe
from ..layers.plan import plan
from ..ops.engine import elementwise, threads
from ..ops.engine.choice import uses_engine
from ..ops.gather import rmsnorm_gather
from ..ops.gemm import Prepared, can_capture
from ..ops.prefetch import prefetch
from ..ops.residual_norm import residual_norm
from ..ranks.all_reduce import ALGOS, all_reduce, all_reduce_rmsnorm
from ..ranks.communicator import Communicator
from ..trace import span
from ..weights.schemes import SCHEMES
from ..weights.shard import even_bounds, head_bounds
from ..weights.weight import PlainWeight
from .attention import attention, has_kernels
from .cache import Batch, Cache, LayerCache, decode_tokens
from .decode_attention import takes as decodes
from .decode_step import DecodeStep, bucket_of, on_default_stream
from .families import end_tokens, read_decoder
from .formulas import Angles, cos_and_sin
from .reader import Reader

# Tokens that a thread takes through the rest of a block, from the heads' results to the next norm: few enough that each
# step finds in the cache what the one before has made, and enough for a BLAS's speed.
_ROWS = 128

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
    tensor that is missing or wrong; ValueError for an unknown scheme, algo, codec, link or dtype, and for more ranks
    than heads.
    """
    ckpt = open_checkpoint(folder) if isinstance(folder, (str, Path)) else folder
    decoder = read_decoder(ckpt)
    if scheme not in (*SCHEMES, "auto"):
        raise ValueError(f"scheme {scheme!r} is not one of auto, {', '.join(SCHEMES)}")
    if algo not in ALGOS:
        raise ValueError(f"algo {algo!r} is not one of {', '.join(ALGOS)}")
    codec = None if codec is None else find_codec(codec)
    planned = {layer.name: layer.chosen for layer in plan(ckpt, comm.size, link)}
    reader = Reader(ckpt, decoder, comm, scheme, planned, codec, algo)
    return Transformer(reader, _activation_dtype(ckpt, dtype))


class Transformer:
    """A model on this rank; load_model makes one.

    decoder  its sizes and formulas
    comm     its ranks
    dtype    of activations, cache and logits
    eos      the tokens that end a text
    """

    def __init__(self, reader: Reader, dtype: np.dtype):
        self.decoder, self.comm, self.dtype = reader.decoder, reader.comm, dtype
        self.eos = end_tokens(reader.ckpt)
        self.embedding = Embedding(reader, dtype)
        self.blocks = [Block(reader, layer, dtype) for layer in range(reader.decoder.layers)]
        self.head = Head(reader, self.embedding)
        self.norm = Norm(reader, reader.decoder.last_norm, self.head.linear, dtype)
        self._rope = None if self.decoder.rope is None else self.comm.xp.asarray(self.decoder.rope)
        self._steps: WeakKeyDictionary[Cache, dict[tuple[int, int], DecodeStep]] = WeakKeyDictionary()
        self._obstacle: str | None = None

    def __call__(self, tokens: Any, cache: Cache, *, last_only: bool = False) -> Array:
        """Logits after each of the new tokens, which are appended to the cache: (M, vocabulary), on all ranks equal.

        tokens     for each of the cache's sequences one token or more: (batch, T) integers or a list of such rows of
                   any lengths, the same on every rank
        last_only  logits after each sequence's last token only: (batch, vocabulary)

        M counts the tokens of all sequences, one sequence after the other. Raises ValueError, on every rank and
        before anything is computed, for a token out of range and a cache that is full.
        """
        batch = Batch.of(tokens, cache, self.decoder.vocabulary, self.comm.xp)
        y = self._forward(batch, cache)
        cache.lengths += batch.counts
        if last_only:
            y = y[self.comm.xp.asarray(np.cumsum(batch.counts) - 1)]
        return self.head(y)

    def decode(self, tokens: Any, cache: Cache) -> Array:
        """Logits after one more token of every sequence, which is appended to the cache: (batch, vocabulary).

        tokens  (batch,) integers, the same on every rank. Those on the GPU are not checked: one out of range is
                embedded as zeros.

        The bits are those of self([[token] for token in tokens], cache). On a GPU it is one CUDA graph, captured once
        for each batch size and bucket of lengths of a cache (decode_step.py), and replayed on CuPy's current stream:
        replays of one model's graphs must follow each other. Backend ipc captures sums only, so that the head, whose
        logits are gathered, follows its graph. Where no graph is possible decode runs eagerly, and rank 0 says why,
        once, unless arrays are NumPy's. Collective. Raises ValueError, on every rank and before anything is computed,
        for a token out of range and a cache that is full.
        """
        checked = decode_tokens(tokens, cache, self.decoder.vocabulary, self.comm.xp)
        if self._is_eager():
            return self(to_numpy(checked)[:, None], cache)
        steps = self._steps.setdefault(cache, {})
        size, bucket = len(cache.lengths), bucket_of(int(cache.lengths.max()) + 1, cache.length)
        with_head = self.comm.can_capture_exchanges
        if (size, bucket) not in steps:
            steps[size, bucket] = DecodeStep(self._logits if with_head else self._forward, self.comm, size, bucket)
        y = steps[size, bucket].run(checked, cache)
        cache.lengths += 1
        return y.copy() if with_head else self.head(y)  # the next replay overwrites y

    def _logits(self, batch: Batch, cache: Cache) -> Array:
        return self.head(self._forward(batch, cache))

    def _forward(self, batch: Batch, cache: Cache) -> Array:
        """The normed hidden state of each new token, (M, H), columns permuted for the head. Appends to the cache."""
        angles = cos_and_sin(self._rope, batch.token_positions)
        x = self.embedding(batch)
        norms = [*(block.first_norm for block in self.blocks), self.norm]
        y = norms[0](x)
        for block, layer_cache, next_norm in zip(self.blocks, cache.layers, norms[1:], strict=True):
            y = block(x, y, batch, layer_cache, angles, next_norm)
        return y

    def _is_eager(self) -> bool:
        """Whether decode cannot be captured on some rank; asks all ranks and says so in the first call."""
        if self._obstacle is None:
            mine = self._find_obstacle()
            every = [self.comm.bcast(mine, root) for root in range(self.comm.size)]
            self._obstacle = next(filter(None, every), "")
            if self._obstacle and self.comm.rank == 0 and self.comm.xp is not np:
                print(f"# cutpq: decode runs eagerly, without a CUDA graph: {self._obstacle}", flush=True)
        return self._obstacle != ""

    def _find_obstacle(self) -> str:
        """Why this rank cannot capture a decode step, "" if it can."""
        xp, d = self.comm.xp, self.decoder
        if xp is np:
            return "NumPy arrays have none"
        if not self.comm.can_capture:
            return f"ranks of backend {self.comm.backend} wait for each other on the host"
        if not self.comm.can_capture_exchanges and on_default_stream(xp):
            return f"backend {self.comm.backend} is bound to a stream: use the model within `with cupy.cuda.Stream():`"
        for block in self.blocks:
            if isinstance(block.mlp, Moe):
                return "the host chooses each token's experts"
            own = block.attention
            moves = (own.output.rearrange, block.mlp.down.rearrange)
            if not self.comm.can_capture_exchanges and any(isinstance(m, AllGather | AllToAll) for m in moves):
                return f"backend {self.comm.backend} captures sums, but not the exchange of {own.output.scheme} layers"
            rep = len(own.kv_of_head) // own.kv_heads
            attends = has_kernels(self.dtype, d.head_dim, own.kv_of_head, own.kv_heads, xp)
            if not attends or not decodes(self.dtype, d.head_dim, rep, xp):
                return f"attention has no kernel for {len(own.kv_of_head)} {self.dtype} heads of {d.head_dim} features"
            columns = (own.qkv, block.mlp.first, self.head.linear)
            weights = [product.weight for linear in columns for product in linear.products]
            if not all(map(can_capture, (*weights, own.output.weight, block.mlp.down.weight))):
                return "a formula multiplies weights with an odd number of columns, or with scales that float16 lacks"
        return ""

    def use_codec(self, codec: str | Codec | None, algo: str = "auto") -> None:
        """From now on the two all_reduces of each block carry this codec; to be called on every rank alike.

        An unknown codec or algo raises ValueError in the next call of the model.
        """
        for block in self.blocks:
            for layer in (block.attention.output, block.mlp.down):
                layer.codec, layer.algo = codec, algo
        self._steps.clear()  # graphs hold the sums of the old codec

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` sequences of at most `length` tokens each. NumPy's engine holds it in float32.

        Raises ValueError for a batch or length below 1, and for more positions than the model has learned.
        """
        if self.decoder.positions is not None and length > self.decoder.max_positions:
            raise ValueError(f"length={length} is more than the {self.decoder.max_positions} positions of the model")
        heads, xp = [block.attention.kv_heads for block in self.blocks], self.comm.xp
        # A cache of another dtype would be converted whole for every new token, since the engine computes in float32.
        dtype = np.dtype(np.float32) if uses_engine(xp) else self.dtype
        return Cache(batch, length, heads, self.decoder.head_dim, dtype, xp)


class Block:
    """x + output(attention(norm(x))), then x + mlp(norm(x)).

    A sum over the ranks, its addition to x and the norm that follows are one step: see Norm.after.
    """

    def __init__(self, reader: Reader, layer: int, dtype: np.dtype):
        prefix, d = reader.decoder.block.format(layer) + ".", reader.decoder
        reader.check_biases(prefix)
        self.attention = Attention(reader, prefix)
        self.mlp = reader.mlp(layer)
        self.first_norm = Norm(reader, prefix + d.first_norm, self.attention.qkv, dtype)
        self.second_norm = Norm(reader, prefix + d.second_norm, self.mlp, dtype)
        self._by_engine = uses_engine(reader.comm.xp) and isinstance(self.mlp, Mlp)

    def __call__(
        self, x: Array, y: Array, batch: Batch, cache: LayerCache, angles: Angles | None, next_norm: Norm
    ) -> Array:
        """x (M, H), changed in place, and y = first_norm(x) -> next_norm(x), (M, H)."""
        y = self.attention(y, batch, cache, angles)
        if len(x) <= _ROWS or not self._works_alone():
            return self._after_attention(y, x, next_norm)
        normed = np.empty_like(x)

        def work(rows: slice) -> None:
            normed[rows] = self._after_attention(y[rows], x[rows], next_norm)

        threads.each(work, [slice(start, start + _ROWS) for start in range(0, len(x), _ROWS)])
        return normed

    def _works_alone(self) -> bool:
        """Whether the engine computes what follows attention, and no sum over ranks or experts joins the tokens."""
        row = self.attention.output
        return self._by_engine and row.comm.size == 1 and row.codec is None

    def _after_attention(self, y: Array, x: Array, next_norm: Norm) -> Array:
        with span("o_proj"):
            y = self.second_norm.after(self.attention.output.partial(y), x, self.attention.output)
        with span("mlp"):
            return next_norm.after(self.mlp.partial(y, permuted=True), x, self.mlp.down)


class Attention:
    """The heads of this rank: their q, k and v, attention, and the rows of the output projection that they bring."""

    def __init__(self, reader: Reader, prefix: str):
        d, comm = reader.decoder, reader.comm
        bounds = head_bounds(d.heads, d.kv_heads, comm.size)
        heads = slice(int(bounds[comm.rank]), int(bounds[comm.rank + 1]))
        kv_of_head = np.arange(d.heads)[heads] // (d.heads // d.kv_heads)
        kv = slice(int(kv_of_head[0]), int(kv_of_head[-1]) + 1)
        output = reader.source(prefix + d.output, d.heads * d.head_dim, d.hidden)
        scheme = reader.output_scheme(output)
        self.qkv = ColumnParallelLinear(
            reader.qkv(prefix),
            comm,
            [slice(h.start * d.head_dim, h.stop * d.head_dim) for h in (heads, kv, kv)],
            sort=scheme != "unordered",
        )
        self.output = RowParallelLinear(
            output, comm, scheme, (bounds * d.head_dim).tolist(), codec=reader.codec, algo=reader.algo
        )
        self.scale, self.window = d.attention_scale, d.window
        self.kv_heads, self.kv_of_head = kv.stop - kv.start, kv_of_head - kv.start

    def __call__(self, x: Array, batch: Batch, cache: LayerCache, angles: Angles | None) -> Array:
        """x (M, H), permuted by qkv.perm -> (M, heads of this rank * head_dim), which `output` multiplies."""
        with span("qkv"):
            qkv = self.qkv(x, permuted=True)
        with span("attention"):
            return attention(qkv, angles, cache, batch, self.kv_of_head, self.scale, self.window)


class Norm:
    """RMSNorm or LayerNorm, on every rank alike, that writes its columns in the order `next_layer.perm`."""

    def __init__(self, reader: Reader, name: str, next_layer: ColumnParallelLinear | Mlp | Moe, dtype: np.dtype):
        d, xp = reader.decoder, reader.comm.xp
        self.eps, self.scale = d.eps, d.residual_scale
        self.next_weights = _weights_of(next_layer) if reader.comm.size > 1 else []
        self.weight = reader.vector(name + ".weight", d.hidden).astype(dtype)
        self.bias = reader.vector(name + ".bias", d.hidden).astype(dtype) if d.norm == "layer" else None
        self.perm = xp.arange(d.hidden, dtype=np.int32) if next_layer.perm is None else next_layer.perm
        self._by_engine = uses_engine(xp)

    def __call__(self, x: Array) -> Array:
        """x (M, H) -> its norm, (M, H), columns permuted."""
        with span("norm"):
            if self.bias is None:
                return rmsnorm_gather(x, self.weight, self.perm, self.eps)
            return residual_norm(None, x, self.weight, self.perm, self.eps, bias=self.bias)

    def after(self, term: Array, x: Array, layer: RowParallelLinear) -> Array:
        """x += sum over the ranks of `term`, in place -> norm(x).

        term, x  (M, H); term is this rank's partial sum of `layer`, whose codec and algo the all_reduce takes
        """
        if self.scale != 1:
            term = term * term.dtype.type(self.scale)
        if self._by_engine and layer.comm.size == 1 and layer.codec is None:  # one term, which nobody waits for
            with span("norm"):
                return elementwise.residual_norm(term, x, self.weight, self.perm, self.eps, self.bias)
        prefetch(self.next_weights)
        if self.bias is None:
            return all_reduce_rmsnorm(
                term, layer.comm, x, self.weight, self.perm, self.eps, codec=layer.codec, algo=layer.algo
            )
        with span("all_reduce"):
            total = all_reduce(term, layer.comm, layer.codec, layer.algo)
        with span("norm"):
            return residual_norm(total, x, self.weight, self.perm, self.eps, bias=self.bias)


def _weights_of(layer: ColumnParallelLinear | Mlp | Moe) -> list[Prepared]:
    """The weights that every token is multiplied by first; none of a mixture, whose experts are not chosen yet."""
    if isinstance(layer, Moe):
        return []
    return [product.weight for product in (layer.first if isinstance(layer, Mlp) else layer).products]


class Embedding:
    """The embedding of each token, plus that of its position where positions are learned.

    A rank holds the rows of its part of the vocabulary. The sum over the ranks is exact: all but one add zero.
    """

    def __init__(self, reader: Reader, dtype: np.dtype):
        d, self.comm, self.dtype = reader.decoder, reader.comm, dtype
        self.first, last = reader.vocabulary
        self.table = reader.table(d.embedding, d.vocabulary, slice(self.first, last), dtype)
        self.positions = None if d.positions is None else reader.table(d.positions, d.max_positions, slice(None), dtype)
        self.scale = d.embedding_scale

    def __call__(self, batch: Batch) -> Array:
        """(M, H), the same on every rank. Collective."""
        xp = self.comm.xp
        with span("embedding"):
            if self.comm.size == 1 and xp is np:  # whose tokens are checked
                return self._finish(self.table[batch.tokens].astype(self.dtype, copy=False), batch)
            row = batch.tokens - self.first
            mine = (row >= 0) & (row < len(self.table))
            x = self.table[xp.where(mine, row, 0)].astype(self.dtype, copy=False)
            bits = x.view(f"u{x.itemsize}")
            bits *= mine[:, None]  # zeros; a Boolean index would make the host wait for the GPU
            return self._finish(all_reduce(x, self.comm), batch)

    def _finish(self, x: Array, batch: Batch) -> Array:
        if self.positions is not None:
            x = x + self.positions[batch.token_positions].astype(self.dtype, copy=False)
        return x if self.scale == 1 else x * self.dtype.type(self.scale)


class Head:
    """Logits: each rank computes those of its part of the vocabulary, then all gather them."""

    def __init__(self, reader: Reader, embedding: Embedding):
        d, self.comm = reader.decoder, reader.comm
        self.counts = np.diff(even_bounds(d.vocabulary, self.comm.size)).tolist()
        if d.tied:
            self.linear = ColumnParallelLinear(PlainWeight(embedding.table.T), self.comm, slice(None))
        else:
            source = reader.source(d.head, d.hidden, d.vocabulary)
            self.linear = ColumnParallelLinear(source, self.comm, slice(*reader.vocabulary))
        self.scale = d.logits_scale

    def __call__(self, x: Array) -> Array:
        """x (M, H), permuted by linear.perm -> (M, vocabulary), the same on every rank. Collective."""
        with span("head"):
            y = self.linear(x, permuted=True)
            if self.scale != 1:
                y = y * y.dtype.type(self.scale)
            if self.comm.size == 1:
                return y
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
