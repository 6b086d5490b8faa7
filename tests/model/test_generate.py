"""Generation: the tokens of a loop by hand, batches that shrink, one draw for all ranks, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from assertions import assert_exact
from greedy import KEPT, TINY_LLAMA
from make_model import write_model

import cutpq as cq
from cutpq.array import to_numpy
from cutpq.model.families import end_tokens
from cutpq.ranks.alone import SelfCommunicator
from cutpq.ranks.threads import run_threads

PROMPTS = [[5, 17, 80], [3], [99, 0, 1, 2, 3, 4, 5]]
GREEDY = cq.Sampler(temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small random quantized Llama of 101 tokens and 64 positions."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, quantized=True, max_position_embeddings=64)
    return folder


def steps(folder, prompts, tp=1, xp=np, dtype="float32", **options) -> list[list[cq.Step]]:
    """The steps that each rank sees."""

    def rank(comm):
        model = cq.load_model(folder, comm, dtype=dtype)
        return list(cq.generate(model, prompts, **options))

    return run_threads(tp, rank, xp=xp)


def texts(some: list[cq.Step], count: int) -> list[list[int]]:
    """The new tokens of each sequence."""
    return [[step.tokens[s] for step in some if s in step.tokens] for s in range(count)]


def by_hand(folder, prompt, count, xp=np) -> list[int]:
    """The likeliest tokens of one prompt, each from a fresh cache over the whole text."""
    model = cq.load_model(folder, SelfCommunicator(xp=xp), dtype="float32")
    text = list(prompt)
    for _ in range(count):
        logits = to_numpy(model([text], model.new_cache(1, len(text)), last_only=True))
        text.append(int(logits[0].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_greedy_tokens_are_those_of_a_loop_by_hand(xp, tp, folder) -> None:
    ranks = steps(folder, PROMPTS, tp, xp, max_tokens=12)
    want = [by_hand(folder, prompt, 12) for prompt in PROMPTS]
    assert [texts(some, 3) for some in ranks] == [want] * tp
    assert [step.finished for step in ranks[0]] == [{}] * 11 + [dict.fromkeys(range(3), "length")]


def test_a_sequence_that_ends_leaves_the_batch_and_the_others_go_on(xp, folder) -> None:
    """First, last and middle ones leave, one of them beside another; what stays is what it would be alone."""
    alone = [by_hand(folder, prompt, 10) for prompt in PROMPTS]
    leave = {1: (0,), 4: (2, 3), 6: (1,)}
    sizes = []

    def ends(step):
        sizes.append(len(step.tokens))
        return {s: "enough" for s in leave.get(len(sizes), ()) if s in step.tokens}

    [some] = steps(folder, [*PROMPTS, PROMPTS[0]], xp=xp, max_tokens=10, ends=ends)
    assert sizes == [4, 3, 3, 3, 1, 1]
    assert texts(some, 4) == [alone[0][:1], alone[1][:6], alone[2][:4], alone[0][:4]]
    assert [step.finished for step in some if step.finished] == [
        {0: "enough"}, {2: "enough", 3: "enough"}, {1: "enough"}]  # fmt: skip


def test_removing_a_sequence_moves_only_the_last(xp, folder) -> None:
    model = cq.load_model(folder, SelfCommunicator(xp=xp), dtype="float32")
    cache = model.new_cache(3, 9)
    model(PROMPTS, cache)
    before = [(to_numpy(layer.keys), to_numpy(layer.values)) for layer in cache.layers]
    base = cache.layers[0].keys
    cache.remove(0)
    assert_exact(cache.lengths, np.array([7, 1]))
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert_exact(to_numpy(layer.keys), keys[[2, 1]])
        assert_exact(to_numpy(layer.values), values[[2, 1]])
    base[0, 0, 0, 0] = 7  # the same memory as before
    assert float(cache.layers[0].keys[0, 0, 0, 0]) == 7
    cache.remove(1)
    assert_exact(to_numpy(cache.layers[0].values), before[0][1][[2]])


def test_every_rank_has_what_rank_0_draws(folder) -> None:
    """Ranks whose samplers differ stand for machines whose exp() does."""

    def rank(comm):
        model = cq.load_model(folder, comm, dtype="float32")
        sampler = cq.Sampler(temperature=2.0, seed=comm.rank)
        return list(cq.generate(model, PROMPTS, max_tokens=8, sampler=sampler))

    ranks = run_threads(4, rank)
    assert ranks == [ranks[0]] * 4


def test_draws_are_the_same_for_any_number_of_ranks_and_any_batch(folder) -> None:
    sampler = cq.Sampler(temperature=1.5, top_p=0.9, repetition_penalty=1.1, seed=3)
    several = [texts(steps(folder, PROMPTS, tp, max_tokens=10, sampler=sampler)[0], 3) for tp in (1, 2, 4, 8)]
    assert several == [several[0]] * 4
    [first] = texts(steps(folder, PROMPTS[:1], max_tokens=10, sampler=sampler)[0], 1)
    assert first == several[0][0]
    other = texts(steps(folder, PROMPTS, max_tokens=10, sampler=cq.Sampler(1.5, 0, 0.9, 1.1, seed=4))[0], 3)
    assert other != several[0]


def test_the_penalty_sees_prompt_and_new_tokens(folder) -> None:
    """So strong that no token comes twice, nor one of the prompt."""
    sampler = cq.Sampler(temperature=0, repetition_penalty=1e6)
    made = texts(steps(folder, PROMPTS, max_tokens=20, sampler=sampler)[0], 3)
    for prompt, tokens in zip(PROMPTS, made, strict=True):
        assert len({*prompt, *tokens}) == len(prompt) + 20


def test_end_tokens_end_a_sequence(folder) -> None:
    alone = [by_hand(folder, prompt, 10) for prompt in PROMPTS]
    eos = alone[0][4]
    [some] = steps(folder, PROMPTS, max_tokens=10, eos=[eos])
    want = [row[: row.index(eos) + 1] if eos in row else row for row in alone]
    assert texts(some, 3) == want
    reasons = {s: why for step in some for s, why in step.finished.items()}
    assert reasons == {s: "eos" if eos in row else "length" for s, row in enumerate(alone)}


@pytest.mark.parametrize(
    ("generation", "config", "want"),
    [(None, None, ()), (None, 7, (7,)), ([5, 6], 7, (5, 6)), (0, 7, (0,)), (None, [7, 8], (7, 8))],
)
def test_end_tokens_of_a_checkpoint(generation, config, want, folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": config}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert end_tokens(cq.open_checkpoint(tmp_path)) == want
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(cq.CheckpointError, match=r"generation_config\.json: expected eos_token_id .* found '</s>'"):
        end_tokens(cq.open_checkpoint(tmp_path))


def test_a_sequence_ends_at_the_last_position(folder) -> None:
    [some] = steps(folder, [[1] * 60, [2] * 10], max_tokens=6)
    made = texts(some, 2)
    assert (len(made[0]), len(made[1])) == (4, 6)
    assert [step.finished for step in some if step.finished] == [{0: "positions"}, {1: "length"}]


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        ([], {}, "expected at least one prompt, got none"),
        ([[1], []], {}, "sequence 1 must be a row of one integer or more"),
        ([[1.5]], {}, "sequence 0 must be a row of one integer or more, got float64"),
        ([[1], [4, 101]], {}, r"tokens\[1\] has token 101: the model's tokens are 0 \.\. 100"),
        ([[-1]], {}, r"tokens\[0\] has token -1"),
        ([[1] * 64], {}, r"tokens\[0\] has 64 tokens, but the model has 64 positions, one of them for a new token"),
        ([[1]], {"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_refused_on_every_rank_before_anything_is_computed(prompts, options, said, folder) -> None:
    def rank(comm):
        model = cq.load_model(folder, comm)
        comm.reset_sent()
        with pytest.raises(ValueError, match=said):
            cq.generate(model, prompts, **({"max_tokens": 3} | options))
        return comm.sent_bytes

    assert run_threads(2, rank) == [0, 0]


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_greedy_text_of_the_carried_model_is_that_of_transformers(tp) -> None:
    """tests/data/greedy.json says how its tokens were made; float32 here as there. On two ranks to the last token."""
    kept = json.loads(KEPT.read_text())
    count = 64 if tp == 2 else 24
    ranks = steps(TINY_LLAMA, kept["prompts"], tp, max_tokens=count, eos=())
    assert [texts(some, 3) for some in ranks] == [[tokens[:count] for tokens in kept["tokens"]]] * tp
