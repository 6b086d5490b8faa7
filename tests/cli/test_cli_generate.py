"""cutpq generate: what it prints on one rank and on several, how it ends, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from jobs import MPIRUN, needs_mpi

from cutpq.cli.generate import Interrupt
from cutpq.cli.main import main
from cutpq.model.text import Tokenizer
from cutpq.ranks.alone import SelfCommunicator

ROOT = Path(__file__).resolve().parent.parent.parent
TINY_LLAMA = ROOT / "tests" / "data" / "tiny-llama"
PROMPT = "The reason is"
FIGURES = (
    r"# (\d+) prompt tokens, (\d+) new tokens, first after [\d.]+ ms, then ([\d.]+|-) tokens/s; "
    r"([\d to]+) bytes sent by each of (\d+) ranks?"
)

pytest.importorskip("tokenizers")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTPQ_COMM", "self")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, as in a terminal: it is ignored by `pytest &`, and by what that starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def generate(capsys: pytest.CaptureFixture[str], *arguments: str, folder: Path = TINY_LLAMA) -> tuple[int, str, str]:
    """(status, stdout, stderr) of this process, one rank."""
    status = main(["generate", str(folder), *arguments])
    return status, *capsys.readouterr()


def mpirun(ranks: int, *arguments: str, folder: Path = TINY_LLAMA) -> subprocess.Popen[str]:
    """`mpirun -n RANKS cutpq generate`, started as a terminal starts a job: in a process group of its own."""
    launcher = [str(MPIRUN), "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, "-m", "cutpq", "generate", str(folder), *arguments]
    env = {name: value for name, value in os.environ.items() if name != "CUTPQ_COMM"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finished(job: subprocess.Popen[str], timeout_s: float = 120) -> tuple[int, str, str]:
    """(status, stdout, stderr); a job that hangs is killed and fails the test."""
    try:
        out, err = job.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise
    return job.returncode, out, err


def test_text_goes_to_stdout_and_figures_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = generate(capsys, "--prompt", PROMPT, "--max-tokens", "12", "--verbose")
    assert status == 0
    assert re.match(r" not available\.", out)
    assert out.endswith("\n")
    lines = err.splitlines()
    assert lines[0].startswith("# cutpq: 1 rank, backend self")
    prompt, new, speed, sent, ranks = re.fullmatch(FIGURES, lines[1]).groups()
    assert (prompt, new, sent, ranks) == ("5", "12", "0", "1")
    assert float(speed) > 0
    phases = {line.split()[0]: line.split()[1:3] for line in lines[3:]}
    assert phases == {"load": ["1", "0"], "prefill": ["1", "1"], "text": ["12", "0"], "decode": ["11", "11"]}


def test_several_prompts_appear_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt.txt").write_text("To create a table, use\n")
    alone = [generate(capsys, *given, "--max-tokens", "8", "--dtype", "float32")[1]
             for given in (["--prompt", PROMPT], ["--prompt-file", str(tmp_path / "prompt.txt")])]  # fmt: skip
    arguments = ["--prompt", PROMPT, "--prompt-file", str(tmp_path / "prompt.txt")]
    status, out, _ = generate(capsys, *arguments, "--max-tokens", "8", "--dtype", "float32")
    assert status == 0
    assert out == f"# prompt 1: {PROMPT}\n{alone[0]}# prompt 2: To create a table, use\n{alone[1]}"


def test_json_has_tokens_texts_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = generate(capsys, "--prompt", PROMPT, "--prompt", "CREATE", "--max-tokens", "6", "--json")
    assert status == 0
    told = json.loads(out)
    first, second = told["sequences"]
    assert first["prompt"] == PROMPT
    assert (len(first["prompt_tokens"]), len(first["tokens"]), first["finished"]) == (5, 6, "length")
    assert first["text"].startswith(" not available.")
    figures = told["figures"]
    assert figures["prompt_tokens"] == 5 + len(second["prompt_tokens"])
    assert (figures["new_tokens"], figures["ranks"], figures["sent_bytes"]) == (12, 1, [0])
    assert figures["first_token_ms"] > 0
    assert figures["tokens_per_s"] > 0


def test_a_stop_string_ends_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    whole = generate(capsys, "--prompt", PROMPT, "--max-tokens", "8")[1]
    status, out, err = generate(capsys, "--prompt", PROMPT, "--max-tokens", "8", "--stop", "avail", "--stop", "zebra")
    assert status == 0
    assert out == whole[: whole.index("avail")] + "\n"
    assert "note" not in err
    assert int(re.search(FIGURES, err)[2]) < 8


def test_a_stop_string_that_is_never_met_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = generate(capsys, "--prompt", PROMPT, "--max-tokens", "4", "--stop", "zebra")
    assert status == 0
    assert "note: prompt 1 met no stop string: it ended by length\n" in err


def test_text_that_begins_a_stop_string_is_held_and_then_given_out(capsys: pytest.CaptureFixture[str]) -> None:
    whole = generate(capsys, "--prompt", PROMPT, "--max-tokens", "8")[1].removesuffix("\n")
    status, out, _ = generate(capsys, "--prompt", PROMPT, "--max-tokens", "8", "--stop", whole[-3:] + "\N{SNOWMAN}")
    assert (status, out) == (0, whole + "\n")


def test_the_end_token_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even where the tokenizer knows it as a word: here the fourth token of a text ends it."""
    told = json.loads(generate(capsys, "--prompt", PROMPT, "--max-tokens", "5", "--json")[1])["sequences"][0]
    shutil.copytree(TINY_LLAMA, tmp_path / "ends")
    (tmp_path / "ends" / "generation_config.json").write_text(json.dumps({"eos_token_id": told["tokens"][3]}))
    out = generate(capsys, "--prompt", PROMPT, "--max-tokens", "5", "--json", folder=tmp_path / "ends")[1]
    [ended] = json.loads(out)["sequences"]
    assert (ended["tokens"], ended["finished"]) == (told["tokens"][:4], "eos")
    assert ended["text"] == Tokenizer(TINY_LLAMA).decode(told["tokens"][:3])


