"""Logits of every family, and texts, against transformers on torch: foreign code, where both are installed."""

import json
from pathlib import Path

import greedy
import numpy as np
import pytest
from assertions import assert_bounded
from make_model import CONFIGS, write_model

from cutpq.model.generate import generate
from cutpq.model.transformer import load_model
from cutpq.ranks.alone import SelfCommunicator

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """float32 arithmetic on both sides: sums in another order, and nothing else."""
    write_model(tmp_path, family, seed=2)
    tokens = np.random.default_rng(3).integers(0, 101, (2, 23))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        want = theirs(torch.from_numpy(tokens)).logits.double().numpy().reshape(46, -1)
    model = load_model(tmp_path, SelfCommunicator(), dtype="float32")
    got = model(tokens, model.new_cache(2, 23))
    assert_bounded(got, want, np.full_like(want, 2e-5 * np.abs(want).max()))
    print(f"{family}: largest difference {np.abs(got - want).max():.1e}, logits up to {np.abs(want).max():.2f}")


def test_greedy_texts_are_those_of_transformers() -> None:
    """64 tokens of each of 20 prompts from the carried model, and that the kept ones are what transformers makes."""
    want = greedy.texts_of_transformers(greedy.prompts())
    assert json.loads(greedy.KEPT.read_text())["tokens"] == want[: greedy.KEPT_PROMPTS]
    model = load_model(greedy.TINY_LLAMA, SelfCommunicator(), dtype="float32")
    some = list(generate(model, greedy.prompts(), max_tokens=greedy.NEW, eos=()))
    assert [[step.tokens[s] for step in some] for s in range(greedy.PROMPTS)] == want
