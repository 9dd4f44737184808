"""The third kind of student of docs/adding_a_student.md: it goes everywhere, and nothing in the package knows it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import vidalign
from vidalign import registry
from vidalign.cli import main
from vidalign.errors import CheckpointError, RecipeError
from vidalign.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding_a_student.md"
STEPS = ["trainer.steps=20", "tracking.panel=none", "tracking.tensorboard=false"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run(*words: str) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([*words])
    assert not leaving.value.code, words


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page's files, with a run in it."""
    folder = tmp_path_factory.mktemp("painter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
        patch.chdir(folder)
        Path("painter.py").write_text("\n\n".join(blocks("python")), encoding="utf-8")
        recipe, protocol = blocks("yaml")
        Path("recipe.yaml").write_text(recipe, encoding="utf-8")
        Path("protocol.yaml").write_text(protocol, encoding="utf-8")
        Path("prompts.txt").write_text("a rose\na fire\na cherry\na brick\n", encoding="utf-8")
        Path("held_out.txt").write_text("a sunset\na fox\na tomato\na poppy\n", encoding="utf-8")
        run("train", "recipe.yaml", "--plugin", "painter.py", "--run", "run", *STEPS)
        sys.modules.pop(next(name for name in sys.modules if name.startswith(registry.MODULE)), None)
    return folder


@pytest.fixture(autouse=True)
def inside(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder, with no plugin loaded, as a new process begins."""
    monkeypatch.chdir(trained)
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    for name in [name for name in sys.modules if name.startswith(registry.MODULE)]:
        monkeypatch.delitem(sys.modules, name)


def test_training_raises_the_reward_and_the_metric() -> None:
    values = json.loads(Path("run/evaluation.json").read_text())["values"]
    for name in ("trained rewards/redness", "redness/value"):
        before, after = (sum(values[part][name]) / 4 for part in ("before", "after"))
        assert after > before + 0.05, name


def test_it_is_sampled_and_evaluated_by_its_run_folder() -> None:
    """The run remembers the plugin file."""
    run("sample", "--run", "run", "--prompt", "a rose", "--prompt", "a fire", "--out", "x.gif")
    assert Path("x-0.gif").is_file() and Path("x-1.gif").is_file()
    run("evaluate", "--run", "run")


def test_a_wrong_length_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["sample", "--run", "run", "--prompt", "a rose", "--out", "y.gif", "--frames", "3"])
    assert leaving.value.code and "a picture has one frame, not 3" in capsys.readouterr().err


def test_it_is_loaded_by_its_file_once_the_plugin_is() -> None:
    with pytest.raises(CheckpointError, match="no known kind of student"):
        vidalign.load_student("run/student.safetensors")
    registry.load_plugin_file("painter.py")
    student = vidalign.load_student("run/student.safetensors")
    pictures = student.sample(["a rose", "a fire"], frames=1, seed=1)
    assert pictures.shape == (2, 1, 3, 8, 8) and torch.equal(
        pictures, student.sample(["a rose", "a fire"], frames=1, seed=1)
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.init.sise=4", "student.init.sise"),
        ("student.cache={window: 3}", "it is a setting of 'video', another of the students"),
        ("data.prompts=tokens:train", "a painter student cannot use 'tokens:train'"),
        ("evaluation.metrics={exact_match: {}}", "cannot judge a painter student"),
        ("objective={name: sft}", "does not support the student 'painter'"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(override: str, message: str) -> None:
    registry.load_plugin_file("painter.py")
    with pytest.raises(RecipeError, match=re.escape(message)):
        load_recipe("recipe.yaml", [override])


def test_weights_of_other_kinds_are_refused() -> None:
    registry.load_plugin_file("painter.py")
    with pytest.raises(RecipeError, match="those of a video network, the student is a painter one"):
        load_recipe("recipe.yaml", ["~student.init", "student.path=world/student"])
    with pytest.raises(RecipeError, match="those of a painter network, the student is a video one"):
        load_recipe("world/sft", ["student.path=run/student.safetensors"])


def test_it_is_benchmarked_by_the_cost_that_its_objective_says() -> None:
    run("export", "--run", "run", "--out", "start.safetensors")
    run("bench", "run", "protocol.yaml", "--plugin", "painter.py")
    results = json.loads(Path("runs/bench/protocol/results.json").read_text())
    cells = {cell["row"]: cell for cell in results["cells"]}
    assert set(cells) == {"base", "reinforce"}, "there is no ground truth"
    spent, predicted = (cells["reinforce"][name] for name in ("spent", "predicted"))
    assert spent["forwards"] == predicted["forwards"] == yaml.safe_load(blocks("yaml")[1])["budget"]["amount"]
    assert spent["reward_calls"] == predicted["reward_calls"] > 0 and cells["reinforce"]["warnings"] == []
    means = {row: sum(cell["metrics"]["redness/value"]) / 4 for row, cell in cells.items()}
    assert means["reinforce"] > means["base"] + 0.02
    run("bench", "report", "runs/bench/protocol/results.json")


def test_it_is_a_plugin_without_errors_of_type() -> None:
    words = ["--strict", "--config-file", str(ROOT / "pyproject.toml")]
    command = [sys.executable, "-m", "mypy", *words, str(Path("painter.py").resolve())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