def test_seeds_make_texts(capsys: pytest.CaptureFixture[str]) -> None:
    hot = ["--prompt", PROMPT, "--max-tokens", "8", "--temperature", "1.5", "--top-p", "0.95", "--top-k", "200"]
    first, again, other = (generate(capsys, *hot, "--seed", seed)[1] for seed in ("1", "1", "2"))
    assert first == again != other


def test_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jinja2")
    shutil.copytree(TINY_LLAMA, tmp_path / "chat")
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %} is"
    (tmp_path / "chat" / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    asked = generate(capsys, "--prompt", "The reason", "--chat", "--max-tokens", "4", folder=tmp_path / "chat")
    assert asked[:2] == (0, generate(capsys, "--prompt", PROMPT, "--max-tokens", "4")[1])


@pytest.fixture
def without_tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "ids"
    shutil.copytree(TINY_LLAMA, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    return folder


def test_token_ids_where_there_is_no_tokenizer(without_tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads(generate(capsys, "--prompt", PROMPT, "--max-tokens", "5", "--json")[1])["sequences"][0]
    ids = " ".join(map(str, said["prompt_tokens"]))
    status, out, err = generate(capsys, "--prompt", ids, "--max-tokens", "5", folder=without_tokenizer)
    assert status == 0
    assert [int(word) for word in out.split()] == said["tokens"]
    assert "note: " in err
    assert "has no tokenizer.json; prompts and output are token ids" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], r"there is no prompt: pass --prompt"),
        (["--prompt", ""], "prompt 1 is empty"),
        (["--prompt", "a", "--prompt", " \n"], "prompt 2 is empty"),
        (["--prompt", "word " * 3000], r"prompt 1 has \d+ tokens, but the model has 2048 positions"),
        (["--prompt", "a", "--temperature", "-1"], r"temperature must be a number >= 0 .*, got -1\.0"),
        (["--prompt", "a", "--top-p", "1.5"], r"top_p must be .*, got 1\.5"),
        (["--prompt", "a", "--top-k", "-2"], "top_k must be .*, got -2"),
        (["--prompt", "a", "--seed", "-2"], "seed must be .*, got -2"),
        (["--prompt", "a", "--max-tokens", "0"], "max_tokens must be at least 1, got 0"),
        (["--prompt", "a", "--stop", ""], "a stop string must not be empty"),
        (["--prompt", "a", "--codec", "mxfp5"], "no codec is called 'mxfp5'"),
        (["--prompt", "a", "--chat"], r"expected a chat_template, found none: leave --chat away"),
        (["--prompt-file", "/no/such"], "--prompt-file /no/such: No such file or directory"),
        (["--prompt-file", str(TINY_LLAMA / "eval_tokens.npy")], "eval_tokens.npy: not UTF-8 text, at byte 0"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = generate(capsys, *arguments)
    assert (status, out) == (1, "")
    backend, line = err.splitlines()
    assert backend.startswith("# cutpq: ")
    assert re.match(f"cutpq: error: .*{said}", line)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", "hello"], "prompt 1 must be token ids, such as .*, got 'hello'"),
        (["--prompt", "1 2 -3"], "prompt 1 must be token ids"),
        (["--prompt", "1 2048"], r"prompt 1 has token 2048: the model's tokens are 0 \.\. 1023"),
        (["--prompt", "1", "--stop", "x"], "--stop needs a tokenizer: .* has no tokenizer.json"),
        (["--prompt", "1", "--chat"], "--chat needs a tokenizer: .* has no tokenizer.json"),
    ],
)
def test_wrong_token_ids(
    arguments: list[str], said: str, without_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = generate(capsys, *arguments, folder=without_tokenizer)
    assert (status, out) == (1, "")
    assert re.search(f"cutpq: error: {said}", err)


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = generate(capsys, "--prompt", "1", folder=tmp_path)
    assert (status, out) == (1, "")
    assert len(re.findall("cutpq: error: ", err)) == 1


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = generate(capsys, "--prompt", "SELECT", folder=tmp_path / "none")
    assert (status, out) == (1, "")
    assert err.splitlines()[1:] == [f"cutpq: error: {tmp_path}/none: expected a model's folder, found no such folder"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CUTPQ_COMM": "carrier-pigeon"}, "CUTPQ_COMM='carrier-pigeon' is not one of auto, self"),
        ({"CUTPQ_COMM": "", "PMI_SIZE": "4"}, r"PMI_SIZE=4\) started 4 ranks, .*: .*mpi4py"),
    ],
)
@pytest.mark.parametrize("command", ["generate --prompt x", "quantize /no/such --tokens {tokens}"])
def test_ranks_that_cannot_start_are_one_message(
    command: str, variables: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    np.save(tmp_path / "tokens.npy", np.zeros((2, 8), int))
    name, *arguments = command.format(tokens=tmp_path / "tokens.npy").split()
    with pytest.raises(SystemExit, match=f"^cutpq: error: .*{said}"):
        main([name, str(TINY_LLAMA), *arguments])


# --- several ranks ---------------------------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize(
    "ranks", [2, pytest.param(8, marks=pytest.mark.slow("eight processes, whatever cores there are"))]
)
def test_rank_0_prints_the_same_text_for_any_number_of_ranks(ranks: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", PROMPT, "--max-tokens", "16", "--dtype", "float32"]
    alone = generate(capsys, *arguments)[1]
    status, out, err = finished(mpirun(ranks, *arguments))
    assert (status, out) == (0, alone)
    assert re.search(FIGURES, err)[5] == str(ranks)
    assert int(re.search(FIGURES, err)[4].split()[0]) > 0


@needs_mpi
def test_a_codec_changes_what_is_sent_and_stdout_has_text_only() -> None:
    arguments = ["--prompt", PROMPT * 60, "--max-tokens", "2", "--dtype", "float32"]
    plain, coded = (finished(mpirun(2, *arguments, *more)) for more in ([], ["--codec", "mxint8"]))
    assert (plain[0], coded[0]) == (0, 0)
    assert "all_reduce of" in coded[2]  # which algo was chosen
    assert "#" not in coded[1]
    assert coded[1] == plain[1]


@needs_mpi
def test_an_error_is_told_once_and_ends_all_ranks() -> None:
    status, out, err = finished(mpirun(3, "--prompt", PROMPT, "--temperature", "-1"))
    assert (status, out) == (1, "")
    assert err.count("cutpq: error: temperature must be") == 1


@needs_mpi
def test_what_only_rank_0_can_see_is_told_once_and_ends_all_ranks() -> None:
    status, out, err = finished(mpirun(3, "--prompt-file", "/no/such"))
    assert (status, out) == (1, "")
    assert err.count("cutpq: error: --prompt-file /no/such: No such file") == 1


@pytest.mark.parametrize("ranks", [1, pytest.param(3, marks=needs_mpi)])
def test_ctrl_c_prints_what_was_made(ranks: int, ctrl_c: None) -> None:
    """As a terminal sends it: to mpirun and to every rank, which mpirun then tells again."""
    job = mpirun(ranks, "--prompt", PROMPT, "--max-tokens", "2000")
    begun = job.stdout.read(8)
    os.killpg(job.pid, signal.SIGINT)
    start = time.monotonic()
    status, out, err = finished(job, 60)
    assert time.monotonic() - start < 30
    assert status == 130
    assert "Traceback" not in err
    assert (begun + out).startswith(" not available"[:8])
    assert err.count("cutpq: interrupted: ending after this step") == 1
    assert 1 <= int(re.search(FIGURES, err)[2]) < 2000


def test_a_second_ctrl_c_does_not_wait(monkeypatch: pytest.MonkeyPatch, ctrl_c: None) -> None:
    """But one that comes at once is the same one, which mpirun passed on."""
    interrupted = Interrupt(SelfCommunicator())
    with interrupted:
        assert not interrupted
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupted
        monkeypatch.setattr("cutpq.cli.generate.TWICE_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
