"""The discriminator as a trainable reward: what it learns from, when, what it leaves alone, and what it is worth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from objective_helpers import collect, make, network_of, whole
from torch import Tensor
from torch.nn.functional import logsigmoid

from vidalign import registry
from vidalign.context import TrainContext
from vidalign.data.source import open_source
from vidalign.engine.rng import generator
from vidalign.errors import RecipeError, UserError
from vidalign.objectives.base import Experience, Needs, Objective
from vidalign.recipe import load_recipe
from vidalign.rewards.base import ScoreRequest
from vidalign.rewards.discriminator import DiscriminatorReward, is_held_out
from vidalign.rewards.discriminators.spatiotemporal import SpatioTemporal, positions
from vidalign.students.video import VideoStudentSpec
from vidalign.trainer import Trainer, judge_experience
from vidalign.worlds.video import captions, renderer

SHARE = 0.125
TRAINED = [p for p in captions.prompts("basic/train") if not is_held_out(p, SHARE)]
HELD_OUT = [p for p in captions.prompts("basic/train") if is_held_out(p, SHARE)]
SGD = ("trainer.optimizer=sgd", "trainer.clip=0", "trainer.weight_decay=0", "discriminator.learning_rate=0.1")


def discriminator(folder: Path, *overrides: str, objective: str = "afd") -> tuple[DiscriminatorReward, TrainContext]:
    _, ctx = make(folder, objective, *overrides)
    assert ctx.rewards is not None
    (reward,) = ctx.rewards.trainable
    assert isinstance(reward, DiscriminatorReward)
    return reward, ctx


def weights(ctx: TrainContext, role: str = "discriminator") -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network_of(ctx, role).state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, second[key]) for key, value in first.items())


def student_clips(prompts: list[str], seed: int = 0, frames: int = 9) -> Tensor:
    """Stand-ins for a student: clips of the world with noise."""
    made = renderer.clips(prompts, frames, generator=torch.Generator().manual_seed(seed))
    return (made + 0.3 * torch.rand(made.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def asked(clips: Tensor, prompts: list[str]) -> ScoreRequest:
    """A group for each run of equal prompts."""
    distinct = list(dict.fromkeys(prompts))
    return ScoreRequest(clips, distinct, torch.tensor([distinct.index(p) for p in prompts]))


def rounded(clips: Tensor) -> Tensor:
    """As a stored clip."""
    return (clips * 255).round() / 255


# --- one update ---


@pytest.mark.parametrize("teacher_clips", [1, 3])
def test_an_update_is_the_bradley_terry_step(teacher_clips: int, folder: Path) -> None:
    """SGD on the mean of -log sigmoid over trained prompts, candidates and teacher clips, written out."""
    reward, ctx = discriminator(folder, *SGD, f"discriminator.teacher_clips={teacher_clips}")
    prompts = [TRAINED[0]] * 2 + [HELD_OUT[0]] * 2 + [TRAINED[1]] * 2
    clips = student_clips(prompts)
    before, network = weights(ctx), network_of(ctx, "discriminator")
    losses = []
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    for n in (0, 1, 4, 5):
        for k in range(teacher_clips):
            draw = generator(0, f"teacher of {prompts[n]}/update 0", ctx.step, k)
            teacher = rounded(renderer.clips([prompts[n]], 9, generator=draw))
            margin = network(teacher, [prompts[n]]) - network(rounded(clips[n : n + 1]), [prompts[n]])
            losses.append(-logsigmoid(margin))
    loss = torch.cat(losses).mean()
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    network.requires_grad_(False)
    reward.learn(asked(clips, prompts))
    after = weights(ctx)
    for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True):
        expected = before[name] - 0.1 * gradient
        torch.testing.assert_close(after[name], expected, rtol=1e-9, atol=1e-9, msg=name)
    assert ctx.metrics["objective/discriminator_loss/mean"] == pytest.approx(float(loss.detach()), rel=1e-6)


def test_the_gan_loss_is_binary_cross_entropy(folder: Path) -> None:
    """SGD on it over trained prompts, candidates and teacher clips: teacher clips are 1, the student's 0."""
    reward, ctx = discriminator(folder, *SGD, "discriminator.teacher_clips=2", "discriminator.loss=gan")
    prompts = [TRAINED[0]] * 2 + [HELD_OUT[0]] * 2
    clips, before, network = student_clips(prompts), weights(ctx), network_of(ctx, "discriminator")
    network.requires_grad_(True)
    draws = [generator(0, f"teacher of {TRAINED[0]}/update 0", ctx.step, k) for k in range(2)]
    teacher = [rounded(renderer.clips([TRAINED[0]], 9, generator=draw)) for draw in draws]
    real, fake = network(torch.cat(teacher), [TRAINED[0]] * 2), network(rounded(clips[:2]), prompts[:2])
    loss = -(torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean())
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    network.requires_grad_(False)
    reward.learn(asked(clips, prompts))
    after = weights(ctx)
    for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(after[name], before[name] - 0.1 * gradient, rtol=1e-9, atol=1e-9, msg=name)
    assert ctx.metrics["objective/discriminator_loss/mean"] == pytest.approx(float(loss.detach()), rel=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_a_frozen_one_stays_as_it_is_and_is_measured(optimizer: str, folder: Path) -> None:
    reward, ctx = discriminator(
        folder, "discriminator.learning_rate=0", f"trainer.optimizer={optimizer}", "discriminator.updates=2"
    )
    before, prompts = weights(ctx), [*TRAINED[:2], HELD_OUT[0]]
    reward.warm_up(open_source("world:basic/train", 0, 4))
    reward.learn(asked(student_clips(prompts), prompts))
    assert same(before, weights(ctx)) and ctx.metrics["health/discriminator_warm_up_steps"] == 0
    assert ctx.metrics["health/discriminator_grad_norm/mean"] > 0
    assert 0 <= reward.held_out_accuracy <= 1


def test_the_update_does_not_depend_on_the_micro_batch(folder: Path) -> None:
    prompts = [TRAINED[0]] * 3 + [TRAINED[1]] * 3
    clips, found = student_clips(prompts), []
    for size in (64, 4, 1):
        reward, ctx = discriminator(folder, *SGD, f"trainer.micro_batch={size}")
        reward.learn(asked(clips, prompts))
        found.append(weights(ctx))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-10, atol=1e-11)


