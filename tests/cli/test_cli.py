"""The command line: exit codes, messages without tracebacks, Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vidalign import cli, registry
from vidalign.errors import UserError

PLUGIN = """\
from dataclasses import dataclass
from vidalign.objectives.base import Needs
from vidalign.registry import register

@register("objectives", "local")
class Local:
    needs = Needs(min_group=2)

    @dataclass
    class Config:
        group_size: int = 4
        \"\"\"Candidates of one prompt.\"\"\"
"""
RECIPE = """\
# A recipe for a test.
student: {init: {transformer: {patch_size: [1, 8, 8], num_attention_heads: 2, num_layers: 1}}}
objective:
  name: local
  group_size: 4
"""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("plugin.py").write_text(PLUGIN)
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as leaving:
        cli.main(list(arguments))
    return int(leaving.value.code or 0)


def test_validate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", "recipe.yaml", "--plugin", "plugin.py") == 0
    assert "recipe.yaml is valid" in capsys.readouterr().out


def test_mistakes_of_a_recipe_leave_with_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ("recipe.yaml", "objective.group_size=1", "trainer.stpes=3", "--plugin", "plugin.py")
    for verb in ("validate", "train", "show"):
        assert run(verb, *wrong) == 2
        told = capsys.readouterr().err
        assert "2 problems" in told and "override 1" in told and "did you mean 'steps'?" in told
        assert "Traceback" not in told
    assert not Path("runs").exists()


def test_other_mistakes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", "recipe.yaml") == 2  # without the plugin there is no such objective
    assert run("list", "objectvs") == 2
    assert "did you mean 'objectives'?" in capsys.readouterr().err
    assert run("trian") == 2  # usage
    assert run("list", "rewards", "--plugin", "gone.py") == 2


def test_list_and_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "objectives", "--plugin", "plugin.py") == 0
    out = capsys.readouterr().out
    assert "astrolabe" in out and "local" in out
    assert run("show", "recipe.yaml", "objective.group_size=6", "--explain", "--plugin", "plugin.py") == 0
    out = capsys.readouterr().out
    assert out.startswith("# A recipe for a test.\n")
    assert "  # Candidates of one prompt.\n  group_size: 6  # override 1\n" in out


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: list[str] | None) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main([])


def test_text_in_brackets_is_not_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(arguments: list[str] | None) -> None:
        raise UserError("found [3, 4]", fix="use [/red]")

    monkeypatch.setattr(cli, "app", broken)
    assert run() == 3
    assert "error: found [3, 4] - use [/red]" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupt_gives_one_message_and_130(name: str, folder: Path) -> None:
    Path("slow.py").write_text("import time\nprint('started', flush=True)\ntime.sleep(30)\n")
    command = [sys.executable, "-m", "vidalign.cli", "list", "rewards", "--plugin", "slow.py"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(signal.Signals[name])
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert told.startswith("Interrupted:") and told.count("\n") == 1
