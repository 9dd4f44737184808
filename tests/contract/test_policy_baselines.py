"""DiffusionNFT on whole videos and Flow-GRPO on re-noising steps: what is rolled out, the losses written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_helpers import CHUNK, GROUP, PROMPTS, accumulate, collect, make, network_of, nudge, whole
from torch import Tensor

from vidalign.context import TrainContext
from vidalign.errors import RecipeError, UserError
from vidalign.objectives.base import Experience, Objective, Phase
from vidalign.rewards.base import CompositeReward
from vidalign.students.video import VideoStudent
from vidalign.students.video.rollout import Noise, Rollout

REWARDS = [0.1, 0.4, 0.2, 0.9, 3.0, 1.0, 2.0, 2.5]


class Given:
    name = "given"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        assert clips.shape[:2] == (2 * GROUP, 9), "whole videos are scored"
        return {"given": torch.tensor(REWARDS)}


def baseline(name: str, folder: Path, *overrides: str) -> tuple[Objective, TrainContext]:
    objective, ctx = make(folder, name, *[f"objective.{o}" for o in overrides])
    ctx.rewards = CompositeReward({"given": Given()}, {"given": 1.0})
    return objective, ctx


def centred(prompt: int) -> tuple[list[float], float]:
    own = REWARDS[prompt * GROUP : (prompt + 1) * GROUP]
    mean = sum(own) / GROUP
    return [r - mean for r in own], math.sqrt(sum((r - mean) ** 2 for r in own) / GROUP)


def chunk_by_chunk(ctx: TrainContext, text: Tensor, x_t: Tensor, clean: Tensor, sigma: float) -> list[Tensor]:
    """x0 of one video's chunks as the sampler makes them, every one on the cache of the clean ones before it."""
    student = network_of(ctx)
    past, chunks = student.begin(text), []
    for x, done in zip(x_t.split(CHUNK), clean.split(CHUNK), strict=True):
        chunks.append(student.predict_x0(x[None], torch.tensor([sigma]), text, past)[0])
        past = student.extend(past, done[None], text)
    return chunks


# --- Flow-GRPO ---


@pytest.mark.parametrize("shared", [True, False])
def test_which_noise_a_group_shares(shared: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Noise, Rollout]] = []
    plain = VideoStudent.rollout

    def watched(self: VideoStudent, text: Tensor, plan: Any, noise: Noise, **kwargs: Any) -> Rollout:
        seen.append((noise, plain(self, text, plan, noise, **kwargs)))
        return seen[-1][1]

    monkeypatch.setattr(VideoStudent, "rollout", watched)
    objective, ctx = baseline("flow_grpo", folder, f"initial_noise={'shared' if shared else 'independent'}")
    data = collect(objective, ctx)
    ((noise, rollout),) = seen
    initial, renoise = (x.unflatten(0, (2, GROUP)) for x in (noise.initial, noise.renoise))
    assert bool((initial[:, 0] == initial[:, 1]).all()) == shared
    assert (initial[0] != initial[1]).all() and (renoise[:, 0] != renoise[:, 1]).all()
    states = [rollout.states[chunk] for chunk in range(3)]
    assert len(data) == 2 * GROUP * 3 and data.shared["states.x_t"].shape[:4] == (2, GROUP, 4, 9)
    assert torch.equal(data.shared["states.x_t"].flatten(0, 1), torch.cat([s.x_t for s in states], 2))


def test_log_probabilities_are_of_the_draws_that_were_made(folder: Path) -> None:
    """The state after a step is the old policy's mean plus sigma' times standard normal noise."""
    objective, ctx = baseline("flow_grpo", folder)
    data = collect(objective, ctx)
    index = (data.group_index, data["video"], data["step"])
    level = data["sigma_next"][:, :, None, None, None]
    x_next = data.shared["states.x_t"][data.group_index, data["video"], data["step"] + 1]
    draws = (x_next - (1 - level) * data.shared["states.x0"][index]) / level
    assert abs(float(draws.mean())) < 0.01 and float(draws.std()) == pytest.approx(1, abs=0.01)
    assert data["sigma_next"][:3, 0].tolist() == ctx.sigmas[1:] and data["sigma"][:3, 0].tolist() == ctx.sigmas[:-1]


def test_flow_grpo_written_out(folder: Path) -> None:
    objective, ctx = baseline("flow_grpo", folder, "clip=0.002", "combine=raw_sum")
    data = collect(objective, ctx)
    nudge(network_of(ctx))
    ctx.update = 1
    text, total, moved = ctx.text(PROMPTS), [], 0
    x_t, clean = data.shared["states.x_t"], data.shared["x0"]
    with torch.no_grad():
        for p in range(2):
            advantages, std = centred(p)
            for g in range(GROUP):
                a = advantages[g] / (std + 1e-4)
                for t in range(3):
                    logs = []
                    for name in ("current", "old"):
                        with ctx.policy(name):
                            chunks = chunk_by_chunk(ctx, text[p : p + 1], x_t[p, g, t], clean[p, g], ctx.sigmas[t])
                        after = x_t[p, g, t + 1].split(CHUNK)
                        s = ctx.sigmas[t + 1]
                        logs.append(
                            [
                                -float(((y - (1 - s) * x0) ** 2).mean()) / (2 * s * s)
                                for y, x0 in zip(after, chunks, strict=True)
                            ]
                        )
                    for now, before in zip(*logs, strict=True):
                        rho = math.exp(now - before)
                        total.append(-min(rho * a, min(max(rho, 0.998), 1.002) * a))
                        moved += abs(rho - 1) > 0.002
    assert moved > 20, "the clip is at work"
    assert whole(objective, ctx, data).loss.item() == pytest.approx(sum(total) / len(total), rel=1e-3)