def test_held_out_prompts_teach_nothing_and_measure(folder: Path) -> None:
    reward, ctx = discriminator(folder)
    before = weights(ctx)
    assert reward.held_out_accuracy != reward.held_out_accuracy, "nothing is known yet"
    reward.learn(asked(student_clips(HELD_OUT[:2]), HELD_OUT[:2]))
    assert same(before, weights(ctx)) and ctx.metrics["health/discriminator_grad_norm/mean"] == 0
    assert 0 <= ctx.metrics["health/discriminator_held_out_accuracy/mean"] <= 1
    assert "health/discriminator_pair_accuracy/mean" not in ctx.metrics
    share = len(HELD_OUT) / (len(HELD_OUT) + len(TRAINED))
    assert 0.04 < share < 0.3


def test_scoring_trains_nobody_and_the_trainer_trains_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, ctx = make(folder, "afd")
    reward = ctx.rewards.rewards["discriminator"]  # type: ignore[union-attr]
    before, order = weights(ctx), []
    ctx.score(student_clips(TRAINED[:2]), TRAINED[:2])
    assert same(before, weights(ctx))
    for name in ("learn", "score"):
        plain = getattr(reward, name)
        monkeypatch.setattr(reward, name, lambda *a, name=name, plain=plain: order.append(name) or plain(*a))
    data = collect(method, ctx)
    assert order == ["learn", "score"] and not same(before, weights(ctx)) and ctx.roles.active is None
    assert data.request is None and data.scores["discriminator"].shape == (len(data),)


