"""What a plugin's author misspells is found by ``mypy --strict``, before anything runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "tests" / "fixtures" / "typed_plugin.py"
TYPOS = {
    "ctx.student.velocity(": "ctx.student.velocty(",
    "ctx.teacher.clips(": "ctx.teacher.clip(",
    "ctx.student.chunk_shape": "ctx.student.chunk_shap",
    'data["sample"]': 'data["sampel"]',
}
"""A method of the student, one of the teacher, a property, and a key of the `Experience`."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int]]:
    """(file, line) of every error in the plugin and in its misspelt twin, in the order of lines."""
    folder = tmp_path_factory.mktemp("typed")
    text = PLUGIN.read_text(encoding="utf-8")
    for right, wrong in TYPOS.items():
        assert text.count(right) == 1, f"the plugin writes {right} once"
        text = text.replace(right, wrong)
    (folder / "misspelt.py").write_text(text, encoding="utf-8")
    words = ["--strict", "--config-file", str(ROOT / "pyproject.toml")]
    command = [sys.executable, "-m", "mypy", *words, str(PLUGIN), str(folder / "misspelt.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stdout + done.stderr
    errors = re.findall(r"^(.*?)([\w.]+):(\d+): error:", done.stdout, re.MULTILINE)
    return [(name, int(line)) for _, name, line in errors]


def test_every_misspelt_name_is_an_error(found: list[tuple[str, int]]) -> None:
    lines = PLUGIN.read_text(encoding="utf-8").splitlines()
    wrong = sorted(n for n, line in enumerate(lines, start=1) if any(right in line for right in TYPOS))
    assert len(wrong) == len(TYPOS), "one mistake a line"
    assert found == [("misspelt.py", n) for n in wrong]


def test_the_plugin_as_it_is_has_no_error(found: list[tuple[str, int]]) -> None:
    assert found and PLUGIN.name not in {name for name, _ in found}
