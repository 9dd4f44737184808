"""AFD and the adversarial baseline: weights from the discriminator, losses written out, the policies that move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_helpers import CHUNK, GROUP, PROMPTS, accumulate, collect, make, network_of, nudge, whole
from torch import Tensor

from vidalign.context import TrainContext
from vidalign.errors import RecipeError, UserError
from vidalign.objectives.afd import AFD
from vidalign.objectives.base import Experience, MicroBatch, Phase
from vidalign.objectives.baselines.gan import GAN
from vidalign.rewards.base import CompositeReward
from vidalign.rewards.discriminators.kinds import SpatioTemporalKind
from vidalign.rewards.discriminators.spatiotemporal import SpatioTemporal
from vidalign.students.video import VideoStudent
from vidalign.worlds.video.renderer import clips


class Given:
    """A discriminator whose scores the test chooses."""

    name = "discriminator"

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        assert clips.shape[1] == 9 and clips.min() >= 0 and clips.max() <= 1, "whole decoded videos"
        assert list(prompts) == [p for p in PROMPTS for _ in range(GROUP)]
        return {"discriminator": self.values}


def afd(folder: Path, *overrides: str) -> tuple[AFD, TrainContext]:
    objective, ctx = make(folder, "afd", *[f"objective.{o}" for o in overrides])
    assert isinstance(objective, AFD)
    return objective, ctx


def judged(objective: AFD, ctx: TrainContext, values: Tensor) -> Experience:
    ctx.rewards = CompositeReward({"discriminator": Given(values)}, {"discriminator": 1.0})
    return collect(objective, ctx)


# --- AFD: advantage ---


def test_weights_are_the_formula(folder: Path) -> None:
    """w = 1/2 + clip((D - group mean) / std, -A_max, A_max) / (2 A_max)."""
    objective, ctx = afd(folder, "advantage_clip=1.5")
    values = torch.tensor([1.0, 2.0, 3.0, 2.0, 50.0, 40.0, 41.0, 49.0])
    data = judged(objective, ctx, values)
    centred = torch.cat([values[:4] - 2, values[4:] - 45])
    std = float(centred.square().mean().sqrt())
    expected = 0.5 + (centred / std).clamp(-1.5, 1.5) / 3
    torch.testing.assert_close(data["reward_weight"], expected.double(), rtol=1e-6, atol=1e-6)
    assert data.metrics["objective/advantage/max"] == pytest.approx(5 / std)
    assert data.metrics["objective/advantage_std/mean"] == pytest.approx(1.0)
    assert data.metrics["reward/discriminator/group_std"] == pytest.approx((0.5**0.5 + 20.5**0.5) / 2)


def test_the_level_of_a_prompt_teaches_nothing(folder: Path) -> None:
    objective, ctx = afd(folder)
    values = torch.randn(8, generator=torch.Generator().manual_seed(0))
    plain = judged(objective, ctx, values)["reward_weight"]
    shifted = judged(objective, ctx, values + torch.tensor([0.0, 64.0]).repeat_interleave(4))["reward_weight"]
    torch.testing.assert_close(shifted, plain, rtol=0, atol=1e-5)


def test_below_the_floor_the_signal_fades(folder: Path) -> None:
    values = torch.tensor([1.0, -1.0, 1.0, -1.0] * 2)
    found = [float(judged(*afd(folder), scale * values)["reward_weight"][0] - 0.5) for scale in (1.0, 0.1, 0.01, 0.001)]
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.001], rel=1e-4)


def test_a_group_below_the_signal_floor_weighs_nothing(folder: Path) -> None:
    """Its noise is not blown up by its own spread; the loss is the mean over the other groups."""
    objective, ctx = afd(folder, "advantage_std=group", "std_floor=1.0e-6", "kl_weight=0")
    values = torch.tensor([1.0, -1.0, 1.0, -1.0])
    data = judged(objective, ctx, torch.cat([values, 0.001 * values]))
    assert data.metrics["health/low_spread_groups/mean"] == 0.5
    assert data["signal"].tolist() == [2.0] * 4 + [0.0] * 4 and (data["reward_weight"][4:] == 0.5).all()
    alone = data.candidates(0, GROUP)
    alone.tensors["signal"] = torch.ones(GROUP)
    assert whole(objective, ctx, data).loss.item() == pytest.approx(whole(objective, ctx, alone).loss.item(), rel=1e-6)


def test_a_blind_discriminator_moves_nothing(folder: Path) -> None:
    objective, ctx = afd(folder, "kl_weight=0")
    data = judged(objective, ctx, torch.full((8,), 3.0))
    assert data.metrics["health/zero_std_groups/mean"] == 1.0 and (data["reward_weight"] == 0.5).all()
    _, gradient, _ = accumulate(objective, ctx, data, Phase(), 64)
    assert max(float(g.abs().max()) for g in gradient.values()) < 1e-7  # latents are fp32


# --- AFD: loss ---


def chunk_by_chunk(ctx: TrainContext, data: Experience, x_t: Tensor, sigma: Tensor) -> Tensor:
    """The velocity of one video as the sampler makes it: every chunk on the cache of the clean ones before it."""
    student = network_of(ctx)
    past, chunks = student.begin(data.text), []
    for k, (x, clean) in enumerate(zip(x_t.split(CHUNK, 1), data["x0"].split(CHUNK, 1), strict=True)):
        chunks.append(student.velocity(x, sigma[:, k * CHUNK], data.text, past))
        past = student.extend(past, clean, data.text)
    return torch.cat(chunks, 1)


@pytest.mark.parametrize("old_decay", [0.0, 0.5])
def test_the_loss_is_the_method_written_out(old_decay: float, folder: Path) -> None:
    objective, ctx = afd(folder, "kl_weight=0.5", "beta=0.3", f"old_decay={old_decay}")
    data = collect(objective, ctx).candidates(2, 3)
    nudge(network_of(ctx))
    if old_decay == 0:
        ctx.policies.copy("current", "old")  # as after every step
    (generator,) = ctx.generators("loss", data["sample"].tolist())
    noise = torch.randn(data["x0"].shape[1:], generator=generator).unsqueeze(0)
    levels = torch.tensor(ctx.sigmas)[torch.randint(4, (3,), generator=generator)]
    sigma = levels.repeat_interleave(CHUNK).unsqueeze(0)
    level = sigma.reshape(1, -1, 1, 1, 1)
    x_t = (1 - level) * data["x0"] + level * noise
    found = {}
    with torch.no_grad():
        for name in ("current", "old", "reference"):
            with ctx.policy(name):
                found[name] = chunk_by_chunk(ctx, data, x_t, sigma)
    v, old, target, w = found["current"], found["old"], noise - data["x0"], float(data["reward_weight"])
    good, bad = 0.3 * v + 0.7 * old - target, 1.3 * old - 0.3 * v - target
    penalty = float(((v - found["reference"]) ** 2).mean())
    expected = w * float((good**2).mean()) + (1 - w) * float((bad**2).mean()) + 0.5 * penalty
    out = whole(objective, ctx, data)
    assert out.loss.item() == pytest.approx(expected, rel=1e-4) and penalty > 1e-3
    assert float(out.metrics["objective/kl/mean"]) == pytest.approx(penalty, rel=1e-3)


def test_good_videos_attract_and_bad_ones_repel(folder: Path) -> None:
    """On-policy gradient: ``2 beta (2w - 1)(v - v*) dv``, so w and 1 - w give opposite gradients, 1/2 none."""
    objective, ctx = afd(folder, "kl_weight=0")
    data = collect(objective, ctx).candidates(0, 1)
    gradients = []
    for w in (0.9, 0.1, 0.5):
        data.tensors["reward_weight"] = torch.tensor([w], dtype=torch.float64)
        _, found, _ = accumulate(objective, ctx, data, Phase(), 1)
        gradients.append(torch.cat([g.flatten() for g in found.values()]))
    scale = float(gradients[0].abs().max())
    torch.testing.assert_close(gradients[0], -gradients[1], rtol=0, atol=1e-4 * scale)
    assert scale > 1e-4 and gradients[2].abs().max() < 1e-4 * scale


def test_no_reference_forward_without_penalty(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for weight, expected in (("0", set()), ("0.1", {"reference"})):
        objective, ctx = afd(folder, f"kl_weight={weight}")
        data = collect(objective, ctx)
        used: set[str] = set()
        plain = ctx.policies.use
        monkeypatch.setattr(ctx.policies, "use", lambda n, plain=plain, used=used: used.add(n) or plain(n))
        whole(objective, ctx, data)
        assert used == expected


def test_the_behaviour_policy_follows(folder: Path) -> None:
    objective, ctx = afd(folder, "old_decay=0.25")
    key = "transformer.proj_out.weight"
    old = ctx.policies.weights("old")[key]
    nudge(network_of(ctx))
    objective.after_step(ctx)
    expected = 0.25 * old + 0.75 * ctx.policies.weights("current")[key]
    torch.testing.assert_close(ctx.policies.weights("old")[key], expected, rtol=1e-12, atol=1e-15)


def test_other_rewards_are_logged_only(folder: Path) -> None:
    objective, ctx = make(folder, "afd", "rewards.motion_quality=0")
    assert "reward/motion_quality/mean" in collect(objective, ctx).metrics
    for name in ("afd", "gan"):
        with pytest.raises(UserError, match=f"'{name}' does not train on the reward 'motion_quality'"):
            make(folder, name, "rewards.motion_quality=1")


def test_high_noise_levels_can_be_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, ctx = afd(folder, "sigma_max=0.6")
    data = collect(objective, ctx)
    plain, seen = VideoStudent.forward, set()

    def watched(self: VideoStudent, x_t: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.update(round(level, 4) for level in sigma.flatten().tolist())
        return plain(self, x_t, sigma, *args, **kwargs)

    monkeypatch.setattr(VideoStudent, "forward", watched)
    whole(objective, ctx, data)
    assert seen == {0.6, 0.4}
    objective.config.sigma_max = 0.3
    with pytest.raises(UserError, match="leaves no noise level"):
        whole(objective, ctx, data)


@pytest.mark.parametrize("wrong", ["beta=0", "std_floor=0", "updates=0", "old_decay=2", "kl_weight=-1", "group_size=2"])
def test_impossible_settings_are_refused(wrong: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=wrong.split("=")[0].replace("_", ".")):
        afd(folder, wrong)


# --- GAN ---


def test_the_adversarial_loss_is_the_definition(folder: Path) -> None:
    """-log sigmoid(D(x0) - D(x_T)) on the replayed exit steps; its gradient by central differences of one weight."""
    objective, ctx = make(folder, "gan")
    assert isinstance(objective, GAN)
    data = collect(objective, ctx)
    student, score = network_of(ctx), network_of(ctx, "discriminator")
    with torch.no_grad():
        for parameter in score.parameters():
            parameter *= 2

    def decoded() -> Tensor:
        x0 = student.predict_x0(data["x_t"], data["sigma"], data.text, None, clean=data["latents"])
        return ((x0 + 1) / 2).clamp(0, 1)

    with torch.no_grad():
        rounding = (decoded() * 255).round() / 255 - decoded()

    margins: list[float] = []

    @torch.no_grad()
    def definition() -> float:
        """Rounded clips, whose rounding errors the gradient takes for constants."""
        teacher = [clips([p], 9, generator=g) for p, g in zip(PROMPTS, ctx.generators("teacher", [0, 1]), strict=True)]
        rounded = (torch.cat(teacher) * 255).round() / 255
        margin = score(decoded() + rounding, PROMPTS) - score(rounded, PROMPTS)
        margins.append(-float(margin.mean()))
        return float(torch.log1p(torch.exp(-margin)).mean())

    with ctx.roles.phase("student") as engine:
        out = objective.loss(ctx, MicroBatch(data, 1.0), Phase())
        engine.backward(out.loss)
        gradient = student.base.proj_out.weight.grad.clone()
        assert all(p.grad is None for p in score.parameters())
    assert out.loss.item() == pytest.approx(definition(), rel=1e-6)
    assert float(out.metrics["objective/margin/mean"]) == pytest.approx(margins[0], rel=1e-6), "the teacher's lead"
    place = divmod(int(gradient.abs().argmax()), gradient.shape[1])
    weight, step = student.base.proj_out.weight, 1e-4
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * step
        values.append(definition())
        with torch.no_grad():
            weight[place] -= sign * step
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(float(gradient[place]), rel=0.02) and abs(slope) > 1e-7


@pytest.mark.parametrize("name", ["afd", "gan"])
def test_the_discriminator_sees_clips_of_one_making(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole bytes of everybody, and teacher clips that went through the student's autoencoder, if that is asked for:
    in the update, where candidates are scored, and in the loss that is differentiated."""
    seen: list[tuple[bool, Tensor]] = []
    plain = SpatioTemporal.forward

    def watched(self: SpatioTemporal, clips: Tensor, prompts: list[str]) -> Tensor:
        seen.append((clips.requires_grad, clips.detach()))
        return plain(self, clips, prompts)

    monkeypatch.setattr(SpatioTemporal, "forward", watched)
    for reencode in ("false", "true"):
        objective, ctx = make(folder, name, f"discriminator.reencode={reencode}")
        monkeypatch.setattr(ctx.codec, "encode", lambda clips: torch.zeros_like(clips))  # grey
        whole(objective, ctx, collect(objective, ctx))
        found = torch.cat([clips for _, clips in seen])
        assert torch.equal((found * 255).round() / 255, found) and found.unique().numel() > 2
        teachers = [seen[0][1][-len(PROMPTS) :], *([seen[-1][1]] if name == "gan" else [])]
        assert all(bool((clips == 128 / 255).all()) is (reencode == "true") for clips in teachers)
        assert [grad for grad, _ in seen].count(True) == (name == "gan")
        seen.clear()


@pytest.mark.parametrize("name", ["afd", "gan"])
def test_the_mean_of_what_is_trained_on_is_logged(name: str, folder: Path) -> None:
    objective, ctx = make(folder, name, "rewards.visual_quality=0.0")
    metrics = collect(objective, ctx).metrics
    assert metrics["reward/mean"] == metrics["reward/discriminator/mean"] != metrics["reward/visual_quality/mean"]


def test_a_discriminator_without_gradient_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(folder, "gan")
    monkeypatch.setattr(SpatioTemporalKind, "differentiable", False)
    with pytest.raises(UserError, match="no gradient"):
        make(folder, "gan")
