"""`make quickstart` says what it is doing, from the first minute of the install on."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

from typer.main import get_command

from vidalign.cli import app

ROOT = Path(__file__).parents[2]


def commands(target: str, venv: Path) -> list[str]:
    """What make would run for a target, with nothing installed in `venv`."""
    asked = ["make", "--dry-run", "--directory", str(ROOT), f"VENV={venv}", target]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()


def test_every_long_step_of_the_quickstart_is_announced_before_it_begins(tmp_path: Path) -> None:
    lines = commands("quickstart", tmp_path / "venv")
    long = [k for k, line in enumerate(lines) if "-m venv" in line or "pip install" in line or "train " in line]
    assert len(long) == 4 and [lines[k - 1].partition(":")[0] for k in long] == [
        'echo "== install 1 of 3',
        'echo "== install 2 of 3',
        'echo "== install 3 of 3',
        'echo "== quickstart',
    ]
    assert not any("--quiet" in line for line in lines), "pip shows its own bars"


def test_the_quickstart_ends_with_three_commands_to_try(tmp_path: Path) -> None:
    """They parse, and name the run that was trained."""
    lines = commands("quickstart", tmp_path / "venv")
    folder = next(line for line in lines if "vidalign train " in line).split("--run ")[1].split()[0]
    following = [line.partition(": ")[2].strip().strip('"') for line in lines if line.startswith('echo "next')]
    asked = [shlex.split(line)[1:] for line in following]
    assert [words[0] for words in asked] == ["play", "sample", "new"]
    for name, *words in asked:
        group: Any = get_command(app)
        group.commands[name].make_context(name, list(words))
    assert [folder in words for words in asked] == [True, True, False]
