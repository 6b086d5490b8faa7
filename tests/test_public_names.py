"""`import cutpq as cq` shows what a user calls, and beside it the folders only."""

import subprocess
import sys
from pathlib import Path

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
