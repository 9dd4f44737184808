"""AR-CoPO: what a fork shares, the loss written out, groups without spread, the trust region, buffers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from objective_helpers import CHUNK, GROUP, PROMPTS, accumulate, collect, make, network_of, nudge, whole
from torch import Tensor

from vidalign.context import Batch, TrainContext
from vidalign.errors import DataError, RecipeError, UserError
from vidalign.objectives.ar_copo import ARCoPO
from vidalign.objectives.base import Phase
from vidalign.objectives.parts.groups import Forked
from vidalign.objectives.parts.scoring import Advantages, group_weights
from vidalign.provenance import weights_hash
from vidalign.rewards.base import CompositeReward
from vidalign.students.video import Sampler, VideoStudent
from vidalign.students.video.rollout import Noise, Rollout
from vidalign.students.video.rollout.buffer import Buffer, BufferHeader, ForkedGroups

STEPS = 4


class Given:
    """A reward whose values the test chooses, in order; the brightness of the whole video unless it does."""

    name = "given"

    def __init__(self, values: Tensor | None = None) -> None:
        self.values = values

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        assert clips.shape[1] == 9, "the whole video is scored"
        return {"given": clips.flatten(1).mean(1) if self.values is None else self.values}


def ar_copo(folder: Path, *overrides: str, pivot: int | None = None) -> tuple[ARCoPO, TrainContext]:
    """The objective at a step that forks at chunk `pivot`."""
    objective, ctx = make(folder, "ar_copo", "objective.anchors=2", *[f"objective.{o}" for o in overrides])
    assert isinstance(objective, ARCoPO)
    ctx.rewards = CompositeReward({"given": Given()}, {"given": 1.0})
    if pivot is not None:
        ctx.step = next(step for step in range(100) if pivot_of(ctx, step) == pivot)
    return objective, ctx


def pivot_of(ctx: TrainContext, step: int) -> int:
    ctx.step = step
    return int(torch.randint(ctx.chunks, (), generator=ctx.shared_generator("pivot")))


def given(ctx: TrainContext, values: Sequence[float]) -> None:
    ctx.rewards = CompositeReward({"given": Given(torch.tensor(values))}, {"given": 1.0})


@pytest.mark.parametrize(("pivot", "neighbours"), [(0, "initial"), (1, "initial"), (2, "initial"), (1, "all")])
def test_only_the_pivots_noise_differs(
    pivot: int, neighbours: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Noise, Rollout]] = []
    plain = VideoStudent.rollout

    def watched(self: VideoStudent, text: Tensor, plan: Any, noise: Noise, **kwargs: Any) -> Rollout:
        seen.append((noise, plain(self, text, plan, noise, **kwargs)))
        return seen[-1][1]

    monkeypatch.setattr(VideoStudent, "rollout", watched)
    objective, ctx = ar_copo(folder, f"neighbours={neighbours}", pivot=pivot)
    forked = objective.fresh.groups(ctx, Batch(ctx.step, PROMPTS, [0, 1]))
    groups, context = forked.groups, forked.context
    ((noise, rollout),) = seen
    start, stop = pivot * CHUNK, (pivot + 1) * CHUNK
    initial, renoise = (x.unflatten(0, (2, GROUP)) for x in (noise.initial, noise.renoise))
    differs = (initial - initial[:, :1])[:, 1:].abs().amax((0, 1, 3, 4, 5)) > 0
    assert differs.tolist() == [start <= frame < stop for frame in range(9)]
    differs = (renoise - renoise[:, :1])[:, 1:].abs().amax((0, 1, 2, 4, 5, 6)) > 0
    assert differs.tolist() == [neighbours == "all" and start <= frame < stop for frame in range(9)]
    latents = rollout.latents.unflatten(0, (2, GROUP))
    assert (latents[:, :, :start] == latents[:, :1, :start]).all()
    assert (latents - latents[:, :1])[:, 1:, start:].abs().amax((3, 4, 5)).min() > 1e-3, "the suffix feels the pivot"
    assert torch.equal(groups.history, latents[:, 0, :start]) and context.frames == start
    state = rollout.states[pivot]
    assert torch.equal(groups.states(state.sigmas).flatten(0, 1), state.x_t), "states are made again bit for bit"
    assert torch.equal(groups.x0.flatten(0, 1), state.x0)


def test_which_chunks_are_pivots(folder: Path) -> None:
    for pivots, expected in ((0, {0, 1, 2}), (1, {0}), (2, {0, 1})):
        objective, ctx = ar_copo(folder, f"pivots={pivots}", "group_size=2", "anchors=1")
        found = set()
        for ctx.step in range(20):
            found.add(objective.fresh.groups(ctx, Batch(ctx.step, PROMPTS[:1], [0])).groups.pivot)
        assert found == expected
    objective.fresh.pivots = 4
    with pytest.raises(UserError, match="one of 4 chunks .* a video has 3"):
        collect(objective, ctx)


@pytest.mark.parametrize("pivot", [0, 2])
def test_the_loss_is_the_method_written_out(pivot: int, folder: Path) -> None:
    objective, ctx = ar_copo(folder, "clip=0.002", "temperature=0.5", "combine=raw_sum", pivot=pivot)
    rewards = [0.1, 0.4, 0.2, 0.9, 3.0, 1.0, 2.0, 2.5]
    given(ctx, rewards)
    forked = objective.fresh.groups(ctx, Batch(ctx.step, PROMPTS, [0, 1]))
    groups, context = forked.groups, forked.context
    data = collect(objective, ctx)
    nudge(network_of(ctx))
    ctx.update = 1
    student, text = network_of(ctx), ctx.text(PROMPTS)
    x_t, total, moved = groups.states(ctx.sigmas), [], 0
    with torch.no_grad():
        for p in range(2):
            own = rewards[p * GROUP : (p + 1) * GROUP]
            mean = sum(own) / GROUP
            std = math.sqrt(sum((r - mean) ** 2 for r in own) / GROUP)
            past = context.rows([p])
            for k in range(2):
                for t, sigma in enumerate(ctx.sigmas):
                    state = (x_t[p, k, t][None], torch.tensor([sigma]), text[p : p + 1], past)
                    policies = []
                    for name in ("current", "old"):
                        with ctx.policy(name):
                            x0 = student.predict_x0(*state)[0]
                        weights = [math.exp(-float(((c - x0) ** 2).mean()) / 0.5) for c in groups.x0[p, :, t]]
                        policies.append([w / sum(weights) for w in weights])
                    value = 0.0
                    for now, before, r in zip(*policies, own, strict=True):
                        a, rho = (r - mean) / (std + 1e-4), now / before
                        value += min(rho * a, min(max(rho, 0.998), 1.002) * a)
                        moved += abs(rho - 1) > 0.002
                    total.append(-value / GROUP)
    out = whole(objective, ctx, data)
    assert moved > 10, "the clip is at work"
    assert out.loss.item() == pytest.approx(sum(total) / len(total), rel=1e-3)
    assert 0 < float(out.metrics["objective/clip_fraction/mean"]) < 1


def test_ratios_are_one_before_the_first_update(folder: Path) -> None:
    objective, ctx = ar_copo(folder)
    data = collect(objective, ctx)
    out = whole(objective, ctx, data)
    assert float(out.metrics["objective/ratio_gap/max"]) == 0
    assert float(out.metrics["health/on_policy_gap/max"]) < 1e-4
    nudge(network_of(ctx))
    with pytest.raises(AssertionError, match="before the first update"):
        whole(objective, ctx, data)
    ctx.update = 1
    assert float(whole(objective, ctx, data).metrics["objective/ratio_gap/max"]) > 1e-5


def test_one_forward_a_step_and_nothing_for_history_or_suffix(folder: Path) -> None:
    objective, ctx = ar_copo(folder, pivot=1)
    data = collect(objective, ctx)
    assert len(data) == 2 * 2 * STEPS and data["x_t"].shape[1] == CHUNK
    assert data["sigma"].unflatten(0, (4, STEPS)).tolist() == [ctx.sigmas] * 4
    assert data.context is not None and (data.context.batch, data.context.frames) == (2, CHUNK)
    assert not any(k.requires_grad for piece in data.context.pieces for k in (*piece.keys, *piece.values))
    assert data.shared["x0"].shape[:3] == (2, GROUP, STEPS) and data.shared["advantage"].shape == (2, GROUP)


def test_groups_without_spread_weigh_nothing_and_are_counted(folder: Path) -> None:
    objective, ctx = ar_copo(folder)
    given(ctx, [0.5, 0.5, 0.5, 0.5, 0.1, 0.2, 0.3, 0.4])
    data = collect(objective, ctx)
    assert data["weight"].tolist() == [0.0] * 2 * STEPS + [2.0] * 2 * STEPS  # the mean over the one with spread
    assert data.metrics["health/zero_std_groups/mean"] == 0.5
    assert data.shared["advantage"][1].tolist() == pytest.approx([-1.3416, -0.4472, 0.4472, 1.3416], rel=2e-3)
    given(ctx, [0.5] * 8)
    data = collect(objective, ctx)
    assert data.metrics["health/zero_std_groups/mean"] == 1.0
    _, gradient, _ = accumulate(objective, ctx, data, Phase(), 64)
    assert all((g == 0).all() for g in gradient.values())


def test_a_failed_reward_neither_pulls_nor_pushes(folder: Path) -> None:
    objective, ctx = ar_copo(folder)
    given(ctx, [0.1, math.nan, 0.3, 0.5, 0.1, 0.2, 0.3, 0.4])
    data = collect(objective, ctx)
    advantage = data.shared["advantage"][0]
    assert advantage[1] == 0 and advantage.isfinite().all() and abs(float(advantage.sum())) < 1e-5
    assert data.metrics["health/reward_nan/mean"] == 0.125


def test_weights_make_the_mean_over_groups_with_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks with 3, 1 and 0 such groups: the mean over the four."""
    has_signal = torch.tensor([[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    value = torch.arange(12.0).view(3, 4)
    total = 0.0
    for rank in range(3):
        monkeypatch.setattr("vidalign.engine.distributed.rank", lambda rank=rank: rank)
        total += float((group_weights(Advantages(torch.zeros(4, 2), has_signal, {})) * value[rank]).mean()) / 3
    assert total == pytest.approx(float(value[has_signal].mean()))


def test_the_old_policy_follows_on_policy_only(folder: Path, tmp_path: Path) -> None:
    key = "transformer.proj_out.weight"
    for buffer, follows in (("", True), (str(tmp_path), False)):
        objective, ctx = ar_copo(folder, f"buffer='{buffer}'")
        before = ctx.policies.weights("old")[key]
        nudge(network_of(ctx))
        objective.after_step(ctx)
        assert torch.equal(ctx.policies.weights("old")[key], ctx.policies.weights("current")[key]) == follows
        assert torch.equal(ctx.policies.weights("old")[key], before) != follows


def test_quasi_norm(folder: Path) -> None:
    advantages = []
    for setting in ("null", "0.8"):
        objective, ctx = ar_copo(folder, f"quasi_norm={setting}")
        given(ctx, [0.1, 0.4, 0.2, 0.9, 3.0, 1.0, 2.0, 2.5])
        advantages.append(collect(objective, ctx).shared["advantage"])
    plain, changed = advantages
    expected = plain * 2 / plain.abs().pow(0.8).sum(1, keepdim=True).pow(1.25)
    torch.testing.assert_close(changed, expected)


def test_inner_updates_are_optimiser_steps(folder: Path) -> None:
    objective, _ = ar_copo(folder, "inner_updates=3")
    assert objective.phases(0) == (Phase("student", 3),)


@pytest.mark.parametrize(
    "wrong",
    ["anchors=5", "anchors=0", "noise_scale=0", "noise_scale=1.5", "clip=0", "temperature=0", "inner_updates=0"],
)
def test_impossible_settings_are_refused(wrong: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=wrong.split("=")[0]):
        ar_copo(folder, wrong)


# --- semi-on-policy ---


def judged(ctx: TrainContext, forked: Forked) -> ForkedGroups:
    assert forked.request is not None
    return forked.groups.judged(ctx.judge(forked.request))


@pytest.fixture(scope="module")
def buffer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six groups, two for every pivot."""
    out = tmp_path_factory.mktemp("buffer")
    objective, ctx = ar_copo(folder)
    header = BufferHeader(weights_hash(ctx.policies.weights("old")), "recipe", 6, objective.fresh.settings(ctx))
    made = Buffer.create(out, header)
    for pivot in range(3):
        ctx.step = next(step for step in range(100) if pivot_of(ctx, step) == pivot)
        with torch.no_grad():
            forked = objective.fresh.groups(ctx, Batch(ctx.step, PROMPTS, [2 * pivot, 2 * pivot + 1]))
        made.write([2 * pivot, 2 * pivot + 1], judged(ctx, forked), {})
    return out


def test_groups_of_a_buffer_replay_as_they_were_rolled(folder: Path, buffer: Path) -> None:
    """The context is rebuilt from latents; what the loss sees is what the rollout saw, at every pivot."""
    objective, ctx = ar_copo(folder, f"buffer='{buffer}'")
    pivots = set()
    for ctx.step in range(6):
        data = collect(objective, ctx)
        assert data.context is not None and data.context.batch == 2
        pivots.add(data.context.frames // CHUNK)
        assert sorted(data.prompts) == sorted(PROMPTS)
        assert not any(name.startswith("reward/") for name in data.metrics), "stored scores are no progress"
        out = whole(objective, ctx, data)
        assert float(out.metrics["health/on_policy_gap/max"]) < 1e-4
    assert pivots == {0, 1, 2}


def test_a_buffer_gives_the_numbers_of_the_rollout(folder: Path, buffer: Path) -> None:
    objective, ctx = ar_copo(folder, pivot=1)
    fresh = judged(ctx, objective.fresh.groups(ctx, Batch(ctx.step, PROMPTS, [2, 3]))).tensors()
    stored = Buffer.open(buffer).read([2, 3]).tensors()
    assert fresh.keys() == stored.keys() and all(torch.equal(fresh[name], stored[name]) for name in fresh)


def test_a_buffer_is_compared_with_the_run_once(folder: Path, buffer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, ctx = ar_copo(folder, f"buffer='{buffer}'")
    compared: list[str] = []
    monkeypatch.setattr(Buffer, "check", lambda self, student, settings: compared.append(student))
    for ctx.step in range(2):
        collect(objective, ctx)
    assert compared == [weights_hash(ctx.policies.weights("old"))]


def test_a_group_keeps_the_draws_of_its_pivots_own_levels(folder: Path) -> None:
    for pivot, draws in ((0, 3), (1, 1)):
        objective, ctx = ar_copo(folder, pivot=pivot)
        ctx.student.spec.sampler = Sampler(sigmas=[1.0, 0.5], first_sigmas=[1.0, 0.75, 0.5, 0.25])
        with torch.no_grad():
            forked = objective.fresh.groups(ctx, Batch(ctx.step, PROMPTS, [0, 1]))
            data = objective._experience(ctx, forked)
        assert forked.groups.renoise.shape[2] == draws and forked.groups.x0.shape[2] == draws + 1
        assert data["sigma"].tolist() == ctx.student.spec.sampler.steps(pivot == 0) * 2 * len(PROMPTS), "two anchors"


def test_the_trust_region_stays_around_the_reference(folder: Path, buffer: Path) -> None:
    """Also in later steps current may differ from old before the first update, and the clip takes the gradient."""
    objective, ctx = ar_copo(folder, f"buffer='{buffer}'")
    ctx.step = 1
    data = collect(objective, ctx)
    nudge(network_of(ctx), 0.2)
    objective.after_step(ctx)
    norms = {}
    for clip in (1e-4, None):
        objective.config.clip = clip
        _, gradient, _ = accumulate(objective, ctx, data, Phase(), 64)
        norms[clip] = max(float(g.abs().max()) for g in gradient.values())
    clipped = float(whole(objective, ctx, data).metrics["objective/ratio_gap/max"])
    assert clipped > 1e-4 and norms[1e-4] != norms[None]
    ctx.step = 0
    with pytest.raises(AssertionError, match="before the first update"):
        whole(objective, ctx, data)


def test_a_buffer_of_another_student_or_other_settings_is_refused(folder: Path, buffer: Path) -> None:
    objective, ctx = ar_copo(folder, f"buffer='{buffer}'", "noise_scale=0.3")
    with pytest.raises(DataError, match=r"noise_scale is 0\.5 there, 0\.3 here"):
        collect(objective, ctx)
    objective, ctx = ar_copo(folder, f"buffer='{buffer}'")
    nudge(network_of(ctx))
    ctx.policies.copy("current", "old")
    with pytest.raises(DataError, match="its groups come from student"):
        collect(objective, ctx)


def test_a_step_cannot_want_more_groups_than_share_a_pivot(folder: Path, buffer: Path) -> None:
    objective, ctx = ar_copo(folder, f"buffer='{buffer}'")
    with pytest.raises(DataError, match="only 2 groups that fork at chunk 0, a step wants 3"):
        collect(objective, ctx, [*PROMPTS, PROMPTS[0]])
