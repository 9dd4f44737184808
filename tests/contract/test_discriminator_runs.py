"""The discriminator in whole runs: objectives that it drives, resume, skipped updates, mistakes of a recipe."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from discriminator_helpers import TRAINED, same, weights
from objective_helpers import collect, make
from torch import Tensor

from vidalign import registry
from vidalign.errors import RecipeError, UserError
from vidalign.recipe import load_recipe
from vidalign.rewards.base import ScoreRequest
from vidalign.trainer import Trainer
from vidalign.worlds.video import renderer

# --- in a run ---


def test_ar_copo_can_be_driven_by_it_alone(folder: Path) -> None:
    """A reward of weight 0 is logged, and does not count even where it fails."""
    changes = ["rewards={discriminator: 1.0, visual_quality: 0.0}", "discriminator.name=spatiotemporal"]
    objective, ctx = make(folder, "ar_copo", *changes, "discriminator.width=16", "teacher.name=world")
    judge, before = ctx.judge, weights(ctx)

    def changed(request: ScoreRequest) -> dict[str, Tensor]:
        found = judge(request)
        level = torch.arange(len(request.group_index), dtype=torch.float32)  # also apart between prompts
        return {"discriminator": found["discriminator"] + level, "visual_quality": level * math.nan}

    ctx.judge = changed  # type: ignore[method-assign, assignment]
    data = collect(objective, ctx)
    assert not same(before, weights(ctx))
    first, second = data.shared["advantage"]
    assert first.abs().sum() > 1 and data.metrics["health/reward_nan/mean"] == 0
    torch.testing.assert_close(first, second, atol=0.05, rtol=0)  # the level of a prompt says nothing


def test_any_objective_can_be_driven_by_it(folder: Path) -> None:
    """Astrolabe with discriminator and a fixed reward; no line of the objective knows."""
    changes = ["rewards.discriminator=1.0", "~rewards.visual_quality", "discriminator.name=spatiotemporal"]
    changes += ["discriminator.width=16", "teacher.name=world", "objective.clip.score=video", "objective.clip.chunks=0"]
    objective, ctx = make(folder, "astrolabe", *changes)
    before = weights(ctx)
    data = collect(objective, ctx)
    assert not same(before, weights(ctx))
    assert {"reward/discriminator/mean", "reward/motion_quality/mean"} <= data.metrics.keys()
    assert "health/discriminator_margin_sigmoid/mean" in ctx.metrics and data["reward_weight"].std() > 0


@pytest.mark.parametrize("max_skipped", [1, 9])
def test_a_skipped_update_of_the_discriminator_counts(
    max_skipped: int,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Its loss is not a number, from the warm-up on: the student is well, and nothing is saved all the same."""
    _ = make(folder, "afd")
    settings = [f"trainer.max_skipped={max_skipped}", "trainer.prompts_per_step=4", "trainer.steps=1"]
    trainer = Trainer(load_recipe(folder / "afd.yaml", settings), tmp_path / "run")
    reward = trainer.ctx.rewards.trainable[0]  # type: ignore[union-attr]
    plain = reward._losses
    monkeypatch.setattr(reward, "_losses", lambda *arguments: plain(*arguments) * math.nan)
    before = weights(trainer.ctx)
    with pytest.raises(UserError, match=r"skipped at step 1 - role discriminator; .*failed-step-0.json"):
        trainer.fit()
    engine = trainer.ctx.roles.engines["discriminator"]
    assert engine.skipped == engine.skipped_in_row >= 3, "two updates of warm-up and those of the step"
    assert f"gradient of {engine.skipped} updates of this step was not finite" in capsys.readouterr().err
    assert trainer.checkpoints.steps() == [] and same(before, weights(trainer.ctx))
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)], "the schedule goes on without a word"


def test_a_run_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    """Two steps and two more equal four, weights and running statistics of the discriminator included."""
    _ = make(folder, "afd")
    settings = ["trainer.prompts_per_step=4", "trainer.save_every=2"]
    whole = Trainer(load_recipe(folder / "afd.yaml", [*settings, "trainer.steps=4"]), tmp_path / "whole")
    whole.fit()
    Trainer(load_recipe(folder / "afd.yaml", [*settings, "trainer.steps=2"]), tmp_path / "parts").fit()
    recipe = load_recipe(folder / "afd.yaml", [*settings, "trainer.steps=4"])
    parts = Trainer(recipe, tmp_path / "parts", resume=True)
    parts.fit()
    for role in ("student", "discriminator"):
        assert same(weights(whole.ctx, role), weights(parts.ctx, role)), role
    assert whole.ctx.rewards is not None and parts.ctx.rewards is not None
    assert whole.ctx.rewards.state_dict() == parts.ctx.rewards.state_dict()
    assert whole.ctx.roles.engines["discriminator"].steps == 4 + 2, "four steps and two of warm-up"
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text()
    for name in ("discriminator_warm_up_steps", "discriminator_loss/mean", "discriminator_margin_sigmoid/mean"):
        assert name in lines


def test_a_run_learns_from_a_store_of_clips(folder: Path, tmp_path: Path) -> None:
    prompts = TRAINED[:4]
    for k, clip in enumerate(renderer.clips(prompts, 9, generator=torch.Generator().manual_seed(0))):
        np.savez(tmp_path / f"{prompts[k]}-0.npz", clip=clip.numpy())
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    _ = make(folder, "afd")
    changes = ["teacher.name=store", f"teacher.path={tmp_path}", f"data.prompts={tmp_path}/prompts.txt"]
    recipe = load_recipe(folder / "afd.yaml", [*changes, "trainer.steps=1", "trainer.prompts_per_step=2"])
    trainer = Trainer(recipe, tmp_path / "run")
    before = weights(trainer.ctx), weights(trainer.ctx, "student")
    trainer.fit()
    assert not same(before[0], weights(trainer.ctx)) and not same(before[1], weights(trainer.ctx, "student"))


# --- mistakes ---


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("astrolabe", ["rewards.discriminator=1.0", "teacher.name=world"], "there is no discriminator"),
        ("astrolabe", ["discriminator.name=spatiotemporal"], "not among the rewards"),
        ("afd", ["~rewards.discriminator", "rewards.motion_quality=1.0"], "'afd' needs it"),
        ("afd", ["~teacher"], "there is no teacher"),
        (
            "astrolabe",
            ["rewards.discriminator=1.0", "discriminator.name=spatiotemporal", "teacher.name=world"],
            "cannot judge a clip without its history",
        ),
        ("afd", ["discriminator.name=spatiotemprl"], "spatiotemporal"),
        ("afd", ["discriminator.held_out=0.9"], "held_out"),
        ("afd", ["discriminator.learning_rate=-1"], "at least 0"),
        ("afd", ["discriminator.warm_up.accuracy=0.3"], "accuracy"),
        ("afd", ["discriminator.warm_up.rollouts=0"], "rollouts"),
        ("afd", ["discriminator.warmup_steps=-1"], "warmup_steps"),
    ],
)
def test_mistakes_are_refused(name: str, changes: list[str], message: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        make(folder, name, *changes)


def test_discriminators_are_registered() -> None:
    assert set(registry.names("discriminators")) >= {"spatiotemporal", "vision_language"}
