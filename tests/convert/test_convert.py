"""cutpq.convert: the same model with the groups of every down projection contiguous, or no result at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import oracle
import pytest
from assertions import assert_exact
from convert import write_checkpoint as write_large_checkpoint
from make_checkpoint import edit_config, edit_tensors, write_checkpoint

import cutpq as cq
from cutpq.cli.main import main
from cutpq.convert import convert as converting
from cutpq.convert.convert import convert
from cutpq.convert.raw_tensors import RawTensor
from cutpq.convert.reader import ConversionError
from cutpq.cost.mlp import MlpShape

ROOT = Path(__file__).resolve().parents[2]
TINY_LLAMA = ROOT / "tests" / "data" / "tiny-llama"

# Each with a risk of its own: where codes straddle words, which axis is packed, what else must follow.
CASES = {
    "gptq": {},
    "v2_3_bits_asymmetric_in_shards": {"format": "gptq_v2", "bits": 3, "sym": False, "shards": 3, "layers": 2},
    "biases_2_bits_fp32_scales": {"family": "bigcode", "bits": 2, "scale_dtype": np.float32},
    "fused_8_bits": {"family": "phi3", "bits": 8, "sym": False},
    "bf16_scales": {"scale_dtype": ml_dtypes.bfloat16},
    "last_group_short": {"group_size": 24},
    "gate_and_up_of_different_order": {"gate_up_same_order": False},
    "experts": {"family": "mixtral", "experts": 3},
    "compressed": {"format": "compressed-tensors"},
    "compressed_3_bits_asymmetric": {"format": "compressed-tensors", "bits": 3, "sym": False},
    "compressed_fused_asymmetric": {"format": "compressed-tensors", "family": "phi3", "sym": False},
    "compressed_experts": {"format": "compressed-tensors", "family": "mixtral", "shards": 2},
}
DOWN = ("down_proj", "w2", "mlp.c_proj")
FIRST = ("gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "c_fc")


@pytest.mark.parametrize("case", CASES)
def test_rows_of_down_and_columns_of_the_first_follow_its_order(case: str, tmp_path: Path) -> None:
    """Dequantized by the slow oracle; every tensor that is no part of an MLP has the bytes it had."""
    src, dst = tmp_path / "src", tmp_path / "dst"
    modules = write_checkpoint(src, **CASES[case])
    done = convert(src, dst)
    old, new = oracle.load(src), oracle.load(dst)
    assert list(old) == list(new)
    downs = {m.name: np.argsort(m.g_idx, kind="stable") for m in modules if m.name.endswith(DOWN)}
    assert sorted(done.sorted) == sorted(downs)
    changed = set()
    for module in modules:
        parent, _, child = module.name.rpartition(".")
        perm = next((p for name, p in downs.items() if name.rpartition(".")[0] == parent), None)
        if perm is None or not module.name.endswith((*DOWN, *FIRST)):
            continue
        changed.add(module.name)
        was, now = (_oracle(t, module, CASES[case]) for t in (old, new))
        if module.name in downs:
            assert_exact(now.dequantized, was.dequantized[perm])
            assert_exact(now.g_idx, np.sort(was.g_idx))
            continue
        order = np.concatenate([perm, perm + len(perm)]) if "gate_up" in child else perm
        assert_exact(now.dequantized, was.dequantized[:, order])
        assert_exact(now.g_idx, was.g_idx)
        if module.bias is not None:
            assert_exact(new[f"{module.name}.bias"], module.bias[order])
    for name in old:
        if name.rpartition(".")[0] not in changed or (name.endswith("bias") and "c_fc" not in name):
            assert_exact(new[name], old[name])


@pytest.mark.parametrize("case", CASES)
def test_files_keep_names_sizes_and_headers(case: str, tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_checkpoint(src, **CASES[case])
    convert(src, dst)
    assert sorted(p.name for p in dst.iterdir()) == sorted(p.name for p in src.iterdir())
    for path in src.glob("*.safetensors"):
        was, now = path.read_bytes(), (dst / path.name).read_bytes()
        header = 8 + int.from_bytes(was[:8], "little")
        assert len(now) == len(was)
        assert now[:header] == was[:header]


@pytest.mark.parametrize("case", ["gptq", "biases_2_bits_fp32_scales", "fused_8_bits", "compressed"])
def test_the_mlp_gives_the_bits_that_tp_aware_gave(case: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "src", **CASES[case])
    convert(tmp_path / "src", tmp_path / "dst")
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float16)

    def run(comm: cq.Communicator, folder: Path) -> np.ndarray:
        return cq.Mlp.from_checkpoint(cq.open_checkpoint(folder), comm=comm, scheme="tp-aware")(x)

    was, now = (cq.run_threads(3, run, tmp_path / folder)[0] for folder in ("src", "dst"))
    assert_exact(now, was)


def test_tiny_llama(tmp_path: Path) -> None:
    """A real checkpoint: its MLPs compute what they did, and every down projection is in order."""
    done = convert(TINY_LLAMA, tmp_path / "dst")
    assert len(done.sorted) == 4
    old, new = cq.open_checkpoint(TINY_LLAMA), cq.open_checkpoint(tmp_path / "dst")
    x = np.random.default_rng(2).standard_normal((3, 256)).astype(np.float16)
    for layer in range(4):
        mlp = cq.mlp_modules(old, layer)
        perm = np.argsort(old.g_idx(mlp.down), kind="stable")
        assert not old.weight(mlp.down).is_ordered
        assert_exact(cq.dequantize(new.weight(mlp.down)), cq.dequantize(old.weight(mlp.down))[perm])
        for name in mlp.first:
            assert_exact(cq.dequantize(new.weight(name)), cq.dequantize(old.weight(name))[:, perm])
        was, now = (
            cq.run_threads(4, lambda comm, c=c, i=layer: cq.Mlp.from_checkpoint(c, i, comm=comm, scheme="tp-aware")(x))
            for c in (old, new)
        )
        assert_exact(now[0], was[0])
    assert (tmp_path / "dst" / "tokenizer.json").read_bytes() == (TINY_LLAMA / "tokenizer.json").read_bytes()


def test_float_gate_and_up_get_their_rows_permuted(tmp_path: Path) -> None:
    """Plain weights are stored (N, K), with a bias of N."""
    src, dst = tmp_path / "src", tmp_path / "dst"
    modules = write_checkpoint(src)
    rng = np.random.default_rng(3)
    plain = {
        "model.layers.0.mlp.gate_proj.weight": rng.standard_normal((128, 64)).astype(ml_dtypes.bfloat16),
        "model.layers.0.mlp.up_proj.weight": rng.standard_normal((128, 64)).astype(np.float32),
        "model.layers.0.mlp.up_proj.bias": rng.standard_normal(128).astype(np.float16),
    }

    def unquantize(tensors: dict[str, np.ndarray]) -> None:
        for name in [n for n in tensors if "gate_proj" in n or "up_proj" in n]:
            del tensors[name]
        tensors.update(plain)

    edit_tensors(src, unquantize)
    convert(src, dst)
    perm = np.argsort(modules[-1].g_idx, kind="stable")
    new = oracle.load(dst)
    for name, array in plain.items():
        assert_exact(new[name], array[perm])


def test_negative_groups_are_sorted_as_the_loader_reads_them(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    (*_, down) = write_checkpoint(src)
    G = len(down.scales)
    edit_tensors(src, lambda t: t[f"{down.name}.g_idx"].__isub__(np.where(down.g_idx > 1, G, 0).astype(np.int32)))
    with pytest.warns(cq.CheckpointWarning, match="from the end"):
        convert(src, dst)
    with pytest.warns(cq.CheckpointWarning, match="from the end"):
        order = cq.open_checkpoint(dst).g_idx(down.name)
    assert_exact(order, np.sort(down.g_idx))


NOTHING_TO_DO = {
    "converted_before": {},
    "awq": {"format": "awq"},
    "one_group": {"group_size": -1},
    "in_order": {"desc_act": False},
}


@pytest.mark.parametrize("why", NOTHING_TO_DO)
def test_nothing_is_written_where_nothing_is_to_do(why: str, tmp_path: Path) -> None:
    src = tmp_path / "src"
    write_checkpoint(src, **NOTHING_TO_DO[why])
    if why == "converted_before":
        convert(src, tmp_path / "once")
        src = tmp_path / "once"
    before = sorted(tmp_path.iterdir())
    assert convert(src, tmp_path / "dst").sorted == ()
    assert sorted(tmp_path.iterdir()) == before


# --- what else is in the folder ------------------------------------------------------------------------------------


def test_other_files_are_copied_and_foreign_weights_left_out(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_checkpoint(src)
    left = {"pytorch_model.bin", "adapter_model.safetensors", "original/consolidated.00.pth"}
    for name in (*left, "tokenizer.json", "original/params.json", ".git/HEAD"):
        (src / name).parent.mkdir(exist_ok=True)
        (src / name).write_text(name)
    done = convert(src, dst)
    copied = {"config.json", "model.safetensors", "tokenizer.json", "original/params.json"}
    assert {str(p.relative_to(dst)) for p in dst.rglob("*") if p.is_file()} == copied
    assert (dst / "original/params.json").read_text() == "original/params.json"
    assert set(done.left_out) == left


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.mlp.act.scales", (128,)),
        ("model.layers.0.mlp.down_proj.lora_A.weight", (4, 128)),
        ("model.layers.0.mlp.gate_proj.lora_B.weight", (128, 4)),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", (1, 2)),
    ],
)
def test_a_tensor_that_may_know_the_order_is_refused_by_name(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "src")
    edit_tensors(tmp_path / "src", lambda t: t.update({name: np.ones(shape, np.float16)}))
    with pytest.raises(ConversionError, match=re.escape(name)):
        convert(tmp_path / "src", tmp_path / "dst")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_a_float_gate_of_another_size_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "src")

    def unquantize(tensors: dict[str, np.ndarray]) -> None:
        for name in [n for n in tensors if "gate_proj" in n]:
            del tensors[name]
        tensors["model.layers.0.mlp.gate_proj.weight"] = np.ones((64, 128), np.float16)

    edit_tensors(tmp_path / "src", unquantize)
    with pytest.raises(ConversionError, match=r"gate_proj.weight: expected 128 features along axis 0"):
        convert(tmp_path / "src", tmp_path / "dst")


# --- configs -------------------------------------------------------------------------------------------------------


def test_desc_act_is_false_for_the_sorted_modules_alone(tmp_path: Path) -> None:
    """In both configs, and the layers share one pattern."""
    src, dst = tmp_path / "src", tmp_path / "dst"
    modules = write_checkpoint(src, layers=3)
    claims = json.loads((src / "config.json").read_text())["quantization_config"]
    (src / "quantize_config.json").write_text(json.dumps(claims))
    convert(src, dst)
    ckpt = cq.open_checkpoint(dst)
    for module in modules:
        assert ckpt.spec(module.name).desc_act == (not module.name.endswith("down_proj"))
    whole = json.loads((dst / "config.json").read_text())
    claims |= {"dynamic": {r"+:^model\.layers\.\d+\.mlp\.down_proj$": {"desc_act": False}}}
    assert whole["quantization_config"] == claims
    assert json.loads((dst / "quantize_config.json").read_text()) == claims
    assert whole["hidden_size"] == 64


def test_overrides_by_module_keep_what_else_they_say(tmp_path: Path) -> None:
    """The first pattern that matches counts, so the new one must carry on what the old one said."""
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_checkpoint(src, layers=2, group_size=32)
    override = {"group_size": 32, "desc_act": True}
    edit_config(src, lambda c: c.update(group_size=64, dynamic={r"+:.*\.1\.": override, r".*": {"group_size": 32}}))
    convert(src, dst)
    old, new = cq.open_checkpoint(src), cq.open_checkpoint(dst)
    for name in old.weights():
        was, now = old.spec(name), new.spec(name)
        assert now.group_size == was.group_size == 32
        assert now.desc_act == (not name.endswith("down_proj"))


def test_a_layer_left_in_float_is_not_claimed_by_the_new_pattern(tmp_path: Path) -> None:
    """A pattern that matched it would tell an engine that it is quantized."""
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_checkpoint(src, layers=3)

    def unquantize(tensors: dict[str, np.ndarray]) -> None:
        for name in [n for n in tensors if "layers.1.mlp" in n]:
            del tensors[name]
        for child, shape in (("gate_proj", (128, 64)), ("up_proj", (128, 64)), ("down_proj", (64, 128))):
            tensors[f"model.layers.1.mlp.{child}.weight"] = np.ones(shape, np.float16)

    edit_tensors(src, unquantize)
    edit_config(src, lambda c: c.update(dynamic={r"-:.*layers\.1\.mlp.*": {}}))
    assert convert(src, dst).sorted == ("model.layers.0.mlp.down_proj", "model.layers.2.mlp.down_proj")
    dynamic = json.loads((dst / "config.json").read_text())["quantization_config"]["dynamic"]
    first = [next(p for p in dynamic if re.match(p[2:], f"model.layers.{i}.mlp.down_proj")) for i in range(3)]
    assert [pattern[0] for pattern in first] == ["+", "-", "+"]


def test_desc_act_is_false_globally_where_no_order_is_left(tmp_path: Path) -> None:
    src, dst = tmp_path / "src", tmp_path / "dst"
    write_checkpoint(src)

    def order_all_but_down(tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            if name.endswith("g_idx") and "down" not in name:
                tensors[name].sort()

    edit_tensors(src, order_all_but_down)
    edit_config(src, lambda c: c.update(dynamic={".*gate.*": {"desc_act": True}}))
    assert convert(src, dst).act_order == ()
    claims = json.loads((dst / "config.json").read_text())["quantization_config"]
    assert claims["desc_act"] is False
    assert claims["dynamic"] == {".*gate.*": {"desc_act": False}}


def test_the_config_of_compressed_tensors_stays(tmp_path: Path) -> None:
    """It speaks of the layout, and weight_g_idx is there still, in order."""
    write_checkpoint(tmp_path / "src", format="compressed-tensors")
    assert convert(tmp_path / "src", tmp_path / "dst").sorted
    was, now = ((tmp_path / folder / "config.json").read_bytes() for folder in ("src", "dst"))
    assert now == was


def test_groups_of_unequal_sizes_keep_desc_act(tmp_path: Path) -> None:
    """An engine that is told desc_act false takes row k for one of group k // group_size."""
    src, dst = tmp_path / "src", tmp_path / "dst"
    (*_, down) = write_checkpoint(src)
    uneven = down.g_idx.copy()
    uneven[np.flatnonzero(uneven == 3)[:5]] = 0
    edit_tensors(src, lambda t: t.update({f"{down.name}.g_idx": uneven}))
    assert convert(src, dst).sorted == (down.name,)
    ckpt = cq.open_checkpoint(dst)
    assert ckpt.spec(down.name).desc_act
    assert_exact(ckpt.g_idx(down.name), np.sort(uneven))


