"""The examples run as their first lines say, and README.md shows a piece of one of them, as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import MPIRUN, needs_mpi

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
MOST_LINES = 40
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def start(name: str, *arguments: str, ranks: int = 1) -> str:
    """What an example prints, started in the repository's folder."""
    launcher = [MPIRUN, "-n", str(ranks)] if ranks > 1 else []
    command = [*launcher, sys.executable, f"examples/{name}.py", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUTPQ_COMM": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figures(line: str) -> list[str]:
    """The words of a line that are numbers."""
    return re.findall(r"(?<=\s)\d[\d.]*(?=\s|$)", line)


def snippets(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_says_how_to_start_it(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert f"    python examples/{name}.py" in text.split('"""')[1]


@needs_mpi
def test_mlp_shows_what_each_scheme_sends() -> None:
    rows = {tuple(line.split()[:2]): figures(line) for line in start("mlp", ranks=4).splitlines()[2:]}
    sent = {scheme: int(rows[scheme, "-"][0]) for scheme in ("unordered", "naive", "all-to-all", "local", "tp-aware")}
    assert sent["naive"] > sent["all-to-all"] > sent["tp-aware"] == sent["unordered"] == sent["local"]
    assert int(rows["tp-aware", "mxfp4"][0]) < sent["tp-aware"] / 3.7
    assert rows["tp-aware", "-"][1] == "0.0000"
    assert 0.05 < float(rows["tp-aware", "mxfp4"][1]) < 0.25


@needs_mpi
def test_all_reduce_gives_the_same_figures_with_threads_and_with_processes() -> None:
    threads, processes = (start("all_reduce", ranks=ranks).splitlines()[1:] for ranks in (1, 4))
    assert threads == processes
    assert len(threads) == 7
    for line in threads[2:]:
        _, _, rms, largest, allowed = map(float, figures(line))
        assert 0 < rms < largest <= allowed


def test_convert_writes_a_folder(tmp_path: Path) -> None:
    printed = start("convert", str(tmp_path / "dst"))
    assert "4 down projections sorted" in printed
    assert "[0 0 0 0 0 0 0 0] after" in printed
    assert (tmp_path / "dst" / "model.safetensors").is_file()


@needs_mpi
def test_model_makes_the_same_text_on_four_ranks() -> None:
    pytest.importorskip("tokenizers")
    alone, four = (start("model", ranks=ranks).splitlines()[1:] for ranks in (1, 4))
    assert alone == four
    assert len(alone) == 2
    for line in alone:
        assert re.fullmatch(r"'To create a table, use' -> '.+'|'The reason is' -> ' not available.*'", line)


def test_the_snippet_of_the_readme_is_a_piece_of_an_example() -> None:
    [snippet] = snippets(ROOT / "README.md")
    assert snippet in (ROOT / "examples" / "mlp.py").read_text()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if snippets(page)], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_the_snippets_of_a_page_run_as_they_stand(page: Path) -> None:
    """In the repository's folder, one after the other."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUTPQ_COMM": ""}
    command = [sys.executable, "-c", "".join(snippets(page))]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# cutpq: 1 rank, backend ")


def test_readme_takes_two_minutes() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert any("Status" in line for line in lines[:10])
    assert "    pip install -e '.[mpi]' && mpirun -n 8 python bench/mlp.py" in lines
    assert "    pip install -e '.[mpi,test]' && pytest" in lines


def test_the_text_in_the_readme_is_what_the_model_writes() -> None:
    """The command behind the `$`, and the line below it."""
    pytest.importorskip("tokenizers")
    command, text = re.search(
        r"^    \$ cutpq (generate .*)\n    (.*)$", (ROOT / "README.md").read_text(), re.M
    ).groups()
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUTPQ_COMM": ""}
    command = [sys.executable, "-m", "cutpq", *shlex.split(command)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == text + "\n", done.stderr
