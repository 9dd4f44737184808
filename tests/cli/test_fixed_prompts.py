"""What TensorBoard shows of a run: fixed prompts from step 0 on, recipe and run as text; training does not change."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_helpers import RECIPE, assert_same_student, stop_after, train, vidalign
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vidalign.context import TrainContext
from vidalign.tracking import Tracker

SHOWN = ("tracking.tensorboard=true", "tracking.clips_every=2", "trainer.steps=3")


def events(run: str) -> EventAccumulator:
    return EventAccumulator(f"{run}/tensorboard", size_guidance={"images": 0, "tensors": 0}).Reload()


def texts(run: str, tag: str) -> list[tuple[int, str]]:
    found = events(run).Tensors(f"{tag}/text_summary")
    return [(one.step, one.tensor_proto.string_val[0].decode()) for one in found]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_the_same_clips_are_shown_before_during_and_after(folder: Path) -> None:
    assert train(*SHOWN) == 0
    found = events("run")
    assert [tag for tag in found.Tags()["images"] if tag.startswith("fixed")] == ["fixed_prompts/0", "fixed_prompts/1"]
    for tag in ("fixed_prompts/0", "fixed_prompts/1"):
        pictures = found.Images(tag)
        assert [picture.step for picture in pictures] == [0, 2, 3]
        assert len({picture.encoded_image_string for picture in pictures}) == 3  # the student changes
    assert train("tracking.tensorboard=true", "tracking.clips_every=3", "trainer.steps=3", run="other") == 0
    assert [p.step for p in events("other").Images("fixed_prompts/0")] == [0, 3]
    same = (found.Images("fixed_prompts/1")[0], events("other").Images("fixed_prompts/1")[0])
    assert same[0].encoded_image_string == same[1].encoded_image_string
    assert train("trainer.steps=3", run="quiet") == 0
    assert_same_student("run", "quiet")


def test_a_resumed_run_does_not_show_step_0_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert train(*SHOWN) != 0
    assert vidalign("train", "recipe.yaml", *SHOWN, "--run", "run", "--resume") == 0
    assert [p.step for p in events("run").Images("fixed_prompts/0")] == [0, 2, 3]


def test_recipe_and_run_are_texts(folder: Path) -> None:
    assert train(*SHOWN) == 0
    ((step, recipe),) = texts("run", "recipe")
    written = Path("run/recipe.yaml").read_text()
    assert step == 0 and [line.removeprefix("    ") for line in recipe.splitlines()] == written.splitlines()
    ((_, run),) = texts("run", "run")
    assert "    seed: 0\n" in run and "    commit: " in run


def test_answers_of_a_language_student_are_shown(folder: Path) -> None:
    tiny = ["trainer.prompts_per_step=2", "evaluation.count=2", "evaluation.seeds=1", "tracking.panel=none"]
    assert vidalign("train", "tokens/dopd", "--run", "run", *SHOWN, *tiny) == 0
    shown = texts("run", "fixed_prompts/0")
    assert [step for step, _ in shown] == [0, 2, 3]
    prompt, gap, *answer = shown[0][1].splitlines()
    assert prompt.startswith("    chain") and gap.strip() == "" and answer


def test_a_rollout_is_captioned_with_the_whole_names_of_its_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    captions: list[str] = []
    with Tracker.silent() as tracker:
        monkeypatch.setattr(tracker, "clips", lambda step, tag, clips, texts, fps: captions.extend(texts))
        ctx = TrainContext.__new__(TrainContext)
        ctx.step, ctx.clips_every, ctx.tracker = 4, 2, tracker
        monkeypatch.setattr(TrainContext, "student", type("Student", (), {"fps": 8}))
        prompt = "a large red circle is thrown to the right, " * 4
        ctx.show(torch.zeros(1, 2, 3, 8, 8), [prompt], {"text_alignment": torch.tensor([0.5])})
    assert captions == [f"{prompt}\ntext alignment 0.50"]
