"""The cost of a forward pass: sums that can be done by hand, and the directions in which it must move."""

from dataclasses import replace

import pytest
from models.shapes import TRANSFORMERS

from cutpq.codecs.codec import codec
from cutpq.cost import gpus, links
from cutpq.cost.all_reduce import compressed_all_reduce_us
from cutpq.cost.gpus import FP16, GPUS, INT4
from cutpq.cost.links import LINKS
from cutpq.cost.mlp import MlpShape, mlp_cost
from cutpq.cost.transformer import Step, attention_us, block_cost, rank_bytes, reduce_us, step_cost

LLAMA = TRANSFORMERS["llama-2-7b"]
GRANITE = TRANSFORMERS["granite-20b"]
L4 = GPUS["l4"]
PCIE = LINKS["l4-pcie"]


@pytest.mark.parametrize(
    "name, billions",
    [("llama-2-7b", 6.74), ("llama-2-13b", 13.0), ("llama-2-70b", 69.0), ("llama-3-8b", 8.03), ("granite-20b", 20.1)],
)
def test_weights_come_to_the_published_number_of_parameters(name, billions) -> None:
    """Embeddings of Granite are tied, and it has no gate."""
    shape = TRANSFORMERS[name]
    parameters = rank_bytes(shape, 1, FP16) / 2 - (shape.vocabulary * shape.hidden if name == "granite-20b" else 0)
    assert parameters == pytest.approx(billions * 1e9, rel=0.01)


def test_prefill_is_bound_by_arithmetic_and_decode_by_memory() -> None:
    one = step_cost(LLAMA, Step(8, 1024), 1, FP16, L4, PCIE)
    flops = 2 * 8192 * 6.74e9 / (121e12 * 0.6) * 1e6
    assert flops < one.total_us < 1.2 * flops  # attention takes most of the rest: its scores pass through L2
    each = step_cost(LLAMA, Step(1, 1, 128), 1, FP16, L4, PCIE)
    # Weights but the embedding's, of which one row is read.
    read = (rank_bytes(LLAMA, 1, FP16) - 2 * 32000 * 4096) / (300e9 * 0.85) * 1e6
    assert read < each.total_us < 1.1 * read
    assert one.collectives_us == each.collectives_us == 0


def test_attention_leaves_out_keys_that_a_chunk_does_not_see_and_reads_the_cache_once() -> None:
    read = lambda nbytes: nbytes / (300e3 * 0.85)  # noqa: E731
    # 64 MiB of scores are two chunks: half of the queries see half of the keys.
    count = 2048 * 2048 + 2048 * 4096
    products = 4 * count * 128 / (121e6 * 0.6)
    scores = read(12 * count) / 3.5
    ends = read(4096 * 128 * (2 * 3 * 2 + 6))  # q, k, v read and written; the result read and rounded
    long = attention_us(Step(1, 4096), 1, 1, 128, L4)
    assert long == pytest.approx(8 * L4.launch_us + ends + products + scores)
    # Decode: the cache, and a query and a float32 result of each head.
    moved = 16 * 128 * (4096 * 8 * 2 * 2 + 32 * 6) + 16 * 128 * (2 * (32 + 16) * 2 + 32 * 6)
    scores = 12 * 16 * 32 * 4096 / 3.5
    assert attention_us(Step(16, 1, 4095), 32, 8, 128, L4) == pytest.approx(5 * L4.launch_us + read(moved + scores))


def test_parts_of_a_block_are_those_of_cost() -> None:
    block = block_cost(LLAMA, Step(2, 64), 4, INT4, L4, PCIE, None)
    assert block.all_reduce_1_us == block.all_reduce_2_us == links.all_reduce_us(128 * 4096 * 2, 4, PCIE)
    assert block.qkv_us == gpus.gemm_us(128, 3 * 8 * 128, 4096, INT4, L4)
    mlp = mlp_cost(MlpShape("", 4096, 11008, 4096, True), 128, 4, "tp-aware", INT4, L4, PCIE)
    assert block.mlp_us == pytest.approx(mlp.gemm1_us + mlp.gemm2_us)
    whole = step_cost(LLAMA, Step(2, 64), 4, INT4, L4, PCIE)
    ends = links.all_reduce_us(128 * 4096 * 2, 4, PCIE) + links.all_gather_us(2 * 32000 * 2, 4, PCIE)
    assert whole.collectives_us == pytest.approx(32 * 2 * block.all_reduce_1_us + ends)
    own = block.norm_us + block.qkv_us + block.attention_us + block.o_proj_us + block.mlp_us
    head = gpus.gemm_us(2, 8000, 4096, FP16, L4)
    assert whole.compute_us == pytest.approx(32 * own + head, rel=0.01)
    assert whole.total_us == whole.compute_us + whole.collectives_us


def test_key_value_heads_are_replicated_beyond_their_number() -> None:
    """Granite's one head is on every rank: its part of qkv does not shrink."""
    block = block_cost(GRANITE, Step(1, 512), 8, INT4, L4, PCIE, None)
    assert block.qkv_us == gpus.gemm_us(512, (6 + 2) * 128, 6144, INT4, L4)


def test_order_costs_a_permutation_that_float16_does_not_have() -> None:
    step = Step(1, 128)
    quantized, plain = (block_cost(LLAMA, step, 2, form, L4, PCIE, None) for form in (INT4, FP16))
    assert plain.o_proj_us == pytest.approx(gpus.gemm_us(128, 4096, 2048, FP16, L4))
    assert quantized.o_proj_us > gpus.gemm_us(128, 4096, 2048, INT4, L4) + L4.launch_us


def test_codec_takes_the_quicker_of_its_two_ways() -> None:
    mxfp4 = codec("mxfp4")
    for count, algo in ((4096, "oneshot"), (1 << 22, "twoshot")):
        us, chosen = reduce_us(count, 8, PCIE, mxfp4)
        both = {a: compressed_all_reduce_us(a, count, 2, 8, mxfp4, PCIE) for a in ("oneshot", "twoshot")}
        assert (us, chosen) == (min(both.values()), algo)
    assert reduce_us(4096, 1, PCIE, mxfp4) == (0.0, "plain")


def test_more_groups_than_ranks_or_not_and_more_ranks_than_heads() -> None:
    small = replace(LLAMA, intermediate=256)
    assert block_cost(small, Step(1, 1), 4, INT4, L4, PCIE, None).mlp_us > 0
    with pytest.raises(ValueError, match="tp=33 ranks cannot share 32 attention heads"):
        step_cost(LLAMA, Step(1, 1), 33, INT4, L4, PCIE)
