"""Whole models over ranks: logits against float64, decode against prefill, and what wrong input is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from assertions import assert_bounded, assert_same_on_ranks
from make_checkpoint import edit_tensors
from make_model import CONFIGS, write_model
from transformer_oracle import logits

from cutpq.array import bfloat16, to_numpy
from cutpq.checkpoint.errors import CheckpointError
from cutpq.checkpoint.folder import open_checkpoint
from cutpq.codecs.codec import codec as find_codec
from cutpq.cost.all_reduce import twoshot_sent
from cutpq.kernels import load as kernels
from cutpq.model.transformer import load_model
from cutpq.ranks.alone import SelfCommunicator
from cutpq.ranks.threads import run_threads
from cutpq.weights.schemes import SCHEMES

TOKENS = np.random.default_rng(5).integers(0, 101, 19)
FLOAT32 = 2e-5  # of the largest logit: sums of some hundred terms, in another order


def run(folder: Path, tp: int, *calls, length: int = 32, xp=np, **options) -> list[list[np.ndarray]]:
    """The logits of each call on each rank; a call is what the model is given for its cache's sequences."""
    options = {"dtype": "float32"} | options

    def rank(comm):
        model = load_model(folder, comm, **options)
        cache = model.new_cache(len(calls[0]), length)
        return [to_numpy(model(tokens, cache)) for tokens in calls]

    return run_threads(tp, rank, xp=xp)


def assert_close(got: np.ndarray, want: np.ndarray, relative: float = FLOAT32) -> None:
    assert_bounded(got, want, np.full(want.shape, relative * np.abs(want).max()))


@pytest.mark.parametrize("tp", [1, 3, 8])  # 3: heads and vocabulary uneven; 8: more ranks than key/value heads
@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "quantized"])
@pytest.mark.parametrize("family", CONFIGS)
def test_logits_of_each_family_are_those_of_the_formula(xp, family, quantized, tp, tmp_path) -> None:
    model = write_model(tmp_path, family, quantized=quantized)
    results = [calls[0] for calls in run(tmp_path, tp, [TOKENS], xp=xp)]
    assert_close(results[0], logits(model.config, model.tensors, TOKENS))
    if tp > 1:
        assert_same_on_ranks(results)


