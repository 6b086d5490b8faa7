"""Logits of every family against transformers on torch: a cross-check with foreign code, where both are installed."""

from pathlib import Path

import numpy as np
import pytest
from assertions import assert_bounded
from make_model import CONFIGS, write_model

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
