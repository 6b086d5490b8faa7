"""The command line: what it prints, how it ends, and that no bad input shows a traceback."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from make_checkpoint import edit_config, edit_tensors, write_checkpoint

from cutpq.cli.main import main
from cutpq.cli.table import collapse

ROOT = Path(__file__).resolve().parent.parent.parent
TINY_LLAMA = ROOT / "tests" / "data" / "tiny-llama"


def test_inspect_shows_what_tiny_llama_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(TINY_LLAMA)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "1 file, 123 tensors, 28 quantized modules" in out
    assert "claimed: gptq, bits 4, group_size 128, desc_act true, sym true" in out
    rows = _rows(out)
    assert len(rows) == 7
    assert rows["model.layers.{0..3}.mlp.down_proj"] == "x4 1024 256 4 128 act-order v1 yes <=8, equal at 1 2 4 8"
    assert rows["model.layers.{0..3}.self_attn.o_proj"] == "x4 512 256 4 128 act-order v1 yes <=4, equal at 1 2 4"
    assert rows["model.layers.{0..3}.self_attn.q_proj"] == "x4 256 512 4 128 act-order v1 yes -"


def test_inspect_as_json_has_every_module_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json", str(TINY_LLAMA)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["modules"]) == 28
    down = next(m for m in told["modules"] if m["name"] == "model.layers.2.mlp.down_proj")
    assert (down["K"], down["N"], down["groups"], down["order"]) == (1024, 256, 8, "act-order")
    assert (down["max_tp"], down["equal_tp"]) == (8, [1, 2, 4, 8])
    assert down["claims"]["desc_act"] is True


def test_inspect_keeps_layers_apart_that_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path, layers=4)
    edit_tensors(tmp_path, lambda t: t["model.layers.2.mlp.down_proj.g_idx"].sort())
    assert main(["inspect", str(tmp_path)]) == 0
    rows = _rows(capsys.readouterr().out)
    assert rows["model.layers.{0..1,3}.mlp.down_proj"].startswith("x3 128 64 4 32 act-order ")
    assert rows["model.layers.2.mlp.down_proj"].startswith("128 64 4 32 trivial ")


def test_inspect_notes_contradictions_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The label says v1, the values v2: a mark in each row, one sentence below."""
    write_checkpoint(tmp_path, layers=2, format="gptq_v2")
    edit_config(tmp_path, lambda c: c.update(checkpoint_format="gptq"))
    assert main(["inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(row.endswith(" [1]") for row in _rows(out).values())
    assert len(re.findall(r"^\[1\] labelled v1, but zero points are v2", out, re.MULTILINE)) == 1


def test_warnings_of_the_loader_are_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path)
    edit_config(tmp_path, lambda c: c.pop("sym"))
    assert main(["inspect", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert re.fullmatch(r"note: .*sym is missing.*\n", err)


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_plan_without_a_link_takes_a_default_and_says_which(
    json_flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(TINY_LLAMA), "--tp", "8", *json_flag]) == 0
    default = capsys.readouterr()
    assert main(["plan", str(TINY_LLAMA), "--tp", "8", "--link", "a100-nvlink", *json_flag]) == 0
    named = capsys.readouterr()
    assert default.out == named.out
    assert default.err == "note: no --link was given, costs are those of a100-nvlink\n"
    assert named.err == ""


def test_plan_names_a_scheme_and_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(TINY_LLAMA), "--tp", "8", "--link", "l4-pcie", "--m", "4"]) == 0
    out = capsys.readouterr().out
    rows = _rows(out)
    assert rows["model.layers.{0..3}.mlp.down_proj"].startswith("x4 row 1024 256 act-order tp-aware ")
    assert rows["model.layers.{0..3}.self_attn.o_proj"].startswith("x4 row 512 256 act-order local ")
    assert re.search(r"^\[1\] the columns of gate_proj and up_proj are permuted offline", out, re.MULTILINE)


