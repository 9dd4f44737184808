"""What every objective keeps beside the promises that `vidalign.testing` tries: the loss sees what the rollout saw,
only the trained role gets gradients, every step draws anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from objective_helpers import CHUNK, NAMES, PROMPTS, collect, logged, make, network_of, nudge, whole
from torch import Tensor

from vidalign.errors import RecipeError
from vidalign.objectives.base import Experience, MicroBatch, Phase
from vidalign.students.video import VideoStudent
from vidalign.testing import check_objective
from vidalign.worlds.video import captions

RECORDED = ("ar_copo", "dopd_video", "flow_grpo")  # the loss replays the rollout's own states and draws nothing

# --- every objective ---


@pytest.mark.parametrize("name", NAMES)
def test_what_is_logged_does_not_depend_on_the_micro_batch(name: str, folder: Path) -> None:
    """At several noise levels, with clips at work, with groups of equal scores."""
    clips = {"flow_grpo": ["objective.clip=0.001"], "ar_copo": ["objective.clip=0.001"]}
    objective, ctx = make(folder, name, *clips.get(name, []))
    data = collect(objective, ctx, captions.prompts("basic/train")[:4])
    if name == "flow_grpo":
        data["advantage"][data.group_index == 0] = 0
    if name == "ar_copo":
        data.shared["advantage"][0] = 0
    nudge(network_of(ctx), 0.1)
    if "old" in objective.blueprint().policies:
        ctx.policies.copy("current", "old")  # not what rolled out
        nudge(network_of(ctx), 0.1)
    ctx.update = 1
    for phase in objective.phases(ctx.step):
        expected = logged(objective, ctx, data, phase, 64)
        for size in (1, 4):
            assert logged(objective, ctx, data, phase, size) == pytest.approx(expected, rel=1e-4, abs=1e-8), size


def test_everything_is_in_the_precision_of_the_engine(folder: Path) -> None:
    _, ctx = make(folder, "astrolabe")
    assert ctx.rewards and all(p.dtype == torch.float64 for p in [*ctx.codec.parameters(), *ctx.student.parameters()])
    scores = ctx.rewards.score(torch.full((1, 9, 3, 32, 32), 0.5, dtype=torch.float64), PROMPTS[:1])
    assert {value.dtype for value in scores.values()} == {torch.float64}


@pytest.mark.parametrize("name", NAMES)
def test_another_step_gives_other_numbers(name: str, folder: Path) -> None:
    losses = []
    for step in (3, 4):
        objective, ctx = make(folder, name)
        ctx.step = step
        data = collect(objective, ctx)
        losses.append([whole(objective, ctx, data, phase.role).loss.item() for phase in objective.phases(step)])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RECORDED])
def test_another_update_on_the_same_experience_draws_anew(name: str, folder: Path) -> None:
    objective, ctx = make(folder, name)
    data = collect(objective, ctx)
    for role in ctx.roles.engines:
        nudge(network_of(ctx, role))
    for phase in objective.phases(ctx.step):
        losses = []
        for ctx.update in (1, 2):
            losses.append(whole(objective, ctx, data, phase.role).loss.item())
        assert losses[0] != losses[1]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_trained_role_gets_gradient(name: str, folder: Path) -> None:
    objective, ctx = make(folder, name)
    data = collect(objective, ctx)
    assert not any(t.requires_grad for t in (*data.tensors.values(), data.text))
    networks = {role: engine.network for role, engine in ctx.roles.engines.items()}
    networks |= {role: dispatch.network for role, dispatch in ctx.roles._frozen.items()}
    for phase in objective.phases(ctx.step):
        with ctx.roles.phase(phase.role) as engine:
            engine.backward(objective.loss(ctx, MicroBatch(data, 1.0), phase).loss)
            graded = {role for role, net in networks.items() if any(p.grad is not None for p in net.parameters())}
            assert graded == {phase.role}


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_named_by_group_and_finite(name: str, folder: Path) -> None:
    objective, ctx = make(folder, name)
    data = collect(objective, ctx)
    metrics = dict(data.metrics)
    for phase in objective.phases(ctx.step):
        metrics |= whole(objective, ctx, data, phase.role).metrics
    for key, value in metrics.items():
        assert key.split("/")[0] in ("objective", "reward", "health", "perf"), key
        assert torch.isfinite(torch.as_tensor(value)), key


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sft"])
def test_the_loss_sees_what_the_rollout_saw(name: str, folder: Path) -> None:
    """Every objective that rolls out reports its gap."""
    objective, ctx = make(folder, name)
    data = collect(objective, ctx)
    metrics = data.metrics | whole(objective, ctx, data).metrics
    assert float(metrics["health/on_policy_gap/max"]) < 1e-4


# --- supervised ---


def levels_seen(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> Tensor:
    """The noise levels that the network is asked about."""
    seen: list[Tensor] = []
    forward = VideoStudent.forward

    def watched(self: VideoStudent, x_t: Tensor, sigma: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(sigma)
        return forward(self, x_t, sigma, *args, **kwargs)

    monkeypatch.setattr(VideoStudent, "forward", watched)
    objective, ctx = make(folder, "sft", *overrides)
    whole(objective, ctx, collect(objective, ctx, captions.prompts("basic/train")[:16]))
    (sigma,) = seen
    return sigma


def test_supervised_levels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    causal = levels_seen(monkeypatch, folder, "objective.levels=sampler").unflatten(1, (3, CHUNK))
    assert (causal == causal[..., :1]).all(), "one level a chunk"
    assert {round(s, 6) for s in causal.flatten().tolist()} == {1.0, 0.8, 0.6, 0.4}
    assert (causal[:, 0] != causal[:, 1]).any(), "chunks have levels of their own"
    free = levels_seen(monkeypatch, folder)
    assert free.shape == (16, 9) and free.unique().numel() == 16 * 3 and free.min() > 0 and free.max() < 1
    both = levels_seen(monkeypatch, folder, "objective.attention=bidirectional")
    assert both.shape == (16, 9) and both.unique().numel() == 16 and (both == both[:, :1]).all()


@pytest.mark.parametrize(("attention", "called"), [("causal", "velocity"), ("bidirectional", "bidirectional")])
def test_supervised_clips_are_seen_by_their_attention(
    attention: str, called: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    for name in ("velocity", "bidirectional"):
        plain = getattr(VideoStudent, name)

        def watched(self: VideoStudent, *given: Any, name: str = name, plain: Any = plain, **named: Any) -> Tensor:
            used.append(name)
            return plain(self, *given, **named)

        monkeypatch.setattr(VideoStudent, name, watched)
    objective, ctx = make(folder, "sft", f"objective.attention={attention}")
    whole(objective, ctx, collect(objective, ctx))
    assert used[0] == called


def test_a_clean_past_of_every_length(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ("objective.attention=bidirectional", "objective.continuation=true", "objective.sigma_floor=0.5")
    levels = levels_seen(monkeypatch, folder, *changes).unflatten(1, (3, CHUNK))
    assert (levels == levels[..., :1]).all(), "one level a chunk"
    clean = levels[..., 0] == 0
    assert set(clean.sum(1).tolist()) == {0, 1, 2}, "nobody is clean to the end"
    for row, past in zip(levels[..., 0], clean.sum(1).tolist(), strict=True):
        assert not clean[levels[..., 0].eq(row).all(1)][0][past:].any() and row[past:].unique().numel() == 1


def test_the_clean_past_is_no_part_of_the_loss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ("objective.attention=bidirectional", "objective.continuation=true", "objective.sigma_floor=0.5")
    objective, ctx = make(folder, "sft", *changes)
    data = collect(objective, ctx, captions.prompts("basic/train")[:8])
    losses, forward = [], VideoStudent.forward
    for offset in (0.0, 3.0):

        def wrong(self: VideoStudent, x_t: Tensor, sigma: Tensor, *args: Any, off: float = offset, **kw: Any) -> Tensor:
            velocity = forward(self, x_t, sigma, *args, **kw)
            return velocity + off * (sigma == 0)[..., None, None, None]

        monkeypatch.setattr(VideoStudent, "forward", wrong)
        losses.append(float(whole(objective, ctx, data).loss))
    assert losses[0] == losses[1]


def test_continuation_is_refused_where_it_means_nothing(folder: Path) -> None:
    for changes in ([], ["objective.attention=bidirectional", "objective.sigma_floor=0"]):
        with pytest.raises(RecipeError, match="continuation needs"):
            make(folder, "sft", "objective.continuation=true", *changes)


def test_misspelt_settings_of_supervised_training_are_refused(folder: Path) -> None:
    for wrong in ("attention=casual", "levels=sampelr"):
        with pytest.raises(RecipeError):
            make(folder, "sft", f"objective.{wrong}")


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_supervised_micro_batches_add_up(attention: str) -> None:
    changes = [f"objective.attention={attention}", "objective.levels=sampler"]
    check_objective("sft", changes, promises=["micro_batches"])


# --- micro-batches ---


def experience(prompts: int, size: int) -> Experience:
    n = prompts * size
    group = torch.arange(prompts).repeat_interleave(size)
    return Experience({"x0": torch.arange(n)}, group, torch.arange(prompts), [str(k) for k in range(prompts)])


@pytest.mark.parametrize(("wanted", "pieces"), [(1, 12), (2, 6), (3, 6), (4, 3), (7, 3), (8, 2), (12, 1), (99, 1)])
def test_micro_batches_hold_whole_groups_or_parts_of_one(wanted: int, pieces: int, folder: Path) -> None:
    objective, ctx = make(folder, "sft")
    ctx.micro_batch = wanted
    found = list(objective.micro_batches(ctx, experience(3, 4), Phase()))
    assert len(found) == pieces and sum(p.weight for p in found) == pytest.approx(1.0)
    assert torch.cat([p.data["x0"] for p in found]).tolist() == list(range(12))
    for piece in found:
        assert piece.index == piece.data["x0"][0] and piece.weight == pytest.approx(len(piece.data) / 12)
        own = [int(piece.data.prompts[g]) for g in piece.data.group_index]
        assert own == (piece.data["x0"] // 4).tolist() == piece.data.text[piece.data.group_index].tolist()
