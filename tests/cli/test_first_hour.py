"""`vidalign new`, `cp` and `doctor`, and early stopping: what a newcomer meets in the first hour."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from run_helpers import assert_same_student, stop_after, train, vidalign

from vidalign.recipe import load_recipe, shipped_recipes
from vidalign.recipe.explain import field_docs
from vidalign.recipe.schema import TrainerConfig
from vidalign.tracking.jsonl import read_history
from vidalign.workflows import doctor

SELF_CONTAINED = [name for name in shipped_recipes() if re.match(r"(world|tokens|pictures)/(?!rules|pretrain)", name)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- new and cp ---


@pytest.mark.parametrize("name", SELF_CONTAINED)
def test_a_new_recipe_and_a_copy_mean_the_same_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign("new", "new.yaml", "--from", name) == 0
    assert vidalign("cp", name, "copy.yaml") == 0
    expected = load_recipe(name).hash
    assert [load_recipe(file).hash for file in ("new.yaml", "copy.yaml")] == [expected, expected]
    assert "base:" not in Path("copy.yaml").read_text() + Path("new.yaml").read_text()
    assert capsys.readouterr().out.endswith("next: vidalign train copy.yaml\n")


def test_a_new_recipe_explains_every_value_and_marks_what_is_default() -> None:
    assert vidalign("new", "my.yaml") == 0
    text = Path("my.yaml").read_text()
    words = " ".join(re.sub(r"^\s*# ?", "", line) for line in text.splitlines())
    docs = field_docs(TrainerConfig)
    assert len(docs) > 20 and [key for key, doc in docs.items() if doc not in words] == []
    values = yaml.safe_load(text)
    assert values["trainer"].keys() == docs.keys(), "every value stands there"
    assert "  steps: 55\n" in text and "  keep: 2  # default\n" in text
    assert "vidalign train my.yaml" in text and "recipes/world" not in text


def test_a_copy_holds_what_is_set_and_nothing_else() -> None:
    assert vidalign("cp", "world/astrolabe", "my.yaml") == 0
    values = yaml.safe_load(Path("my.yaml").read_text())
    assert values["data"] == {"prompts": "world:train", "eval_prompts": "world:unseen", "frames": 12}
    assert values["rewards"] == {"text_alignment": 1.0, "motion_quality": 1.0, "visual_quality": 1.0}
    assert "keep" not in values["trainer"] and "seed" not in values


def test_a_new_recipe_takes_overrides_and_trains(recipe_folder: Path, unjudged: None) -> None:
    assert (
        vidalign("new", "deep/my.yaml", "--from", "recipe.yaml", "trainer.steps=1", "rewards.motion_quality=0.5") == 0
    )
    assert vidalign("train", "deep/my.yaml", "--run", "run") == 0
    assert Path("run/student.safetensors").is_file() and load_recipe("run/recipe.yaml").trainer.steps == 1
    weights = load_recipe("run/recipe.yaml").reward_weights
    assert weights == {"text_alignment": 1.0, "visual_quality": 1.0, "motion_quality": 0.5}


@pytest.mark.parametrize(
    "command", [("new", "my.yaml", "--from", "wan_1_3b/astrolabe"), ("cp", "qwen3/opd", "my.yaml")]
)
def test_a_recipe_whose_files_are_not_there_says_what_is_missing(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert vidalign(*command) == 0
    out = capsys.readouterr().out
    assert "before it trains:" in out and "my.yaml:" in out and "data.prompts" in out
    assert out.endswith("next: vidalign validate my.yaml\n")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("new", "there.yaml"), "error: there.yaml is there already - FILE - name another file"),
        (("cp", "world/sft", "there.yaml"), "error: there.yaml is there already"),
        (("new", "my"), "error: my is no name for a recipe - FILE - call it my.yaml"),
        (("new", "there.yaml/my.yaml"), "error: there.yaml is not a folder"),
        (("new", "my.yaml", "--from", "world/astrolab"), "did you mean 'world/astrolabe'?"),
        (("cp", "world/sftt", "my.yaml"), "did you mean 'world/sft'?"),
        (("new", "my.yaml", "trainer.stepz=1"), "unknown key 'trainer.stepz' - override 1 - did you mean 'steps'?"),
        (("new", "my.yaml", "trainer.steps=many"), "trainer.steps must be int, not 'many'"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_changed(
    command: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("there.yaml").write_text("mine")
    assert vidalign(*command) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("error:") == 1
    assert [path.name for path in Path().iterdir()] == ["there.yaml"] and Path("there.yaml").read_text() == "mine"


# --- doctor ---


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that answer at once, and the requirements of this checkout."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].items()
    optional = [f"{line}; extra == '{extra}'" for extra, lines in extras for line in lines]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: [*project["dependencies"], *optional])
    monkeypatch.setattr(doctor, "_answer", lambda *arguments: ("gloo, 2 processes", ""))


def test_doctor_pings_two_processes_and_shows_the_machine() -> None:
    done = subprocess.run([sys.executable, "-m", "vidalign.cli", "doctor"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    block = done.stdout
    assert block.startswith("```\nvidalign\n") and block.rstrip().endswith("```")
    assert f"torch {metadata.version('torch')}" in block and f"Python {sys.version.split()[0]}" in block
    assert re.search(r"process group\n  (gloo|\S*nccl), 2 processes\n", block)
    assert re.search(r"CPU: \d+ cores, \d+ threads of torch, \d+ GiB", block) and "bf16 on" in block
    assert re.search(r"runs runs: [\d.]+ GiB free", block) and "cannot run" in block
    assert str(Path.home()) not in block, "no name of a user"


def test_doctor_says_which_extra_is_missing_and_what_it_is_for(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = metadata.version
    missing = metadata.PackageNotFoundError

    def version(name: str) -> str:
        if name == "uvicorn":
            raise missing(name)
        return plain(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert vidalign("doctor") == 0, "an extra is no fault"
    out = capsys.readouterr().out
    assert re.search(r"  vidalign serve - .*uvicorn is not installed - pip install 'vidalign\[serve\]'\n", out)
    assert "  serve: no\n" in out and "  math: installed\n" in out and "BROKEN" not in out


def test_doctor_knows_every_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert doctor.EXTRAS.keys() == project["optional-dependencies"].keys() - {"dev"}


def test_doctor_fails_on_a_package_outside_its_bounds(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.26.0" if name == "numpy" else plain(name))
    assert vidalign("doctor") == 3
    told = capsys.readouterr()
    assert "numpy is 1.26.0, <3,>=2 is required - pip install 'numpy<3,>=2'" in told.out
    assert told.err.count("error:") == 1


def test_doctor_fails_where_runs_cannot_be_written(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert vidalign("doctor", "--runs", "file/runs") == 3
    assert "runs cannot be written in file/runs - choose another folder" in capsys.readouterr().out


def test_doctor_fails_where_the_disk_is_full(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK", 2**60)
    assert vidalign("doctor") == 3
    assert "GiB are left for runs in runs - free some" in capsys.readouterr().out


def test_processes_that_never_meet_are_ended() -> None:
    """With the child that they started."""
    child = "import os, time; open('child', 'w').write(str(os.getpid())); time.sleep(60)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    started = time.monotonic()
    answer, why = doctor._answer([sys.executable, "-c", script], dict(os.environ), 3.0)
    assert (answer, why) == ("", "no answer in 3 s") and time.monotonic() - started < 30, "the child sleeps for 60 s"
    pid = int(Path("child").read_text())
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
            return
        time.sleep(0.1)
    raise AssertionError("the child still runs")


def test_processes_that_fail_say_why() -> None:
    script = "import sys; sys.stderr.write('Traceback\\n  x\\nRuntimeError: no route to host\\n'); sys.exit(1)"
    assert doctor._answer([sys.executable, "-c", script], dict(os.environ), 30.0) == (
        "",
        "RuntimeError: no route to host",
    )


# --- early stopping ---

EARLY = ("callbacks={early_stop: {patience: 2, min_change: 10}}", "trainer.eval_every=1", "trainer.steps=6")
"""No score rises by 10: the first evaluation is the best, and the run stops after the third."""


def test_a_run_stops_early_and_says_so(recipe_folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*EARLY) == 0
    held_out = dict(read_history(Path("run/metrics.jsonl"))["health/held_out/mean"])
    best = f"{held_out[1]:.4g} at step 1 is the best"
    expected = f"stopped after step 3 of 6: health/held_out/mean has not risen in 2 measurements, {best}\n"
    assert expected in capsys.readouterr().out
    assert sorted(held_out) == [1, 2, 3] and Path("run/student.safetensors").is_file()


def test_an_early_stop_is_resumed_exactly(
    recipe_folder: Path, unjudged: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*EARLY, run="straight") == 0
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert train(*EARLY) == 130
    straight = capsys.readouterr().out
    assert train(*EARLY, "--resume") == 0
    told = capsys.readouterr().out
    assert "stopped after step 3 of 6" in told and told.splitlines()[0] in straight
    assert_same_student("run", "straight")
    state = json.loads(Path("run/checkpoints/step-00000003/manifest.json").read_text())
    assert state["step"] == 3
    assert train(*EARLY, "--resume") == 0
    assert "stopped after step 3 of 6" in capsys.readouterr().out, "it stays stopped"


def test_an_early_stop_on_a_score_that_is_never_measured_is_refused(
    recipe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vidalign("validate", "recipe.yaml", "callbacks.early={name: early_stop}") == 2
    told = capsys.readouterr().err
    assert "'early' would never stop the run" in told and "trainer.eval_every" in told and told.count("error:") == 1
    other = "callbacks.early={name: early_stop, metric: objective/loss/mean, mode: min}"
    assert vidalign("validate", "recipe.yaml", other) == 0
    assert vidalign("validate", "recipe.yaml", "callbacks.early={name: early_stop}", "trainer.eval_every=1") == 0
