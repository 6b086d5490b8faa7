"""From how many tokens on cuBLAS multiplies: by architecture, and what the environment says."""

import pytest

from cutpq.kernels.config import Device
from cutpq.ops.gemm_config import dequant_from


@pytest.fixture(autouse=True)
def _read_again():
    dequant_from.cache_clear()
    yield
    dequant_from.cache_clear()


def test_mma_sync_is_slower_beside_the_library_on_hopper(monkeypatch):
    monkeypatch.delenv("CUTPQ_DEQUANT_FROM", raising=False)
    tokens = {arch: dequant_from(Device(arch, 100)) for arch in (80, 86, 89, 90, 100, 120)}
    assert tokens[80] == tokens[86] == tokens[89] == 1152
    assert tokens[90] == tokens[100] == tokens[120] == 448


def test_environment_overrides(monkeypatch):
    monkeypatch.setenv("CUTPQ_DEQUANT_FROM", "77")
    assert dequant_from(Device(90, 132)) == 77


@pytest.mark.parametrize("value", ["", "0", "-5", "12.5", "many", "\N{SUPERSCRIPT TWO}"])
def test_bad_override_is_named(monkeypatch, value):
    monkeypatch.setenv("CUTPQ_DEQUANT_FROM", value)
    with pytest.raises(ValueError, match="CUTPQ_DEQUANT_FROM must be a number of tokens above 0"):
        dequant_from(Device(90, 132))
