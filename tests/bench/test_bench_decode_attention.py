"""bench/decode_attention.py: the smoke run on the executor, a wrong result, and the prediction."""

import decode_attention as bench
import pytest
from predict.attention import Shape, predict
from predict.gemm import MACHINES
from predict.machine_code import DisassemblerMissing, disassembler

from cutpq.kernels.nvrtc import NvrtcMissing


def test_smoke(monkeypatch, capsys):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    assert bench.main(["--smoke"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("ok")


def test_wrong_result_fails(monkeypatch, capsys):
    monkeypatch.setenv("CUTPQ_HOST_KERNELS", "1")
    right = bench.decode_attention
    monkeypatch.setattr(bench, "decode_attention", lambda *a, **k: right(*a, **k) + 1)
    assert bench.main(["--smoke"]) == 1
    assert capsys.readouterr().out.rstrip().endswith("FAIL")


def test_prediction_of_long_sequences_is_bound_by_memory():
    """The goal: 85 % of a copy at batch 8 and 4,096 keys, where a layer has enough of them to hide the start."""
    try:
        disassembler()
    except (DisassemblerMissing, NvrtcMissing) as missing:
        pytest.skip(str(missing))
    for kv_heads, rep in (32, 1), (8, 8):
        shape = Shape(8, kv_heads, rep, 128, 4096, 8192)
        for machine in MACHINES.values():
            prediction = predict(shape, machine)
            assert prediction.bound == "memory"
            assert shape.read_bytes / prediction.time_us / 1e3 >= 0.85 * machine.copy_gb_s
