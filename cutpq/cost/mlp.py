"""What a tensor-parallel MLP costs on a named machine, scheme by scheme: links.py and gpus.py, put together.

Nothing here is fitted to a measurement of tensor-parallel layers. Times are in us, bytes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..array import ceil_div
from ..weights.schemes import GROUP_ALIGNED, SCHEMES, refusals
from .gpus import ACTIVATION_BYTES, INDEX_BYTES, SCALE_BYTES, Gpu, WeightFormat, gemm_us, permute_us, weight_bytes
from .links import (
    Link,
    all_gather_sent,
    all_gather_us,
    all_reduce_sent,
    all_reduce_us,
    all_to_all_sent,
    all_to_all_us,
    check_ranks,
)


@dataclass(frozen=True)
class MlpShape:
    """(M, K) -> (M, H) -> (M, N): act(x @ gate) * (x @ up) @ down, or without gate act(x @ up) @ down."""

    name: str
    K: int
    H: int
    N: int
    gated: bool


@dataclass(frozen=True)
class LayerCost:
    """Time of one rank's part of a layer, what it reads from its memory and what it sends to other ranks."""

    gemm_us: float
    exchange_us: float = 0.0
    permute_us: float = 0.0
    all_reduce_us: float = 0.0
    read_bytes: int = 0
    sent_bytes: int = 0

    @property
    def total_us(self) -> float:
        """Product, exchange, permutation and sum, one after the other."""
        return self.gemm_us + self.exchange_us + self.permute_us + self.all_reduce_us


@dataclass(frozen=True)
class MlpCost:
    """Where an MLP's time goes on one rank."""

    gemm1_us: float
    exchange_us: float
    permute_us: float
    gemm2_us: float
    all_reduce_us: float
    read_bytes: int = 0
    sent_bytes: int = 0

    @property
    def total_us(self) -> float:
        """All steps, one after the other."""
        return self.gemm1_us + self.exchange_us + self.permute_us + self.gemm2_us + self.all_reduce_us


def column_parallel(M: int, K: int, N: int, form: WeightFormat, gpu: Gpu) -> LayerCost:
    """A rank's (M, K) @ (K, N) with its own N columns. Sends nothing.

    Its own act-order is a gather of x that every scheme has alike and that fuses into what writes x: not counted.
    """
    return LayerCost(gemm_us(M, N, K, form, gpu), read_bytes=weight_bytes(K, N, form))


def row_parallel(
    scheme: str, M: int, rows: int, N: int, tp: int, form: WeightFormat, gpu: Gpu, link: Link, groups: int
) -> LayerCost:
    """A rank's (M, rows) @ (rows, N) under a scheme, with what happens before the product and the all_reduce after.

    rows    input features of the rank that has most
    groups  groups whose scales this rank reads: its own share for the group-aligned schemes, nearly all for
            `local` and `unordered`, whose rows are scattered over them

    `naive` gathers and picks its columns in one pass; `all-to-all` packs and unpacks, two passes; `local` permutes its
    own columns. `unordered` reads a row of scales for each row of weights, from the L2 cache, where they fit.

    Raises ValueError for an unknown scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r} is not one of {', '.join(SCHEMES)}")
    own = M * rows * ACTIVATION_BYTES
    exchange_us, sent = 0.0, all_reduce_sent(M * N * ACTIVATION_BYTES, tp)
    if scheme == "naive":
        exchange_us, sent = all_gather_us(own * tp, tp, link), sent + all_gather_sent(own * tp, tp)
    elif scheme == "all-to-all":
        exchange_us, sent = all_to_all_us(own, tp, link), sent + all_to_all_sent(own, tp)
    passes = {"naive": 1, "all-to-all": 2, "local": 1}.get(scheme, 0)

    quantized = form.bits != 16
    read_bytes = weight_bytes(rows, N, form, groups)
    if scheme not in GROUP_ALIGNED and quantized:
        read_bytes += rows * INDEX_BYTES
    extra = float(read_bytes - weight_bytes(rows, N, form))
    if scheme == "unordered" and quantized:
        extra += rows * N * SCALE_BYTES / gpu.cache_ratio
    return LayerCost(
        gemm_us=gemm_us(M, N, rows, form, gpu, extra),
        exchange_us=exchange_us,
        permute_us=passes * permute_us(M, rows, gpu),
        all_reduce_us=all_reduce_us(M * N * ACTIVATION_BYTES, tp, link),
        read_bytes=read_bytes,
        sent_bytes=sent,
    )


def mlp_cost(shape: MlpShape, M: int, tp: int, scheme: str, form: WeightFormat, gpu: Gpu, link: Link) -> MlpCost:
    """An act-ordered MLP on `tp` ranks, on the rank that has most: gate and up in one product, activation fused.

    Ranks take whole groups of the second weight (any rows where it is float16). Raises ValueError where a scheme
    needs whole groups on a rank and there are more ranks than groups.
    """
    groups = form.groups(shape.H)
    refused = refusals(groups, tp) if groups else {}
    if scheme in refused:
        raise ValueError(f"scheme {scheme!r} {refused[scheme]}")
    check_ranks(tp)
    if groups >= tp:
        rows = min(ceil_div(groups, tp) * form.group_size, shape.H)
    else:
        rows = ceil_div(shape.H, tp)
    if scheme in GROUP_ALIGNED:
        groups = form.groups(rows)
    first = column_parallel(M, shape.K, (2 if shape.gated else 1) * rows, form, gpu)
    second = row_parallel(scheme, M, rows, shape.N, tp, form, gpu, link, groups)
    return MlpCost(
        gemm1_us=first.gemm_us,
        exchange_us=second.exchange_us,
        permute_us=second.permute_us,
        gemm2_us=second.gemm_us,
        all_reduce_us=second.all_reduce_us,
        read_bytes=first.read_bytes + second.read_bytes,
        sent_bytes=second.sent_bytes,
    )
