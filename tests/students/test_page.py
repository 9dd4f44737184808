"""docs/real_students.md: its example runs as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from run_helpers import vidalign
from safetensors.torch import load_file
from tiny_wan import assert_equal

import vidalign as package
from vidalign.students.video.presets import shipped_presets
from vidalign.students.video.spec import VideoStudentSpec

PAGE = Path(__file__).parents[2] / "docs" / "real_students.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,), (preset,) = blocks("python"), blocks("yaml")
    names: dict[str, dict] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    Path("student_preset.yaml").write_text(preset, encoding="utf-8")
    section = PAGE.read_text(encoding="utf-8").partition("## Try it")[2].partition("\n## ")[0]
    commands = [shlex.split(line) for line in section.splitlines() if line.startswith("vidalign ")]
    assert [words[:2] for words in commands] == [["vidalign", "import"]] * 2 + [["vidalign", "export"]] * 2
    assert [vidalign(*words[1:]) for words in commands] == [0] * 4
    again = {f"model.{name}": value for name, value in load_file("again.safetensors").items()}
    assert_equal(again, names["weights"])
    short = package.load_student("short").spec
    assert isinstance(short, VideoStudentSpec) and (short.preset, short.cache.window) == ("student_preset", 8)
    assert package.load_student("diffusers").spec.preset == "self_forcing"


def test_every_preset_is_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in shipped_presets() if f"`{name}`" not in text] == []
