"""The discriminator as a trainable reward: what it learns from, when, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from discriminator_helpers import HELD_OUT, SGD, TRAINED, asked, discriminator, rounded, same, student_clips, weights
from objective_helpers import collect, make, network_of, whole
from torch import Tensor
from torch.nn.functional import logsigmoid

from vidalign.data.source import open_source
from vidalign.engine.rng import generator
from vidalign.errors import UserError
from vidalign.objectives.base import Experience, Needs, Objective
from vidalign.rewards.base import ScoreRequest
from vidalign.rewards.discriminators.spatiotemporal import SpatioTemporal, positions
from vidalign.students.video import VideoStudentSpec
from vidalign.trainer import judge_experience
from vidalign.worlds.video import renderer

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