@pytest.mark.parametrize("family", CONFIGS)
def test_threads_take_pieces_of_the_tokens_through_the_rest_of_a_block(family, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cutpq.model.transformer._ROWS", 5)
    monkeypatch.setattr("cutpq.ops.engine.threads._state.limit", 2)
    model = write_model(tmp_path, family, quantized=True)
    ((found,),) = run(tmp_path, 1, [TOKENS])
    assert_close(found, logits(model.config, model.tensors, TOKENS))


@pytest.mark.parametrize("codec", [None, "int8-b16"])
def test_through_the_kernels(xp, codec, tmp_path, monkeypatch) -> None:
    """With a codec the last step of a sum makes the residual and the norm, in the order of the next weight."""
    model = write_model(tmp_path, quantized=True)
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    loaded = set()
    load = kernels.load
    monkeypatch.setattr(kernels, "load", lambda name, *rest: loaded.add(name) or load(name, *rest))
    options = {"dtype": "float16", "codec": codec, "algo": "twoshot", "xp": xp}
    results = [calls[0] for calls in run(tmp_path, 2, [TOKENS], **options)]
    assert_close(results[0], logits(model.config, model.tensors, TOKENS), 0.01 if codec is None else 0.05)
    assert_same_on_ranks(results)
    assert {"gemm_w4a16", "rmsnorm_gather"} <= loaded
    assert ("decode_sum_rmsnorm" in loaded) == (codec is not None)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_decode_of_every_width_is_by_the_kernel(xp, bits, tmp_path, monkeypatch) -> None:
    """Of a loaded model: no weight is dequantized first, for a prompt or for one more token."""
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    model = write_model(tmp_path, quantized=True, bits=bits, head_dim=16)
    loaded = set()
    load = kernels.load
    monkeypatch.setattr(kernels, "load", lambda name, *rest: loaded.add(name) or load(name, *rest))
    prompt, token = run(tmp_path, 2, [TOKENS[:-1]], [TOKENS[-1:]], dtype="float16", xp=xp)[0]
    want = logits(model.config, model.tensors, TOKENS)
    assert_close(np.concatenate([prompt, token]), want, 0.01)
    assert "gemm_w4a16" in loaded
    assert "dequant" not in loaded


def test_linear_rope_scaling(tmp_path) -> None:
    model = write_model(tmp_path, rope_scaling={"rope_type": "linear", "factor": 4.0})
    assert_close(run(tmp_path, 1, [TOKENS])[0][0], logits(model.config, model.tensors, TOKENS))


@pytest.mark.parametrize("dtype, relative", [(np.float16, 0.01), (bfloat16, 0.1)], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("family", ["llama3", "gpt_bigcode"])
def test_short_activations(xp, family, dtype, relative, tmp_path) -> None:
    model = write_model(tmp_path, family, quantized=True)
    results = [calls[0] for calls in run(tmp_path, 2, [TOKENS], dtype=dtype, xp=xp)]
    assert results[0].dtype == dtype
    assert_close(results[0], logits(model.config, model.tensors, TOKENS), relative)
    assert_same_on_ranks(results)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles the kernels for the CPU, and is not here")
@pytest.mark.parametrize("family", ["mistral", "gpt_bigcode"])  # with rotation and a window, and without either
def test_kernels_of_attention_agree_with_the_formulas(family, tmp_path, monkeypatch) -> None:
    """Ragged sequences, prefill and decode, by the executor; 16 features a head."""
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    launched = []
    load = kernels.load
    monkeypatch.setattr(kernels, "load", lambda name, *args: launched.append(name) or load(name, *args))
    model = write_model(tmp_path, family, **({"n_head": 4} if family == "gpt_bigcode" else {}))
    steps = [[TOKENS[:9], TOKENS[9:12]], [TOKENS[:1], TOKENS[:1]]]
    results = run(tmp_path, 2, *steps, dtype="float16")[0]
    assert {"rotate_qkv", "softmax"} <= set(launched)
    first, second = np.concatenate([TOKENS[:9], TOKENS[:1]]), np.concatenate([TOKENS[9:12], TOKENS[:1]])
    wanted = [logits(model.config, model.tensors, tokens) for tokens in (first, second)]
    assert_close(results[0], np.concatenate([wanted[0][:9], wanted[1][:3]]), 0.01)
    assert_close(results[1], np.stack([wanted[0][9], wanted[1][3]]), 0.01)


@pytest.mark.parametrize("scheme", ["auto", *SCHEMES])
@pytest.mark.parametrize(("tp", "family"), [(2, "llama"), (5, "llama"), (4, "mixtral")])
def test_every_scheme(xp, scheme, tp, family, tmp_path) -> None:
    model = write_model(tmp_path, family, quantized=True)
    results = [calls[0] for calls in run(tmp_path, tp, [TOKENS], scheme=scheme, xp=xp)]
    assert_close(results[0], logits(model.config, model.tensors, TOKENS))
    assert_same_on_ranks(results)


@pytest.mark.parametrize("scheme", ["naive", "all-to-all", "tp-aware"])
def test_output_takes_the_planned_scheme_where_the_one_asked_for_is_impossible(scheme, tmp_path) -> None:
    """Six groups of down and four of o_proj, on five ranks."""
    write_model(tmp_path, quantized=True, head_dim=8)

    def schemes(comm):
        block = load_model(tmp_path, comm, scheme=scheme).blocks[0]
        return block.mlp.scheme, block.attention.output.scheme

    assert run_threads(5, schemes) == [(scheme, "local")] * 5


def test_a_link_decides_between_local_and_all_to_all(tmp_path) -> None:
    write_model(tmp_path, quantized=True, group_size=8)

    def chosen(comm, scheme):
        return load_model(tmp_path, comm, scheme=scheme).blocks[1].attention.output.scheme

    assert run_threads(2, chosen, "auto") == run_threads(2, chosen, "tp-aware") == ["local"] * 2
    assert run_threads(2, chosen, "all-to-all") == ["all-to-all"] * 2


@pytest.mark.parametrize("family", CONFIGS)
def test_decode_after_prefill_equals_prefill_of_the_whole(xp, family, tmp_path) -> None:
    model = write_model(tmp_path, family)
    want = logits(model.config, model.tensors, TOKENS)
    first, *rest = run(tmp_path, 2, [TOKENS[:13]], *([[t]] for t in TOKENS[13:17]), [TOKENS[17:]], xp=xp)[0]
    assert_close(np.concatenate([first, *rest]), want)


@pytest.mark.parametrize("family", ["mistral", "gpt_bigcode"])
def test_sequences_of_different_lengths_do_not_see_each_other(xp, family, tmp_path) -> None:
    model = write_model(tmp_path, family)
    whole = [np.random.default_rng(i).integers(0, 101, n) for i, n in enumerate((9, 3, 16))]
    steps = [
        [whole[0][:6], whole[1][:1], whole[2][:13]],
        [whole[0][6:7], whole[1][1:2], whole[2][13:14]],
        [whole[0][7:], whole[1][2:], whole[2][14:]],
    ]
    results = run(tmp_path, 2, *steps, xp=xp)[0]
    rows = [np.split(y, np.cumsum([len(row) for row in step])[:-1]) for y, step in zip(results, steps, strict=True)]
    for i, tokens in enumerate(whole):
        got = np.concatenate([step[i] for step in rows])
        assert_close(got, logits(model.config, model.tensors, tokens))


def test_an_expert_that_no_token_chooses_takes_no_part(tmp_path) -> None:
    """A prompt of one token, and a router whose row for expert 0 can win nothing."""
    model = write_model(tmp_path, "mixtral")
    router = "model.layers.0.block_sparse_moe.gate.weight"
    model.tensors[router][0] = 0
    model.tensors[router][3] = -model.tensors[router][2]
    edit_tensors(tmp_path, lambda tensors: tensors.update({router: model.tensors[router]}))
    for got in run(tmp_path, 2, [TOKENS[:1]]):
        assert_close(got[0], logits(model.config, model.tensors, TOKENS[:1]))


def test_last_only_is_the_last_row_of_each_sequence(tmp_path) -> None:
    write_model(tmp_path)
    model = load_model(tmp_path, SelfCommunicator(), dtype="float32")
    step = [TOKENS[:4], TOKENS[4:11], TOKENS[11:12]]
    every = model(step, model.new_cache(3, 8))
    last = model(step, model.new_cache(3, 8), last_only=True)
    assert_close(last, every[[3, 10, 11]].astype(np.float64))


def test_a_cleared_cache_is_as_good_as_new(tmp_path) -> None:
    """Beyond the end of the shorter sequence the cache is read as well, though nobody sees it."""
    write_model(tmp_path)
    model = load_model(tmp_path, SelfCommunicator(), dtype="float32")
    cache = model.new_cache(2, 19)
    tokens = [TOKENS[:3], TOKENS]
    first = model(tokens, cache)
    for layer in cache.layers:
        layer.keys[:] = np.nan
        layer.values[:] = np.nan
    cache.clear()
    assert np.array_equal(model(tokens, cache), first)


@pytest.mark.parametrize("family", ["llama", "mixtral"])  # experts share a sum
def test_codec_is_for_two_all_reduces_of_each_block(family, tmp_path) -> None:
    """Embedding and head travel as they are; the bytes say so."""
    model = write_model(tmp_path, family, quantized=True, vocab_size=100)
    M, H, V, tp = len(TOKENS), 64, 100, 4
    by_name = find_codec("int8-b16")

    def sent(comm):
        runner = load_model(tmp_path, comm, by_name, algo="twoshot", dtype="float32")
        comm.reset_sent()
        return runner([TOKENS], runner.new_cache(1, M)), comm.sent_bytes

    results, nbytes = zip(*run_threads(tp, sent), strict=True)
    assert_close(results[0], logits(model.config, model.tensors, TOKENS), 0.05)
    assert_same_on_ranks(results)
    embedding, head = 2 * (tp - 1) * M * H // tp * 4, (tp - 1) * M * V // tp * 4
    assert list(nbytes) == [embedding + head + 4 * twoshot_sent(M * H, tp, rank, by_name) for rank in range(tp)]
    plain = run(tmp_path, tp, [TOKENS])[0][0]
    assert not np.array_equal(results[0], plain)

    def switched(comm):
        runner = load_model(tmp_path, comm, dtype="float32")
        runner.use_codec(by_name, "twoshot")
        return runner([TOKENS], runner.new_cache(1, M))

    assert np.array_equal(run_threads(tp, switched)[0], results[0])


def test_ranks_hold_only_the_key_value_heads_that_they_need(tmp_path) -> None:
    write_model(tmp_path)  # 8 heads, 2 key/value heads

    def kv_heads(comm):
        return load_model(tmp_path, comm).new_cache(1, 4).layers[0].keys.shape[1]

    assert run_threads(2, kv_heads) == [1, 1]
    assert run_threads(3, kv_heads) == [1, 2, 1]  # heads 0 .. 2, 3 .. 5, 6 .. 7
    assert run_threads(8, kv_heads) == [1] * 8


# --- errors --------------------------------------------------------------------------------------------------------


def told(folder: Path, use=None, tp: int = 2, error: type[Exception] = ValueError, **options) -> str:
    """The message of the error that every rank raises, the same on all."""

    def rank(comm):
        try:
            model = load_model(folder, comm, **options)
            if use is not None:
                use(model)
        except error as e:
            return str(e)
        return "no error"

    messages = run_threads(tp, rank)
    assert len(set(messages)) == 1
    return messages[0]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[0, 101]], "token 101 is out of range: the vocabulary is 0 .. 100"),
        ([[-1]], "token -1 is out of range"),
        ([[0.5]], "tokens of sequence 0 must be a row of one integer or more, got float64"),
        ([[]], "tokens of sequence 0 must be a row of one integer or more"),
        ([[[1]]], r"one integer or more, got int64 of shape (1, 1)"),
        ([[1], [2]], "tokens of 2 sequences do not fit a cache of 1"),
        ([[1] * 5], "the cache is full: sequence 0 has 4 tokens, 5 more do not fit its length of 8"),
    ],
    ids=["above", "negative", "float", "empty", "nested", "too_many", "full"],
)
def test_wrong_tokens_are_named_on_every_rank_and_change_nothing(tokens, message, tmp_path) -> None:
    write_model(tmp_path)

    def use(model):
        cache = model.new_cache(1, 8)
        model([[1, 2, 3, 4]], cache)
        try:
            model(tokens, cache)
        finally:
            assert cache.lengths.tolist() == [4]

    assert message in told(tmp_path, use)


