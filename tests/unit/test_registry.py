"""Registry: names without imports, entry points, plugin files, and how each failure is reported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from vidalign import registry
from vidalign.errors import PluginError, UserError


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed distribution with three entry points: a good one, a broken one, a name that is taken."""
    info = tmp_path / "toy_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vidalign.metrics]\ngood = toy_pack:Good\nbroken = toy_pack_broken:X\n"
        "[vidalign.objectives]\nsft = toy_pack:Good\n"
    )
    (tmp_path / "toy_pack.py").write_text("class Good: name, version, judges, Config = 'good', '1', 'clips', object\n")
    (tmp_path / "toy_pack_broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("toy_pack", None)


def test_entry_points_are_listed_without_import_and_fail_only_when_asked(distribution: Path) -> None:
    found = {name: source for name, source in registry.names("metrics").items() if source != "vidalign"}
    assert found == {"broken": "toy-pack", "good": "toy-pack"}
    assert "toy_pack" not in sys.modules
    assert registry.get("metrics", "good").__name__ == "Good"
    with pytest.raises(PluginError) as caught:
        registry.get("metrics", "broken")
    told = str(caught.value)
    assert "toy-pack: toy_pack_broken:X" in told and "a_module_that_is_not_there" in told


def test_distributions_are_read_once_until_another_is_installed(
    distribution: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    monkeypatch.setattr(registry, "entry_points", lambda: reads.append(1) or entry_points())
    for kind in registry.KINDS:
        registry.names(kind)
    assert len(reads) == 1 and "late" not in registry.names("rewards")
    info = distribution / "late_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: late-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vidalign.rewards]\nlate = toy_pack:Good\n")
    assert registry.names("rewards")["late"] == "late-pack" and len(reads) == 2


def test_a_built_in_name_cannot_be_taken(distribution: Path) -> None:
    assert registry.names("objectives")["sft"] == "vidalign"
    with pytest.raises(PluginError, match="is taken"):
        registry.register("objectives", "sft")(object)


def test_a_name_offered_by_two_distributions_is_refused(distribution: Path) -> None:
    info = distribution / "other_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vidalign.metrics]\ngood = toy_pack:Good\n")
    with pytest.raises(PluginError, match="two installed packages") as caught:
        registry.get("metrics", "good")
    assert "toy-pack" in str(caught.value) and "other-pack" in str(caught.value)


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'astrolabe'"):
        registry.get("objectives", "astrolab")


def test_plugin_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from vidalign.registry import register\n\n@register('rewards', 'mine')\nclass Mine: pass\n")
    registry.load_plugin_file(file)
    registry.load_plugin_file(file)  # again: no second run
    assert registry.names("rewards")["mine"] == str(file)
    assert registry.get("rewards", "mine").__name__ == "Mine"


def test_plugin_file_that_fails(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("x = 1\n1 / 0\n")
    with pytest.raises(PluginError, match=r"bad\.py:2 - ZeroDivisionError"):
        registry.load_plugin_file(file)
    with pytest.raises(PluginError, match="no plugin file"):
        registry.load_plugin_file(tmp_path / "gone.py")


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, vidalign; assert vidalign.load_recipe; "
        "heavy = [m for m in ('deepspeed', 'torch.distributed', 'torch', 'diffusers') if m in sys.modules]; "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", "import sys, vidalign; assert 'torch' not in sys.modules"], check=True)
    subprocess.run([sys.executable, "-c", code], check=True)
