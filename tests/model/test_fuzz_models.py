"""Mutated models: CheckpointError or a model that runs may come out of load_model, and nothing else.

Small models, plain ones above all, are damaged as tests/checkpoint/test_fuzz.py damages quantized modules. What the
numbers are after that, the oracle of the loader says there; here every module name, shape and config value reaches
the layers as well.
"""

from __future__ import annotations

import tracemalloc
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from make_model import write_model
from mutations import Files, Mutation, damaged, damages

from cutpq.checkpoint.errors import CheckpointError
from cutpq.checkpoint.folder import open_checkpoint
from cutpq.checkpoint.mlp_names import mlps
from cutpq.layers.mlp import Mlp
from cutpq.layers.source import WeightInFile
from cutpq.model.transformer import load_model
from cutpq.ranks.alone import SelfCommunicator

MUTATIONS = [400, pytest.param(800, marks=pytest.mark.slow("800 damaged models"))]

# Widths that all differ, so that a transposed weight fits nowhere; one layer.
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "num_hidden_layers": 1,
    "vocab_size": 11,
}
BASES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "llama-quantized": SMALL | {"quantized": True, "intermediate_size": 32, "head_dim": 8},
    "granite": SMALL,
    "phi3": SMALL | {"head_dim": None},
    "mixtral": SMALL | {"num_local_experts": 3},
    "gpt_bigcode": {"n_embd": 16, "n_head": 2, "n_layer": 1, "n_inner": 24, "vocab_size": 11, "n_positions": 16},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    made = {}
    for name, options in BASES.items():
        folder = tmp_path_factory.mktemp(name)
        write_model(folder, name.partition("-")[0], **options)
        made[name] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return made


def test_undamaged_models_run(bases: dict[str, Files], tmp_path: Path) -> None:
    for name, files in bases.items():
        assert outcome(files, tmp_path / name) == "runs"


@pytest.mark.parametrize("mutations", MUTATIONS)
def test_mutations_of_models(mutations: int, bases: dict[str, Files], tmp_path: Path) -> None:
    seen: Counter[str] = Counter()

    @settings(
        max_examples=mutations,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # a failing example is small as it is; shrinking it would take minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(damages(BASES))
    def mutate(damage: tuple[str, list[Mutation]]) -> None:
        base, changes = damage
        files = damaged(bases[base], changes)
        seen[outcome(files, tmp_path) if files != bases[base] else "unchanged"] += 1

    mutate()
    print(f"mutations: {dict(seen)}")
    assert min(seen["refused"], seen["runs"]) >= mutations // 8, "a fuzz that sees one outcome only shows nothing"


def outcome(files: Files, folder: Path) -> str:
    """ "refused" with a CheckpointError that names the folder, or "runs"; any other exception passes through."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    refusal, used = _refusal_and_memory(folder)
    limit = 100 * sum(map(len, files.values())) + (4 << 20)
    if used > limit:  # caches that the first call in a process fills are not the files' doing; a second call has them
        refusal, used = _refusal_and_memory(folder)
    assert used < limit, f"{used} bytes of memory, more than {limit}"
    assert refusal is None or str(folder) in refusal, f"the error does not name the place: {refusal}"
    return "runs" if refusal is None else "refused"


def _refusal_and_memory(folder: Path) -> tuple[str | None, int]:
    """The words of a CheckpointError, or None where the folder runs; and the most bytes that Python held meanwhile."""
    refusal = None
    tracemalloc.start()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            _run(folder)
    except CheckpointError as e:
        refusal = str(e)
    finally:
        _, used = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return refusal, used


def _run(folder: Path) -> None:
    """Every MLP by itself, then the whole model."""
    ckpt, comm = open_checkpoint(folder), SelfCommunicator()
    for modules in mlps(ckpt):
        mlp = Mlp.from_checkpoint(ckpt, comm=comm, modules=modules)
        mlp(np.zeros((1, WeightInFile.whole(ckpt, modules.up).K), np.float16))
    model = load_model(ckpt, comm)
    logits = model([[1, 2, 3]], model.new_cache(1, 3))
    assert logits.shape == (3, model.decoder.vocabulary)