# --- no half results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["same", "in_src", "around_src", "not_empty", "a_file", "src_by_a_link", "link_into_src"]
)
def test_destinations_that_are_refused(case: str, tmp_path: Path) -> None:
    src = tmp_path / "around" / "src"
    write_checkpoint(src)
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("mine")
    (tmp_path / "link").symlink_to(src)
    dst = {
        "same": src,
        "in_src": src / "dst",
        "around_src": tmp_path / "around",
        "not_empty": full,
        "a_file": full / "file",
        "src_by_a_link": tmp_path / "link",
        "link_into_src": tmp_path / "link" / "dst",
    }[case]
    before = _contents(tmp_path)
    with pytest.raises(ConversionError, match="the destination must"):
        convert(src, dst)
    assert _contents(tmp_path) == before


def test_an_empty_folder_may_be_the_destination(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "src")
    (tmp_path / "dst").mkdir()
    convert(tmp_path / "src", tmp_path / "dst")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dst", "src"]
    assert cq.open_checkpoint(tmp_path / "dst").weights()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, MemoryError])
def test_an_exception_in_the_middle_leaves_nothing(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "src", layers=2, shards=2)
    before = _contents(tmp_path)
    permuted, calls = RawTensor.permuted, []

    def fails(self: RawTensor, move: object) -> object:
        calls.append(self.name)
        if len(calls) == 9:
            assert any(p.stat().st_size for p in tmp_path.glob("dst.unfinished-*/*.safetensors"))
            raise error
        return permuted(self, move)  # type: ignore[arg-type]

    monkeypatch.setattr(RawTensor, "permuted", fails)
    with pytest.raises(error):
        convert(tmp_path / "src", tmp_path / "dst")
    assert len(calls) == 9
    assert _contents(tmp_path) == before


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGKILL", -9)])
def test_a_signal_in_the_middle_leaves_no_destination(number: str, status: int, tmp_path: Path) -> None:
    """After SIGKILL, which no process can answer, there is a folder that says what it is; the next run removes it."""
    write_checkpoint(tmp_path / "src")
    before = _contents(tmp_path)
    script = (
        "import signal, sys, time; import cutpq.convert.raw_tensors as s; from cutpq.cli.main import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "permuted = s.RawTensor.permuted\n"
        "def slow(self, move):\n    time.sleep(0.3)\n    return permuted(self, move)\n"
        "s.RawTensor.permuted = slow\n"
        "sys.exit(main(['convert', *sys.argv[1:]]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "src"), str(tmp_path / "dst")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("dst.unfinished-*/*.safetensors")):
        assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in errors
    if number == "SIGKILL":
        (left,) = tmp_path.glob("dst.unfinished-*")
        quick = [*command[:2], script.replace("0.3", "0"), *command[3:]]
        process = subprocess.run(quick, cwd=ROOT, capture_output=True)
        assert process.returncode == 0, process.stderr
        assert f"removed, as left by runs that were killed: {left.name}" in process.stdout.decode()
        shutil.rmtree(tmp_path / "dst")
    assert _contents(tmp_path) == before


def test_what_killed_runs_left_is_removed_by_the_next_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of processes that are gone; not another destination's, one in use, or what only looks like one."""
    write_checkpoint(tmp_path / "src")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    hold = (
        "import sys, time; from cutpq.convert import convert\n"
        "convert._lock(convert.Path(sys.argv[1])); print(1, flush=True); time.sleep(60)\n"
    )
    kept = [f"dst.unfinished-{os.getpid()}0x", f"other.unfinished-{gone.pid}", f"dst.unfinished-{os.getppid()}"]
    locked = f"dst.unfinished-{gone.pid + (1 << 22)}"  # beyond the largest process number
    for name in (*kept, locked, f"dst.unfinished-{gone.pid}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    holder = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / locked)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"1\n"
        assert main(["convert", str(tmp_path / "src"), str(tmp_path / "dst")]) == 0
    finally:
        holder.kill()
        holder.communicate()
    assert f"removed, as left by runs that were killed: dst.unfinished-{gone.pid}\n" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} == {"src", "dst", locked, *kept}


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "src")
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(converting.shutil, "disk_usage", lambda _: free)
    with pytest.raises(ConversionError, match=r"0 MB are free"):
        convert(tmp_path / "src", tmp_path / "dst")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


# --- the proof -----------------------------------------------------------------------------------------------------

PLANTED = {
    "down_codes": "model.layers.0.mlp.down_proj.qweight",
    "down_scales": "model.layers.0.mlp.down_proj.scales",
    "down_order": "model.layers.0.mlp.down_proj.g_idx",
    "gate_codes": "model.layers.0.mlp.gate_proj.qweight",
    "up_scales": "model.layers.0.mlp.up_proj.scales",
    "up_zeros": "model.layers.0.mlp.up_proj.qzeros",
    "first_order": "model.layers.0.mlp.up_proj.g_idx",
    "attention": "model.layers.0.self_attn.o_proj.qweight",
    "norm": "model.layers.0.input_layernorm.weight",
}


@pytest.mark.parametrize("where", [*PLANTED, "header", "cut"])
def test_one_wrong_bit_on_the_disk_fails_the_proof(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "src", sym=False)
    before = _contents(tmp_path)
    prove = converting.prove

    def plant(src: Path, dst: Path, files: list, *rest: object) -> None:
        path = dst / "model.safetensors"
        data = bytearray(path.read_bytes())
        if where == "cut":
            del data[-1]
        else:
            at = {t.name: t.stop - 2 for t in files[0].tensors}.get(PLANTED.get(where, ""), files[0].header_bytes - 1)
            data[at] ^= 1
        path.write_bytes(data)
        prove(src, dst, files, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(converting, "prove", plant)
    named = PLANTED.get(where, "model.safetensors").rpartition(".")[0]
    with pytest.raises(ConversionError, match=f"proof failed: .*{named}"):
        convert(tmp_path / "src", tmp_path / "dst")
    assert _contents(tmp_path) == before


@pytest.mark.parametrize(
    "case", ["gptq", "v2_3_bits_asymmetric_in_shards", "compressed_3_bits_asymmetric", "fused_8_bits"]
)
def test_each_bit_of_a_word_of_down_is_proven(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits of three words, in which a code of any width may straddle two."""
    write_checkpoint(tmp_path / "src", **CASES[case])
    prove, planted = converting.prove, []

    def plant(src: Path, dst: Path, files: list, *rest: object) -> None:
        file, tensor = next(
            (f, t) for f in files for t in f.tensors if re.search(r"down_proj\.(qweight|weight_packed)", t.name)
        )
        path = dst / file.path.name
        data = path.read_bytes()
        words = np.frombuffer(data, "<u4", tensor.nbytes // 4, tensor.start).reshape(tensor.shape)
        along_K = (slice(None), 5) if tensor.name.endswith("qweight") else (5, slice(None))
        for bit in range(96):
            wrong = words.copy()
            wrong[along_K][6 + bit // 32] ^= 1 << bit % 32
            path.write_bytes(data[: tensor.start] + wrong.tobytes() + data[tensor.stop :])
            with pytest.raises(ConversionError, match=r"proof failed: .*down_proj \(codes\)"):
                prove(src, dst, files, *rest)  # type: ignore[arg-type]
            planted.append(bit)
        path.write_bytes(data)
        prove(src, dst, files, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(converting, "prove", plant)
    convert(tmp_path / "src", tmp_path / "dst")
    assert len(planted) == 96


def test_a_wrong_permutation_fails_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is whole and every number there, but two columns of gate have changed places."""
    write_checkpoint(tmp_path / "src")
    permuted = RawTensor.permuted

    def swapped(self: RawTensor, move: converting.Move) -> object:
        if "gate_proj" in self.name:
            perm = move.perm.copy()
            perm[[3, 4]] = perm[[4, 3]]
            move = converting.Move(move.axis, perm, move.bits)
        return permuted(self, move)

    monkeypatch.setattr(RawTensor, "permuted", swapped)
    with pytest.raises(ConversionError, match=r"proof failed: model.layers.0.mlp.gate_proj"):
        convert(tmp_path / "src", tmp_path / "dst")
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


# --- memory and progress -------------------------------------------------------------------------------------------


def test_memory_is_a_few_times_the_largest_tensor(tmp_path: Path) -> None:
    """Resident pages, of mapped files too, that a conversion adds to what the imported package has."""
    nbytes, largest = write_large_checkpoint(tmp_path / "src", MlpShape("", 2048, 16384, 2048, True), 1.2e8)
    script = (
        "import sys; from cutpq.cli.convert import _peak_mb; from cutpq.convert.convert import convert\n"
        "before = _peak_mb(); convert(*sys.argv[1:]); print(_peak_mb() - before)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "src"), str(tmp_path / "dst")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert nbytes > 6 * largest
    assert float(done.stdout) * 1e6 <= 4 * largest


def test_progress_reaches_the_whole_in_each_stage(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "src", family="phi3", shards=2)
    calls: list[tuple[str, int, int]] = []
    done = convert(tmp_path / "src", tmp_path / "dst", progress=lambda *call: calls.append(call))
    for stage in ("convert", "prove"):
        amounts = [amount for what, amount, total in calls if what == stage]
        assert amounts == sorted(amounts)
        assert amounts[-1] == done.nbytes
        assert {total for what, _, total in calls if what == stage} == {done.nbytes}


def _oracle(tensors: dict[str, np.ndarray], module: object, case: dict) -> oracle.Weight:
    name, bits, group_size = module.name, module.bits, case.get("group_size", 32)  # type: ignore[attr-defined]
    label = case.get("format", "gptq")
    if label == "compressed-tensors":
        return oracle.compressed(tensors, name, bits, group_size)
    return oracle.gptq(tensors, name, bits, group_size, case.get("sym", True), label)


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}