def test_groups_of_equal_prompts_stay_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of one prompt: each meets teacher clips of its own place."""
    reward, ctx = discriminator(folder)
    calls: list[list[str]] = []
    plain = reward.teacher_clips
    monkeypatch.setattr(reward, "teacher_clips", lambda p, d, c: calls.append(list(p)) or plain(p, d, c))
    prompts = [TRAINED[0], TRAINED[0]]
    reward.learn(ScoreRequest(student_clips(prompts * 2), prompts, torch.tensor([0, 0, 1, 1])))
    assert calls == [prompts]


def test_an_objective_that_scores_by_itself_is_refused(folder: Path) -> None:
    _, ctx = make(folder, "afd")
    silent = Experience({}, torch.zeros(0), None, [])

    class Scores(Objective):
        needs = Needs(rewards=True)

    with pytest.raises(UserError, match="cannot learn from"):
        judge_experience(ctx, Scores(None), silent)


@pytest.mark.parametrize("objective", ["afd", "gan"])
def test_scores_keep_fp32_under_bf16(objective: str, folder: Path) -> None:
    """Differences of scores are the signal: bf16 would leave three digits of their level."""
    reward, ctx = discriminator(folder, "engine.precision=bf16", objective=objective)
    with torch.no_grad():
        found = ctx.score(student_clips(TRAINED[:6]), TRAINED[:6])["discriminator"]
    assert found.dtype == torch.float32 and (found.bfloat16().float() != found).any()
    method, ctx = make(folder, objective, "engine.precision=bf16")
    assert torch.isfinite(whole(method, ctx, collect(method, ctx)).loss)


def test_the_student_is_left_alone(folder: Path) -> None:
    reward, ctx = discriminator(folder)
    before = weights(ctx, "student")
    reward.learn(asked(student_clips(TRAINED[:2]), TRAINED[:2]))
    assert same(before, weights(ctx, "student"))
    assert all(p.grad is None for p in network_of(ctx).parameters())


def test_it_learns_to_tell_them_apart(folder: Path) -> None:
    reward, ctx = discriminator(folder, "discriminator.learning_rate=0.01", "discriminator.width=16")
    for ctx.step in range(25):
        prompts = TRAINED[4 * ctx.step % 40 :][:6] + HELD_OUT[:2]
        reward.learn(asked(student_clips(prompts, seed=ctx.step), prompts))
    assert ctx.metrics["health/discriminator_pair_accuracy/mean"] == 1.0
    assert reward.held_out_accuracy > 0.8
    assert ctx.metrics["health/discriminator_margin_sigmoid/mean"] < 0.4


def test_short_clips_meet_the_beginning_of_the_teachers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward, ctx = discriminator(folder)
    seen: list[Tensor] = []
    plain = SpatioTemporal.forward
    monkeypatch.setattr(SpatioTemporal, "forward", lambda self, c, p: seen.append(c) or plain(self, c, p))
    reward.learn(asked(student_clips(TRAINED[:1], frames=6), TRAINED[:1]))
    expected = renderer.clips(TRAINED[:1], 9, generator=generator(0, f"teacher of {TRAINED[0]}/update 0", 0, 0))
    assert torch.equal(seen[0][1:], rounded(expected[:, :6]))


def test_teacher_clips_may_go_through_the_autoencoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for reencode in ("false", "true"):
        reward, ctx = discriminator(folder, f"discriminator.reencode={reencode}")
        monkeypatch.setattr(ctx.codec, "decode", lambda latents: (latents + 1) / 4)
        found.append(reward._teacher_clips(TRAINED[:1], student_clips(TRAINED[:1]), 0, "x")[0])
    torch.testing.assert_close(found[1], found[0] / 2)


@pytest.mark.parametrize("clips", [torch.zeros(1, 12, 3, 32, 32), torch.zeros(1, 9, 3, 16, 16)])
def test_other_sizes_are_refused(clips: Tensor, folder: Path) -> None:
    reward, _ = discriminator(folder)
    with pytest.raises(UserError, match="the teacher's 9 frames of 32x32"):
        reward.learn(asked(clips, TRAINED[:1]))


# --- warm-up ---


@pytest.mark.parametrize(("accuracy", "steps"), [("0.5", 4), ("1.0", 8), ("null", 8)])
def test_warm_up_ends_at_the_accuracy_or_at_the_last_step(
    accuracy: str, steps: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four held-out pairs a step, three of them right: 16 pairs are enough to end."""
    reward, ctx = discriminator(
        folder, f"discriminator.warm_up.accuracy={accuracy}", "discriminator.warm_up.max_steps=8"
    )
    calls: list[Any] = []

    def update(request: ScoreRequest, step: int, purpose: str) -> dict[str, float]:
        calls.append((step, tuple(request.prompts), float(request.clips.sum())))
        margin = torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
        return reward._measure(margin, margin[:, 0], torch.zeros(4, dtype=torch.bool))

    monkeypatch.setattr(reward, "_update", update)
    reward.warm_up(open_source("world:basic/train", 0, 4))
    assert len(calls) == steps and ctx.metrics["health/discriminator_warm_up_steps"] == steps
    assert len({c[2] for c in calls}) == steps, "fresh videos in each step"
    assert all(len(c[1]) == 4 for c in calls)


