"""A run remembers its plugin files, and its student needs none of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_helpers import train, vidalign

from vidalign import plugins, registry

CLIP = ("--prompt", "a large red circle falls", "--out", "x.gif")


@pytest.fixture
def run(brightness: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a reward from a plugin file, opened by another process: nothing is registered."""
    assert train("trainer.steps=1", *brightness) == 0
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    for name in [name for name in sys.modules if name.startswith(registry.MODULE)]:
        monkeypatch.delitem(sys.modules, name)
    return Path("run").resolve()


def test_a_run_remembers_its_plugin_files(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert vidalign("evaluate", "--run", str(run)) == 0
    assert "brightness" in registry.names("rewards")


def test_a_run_goes_on_with_its_plugin_files(run: Path) -> None:
    assert train("trainer.steps=1", "rewards.brightness=1", "--resume") == 0


def test_plugins_that_are_given_stand_beside_those_of_the_run(run: Path) -> None:
    """One's own metric on a run with one's own reward."""
    text = Path("brightness.py").read_text(encoding="utf-8")
    Path("more.py").write_text(text.replace("brightness", "again"), encoding="utf-8")
    assert vidalign("evaluate", "--run", str(run), "--plugin", "more.py") == 0
    assert {"brightness", "again"} <= registry.names("rewards").keys()


def test_a_student_needs_no_plugin_of_its_rewards(run: Path) -> None:
    Path("brightness.py").unlink()
    assert vidalign("sample", "--run", str(run), *CLIP) == 0
    assert vidalign("export", "--run", str(run), "--out", "x.safetensors") == 0
    assert vidalign("export", "--run", str(run), "--out", "y.safetensors", "--step", "1") == 0
    assert "brightness" not in registry.names("rewards")


def test_a_plugin_file_that_is_gone_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("brightness.py").rename("moved.py")
    assert vidalign("evaluate", "--run", str(run)) == 2
    told = capsys.readouterr().err
    assert "brightness.py is not there" in told and "--plugin" in told
    assert vidalign("evaluate", "--run", str(run), "--plugin", "moved.py") == 0


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '["\\u0000"]'])
def test_a_list_that_cannot_be_read(text: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / plugins.FILE_NAME).write_text(text, encoding="utf-8")
    assert vidalign("evaluate", "--run", str(run)) == 2
    assert "the plugin files of the run are not loaded" in capsys.readouterr().err


def test_the_list_of_another_user_is_not_run(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "os", SimpleNamespace(getuid=lambda: os.getuid() + 1))
    assert vidalign("evaluate", "--run", str(run)) == 2
    assert "plugins are code" in capsys.readouterr().err and "brightness" not in registry.names("rewards")