def test_a_cache_longer_than_learned_positions_is_refused(tmp_path) -> None:
    write_model(tmp_path, "gpt_bigcode")
    assert told(tmp_path, lambda model: model.new_cache(1, 64)) == "no error"
    message = told(tmp_path, lambda model: model.new_cache(1, 65))
    assert message == "length=65 is more than the 64 positions of the model"


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"model_type": "mamba"}, "model_type: expected one of llama, mistral, mixtral, qwen2, granite"),
        ("llama", {"hidden_size": None}, "hidden_size: expected a whole number from 1 to 16777216, found no such key"),
        ("llama", {"rms_norm_eps": "1e-5"}, "rms_norm_eps: expected a number, found '1e-5'"),
        ("llama", {"num_key_value_heads": 3}, "found 3"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2}}, "type: expected default, linear or llama3"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor: expected a number"),
        ("llama", {"partial_rotary_factor": 0.5}, "all features of a head rotated, found 0.5"),
        ("llama", {"num_hidden_layers": 3}, "expected a quantized module model.layers.2.self_attn.o_proj or model"),
        ("llama", {"vocab_size": 102}, "model.embed_tokens.weight: expected shape (102, 64) by config.json"),
        (
            "llama",
            {"head_dim": 8},
            "o_proj.weight: expected (K, N) = (64, 64) by config.json, found (96, 64)",
        ),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window: expected false"),
        ("gpt_bigcode", {"multi_query": False}, "multi_query: expected true"),
        ("mixtral", {"num_local_experts": 3}, "gate.weight: expected shape (3, 64) by config.json, found (4, 64)"),
        ("mixtral", {"num_experts_per_tok": 5}, "expected at most num_local_experts=4, found 5"),
        ("granite", {"logits_scaling": 0}, "logits_scaling: expected a number other than 0, found 0"),
        ("granite", {"residual_multiplier": 0.0}, "residual_multiplier: expected a number other than 0, found 0.0"),
        ("gpt_bigcode", {"n_head": 7}, "n_head: expected a divisor of n_embd=64, found 7"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_config_that_cannot_be_run_is_named_on_every_rank(family, change, message, tmp_path) -> None:
    write_model(tmp_path, family)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    assert message in told(tmp_path)


@pytest.mark.parametrize(
    "family, name",
    [
        ("llama", "model.norm.weight"),
        ("llama", "lm_head.weight"),
        ("llama", "model.layers.1.self_attn.k_proj.weight"),
        ("llama", "model.layers.1.mlp.down_proj.weight"),
        ("qwen2", "model.layers.0.self_attn.v_proj.bias"),
        ("granite", "model.layers.1.mlp.down_proj.bias"),
        ("gpt_bigcode", "transformer.wpe.weight"),
        ("mixtral", "model.layers.1.block_sparse_moe.gate.weight"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w2.weight"),
        ("gpt_bigcode", "transformer.ln_f.bias"),
    ],
)
def test_a_missing_tensor_is_named_on_every_rank(family, name, tmp_path) -> None:
    write_model(tmp_path, family)
    edit_tensors(tmp_path, lambda tensors: tensors.pop(name))
    message = told(tmp_path)
    assert str(tmp_path) in message
    assert name.removesuffix(".weight") in message or "layer 1" in message


MLP = "model.layers.1.mlp."


@pytest.mark.parametrize(
    "swapped",
    [("gate_proj",), ("up_proj",), ("down_proj",), ("gate_proj", "up_proj"), ("gate_proj", "up_proj", "down_proj")],
    ids="+".join,
)
def test_mlp_shapes_that_contradict_each_other_are_named_on_every_rank(swapped, tmp_path) -> None:
    """Weights stored transposed. Where all three are, they fit each other and contradict config.json alone."""
    write_model(tmp_path)
    names = [f"{MLP}{child}.weight" for child in swapped]
    edit_tensors(tmp_path, lambda tensors: tensors.update({n: np.ascontiguousarray(tensors[n].T) for n in names}))
    message = told(tmp_path, error=CheckpointError)
    assert str(tmp_path / "model.safetensors") in message
    assert any(f"{name}: expected " in message for name in names), message


def test_wrong_options_are_named_on_every_rank(tmp_path) -> None:
    write_model(tmp_path)
    assert "scheme 'fast' is not one of auto, unordered" in told(tmp_path, scheme="fast")
    assert "dtype must be one of float16, bfloat16, float32, got float64" in told(tmp_path, dtype=np.float64)
    assert "no codec is called 'zip'" in told(tmp_path, codec="zip")
    assert "algo 'ring' is not one of auto, plain, oneshot, twoshot" in told(tmp_path, algo="ring")
    assert "tp=9 ranks cannot share 8 attention heads: at most tp=8" in told(tmp_path, tp=9)


# --- the real model ------------------------------------------------------------------------------------------------

CARRIED = Path(__file__).parents[1] / "data" / "tiny-llama"


def test_the_carried_model_takes_float16_from_its_config() -> None:
    model = load_model(CARRIED, SelfCommunicator())
    assert model.dtype == np.float16
    assert len(model.blocks) == 4


@pytest.mark.parametrize(("host", "dtype"), [("engine", np.float32), ("formulas", np.float16)])
def test_the_engine_gets_a_float32_cache(host, dtype, monkeypatch) -> None:
    monkeypatch.setenv("CUTPQ_HOST", host)
    cache = load_model(CARRIED, SelfCommunicator(), dtype="float16").new_cache(1, 2)
    assert [layer.keys.dtype for layer in cache.layers] == [dtype] * 4


@pytest.mark.parametrize("tp", [2, 8])
def test_the_carried_model_gives_the_same_logits_by_every_scheme(tp) -> None:
    tokens = np.load(CARRIED / "eval_tokens.npy").astype(np.int64)[:48]
    model = load_model(open_checkpoint(CARRIED), SelfCommunicator(), dtype="float32")
    want = model([tokens], model.new_cache(1, 48)).astype(np.float64)
    for scheme in SCHEMES:
        results = [calls[0] for calls in run(CARRIED, tp, [tokens], length=48, scheme=scheme)]
        assert_close(results[0], want)
        assert_same_on_ranks(results)
