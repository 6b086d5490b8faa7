"""What a transformer's forward pass costs on a named machine: the products and collectives of mlp.py, block by block.

Besides those it counts: norms and residual sums, each read and written once, one launch each; attention as
model/attention.py computes it, whose scores pass through L2. Weights of blocks have `form`; embedding and head are
float16. Elementwise work inside the MLP is fused into its products. Nothing here is fitted to a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ..array import ceil_div
from ..codecs.codec import Codec
from ..ops.score_chunks import chunks
from .all_reduce import compressed_all_reduce_us
from .gpus import ACTIVATION_BYTES, FP16, Gpu, WeightFormat, gemm_us, weight_bytes
from .links import Link, all_gather_us, all_reduce_us
from .mlp import MlpShape, mlp_cost, row_parallel
from .nodes import Network, all_reduce_over_nodes_us


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer; gated: whether its MLP has a gate."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    gated: bool = True


@dataclass(frozen=True)
class Step:
    """A forward pass: `batch` sequences with `new` tokens each, after `past` tokens that are in the cache."""

    batch: int
    new: int
    past: int = 0

    @property
    def tokens(self) -> int:
        """Rows of the activations."""
        return self.batch * self.new


@dataclass(frozen=True)
class BlockCost:
    """Where a block's time goes on the rank that has most; both norms together."""

    norm_us: float
    qkv_us: float
    attention_us: float
    o_proj_us: float
    all_reduce_1_us: float
    mlp_us: float
    all_reduce_2_us: float

    @property
    def total_us(self) -> float:
        """All steps of the block, one after the other."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def collectives_us(self) -> float:
        """The two all_reduces."""
        return self.all_reduce_1_us + self.all_reduce_2_us


@dataclass(frozen=True)
class StepCost:
    """A forward pass: so many blocks, and what is before and after them.

    compute_us      what a rank does by itself
    collectives_us  all_reduces, codec and its kernels included, and the gathering of the logits
    """

    block: BlockCost
    compute_us: float
    collectives_us: float

    @property
    def total_us(self) -> float:
        """Computing and collectives, one after the other."""
        return self.compute_us + self.collectives_us


def step_cost(
    shape: ModelShape, step: Step, tp: int, form: WeightFormat, gpu: Gpu, link: Link, codec: Codec | None = None
) -> StepCost:
    """Prefill (past = 0) or decode (new = 1) on `tp` ranks, with logits of each sequence's last token.

    Raises ValueError for more ranks than heads.
    """
    block = block_cost(shape, step, tp, form, gpu, link, codec)
    row_bytes = shape.hidden * ACTIVATION_BYTES
    embedding = gpu.launch_us + gpu.read_us(2 * step.tokens * row_bytes)
    head = gemm_us(step.batch, ceil_div(shape.vocabulary, tp), shape.hidden, FP16, gpu)
    last_norm = gpu.launch_us + gpu.read_us(2 * step.batch * row_bytes)
    ends = all_reduce_us(step.tokens * row_bytes, tp, link)
    ends += all_gather_us(step.batch * shape.vocabulary * ACTIVATION_BYTES, tp, link)
    return StepCost(
        block=block,
        compute_us=shape.layers * (block.total_us - block.collectives_us) + embedding + last_norm + head,
        collectives_us=shape.layers * block.collectives_us + ends,
    )


def block_cost(
    shape: ModelShape, step: Step, tp: int, form: WeightFormat, gpu: Gpu, link: Link, codec: Codec | None
) -> BlockCost:
    """One block: attention's output `local`, the MLP `tp-aware` (`local` on more ranks than groups).

    Raises ValueError for more ranks than heads.
    """
    if tp > shape.heads:
        raise ValueError(f"tp={tp} ranks cannot share {shape.heads} attention heads: at most tp={shape.heads}")
    M, D = step.tokens, shape.head_dim
    heads, kv_heads = ceil_div(shape.heads, tp), ceil_div(shape.kv_heads, tp)
    reduced_us, _ = reduce_us(M * shape.hidden, tp, link, codec)
    # Float16 has no order to deal with: what tp-aware costs.
    scheme, groups = ("tp-aware", 0) if form == FP16 else ("local", form.groups(shape.heads * D))
    output = row_parallel(scheme, M, heads * D, shape.hidden, tp, form, gpu, link, groups)
    groups = form.groups(shape.intermediate)
    scheme = "local" if tp > groups > 0 else "tp-aware"
    mlp_shape = MlpShape(shape.name, shape.hidden, shape.intermediate, shape.hidden, shape.gated)
    mlp = mlp_cost(mlp_shape, M, tp, scheme, form, gpu, link)
    return BlockCost(
        # Each reads what the layer before gave and the residual, and writes the sum and its norm.
        norm_us=2 * (gpu.launch_us + gpu.read_us(4 * M * shape.hidden * ACTIVATION_BYTES)),
        qkv_us=gemm_us(M, (heads + 2 * kv_heads) * D, shape.hidden, form, gpu),
        attention_us=attention_us(step, heads, kv_heads, D, gpu),
        o_proj_us=output.total_us - output.all_reduce_us,
        all_reduce_1_us=reduced_us,
        mlp_us=mlp.total_us - mlp.all_reduce_us,
        all_reduce_2_us=reduced_us,
    )


def attention_us(step: Step, heads: int, kv_heads: int, head_dim: int, gpu: Gpu) -> float:
    """Time of attention over a rank's heads, by the launches of model/attention.py.

    Rotation with the cache's append; for each chunk two products and the softmax between them, which write and read a
    score's 4 bytes and its probability's 2 in L2; and the float32 heads of a token rounded and put together.
    """
    features = step.batch * head_dim  # one head's features of one token or key, in all sequences
    moved = 2 * step.new * (heads + 2 * kv_heads) * features * ACTIVATION_BYTES
    moved += step.new * heads * features * (4 + ACTIVATION_BYTES)
    total_us = 2 * gpu.launch_us + gpu.read_us(moved)
    rep = ceil_div(heads, kv_heads)
    for chunk in chunks(np.arange(step.past, step.past + step.new)[None], step.batch * kv_heads, rep, None):
        pairs, rows, keys = chunk.shape(rep)
        scores = pairs * rows * keys
        arithmetic_us = 4 * scores * head_dim / (gpu.fp16_tflops * gpu.compute_fraction * 1e6)
        moved_us = gpu.read_us(pairs * head_dim * (rows * (ACTIVATION_BYTES + 4) + keys * 2 * ACTIVATION_BYTES))
        total_us += 3 * gpu.launch_us + max(arithmetic_us, moved_us) + gpu.read_us(12 * scores) / gpu.cache_ratio
    return total_us


def reduce_us(count: int, tp: int, link: Link, codec: Codec | None) -> tuple[float, str]:
    """Time to sum `count` activations over the ranks, and how: "plain" without a codec, else the quickest with it.

    With a codec it is used, also where plain would be quicker.
    """
    if codec is None or tp == 1:
        return all_reduce_us(count * ACTIVATION_BYTES, tp, link), "plain"
    times = compressed_times_us(count, tp, link, codec)
    algo = min(times, key=lambda a: times[a])
    return times[algo], algo


def compressed_times_us(count: int, tp: int, link: Link, codec: Codec) -> dict[str, float]:
    """Time to sum `count` activations by each algorithm that compresses; over nodes "hierarchical" is one of them."""
    if isinstance(link, Network) and tp > link.per_node:
        place = link.nodes(tp), codec, link.inside, link.cable
        algos: tuple[str, ...] = ("oneshot", "twoshot", "hierarchical")
        return {algo: all_reduce_over_nodes_us(algo, count, ACTIVATION_BYTES, *place) for algo in algos}
    algos = ("oneshot", "twoshot")
    return {algo: compressed_all_reduce_us(algo, count, ACTIVATION_BYTES, tp, codec, link) for algo in algos}


def rank_bytes(shape: ModelShape, tp: int, form: WeightFormat) -> int:
    """Bytes of weights on the rank that has most."""
    heads, kv_heads = ceil_div(shape.heads, tp), ceil_div(shape.kv_heads, tp)
    intermediate = ceil_div(shape.intermediate, tp)
    block = weight_bytes(shape.hidden, (heads + 2 * kv_heads) * shape.head_dim, form)
    block += weight_bytes(heads * shape.head_dim, shape.hidden, form)
    block += (2 if shape.gated else 1) * weight_bytes(shape.hidden, intermediate, form)
    block += weight_bytes(intermediate, shape.hidden, form)
    return shape.layers * block + 2 * weight_bytes(shape.hidden, ceil_div(shape.vocabulary, tp), FP16)
