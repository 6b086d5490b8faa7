"""Mutated checkpoints: CheckpointError or the right weights may come out of the loader, and nothing else.

Hundreds of small checkpoints, with --slow thousands, are damaged in one or two places: bytes of the header, of the data
and of the JSON files, lengths, offsets, shapes, dtypes, names, config values, index entries, whole files. Where the
loader accepts what is left, every number must be the one that the oracle reads in the damaged files.
"""

from __future__ import annotations

import json
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from assertions import assert_exact
from hypothesis import HealthCheck, Phase, given, settings
from make_checkpoint import write_checkpoint
from mutations import Files, damaged, damages

from cutpq.checkpoint import groups
from cutpq.checkpoint.errors import CheckpointError
from cutpq.checkpoint.folder import open_checkpoint

MUTATIONS = [600, pytest.param(2400, marks=pytest.mark.slow("2,400 damaged checkpoints"))]

# Sizes so small that the oracle's loops cost a millisecond a module; one layer of two modules.
_SMALL: dict[str, Any] = {"family": "bigcode", "hidden": 32, "intermediate": 64, "attention": False}

BASES: dict[str, dict[str, Any]] = {
    "gptq-asym": {"format": "gptq", "sym": False},
    "gptq-sym": {"format": "gptq", "desc_act": False, "group_size": 40},
    "gptq_v2-3bit": {"format": "gptq_v2", "bits": 3, "sym": False},
    "gptq-8bit-one-group": {"format": "gptq", "bits": 8, "group_size": -1},
    "awq": {"format": "awq", "sym": False},
    "compressed-3bit": {"format": "compressed-tensors", "bits": 3, "sym": False},
    "compressed-sym": {"format": "compressed-tensors", "desc_act": False},
    "gptq-sharded": {"format": "gptq", "shards": 2},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    made = {}
    for name, options in BASES.items():
        folder = tmp_path_factory.mktemp(name)
        write_checkpoint(folder, **_SMALL, **options)
        made[name] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return made


def test_undamaged_is_accepted(bases: dict[str, Files], tmp_path: Path) -> None:
    for name, files in bases.items():
        assert outcome(files, tmp_path / name) == "accepted"


@pytest.mark.parametrize("mutations", MUTATIONS)
def test_mutations(mutations: int, bases: dict[str, Files], tmp_path: Path) -> None:
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
    def mutate(damage: tuple[str, list[tuple[Any, ...]]]) -> None:
        base, changes = damage
        files = damaged(bases[base], changes)
        seen[outcome(files, tmp_path) if files != bases[base] else "unchanged"] += 1

    mutate()
    print(f"mutations: {dict(seen)}")
    assert seen["refused"] + seen["accepted"] >= mutations * 5 // 6
    assert min(seen["refused"], seen["accepted"]) >= mutations // 12, "a fuzz that sees one outcome only shows nothing"


def test_a_wrong_value_would_be_seen(bases: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = groups.read_scales
    monkeypatch.setattr(groups, "read_scales", lambda *args, **kwargs: right(*args, **kwargs) * np.float16(1.001))
    with pytest.raises(AssertionError):
        outcome(bases["gptq-asym"], tmp_path)


def test_another_exception_would_be_seen(
    bases: dict[str, Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "check_group_count", lambda *args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        outcome(bases["awq"], tmp_path)
    assert not tracemalloc.is_tracing(), "all tests after this one would take five times as long"


def outcome(files: Files, folder: Path) -> str:
    """ "refused" with CheckpointError, or "accepted" and everything in it as the oracle reads it; else an exception."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    loaded, refusal = None, ""
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = _load_all(folder)
    except CheckpointError as e:
        refusal = str(e)
    finally:
        (_, used), total = tracemalloc.get_traced_memory(), sum(map(len, files.values()))
        tracemalloc.stop()
    assert used < 40 * total + (1 << 20), f"{used} bytes of memory for {total} bytes of files"
    if loaded is None:
        assert str(folder) in refusal, f"the error does not name the place: {refusal}"
        return "refused"
    stored = oracle.load(folder)
    plain, weights = loaded
    assert plain.keys() == stored.keys()
    for name, array in plain.items():
        assert_exact(array, stored[name])
    for name, (w, part) in weights.items():
        oracle.assert_same_weight(w, _oracle_weight(folder, stored, name))
        assert np.isfinite(w.scales).all()
        assert -(-w.K // w.group_size) == w.G, "the groups are not of the size that is said"
        assert_exact(part.codes, w.codes[3:9][:, [5, 0]])
        assert_exact(part.zeros, w.zeros[:, [5, 0]])
    return "accepted"


def _load_all(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every tensor and every quantized module, the latter whole and in part, by every function a reader has."""
    ckpt = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="nowhere"):
        ckpt.weight("nowhere")
    weights = {}
    for name in ckpt.weights():
        ckpt.inspect(name)
        w = ckpt.weight(name)
        assert ckpt.shape(name) == w.codes.shape
        assert_exact(ckpt.g_idx(name), w.g_idx)
        ckpt.repack(name, w)
        weights[name] = w, ckpt.weight(name, slice(3, 9), np.array([5, 0]))
    return {name: ckpt.tensor(name) for name in ckpt.tensors()}, weights


def _oracle_weight(folder: Path, tensors: dict[str, np.ndarray], name: str) -> oracle.Weight:
    """The module as the oracle reads it with what the damaged config says; null is what a missing key is."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("quantization_config") or config["compression_config"]

    def said(key: str, default: Any, place: dict[str, Any] = config) -> Any:
        return default if place.get(key) is None else place[key]

    if f"{name}.weight_packed" in tensors:
        weights = next(iter(config["config_groups"].values()))["weights"]
        return oracle.compressed(tensors, name, weights["num_bits"], said("group_size", -1, weights))
    if said("quant_method", "awq" if "zero_point" in config else "gptq").lower() == "awq":
        return oracle.awq(tensors, name, said("group_size", 128))
    for pattern, change in said("dynamic", {}).items():
        config = {**config, **(change if pattern == ".*" else {})}
    sym, label = said("sym", True, config), said("checkpoint_format", "gptq", config)
    return oracle.gptq(tensors, name, config["bits"], said("group_size", -1, config), sym, label)
