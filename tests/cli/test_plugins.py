"""Plugins that go wrong in the middle of a run, as they are seen on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import assert_same_student, train
from safetensors.torch import load_file

from vidalign import registry

REWARD = """
import time

import numpy as np
import torch

from vidalign.registry import register

steps = 0


@register("rewards", "{name}")
class Bad:
    name = "{name}"

    def score(self, clips, prompts):
        global steps
        steps += 1
        values = clips.flatten(1).mean(1)
        {body}
        return {{"{name}": values}}
"""
pytestmark = pytest.mark.usefixtures("unjudged")


@pytest.fixture(autouse=True)
def fresh(recipe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})


def run_with(body: str, *overrides: str, run: str = "run", file: str = "bad.py") -> int:
    """Train two steps with a reward whose second step begins with `body`."""
    Path(file).write_text(REWARD.format(name="bad", body=body), encoding="utf-8")
    return train("rewards={bad: 1.0}", "trainer.steps=2", *overrides, "--plugin", file, run=run)


BODIES = {
    "permission": (
        "if steps == 2: raise PermissionError(13, 'no access')",
        "bad.py:20, step 2 - PermissionError: [Errno 13]",
    ),
    "exit": ("if steps == 2: raise SystemExit(0)", "bad.py:20, step 2 - SystemExit: 0"),
    "string": ("if steps == 2: values = 'high'", "the reward 'bad' returned str under 'bad'"),
    "nothing": ("if steps == 2: return None", "the reward 'bad' returned a NoneType"),
    "one number": ("if steps == 2: values = 1.0", "the reward 'bad' returned a tensor of shape () under its name"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_reward_that_fails(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    body, message = BODIES[name]
    assert run_with(body) == 3
    told = capsys.readouterr().err
    assert message in told and "'bad'" in told and told.count("error:") == 1 and "Traceback" not in told
    assert "step 2" in told and "go on with --resume from run/checkpoints/step-00000001" in told
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    assert run_with("pass", "--resume", file="repaired.py") == 0, "the repaired plugin goes on from what is saved"


def test_a_reward_that_fails_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with("raise PermissionError('no access')") == 3
    told = capsys.readouterr().err
    assert "step 1" in told and "nothing is saved yet" in told and "PermissionError: no access" in told


HANGS = "if steps == 2: time.sleep(2)"


def test_a_reward_that_hangs_stops_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(HANGS, "trainer.reward_timeout=0.5") == 3
    told = capsys.readouterr().err
    assert "the reward 'bad' takes longer than 0.5 s - trainer.reward_timeout, step 2" in told
    assert "go on with --resume from run/checkpoints/step-00000001" in told


def test_a_process_ends_with_its_code_while_a_reward_computes() -> None:
    """Native code in a thread that is left behind would abort the process: exit code -6 in place of 3."""
    endless = "\n        while steps == 2: clips @ clips.mT"
    Path("plugin.py").write_text(REWARD.format(name="bad", body=endless), encoding="utf-8")
    options = ("trainer.reward_timeout=2", "rewards={bad: 1.0}", "--plugin", "plugin.py", "--run", "run")
    command = [sys.executable, "-m", "vidalign.cli", "train", "recipe.yaml", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3 and "the reward 'bad' takes longer than 2 s" in done.stderr, done.stderr
    assert "terminate" not in done.stderr


def test_a_reward_that_hangs_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_with(HANGS, "trainer.reward_timeout=0.5", "trainer.on_reward_timeout=nan") == 0
    told = capsys.readouterr().err
    assert told.count("the reward 'bad' takes longer than 0.5 s: its clips are not scored") == 1
    assert all(bool(t.isfinite().all()) for t in load_file("run/student.safetensors").values())


@pytest.mark.parametrize(
    "body",
    [
        "values = values.numpy().astype(np.float64)",
        "values = values.tolist()",
        "values = values.double()",
        "clips.mul_(0.0)",
        "clips.numpy()[...] = 0.0",
        "prompts.clear()",
    ],
)
def test_other_numbers_and_changed_clips_make_the_same_student(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with("pass", "rewards.visual_quality=1.0", run="plain", file="plain.py") == 0
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    assert run_with(body, "rewards.visual_quality=1.0") == 0
    assert_same_student("run", "plain")


OBJECTIVE = """
from vidalign.objectives.baselines.sft import SFT
from vidalign.registry import register


@register("objectives", "bad_sft")
class Bad(SFT):
    name = "bad_sft"
    calls = 0

    def {method}(self, *args):
        Bad.calls += 1
        if Bad.calls == {call}:
            raise RuntimeError("on purpose")
        return super().{method}(*args)
"""
TEACHER = """
from vidalign.registry import register
from vidalign.worlds.video.teacher import WorldTeacher


@register("teachers", "bad_world")
class Bad(WorldTeacher):
    calls = 0

    def clips(self, *args):
        Bad.calls += 1
        if Bad.calls == 2:
            raise RuntimeError("on purpose")
        return super().clips(*args)
"""
KINDS = {
    "collect": ("objective 'bad_sft'", OBJECTIVE.format(method="collect", call=2), "objective={name: bad_sft}"),
    "loss": ("objective 'bad_sft'", OBJECTIVE.format(method="loss", call=2), "objective={name: bad_sft}"),
    "after_step": ("objective 'bad_sft'", OBJECTIVE.format(method="after_step", call=2), "objective={name: bad_sft}"),
    "state_dict": ("objective 'bad_sft'", OBJECTIVE.format(method="state_dict", call=2), "objective={name: bad_sft}"),
    "teacher": ("teacher 'bad_world'", TEACHER, "teacher.name=bad_world"),
}


@pytest.mark.parametrize("name", KINDS)
def test_other_kinds(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    label, text, override = KINDS[name]
    Path("bad.py").write_text(text, encoding="utf-8")
    fixed = ("objective={name: sft}", "rewards={}", "teacher.name=world", "trainer.steps=2", "trainer.micro_batch=2")
    assert train(*fixed, override, "--plugin", "bad.py") == 3
    told = capsys.readouterr().err
    assert f"the {label} failed" in told and "bad.py:" in told and "RuntimeError: on purpose" in told
    assert "go on with --resume from run/checkpoints/step-00000001" in told and "Traceback" not in told
