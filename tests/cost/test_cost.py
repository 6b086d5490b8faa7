"""The cost model against figures worked out elsewhere, and against what any cost must obey."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cutpq.cost.gpus import FP16, GPUS, INT4, WeightFormat, gemm_us, permute_us, weight_bytes
from cutpq.cost.links import (
    LINKS,
    all_gather_sent,
    all_gather_us,
    all_reduce_sent,
    all_reduce_us,
    all_to_all_sent,
    all_to_all_us,
)
from cutpq.cost.mlp import MlpShape, mlp_cost, row_parallel
from cutpq.weights.schemes import SCHEMES

LLAMA_70B = MlpShape("llama-70b", 8192, 28672, 8192, gated=True)
A100, A100_LINK = GPUS["a100"], LINKS["a100-nvlink"]
SIZES = tuple(2**i << 10 for i in (3, 6, 8, 10, 12, 14, 16))  # 8K 64K 256K 1M 4M 16M 64M

# NCCL's model evaluated by hand for 8 ranks, in us, rounded.
ALL_REDUCE = {
    "a100-nvlink": (15, 16, 20, 36, 74, 174, 545),
    "h100-nvlink": (15, 16, 18, 28, 62, 127, 373),
    "l4-pcie": (22, 30, 59, 165, 394, 1312, 4982),
    "l4-pcie-2s": (23, 44, 112, 272, 822, 3024, 11832),
}
ALL_GATHER = {
    "a100-nvlink": (11, 11, 13, 21, 44, 93, 277),
    "h100-nvlink": (11, 11, 12, 17, 37, 70, 191),
    "l4-pcie": (14, 18, 33, 87, 201, 660, 2495),
    "l4-pcie-2s": (15, 25, 59, 140, 415, 1516, 5920),
}


@pytest.mark.parametrize("link", ALL_REDUCE)
def test_all_reduce_gives_the_table(link: str) -> None:
    assert tuple(round(all_reduce_us(size, 8, LINKS[link])) for size in SIZES) == ALL_REDUCE[link]


@pytest.mark.parametrize("link", ALL_GATHER)
def test_all_gather_gives_the_table(link: str) -> None:
    assert tuple(round(all_gather_us(size, 8, LINKS[link])) for size in SIZES) == ALL_GATHER[link]


def test_one_latency_bound_and_one_bandwidth_bound_time_by_hand() -> None:
    """LL: 6.6 + 14 * 0.6 us and 87.7 GB/s * 8/14; Simple: 8.4 + 14 * 3.4 us and 240 GB/s * 8/14."""
    assert all_reduce_us(0, 8, A100_LINK) == pytest.approx(15.0)
    assert all_reduce_us(1e9, 8, A100_LINK) == pytest.approx(56.0 + 1e6 / (240 * 8 / 14))


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("collective", [all_reduce_us, all_gather_us, all_to_all_us])
def test_more_bytes_are_never_faster(collective, link: str) -> None:
    times = [collective(size, 8, LINKS[link]) for size in range(0, 1 << 22, 4096)]
    assert all(a < b for a, b in pairwise(times))


@pytest.mark.parametrize("collective", [all_reduce_us, all_gather_us, all_to_all_us])
def test_one_rank_sends_nothing_and_no_rank_is_an_error(collective) -> None:
    assert collective(1 << 20, 1, A100_LINK) == 0
    with pytest.raises(ValueError, match="at least 1, got 0"):
        collective(1 << 20, 0, A100_LINK)


def test_bytes_sent_between_the_products_of_llama_70b() -> None:
    """M=16 on 8 ranks: all_gather of the intermediate, its all_to_all, all_reduce of the output."""
    intermediate, output = 16 * 28672 * 2, 16 * 8192 * 2
    assert all_gather_sent(intermediate, 8) == 802_816
    assert all_to_all_sent(intermediate // 8, 8) == 100_352
    assert all_reduce_sent(output, 8) == 458_752
    sent = {s: mlp_cost(LLAMA_70B, 16, 8, s, INT4, A100, A100_LINK).sent_bytes for s in SCHEMES}
    assert sent == {
        "unordered": 458_752,
        "naive": 458_752 + 802_816,
        "all-to-all": 458_752 + 100_352,
        "local": 458_752,
        "tp-aware": 458_752,
    }


def test_naive_gathers_seven_quarters_of_the_all_reduce_at_any_m() -> None:
    for M in (1, 16, 256):
        naive, free = (mlp_cost(LLAMA_70B, M, 8, s, INT4, A100, A100_LINK).sent_bytes for s in ("naive", "tp-aware"))
        assert (naive - free) / free == pytest.approx(1.75)


@pytest.mark.parametrize(
    ("group_size", "tp", "percent"), [(128, 2, 3), (128, 4, 9), (128, 8, 21), (32, 2, 11), (32, 4, 33), (32, 8, 78)]
)
def test_replicated_scales_of_llama_70b(group_size: int, tp: int, percent: int) -> None:
    """What rank-local order reads of the second weight, over what whole groups need."""
    form = WeightFormat(4, group_size)
    rows = 28672 // tp
    whole_groups = weight_bytes(rows, 8192, form)
    replicated = weight_bytes(rows, 8192, form, groups=28672 // group_size)
    assert 100 * (replicated / whole_groups - 1) == pytest.approx(percent, abs=0.5)


def test_weight_bytes_by_hand() -> None:
    assert weight_bytes(28672, 8192, INT4) == 28672 * 8192 // 2 + 224 * 8192 * 2
    assert weight_bytes(28672, 8192, WeightFormat(4, symmetric=False)) == (28672 // 2 + 224 * 2 + 224 // 2) * 8192
    assert weight_bytes(28672, 8192, FP16) == 28672 * 8192 * 2
    assert weight_bytes(100, 8, WeightFormat(8, 64)) == 100 * 8 + 2 * 8 * 2  # the last group is short
    assert weight_bytes(100, 8, WeightFormat(3, 64)) == weight_bytes(100, 8, WeightFormat(4, 64))  # widened on the GPU


def test_gemm_is_memory_bound_for_few_tokens_and_compute_bound_for_many() -> None:
    few = (8192 * 8192 * 2 + 2 * 8192 * 2) / (2039e3 * 0.85) + 3
    many = 2 * 8192 * 8192 * 8192 / (312e6 * 0.6) + 3
    assert gemm_us(1, 8192, 8192, FP16, A100) == pytest.approx(few)
    assert gemm_us(8192, 8192, 8192, FP16, A100) == pytest.approx(many)


def test_a_permutation_reads_and_writes_and_launches() -> None:
    assert permute_us(16, 3584, A100) == pytest.approx(3 + (16 * 3584 * 4 + 3584 * 4) / (2039e3 * 0.85))


def test_scale_bytes_of_a_rank_shrink_with_tp_unless_they_are_replicated() -> None:
    """On more ranks the codes of a rank shrink like 1/tp; the scales of `local` do not shrink at all."""

    def scales(scheme: str, tp: int) -> int:
        rows, groups = 28672 // tp, 224 if scheme == "local" else 224 // tp
        cost = row_parallel(scheme, 1, rows, 8192, tp, INT4, A100, A100_LINK, groups)
        return cost.read_bytes - rows * 8192 // 2 - (rows * 4 if scheme == "local" else 0)

    assert [scales("local", tp) for tp in (1, 2, 4, 8)] == [224 * 8192 * 2] * 4
    assert [scales("tp-aware", tp) for tp in (1, 2, 4, 8)] == [224 * 8192 * 2 // tp for tp in (1, 2, 4, 8)]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("form", [FP16, INT4], ids=["fp16", "int4"])
def test_tp_aware_is_never_slower_than_another_scheme(link: str, form: WeightFormat) -> None:
    for tp in (1, 2, 4, 8):
        for M in (1, 16, 256, 4096):
            costs = {
                s: mlp_cost(LLAMA_70B, M, tp, s, form, GPUS[LINKS[link].gpu], LINKS[link]).total_us for s in SCHEMES
            }
            assert min(costs.values()) == costs["tp-aware"], (tp, M, costs)


def test_the_rank_with_most_groups_sets_the_pace() -> None:
    """Qwen2-72B: 231 groups on 8 ranks, 29 on the first."""
    shape = MlpShape("qwen2-72b", 8192, 29568, 8192, gated=True)
    uneven = mlp_cost(shape, 1, 8, "tp-aware", INT4, A100, A100_LINK)
    rows = 29 * 128
    assert uneven.read_bytes == weight_bytes(8192, 2 * rows, INT4) + weight_bytes(rows, 8192, INT4)


def test_parts_add_up() -> None:
    cost = mlp_cost(LLAMA_70B, 16, 8, "naive", INT4, A100, A100_LINK)
    assert cost.exchange_us == pytest.approx(all_gather_us(16 * 28672 * 2, 8, A100_LINK))
    assert cost.all_reduce_us == pytest.approx(all_reduce_us(16 * 8192 * 2, 8, A100_LINK))
    assert cost.permute_us == pytest.approx(permute_us(16, 3584, A100))
    parts = cost.gemm1_us + cost.exchange_us + cost.permute_us + cost.gemm2_us + cost.all_reduce_us
    assert cost.total_us == pytest.approx(parts)


def test_more_ranks_than_groups_refuses_whole_groups_only() -> None:
    small = MlpShape("small", 256, 1024, 256, gated=True)
    for scheme in ("naive", "all-to-all", "tp-aware"):
        with pytest.raises(ValueError, match="tp=16 is more than 8 groups"):
            mlp_cost(small, 1, 16, scheme, INT4, A100, A100_LINK)
    assert mlp_cost(small, 1, 16, "local", INT4, A100, A100_LINK).total_us > 0


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ValueError, match="'fast' is not one of unordered, naive"):
        mlp_cost(LLAMA_70B, 1, 8, "fast", INT4, A100, A100_LINK)
