"""What `vidalign list` prints of a plugin is read from its source; nothing is imported."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from vidalign import cli, plugin_source, registry

BUILT_IN = [(kind, name) for kind in registry.KINDS for name in registry._BUILTIN[kind]]
PLUGIN = '''"""A file of rewards (arXiv 2401.00001)."""
from vidalign.registry import register
@register("rewards", "loud")
class Loud:
    """How loud a clip is, e.g. shouts. More
    of it."""
    name = "loud"
    class Config:
        level: float = 1.0
'''


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_every_built_in_says_what_it_is(kind: str, name: str) -> None:
    line = plugin_source.describe(kind, name)
    assert len(line) > 15 and "\n" not in line and not line.endswith("."), line


def test_the_paper_is_named_once() -> None:
    assert plugin_source.describe("objectives", "astrolabe").count("2603.17051") == 1
    assert plugin_source.describe("objectives", "sft").endswith("[arXiv 2210.02747, arXiv 2506.08009]")
    assert plugin_source.describe("rewards", "discriminator").endswith("[arXiv 2605.26105]")


def test_a_plugin_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    file = tmp_path / "loud.py"
    file.write_text(PLUGIN, encoding="utf-8")
    with pytest.raises(SystemExit):
        cli.main(["list", "rewards", "--plugin", str(file)])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("loud")]
    assert line.endswith(f"How loud a clip is, e.g. shouts [arXiv 2401.00001] ({file})")
    assert plugin_source.owners("rewards", "level") == ["loud"]


def test_an_installed_package_is_read_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "heavypackage"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "inner" / "__init__.py").write_text("from heavypackage.inner.home import Heavy\n")
    (package / "inner" / "home.py").write_text('class Heavy:\n    """Weighs much. Indeed."""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("heavy", "heavypackage.inner:Heavy", "vidalign.metrics")
    monkeypatch.setattr(registry, "_entry_points", lambda kind: [point] if kind == "metrics" else [])
    assert plugin_source.describe("metrics", "heavy") == "Weighs much"
    assert "heavypackage" not in sys.modules


@pytest.mark.parametrize("value", ["gone_package.x:Y", "json:nothing", "vidalign.errors:Missing", ""])
def test_a_plugin_without_source_has_no_line(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("odd", value, "vidalign.metrics")
    monkeypatch.setattr(registry, "_entry_points", lambda kind: [point] if kind == "metrics" else [])
    assert plugin_source.describe("metrics", "odd") == ""
