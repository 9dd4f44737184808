"""From the built wheel in an environment of its own: recipes ship, a third-party objective is found and trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "plugin_objective"
STUDENT = {
    "transformer": {
        "patch_size": [1, 8, 8],
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 3,
        "out_channels": 3,
        "text_dim": 64,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 1,
    },
    "sampler": {"sigmas": [1.0, 0.6]},
    "prediction": "x0",
}
RECIPE = f"""\
# Two steps of the example objective on a tiny random student.
student: {{init: {json.dumps(STUDENT)}}}
objective: {{name: best_of_n, group_size: 2}}
rewards: {{visual_quality: 1.0}}
data: {{prompts: prompts.txt, frames: 6}}
trainer: {{steps: 2, prompts_per_step: 2, micro_batch: 2}}
tracking: {{tensorboard: false, panel: plain}}
evaluation: {{count: 2, seeds: 1, frames: 6}}
"""


def shell(*command: str | Path, cwd: Path) -> str:
    """The output of a command, which must succeed; no setting of this checkout leaks into it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment | {"OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of vidalign and of the example, built without the network."""
    folder = tmp_path_factory.mktemp("wheels")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder)
    shell(*pip, REPOSITORY, EXAMPLE, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def environment(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment that holds both wheels and borrows the heavy dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    shell(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    site = Path(shell(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--ignore-installed")
    shell(*pip, *sorted(wheels.glob("*.whl")), cwd=folder)
    return folder / "bin"


def test_the_wheel_holds_recipes_types_templates_and_weights(wheels: Path) -> None:
    (wheel,) = wheels.glob("vidalign-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern, inside in [
        (REPOSITORY / "recipes", "**/*.yaml", "vidalign/recipes"),
        (REPOSITORY / "benchmarks" / "protocols", "*.yaml", "vidalign/protocols"),
        (REPOSITORY / "vidalign", "**/*.*", "vidalign"),
    ]:
        files = [file for file in folder.glob(pattern) if "__pycache__" not in file.parts]
        assert files and {f"{inside}/{file.relative_to(folder).as_posix()}" for file in files} <= names
    assert {"vidalign/py.typed", "vidalign/report/templates/report.html.j2"} <= names
    assert any(name.startswith("vidalign/weights/") for name in names)
    assert not any(name.startswith(("tests", "examples", "runs")) for name in names)


def test_recipes_and_objectives_are_listed_from_another_folder(environment: Path, tmp_path: Path) -> None:
    where = shell(environment / "python", "-c", "import vidalign; print(vidalign.__file__)", cwd=tmp_path)
    assert where.startswith(str(environment.parent)), "the installed package is used, not the checkout"
    assert "world/astrolabe" in shell(environment / "vidalign", "list", "recipes", cwd=tmp_path)
    listed = shell(environment / "vidalign", "list", "objectives", cwd=tmp_path).splitlines()
    assert any(line.startswith("best_of_n ") and line.endswith(" (vidalign-best-of-n)") for line in listed)
    assert any(line.startswith("astrolabe ") for line in listed)


def test_the_example_trains_two_steps(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "prompts.txt").write_text("a small red circle falls\na large blue square stays still\n")
    shell(environment / "vidalign", "train", "recipe.yaml", "--run", "run", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rewards = [line["reward/best/mean"] for line in lines if "reward/best/mean" in line]
    assert len(rewards) == 2 and (tmp_path / "run" / "student.safetensors").is_file()


def test_the_example_is_short() -> None:
    assert len((EXAMPLE / "vidalign_best_of_n.py").read_text().splitlines()) < 60
