"""Astrolabe: shared history, advantages from groups, the loss written out, the policies it moves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from astrolabe_helpers import Given, astrolabe, judge, prefix_of
from objective_helpers import CHUNK, GROUP, PROMPTS, accumulate, collect, make, network_of, nudge, whole
from torch import Tensor

from vidalign.codecs import build_codec
from vidalign.context import TrainContext
from vidalign.errors import RecipeError, UserError
from vidalign.objectives.astrolabe import Astrolabe
from vidalign.objectives.base import Experience, Objective, Phase
from vidalign.objectives.parts.rollouts import on_policy_gap
from vidalign.rewards.base import CompositeReward
from vidalign.students.video import VideoStudent
from vidalign.students.video.rollout import Noise, Rollout, RolloutPlan


@pytest.mark.parametrize(("chunks", "branch"), [(0, 2), (1, 1), (2, 2)])
def test_the_prefix_is_shared_and_the_clip_is_not(
    chunks: int, branch: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts: list[Rollout] = []
    plain = VideoStudent.rollout

    def watched(*args: Any, **kwargs: Any) -> Rollout:
        rollouts.append(plain(*args, **kwargs))
        return rollouts[-1]

    monkeypatch.setattr(VideoStudent, "rollout", watched)
    objective, ctx = astrolabe(folder, f"clip.chunks={chunks}", "clip.score=video", prefix=1)
    data = collect(objective, ctx)
    (rollout,) = rollouts
    groups = rollout.latents.unflatten(0, (2, GROUP))
    assert torch.equal(groups[:, :, :CHUNK], groups[:, :1, :CHUNK].expand_as(groups[:, :, :CHUNK]))
    clip = groups[:, :, CHUNK : CHUNK + branch * CHUNK]
    for g in range(1, GROUP):
        assert (clip[:, g] - clip[:, 0]).abs().amax((1, 2, 3, 4)).min() > 1e-2, "candidates differ"
    assert not torch.equal(groups[0, 0, :CHUNK], groups[1, 0, :CHUNK]), "prompts have histories of their own"
    assert torch.equal(data["x0"], clip.flatten(0, 1))
    assert data.context is not None and (data.context.batch, data.context.frames) == (2, CHUNK)
    assert all(piece.batch == 2 for piece in data.context.pieces), "the history is held once a prompt"
    assert data.metrics["health/on_policy_gap/max"] < 1e-4
    assert len(set(data["sample"].tolist())) == 2 * GROUP


CACHE = "student.cache={window: 9, sink: 3, rope: relative}"


def long(folder: Path, frames: int, *overrides: str) -> tuple[Astrolabe, TrainContext]:
    """Long tuning of windows of two chunks behind a rolling cache, at a step whose window is the last one."""
    objective, ctx = make(folder, "astrolabe", CACHE, f"data.frames={frames}", "objective.clip.chunks=2", *overrides)
    assert isinstance(objective, Astrolabe)
    ctx.step = next(s for s in range(1000) if prefix_of(objective, ctx, s) == ctx.chunks - 2)
    return objective, ctx


def test_rewards_see_a_clip_as_the_frames_of_the_whole_video(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `AutoencoderKLWan`, whose frames depend on the latents before them."""
    objective, ctx = long(folder, 9)
    settings: dict[str, Any] = {"base_dim": 2, "z_dim": 3, "dim_mult": [1, 1, 1], "num_res_blocks": 0}
    settings |= {"temperal_downsample": [True, True], "latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}
    torch.manual_seed(0)
    ctx.codec = build_codec({"name": "wan", "config": settings})
    histories, seen = [], []
    plain = VideoStudent.rollout

    def watched(self: VideoStudent, text: Any, plan: RolloutPlan, *args: Any, **kwargs: Any) -> Rollout:
        out = plain(self, text, plan, *args, **kwargs)
        histories.extend([out.latents] if plan.keep_final else [])
        return out

    class Bright:
        name = "bright"

        def score(self, clips: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
            seen.append(clips)
            return {"bright": clips.flatten(1).mean(1)}

    monkeypatch.setattr(VideoStudent, "rollout", watched)
    ctx.rewards = CompositeReward({"bright": Bright()}, {"bright": 1.0})
    data, (clips,) = collect(objective, ctx), seen
    history = torch.cat(histories, 1)
    assert len(history) == 2 and history.shape[1] == CHUNK * (ctx.chunks - 2)
    last = [GROUP - 1, 2 * GROUP - 1]  # a candidate of each prompt
    whole = ctx.codec.decode(torch.cat([history, data["x0"][last]], 1))
    frames = 4 * data["x0"].shape[1]
    assert clips.shape[1] == frames
    assert (clips[last] - whole[:, -frames:]).abs().max() < 1e-5


def test_a_streamed_history_is_the_one_of_a_whole_rollout(folder: Path) -> None:
    """Chunk by chunk, with noise drawn on the way, against one rollout that gets all noise at once: equal caches."""
    objective, ctx = long(folder, 36)
    streamed = collect(objective, ctx).context
    one, chunks = RolloutPlan(0, 1), ctx.chunks - 2
    generators = ctx.generators("history", [0, 1])
    draws = [ctx.student.draw_noise(one, generators) for _ in range(chunks)]
    noise = Noise(torch.cat([d.initial for d in draws], 1), torch.cat([d.renoise for d in draws], 2))
    plan = RolloutPlan(0, chunks, keep_final=True)
    whole_video = ctx.student.rollout(ctx.text(PROMPTS), plan, noise).final
    assert streamed is not None and streamed.frames == 3 * chunks == whole_video.frames
    assert streamed.kept == whole_video.kept == (0, 1, 2, 27, 28, 29)
    for piece, other in zip(streamed.pieces, whole_video.pieces, strict=True):
        for a, b in zip((*piece.keys, *piece.values), (*other.keys, *other.values), strict=True):
            assert torch.equal(a, b) and not a.requires_grad


def test_long_tuning_does_not_depend_on_the_length(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 2 and 8 training lengths: the same cache, the same frames seen by rewards, rollouts and loss."""
    frames: set[int] = set()
    held, forward = set(), VideoStudent.forward

    def watched(self: VideoStudent, x_t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        frames.add(x_t.shape[1])
        return forward(self, x_t, *args, **kwargs)

    monkeypatch.setattr(VideoStudent, "forward", watched)
    for length in (18, 72):
        objective, ctx = long(folder, length)
        data = collect(objective, ctx)
        assert data.metrics["health/on_policy_gap/max"] < 1e-4, "the loss sees the rolled cache of the rollout"
        nudge(network_of(ctx))
        _, gradient, _ = accumulate(objective, ctx, data, Phase(), 2)
        assert max(float(g.abs().max()) for g in gradient.values()) > 1e-6
        assert data.context is not None and data["x0"].shape[1] == 2 * CHUNK
        held.add((data.context.nbytes, sum(t.nbytes for t in data.tensors.values())))
    assert len(held) == 1 and frames == {CHUNK, 2 * CHUNK}, "chunks are generated, windows of two are predicted"


def test_impossible_caches_are_refused(folder: Path) -> None:
    for wrong, told in (("{windw: 9}", "did you mean 'window'"), ("{window: 4, sink: 3}", "cannot hold sink 3")):
        with pytest.raises(RecipeError, match=told):
            make(folder, "astrolabe", f"student.cache={wrong}")


def test_the_fork_visits_the_whole_video(folder: Path) -> None:
    for chunks, forks in ((0, {0, 1, 2}), (1, {0, 1, 2}), (2, {0, 1}), (3, {0})):
        objective, ctx = astrolabe(folder, f"clip.chunks={chunks}")
        assert {prefix_of(objective, ctx, step) for step in range(30)} == forks


def test_a_clip_longer_than_the_video_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="a clip of 4 chunks .* of 3"):
        astrolabe(folder, "clip.chunks=4")
    objective, ctx = astrolabe(folder)
    objective.config.clip.chunks = 4
    with pytest.raises(UserError, match="a clip of 4 chunks .* of 3"):
        collect(objective, ctx)


def test_a_video_is_whole_chunks(folder: Path) -> None:
    with pytest.raises(UserError, match="10 frames"):
        make(folder, "astrolabe", "data.frames=10")


def test_a_gap_is_seen(folder: Path) -> None:
    """The monitor must not be deaf: a context without the history gives a large gap."""
    objective, ctx = astrolabe(folder, prefix=2)
    plan = objective.clips.plan(ctx)
    text = ctx.text(PROMPTS)
    rollout = ctx.student.rollout(text, plan, ctx.student.draw_noise(plan, ctx.generators("rollout", [0, 1])))
    assert on_policy_gap(ctx, rollout, text, GROUP) < 1e-4
    rollout.context = ctx.student.begin(text)
    assert on_policy_gap(ctx, rollout, text, GROUP) > 1e-2


def test_reward_weights_are_the_formula(folder: Path) -> None:
    """r = clip((R - group mean) / A_max, -1, 1) / 2 + 1/2 with raw sums and no division."""
    objective, ctx = astrolabe(folder, "advantage_std=none", "combine=raw_sum", "advantage_clip=2.0")
    weight, metrics = judge(objective, ctx, torch.tensor([1.0, 2.0, 3.0, 2.0, 50.0, 40.0, 41.0, 49.0]))
    assert weight.tolist() == pytest.approx([0.25, 0.5, 0.75, 0.5, 1.0, 0.0, 0.0, 1.0])
    assert metrics["reward/mean"] == pytest.approx(23.5) and metrics["objective/advantage/max"] == pytest.approx(5.0)
    assert metrics["reward/given/group_std"] == pytest.approx((0.5**0.5 + 20.5**0.5) / 2)


@pytest.mark.parametrize("std", ["none", "group", "batch"])
def test_advantages_come_from_groups_only(std: str, folder: Path) -> None:
    """A prompt that is easy as a whole gains nothing; equal candidates teach nothing."""
    objective, ctx = astrolabe(folder, f"advantage_std={std}")
    values = torch.tensor([0.1, 0.2, 0.3, 0.6, 0.9, 0.9, 0.9, 0.9])
    weight, metrics = judge(objective, ctx, values)
    assert (weight[4:] - 0.5).abs().max() < 1e-3 and float(weight[:4].mean()) == pytest.approx(0.5, abs=1e-6)
    assert weight[:4].argsort().tolist() == [0, 1, 2, 3] and weight[3] - weight[0] > 0.1
    assert metrics["health/zero_std_groups/mean"] == 0.5


def test_a_failed_reward_is_dropped(folder: Path) -> None:
    objective, ctx = astrolabe(folder, "kl.mode=none")
    values = torch.tensor([0.1, torch.nan, 0.3, 0.6, 0.2, 0.5, 0.7, 0.8])
    weight, metrics = judge(objective, ctx, values)
    assert weight[1] == 0.5 and weight.isfinite().all() and metrics["health/reward_nan/mean"] == 0.125
    assert float(weight[[0, 2, 3]].mean()) == pytest.approx(0.5, abs=1e-6)
    data = collect(objective, ctx)
    assert norm(objective, ctx, data.candidates(1, 2)) < 1e-6 < norm(objective, ctx, data.candidates(0, 1))


def norm(objective: Objective, ctx: TrainContext, data: Experience) -> float:
    return max(float(g.abs().max()) for g in accumulate(objective, ctx, data, Phase(), 64)[1].values())


def test_a_batch_of_failures_moves_nothing(folder: Path) -> None:
    objective, ctx = astrolabe(folder)
    weight, metrics = judge(objective, ctx, torch.full((8,), torch.nan))
    assert (weight == 0.5).all() and metrics["health/reward_nan/mean"] == 1.0
    assert norm(objective, ctx, collect(objective, ctx)) < 1e-6


def chunk_by_chunk(ctx: TrainContext, data: Experience, x_t: Tensor, sigma: float) -> Tensor:
    """x0 of one candidate as the sampler makes it: every chunk on the cache of the clean ones before it."""
    student = network_of(ctx)
    past, chunks = data.context, []
    for x, clean in zip(x_t.split(CHUNK, 1), data["x0"].split(CHUNK, 1), strict=True):
        chunks.append(student.predict_x0(x, torch.tensor([sigma]), data.text, past))
        past = student.extend(past, clean, data.text)
    return torch.cat(chunks, 1)


@pytest.mark.parametrize(("chunks", "weighting"), [(1, "none"), (2, "none"), (2, "adaptive")])
def test_the_loss_is_the_method_written_out(chunks: int, weighting: str, folder: Path) -> None:
    objective, ctx = astrolabe(folder, f"clip.chunks={chunks}", f"weighting={weighting}", "kl.weight=0.5", prefix=1)
    data = collect(objective, ctx).candidates(2, 3)
    nudge(network_of(ctx))
    (generator,) = ctx.generators("loss", data["sample"].tolist())
    noise = torch.randn(data["x0"].shape[1:], generator=generator)
    sigma = ctx.sigmas[int(torch.randint(4, (), generator=generator))]
    x_t = (1 - sigma) * data["x0"] + sigma * noise
    with torch.no_grad():
        current = chunk_by_chunk(ctx, data, x_t, sigma)
        with ctx.policy("old"):
            old = chunk_by_chunk(ctx, data, x_t, sigma)
    assert (current - old).abs().max() > 1e-2
    r, beta, x0 = float(data["reward_weight"]), 0.1, data["x0"]
    good, bad = beta * current + (1 - beta) * old - x0, (1 + beta) * old - beta * current - x0
    first, second = float((good**2).mean()), float((bad**2).mean())
    if weighting == "adaptive":
        first, second = (50 * s / float(x.abs().mean()) for s, x in ((first, good), (second, bad)))
    expected = r * first + (1 - r) * second + 0.5 * float(((current - old) ** 2).mean())  # old = reference
    out = whole(objective, ctx, data)
    assert out.loss.item() == pytest.approx(expected, rel=1e-4)
    assert float(out.metrics[f"objective/alpha_{sigma:.2f}/mean"]) == pytest.approx(r)


def test_noise_levels_can_be_left_out(folder: Path) -> None:
    def levels(sigma_max: float, sigma_min: float = 0.0) -> set[str]:
        objective, ctx = astrolabe(folder, f"sigma_max={sigma_max}", f"sigma_min={sigma_min}", "group_size=16")
        return {key for key in whole(objective, ctx, collect(objective, ctx)).metrics if "alpha" in key}

    assert levels(1.0) == {f"objective/alpha_{level:.2f}/mean" for level in (1.0, 0.8, 0.6, 0.4)}
    assert levels(0.6) == {f"objective/alpha_{level:.2f}/mean" for level in (0.6, 0.4)}
    assert levels(0.8, 0.6) == {f"objective/alpha_{level:.2f}/mean" for level in (0.8, 0.6)}
    with pytest.raises(UserError, match=r"0\.0 to 0\.3 leaves no noise level"):
        levels(0.3)


@pytest.mark.parametrize("score", ["clip", "video"])
def test_a_first_chunk_of_its_own_levels_is_that_of_the_video(
    score: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a clip begins is what `collect` found: the loss draws no fork and keeps nothing."""
    for prefix in (0, 1):
        objective, ctx = astrolabe(folder, f"clip.score={score}", "group_size=16", prefix=prefix)
        sampler = ctx.student.spec.sampler
        usual = list(sampler.sigmas)
        monkeypatch.setattr(sampler, "first_sigmas", [1.0, 0.9, 0.7, 0.3])
        data, kept = collect(objective, ctx), dict(vars(objective))
        monkeypatch.setattr(ctx, "shared_generator", None)
        found = {key for key in whole(objective, ctx, data).metrics if "alpha" in key}
        assert found == {f"objective/alpha_{s:.2f}/mean" for s in (usual if prefix else sampler.first_sigmas)}
        assert vars(objective) == kept


def test_candidates_can_share_the_noise_of_the_loss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared: one level and one noise a prompt, in any micro-batch; otherwise one a candidate."""
    found: dict[str, Tensor] = {}
    forward = VideoStudent.forward
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(self: VideoStudent, x_t: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((x_t, sigma))
        return forward(self, x_t, sigma, *args, **kwargs)

    for kind in ("sample", "group"):
        objective, ctx = astrolabe(folder, f"loss_noise={kind}", "kl.mode=none")
        data = collect(objective, ctx)
        monkeypatch.setattr(VideoStudent, "forward", watched)
        for start, stop in ((0, 4), (4, 6), (6, 8)):
            whole(objective, ctx, data.candidates(start, stop))
        monkeypatch.setattr(VideoStudent, "forward", forward)
        x_t, sigma = (torch.cat(parts) for parts in zip(*seen[::2], strict=True))  # the trained policy's calls
        seen.clear()
        sigma = sigma[:, 0]  # one level for all frames
        level = sigma.view(-1, 1, 1, 1, 1)
        noise = ((x_t - (1 - level) * data["x0"]) / level).unflatten(0, (2, GROUP))
        spread = (noise - noise[:, :1]).abs().amax((1, 2, 3, 4, 5))
        assert (spread < 1e-4).all() if kind == "group" else (spread > 1).all()
        assert (noise[0] - noise[1]).abs().max() > 1, "prompts have noise of their own"
        found[kind] = sigma.view(2, GROUP)
    assert (found["group"] == found["group"][:, :1]).all() and (found["sample"] != found["sample"][:, :1]).any()


def test_velocity_space_differs_by_sigma_squared(folder: Path) -> None:
    losses: dict[str, list[tuple[float, float]]] = {}
    for space in ("x0", "velocity"):
        objective, ctx = astrolabe(folder, f"space={space}", "kl.mode=none")
        data = collect(objective, ctx)
        nudge(network_of(ctx))
        for n in range(len(data)):
            out = whole(objective, ctx, data.candidates(n, n + 1))
            (level,) = [float(key.split("_")[1].split("/")[0]) for key in out.metrics if "alpha" in key]
            losses.setdefault(space, []).append((level, out.loss.item()))
    for (level, in_x0), (_, in_velocity) in zip(losses["x0"], losses["velocity"], strict=True):
        assert in_x0 == pytest.approx(level**2 * in_velocity, rel=1e-4)
    assert len({level for level, _ in losses["x0"]}) > 1


@pytest.mark.parametrize(
    ("setting", "step", "decay"), [("null", 0, 0.0), ("null", 100, 0.1), ("null", 9000, 0.5), ("0.9", 0, 0.9)]
)
def test_the_old_policy_follows(setting: str, step: int, decay: float, folder: Path) -> None:
    objective, ctx = astrolabe(folder, f"old_decay={setting}")
    old, reference = ctx.policies.weights("old"), ctx.policies.weights("reference")
    nudge(network_of(ctx))
    current = ctx.policies.weights("current")
    ctx.step = step
    objective.after_step(ctx)
    key = "transformer.proj_out.weight"
    expected = decay * old[key] + (1 - decay) * current[key]
    torch.testing.assert_close(ctx.policies.weights("old")[key], expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(ctx.policies.weights("reference")[key], reference[key])
    assert torch.equal(ctx.policies.weights("current")[key], current[key])


def test_the_rollout_is_the_old_policys(folder: Path) -> None:
    objective, ctx = astrolabe(folder)
    before = collect(objective, ctx)["x0"]
    nudge(network_of(ctx))
    assert torch.equal(collect(objective, ctx)["x0"], before)
    ctx.policies.copy("current", "old")
    assert not torch.equal(collect(objective, ctx)["x0"], before)


@pytest.mark.parametrize("score", ["clip", "video"])
def test_what_is_scored(score: str, folder: Path) -> None:
    shapes = []

    class Watching(Given):
        def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
            shapes.append(clips.shape[1])
            assert clips.min() >= 0 and clips.max() <= 1
            assert list(prompts) == [p for p in PROMPTS for _ in range(GROUP)]
            return super().score(clips, prompts)

    objective, ctx = astrolabe(folder, f"clip.score={score}", prefix=1)
    ctx.rewards = CompositeReward({"given": Watching(torch.rand(8))}, {"given": 1.0})
    collect(objective, ctx)
    assert shapes == [CHUNK if score == "clip" else 2 * CHUNK]


def test_adapters_alone_are_trained(folder: Path) -> None:
    objective, ctx = make(folder, "astrolabe", "student.adapter.rank=2")
    data = collect(objective, ctx)
    _, gradient, _ = accumulate(objective, ctx, data, Phase(), 64)
    assert gradient and all(".lora_" in key and ".current." in key for key in gradient)


@pytest.mark.parametrize(
    "wrong",
    [
        "beta=0",
        "advantage_clip=-1",
        "inner_updates=0",
        "old_decay=1.5",
        "clip.chunks=-1",
        "kl.mode=unifrom",
        "kl.reset_every=0",
        "kl.reset_drift=-1.0",
        "kl.weight=-1",
    ],
)
def test_impossible_settings_are_refused(wrong: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=wrong.split("=")[0].split(".")[-1]):
        astrolabe(folder, wrong)


def test_inner_updates_are_optimiser_steps(folder: Path) -> None:
    objective, _ = astrolabe(folder, "inner_updates=3")
    assert objective.phases(0) == (Phase("student", 3),)