def test_the_first_gradient_is_the_policy_gradient(folder: Path) -> None:
    """Where the ratio is 1 its gradient is A grad log p, clipped or not."""
    found = []
    for clip in ("1.0e-4", "null"):
        objective, ctx = baseline("flow_grpo", folder, f"clip={clip}")
        data = collect(objective, ctx)
        found.append(accumulate(objective, ctx, data, Phase(), 64)[1])
        assert float(whole(objective, ctx, data).metrics["objective/ratio_gap/max"]) == 0
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key])
    assert max(float(g.abs().max()) for g in found[0].values()) > 1e-6


def test_a_sampler_of_one_step_has_no_renoising(folder: Path) -> None:
    objective, ctx = baseline("flow_grpo", folder)
    network_of(ctx).spec.sampler.sigmas = [1.0]
    with pytest.raises(UserError, match=r"steps a chunk .* two or more"):
        collect(objective, ctx)


# --- DiffusionNFT ---


def weight_of(prompt: int, candidate: int, clip: float) -> float:
    return min(max(centred(prompt)[0][candidate] / clip, -1), 1) / 2 + 0.5


def test_diffusion_nft_written_out(folder: Path) -> None:
    objective, ctx = baseline(
        "diffusion_nft",
        folder,
        "advantage_std=none",
        "combine=raw_sum",
        "beta=0.5",
        "kl_weight=0.3",
        "advantage_clip=2",
    )
    ctx.policies.copy("current", "reference")
    data: Experience = collect(objective, ctx)
    nudge(network_of(ctx))
    ctx.policies.copy("current", "old")  # three different policies
    nudge(network_of(ctx))
    for n in (1, 6):
        one = data.candidates(n, n + 1)
        (generator,) = ctx.generators("loss", one["sample"].tolist())
        noise = torch.randn(one["x0"].shape[1:], generator=generator)
        sigma = ctx.sigmas[int(torch.randint(4, (), generator=generator))]
        x0 = one["x0"][0]
        x_t = (1 - sigma) * x0 + sigma * noise
        found = {}
        with torch.no_grad():
            for name in ("current", "old", "reference"):
                with ctx.policy(name):
                    found[name] = torch.cat(chunk_by_chunk(ctx, one.text, x_t, x0, sigma))
        current, old = found["current"], found["old"]
        good, bad = 0.5 * current + 0.5 * old - x0, 1.5 * old - 0.5 * current - x0
        r, losses = weight_of(n // GROUP, n % GROUP, 2.0), []
        for error in (good, bad):
            losses.append(float((error**2).mean() / error.abs().mean()))
        expected = 2 / 0.5 * (r * losses[0] + (1 - r) * losses[1])
        velocities = [(x_t - found[name]) / sigma for name in ("current", "reference")]
        expected += 0.3 * float(((velocities[0] - velocities[1]) ** 2).mean())
        assert float(one["reward_weight"]) == pytest.approx(r)
        assert whole(objective, ctx, one).loss.item() == pytest.approx(expected, rel=1e-4)


def test_no_reference_forward_without_its_weight(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for weight, wanted in (("0.1", True), ("0", False)):
        objective, ctx = baseline("diffusion_nft", folder, f"kl_weight={weight}")
        data, used = collect(objective, ctx), []
        plain = ctx.policies.use
        monkeypatch.setattr(ctx.policies, "use", lambda name, plain=plain, used=used: used.append(name) or plain(name))
        out = whole(objective, ctx, data)
        assert ("reference" in used) == wanted == ("objective/kl/mean" in out.metrics)


def test_flow_grpo_asks_the_old_policy_after_the_first_update_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, ctx = baseline("flow_grpo", folder)
    data, used, plain = collect(objective, ctx), [], ctx.policies.use
    monkeypatch.setattr(ctx.policies, "use", lambda name: used.append(name) or plain(name))
    for ctx.update, expected in ((0, []), (1, ["old"])):
        whole(objective, ctx, data)
        assert used == expected


@pytest.mark.parametrize(
    ("name", "setting", "step", "decay"),
    [
        ("flow_grpo", "inner_updates=1", 500, 0.0),
        ("diffusion_nft", "old_decay=null", 100, 0.1),
        ("diffusion_nft", "old_decay=null", 9000, 0.5),
        ("diffusion_nft", "old_decay=0.9", 0, 0.9),
    ],
)
def test_the_old_policy_follows(name: str, setting: str, step: int, decay: float, folder: Path) -> None:
    objective, ctx = baseline(name, folder, setting)
    key = "transformer.proj_out.weight"
    old = ctx.policies.weights("old")[key]
    nudge(network_of(ctx))
    ctx.step = step
    objective.after_step(ctx)
    expected = decay * old + (1 - decay) * ctx.policies.weights("current")[key]
    torch.testing.assert_close(ctx.policies.weights("old")[key], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("flow_grpo", "clip=0"),
        ("flow_grpo", "inner_updates=0"),
        ("flow_grpo", "initial_noise=shraed"),
        ("diffusion_nft", "beta=0"),
        ("diffusion_nft", "kl_weight=-1"),
        ("diffusion_nft", "old_decay=2"),
    ],
)
def test_impossible_settings_are_refused(name: str, wrong: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=wrong.split("=")[0]):
        baseline(name, folder, wrong)
