"""`import cutpq as cq` shows what a user calls, and beside it the folders only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cutpq

FOLDER = Path(cutpq.__file__).parent


def test_dir_shows_public_names_and_folders() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import cutpq; print(*dir(cutpq))"], capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {path.name for path in FOLDER.iterdir() if (path / "__init__.py").is_file()} | {"array", "trace"}
    assert {name for name in shown if not name.startswith("__")} - folders == set(cutpq.__all__)


def test_no_public_name_hides_a_module() -> None:
    """`import cutpq.NAME.module as m` finds a folder unless a public function has its name."""
    assert not set(cutpq.__all__) & {path.stem for path in FOLDER.iterdir()}


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse((FOLDER / "__init__.pyi").read_text())
    there = {a.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert there == cutpq._MODULE


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'cutpq' has no attribute 'quantise'"):
        _ = cutpq.quantise