def test_warm_up_goes_through_its_videos_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ["max_steps=5", "rollouts=2", "accuracy=null"]
    reward, _ = discriminator(folder, *(f"discriminator.warm_up.{change}" for change in changes))
    seen: list[float] = []
    steps: list[int] = []

    def update(request: ScoreRequest, step: int, phase: object) -> dict[str, float]:
        steps.append(step)
        seen.append(float(request.clips.sum()))
        return {}

    monkeypatch.setattr(reward, "_update", update)
    reward.warm_up(open_source("world:basic/train", 0, 4))
    assert steps == [0, 1, 2, 3, 4] and seen == [seen[0], seen[1], seen[0], seen[1], seen[0]] and seen[0] != seen[1]


def test_its_learning_rate_rises(folder: Path) -> None:
    _, ctx = discriminator(folder, "discriminator.warmup_steps=4", "discriminator.learning_rate=0.1")
    _, sudden = discriminator(folder, "discriminator.learning_rate=0.1")
    changes = []
    for each in (ctx, sudden):
        before, reward = weights(each), each.rewards.rewards["discriminator"]
        reward.learn(asked(student_clips(TRAINED[:4]), TRAINED[:4]))
        changes.append(max(float((weights(each)[k] - v).abs().max()) for k, v in before.items()))
    assert 0 < changes[0] < 0.5 * changes[1]


def test_warm_up_trains_the_discriminator_only(folder: Path) -> None:
    reward, ctx = discriminator(folder)
    student, before = weights(ctx, "student"), weights(ctx)
    reward.warm_up(open_source("world:basic/train", 0, 4))
    assert same(student, weights(ctx, "student")) and not same(before, weights(ctx))


# --- the network ---


def test_the_network_is_small_and_its_head_has_no_bias() -> None:
    spec = VideoStudentSpec.from_dict({"transformer": {"text_dim": 64}})
    network = SpatioTemporal.from_recipe(SpatioTemporal.Config(), spec, lambda p: torch.zeros(len(p), 16, 64), 0)
    assert sum(p.numel() for p in network.parameters()) < 500_000 and network.head.bias is None


def test_scores_see_prompt_order_of_frames_and_place(folder: Path) -> None:
    _, ctx = discriminator(folder)
    network = network_of(ctx, "discriminator")
    clip = student_clips(TRAINED[:1])
    with torch.no_grad():
        base, other, reverse, moved = (
            network(c, [p])
            for c, p in (
                (clip, TRAINED[0]),
                (clip, TRAINED[1]),
                (clip.flip(1), TRAINED[0]),
                (clip.roll(8, -1), TRAINED[0]),
            )
        )
        both = network(torch.cat([clip, clip.flip(1)]), TRAINED[:1] * 2)
    for changed in (other, reverse, moved):
        assert (changed - base).abs() > 1e-6
    torch.testing.assert_close(both, torch.cat([base, reverse]))


def test_positions_are_distinct() -> None:
    code = positions((12, 4, 4), 64).flatten(0, 2)
    assert code.shape == (192, 64) and torch.cdist(code, code).add(torch.eye(192) * 9).min() > 0.1


# --- in a run ---


def test_ar_copo_can_be_driven_by_it_alone(folder: Path) -> None:
    """A reward of weight 0 is logged, and does not count even where it fails."""
    changes = ["rewards={discriminator: 1.0, visual_quality: 0.0}", "discriminator.name=spatiotemporal"]
    objective, ctx = make(folder, "ar_copo", *changes, "discriminator.width=16", "teacher.name=world")
    score, before = ctx.score, weights(ctx)

    def changed(clips: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        found = score(clips, prompts)
        level = torch.arange(len(prompts), dtype=torch.float32)  # also apart between prompts
        return {"discriminator": found["discriminator"] + level, "visual_quality": level * math.nan}

    ctx.score = changed  # type: ignore[method-assign, assignment]
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