def test_plan_over_nodes_says_what_that_costs(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(TINY_LLAMA), "--tp", "8", "--link", "h100-nvlink", "--per-node", "4"]
    assert main(command) == 0
    assert capsys.readouterr().out.endswith(
        "taken for one machine; --between says what joins nodes of --per-node ranks\n"
    )
    assert main([*command, "--between", "eth-25g"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"over 2 nodes, .* on 4 ranks of one node; a mistake, which costs \d+ us of a call", out)
    assert "stays inside" not in out


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(TINY_LLAMA), "--tp", "2", "--link", "h100-nvlink", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)
    assert len(layers) == 28
    assert {layer["chosen"] for layer in layers} >= {"tp-aware", "none"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "DIR", "--tp", "2", "--link", "token-ring"], "choose from .*a100-nvlink.*l4-pcie"),
        (["plan", "DIR", "--tp", "0", "--link", "l4-pcie"], "at least 1, got '0'"),
        (["plan", "DIR"], "required: --tp"),
        (["convert", "SRC"], "required: DST"),
        ([], "required: inspect"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("command", ["inspect", "plan", "convert"])
def test_a_bad_checkpoint_is_one_line_and_status_1(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "src")
    path = tmp_path / "src" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    more = {"inspect": [], "plan": ["--tp", "2", "--link", "l4-pcie"], "convert": [str(tmp_path / "dst")]}[command]
    assert main([command, str(tmp_path / "src"), *more]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"cutpq: error: .*model\.safetensors: expected .*\n", err)


def test_convert_says_what_it_did_and_what_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, dst = str(tmp_path / "src"), str(tmp_path / "dst")
    write_checkpoint(src, layers=3)
    (tmp_path / "src" / "pytorch_model.bin").write_bytes(b"old")
    assert main(["convert", src, dst]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # no bar where stderr is no terminal
    lines = out.splitlines()
    assert lines[0] == "sorted: model.layers.{0..2}.mlp.down_proj  x3"
    assert re.fullmatch(r"act-ordered still, .*alone.*: model\.layers\.\{0\.\.2\}\.mlp\.gate_proj  x3, .*", lines[1])
    assert re.fullmatch(r"act-ordered still, .*heads.*: model\.layers\.\{0\.\.2\}\.self_attn\.o_proj  x3", lines[2])
    assert lines[3].endswith("pytorch_model.bin")
    assert lines[4] == "proved, bit for bit: 3 MLPs permuted, all other tensors equal"
    speed = r"written at \d+ MB/s, with proof \d+ MB/s(, peak memory \d+ MB)?"
    assert re.fullmatch(rf"{dst}: 0\.\d MB in \d+\.\d s: {speed}", lines[5])
    assert main(["convert", dst, str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.startswith("nothing to convert: no MLP of ")
    assert not (tmp_path / "again").exists()


def test_convert_refuses_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "src")
    assert main(["convert", str(tmp_path / "src"), str(tmp_path / "src" / "dst")]) == 1
    assert re.fullmatch(r"cutpq: error: .*the destination must be neither the source .*\n", capsys.readouterr().err)
    assert main(["convert", str(tmp_path / "src"), str(tmp_path / "no" / "such" / "dst")]) == 1
    assert re.fullmatch(r"cutpq: error: .*no/such: No such file or directory\n", capsys.readouterr().err)


def test_a_disk_that_takes_no_more_is_one_line(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the system refuses the write as it would on a full disk."""
    write_checkpoint(tmp_path / "src", layers=4)
    limit = (tmp_path / "src" / "model.safetensors").stat().st_size // 2
    command = [sys.executable, "-m", "cutpq", "convert", str(tmp_path / "src"), str(tmp_path / "dst")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},  # it would be cut short, and read by the next process
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(r"cutpq: error: .*dst.*/model\.safetensors: File too large\n", done.stderr)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_a_reader_that_leaves_early_ends_it_quietly() -> None:
    """As under `| head -1`."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cutpq", "inspect", str(TINY_LLAMA)]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert done.stderr == b""


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "cutpq convert Llama-2-70B-GPTQ Llama-2-70B-sorted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["a.0.b", "a.1.b", "a.2.b", "a.10.b"], ["a.{0..2,10}.b  x4"]),
        (["a.3.b"], ["a.3.b"]),
        ([f"a.{i}.e.{j}.w1" for i in range(2) for j in range(3)], ["a.{0..1}.e.{0..2}.w1  x6"]),
        (["a.0.e.0.w1", "a.1.e.1.w1"], ["a.0.e.0.w1", "a.1.e.1.w1"]),
        (["a.0.w1", "a.0.w3"], ["a.0.w1", "a.0.w3"]),
        (["lm_head"], ["lm_head"]),
        ([], []),
    ],
)
def test_names_of_many_layers(names: list[str], shown: list[str]) -> None:
    """A range stands for exactly the names that it was made of."""
    assert collapse(names) == shown


def _rows(out: str) -> dict[str, str]:
    """The table's rows by module: what stands behind each name."""
    lines = [line.split() for line in out.split("\n\n")[1].splitlines()[1:]]
    return {line[0]: " ".join(line[1:]) for line in lines}
