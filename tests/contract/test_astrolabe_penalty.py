"""Astrolabe's penalty: its modes, the samples that it selects, the reference that it resets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from astrolabe_helpers import Given, astrolabe, judge
from objective_helpers import GROUP, accumulate, collect, network_of, nudge, whole

from vidalign.context import TrainContext
from vidalign.engine import distributed
from vidalign.engine.checkpoint import read_tensors, write_tensors
from vidalign.errors import UserError
from vidalign.objectives.astrolabe import Astrolabe
from vidalign.objectives.base import Experience, Phase
from vidalign.recipe import load_recipe
from vidalign.rewards.base import CompositeReward
from vidalign.trainer import Trainer


def test_penalty_modes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for mode in ("uniform", "none"):
        objective, ctx = astrolabe(folder, f"kl.mode={mode}", "kl.weight=0.5")
        data = collect(objective, ctx)
        nudge(network_of(ctx))
        used: list[str] = []
        plain = ctx.policies.use
        monkeypatch.setattr(ctx.policies, "use", lambda name, plain=plain, used=used: used.append(name) or plain(name))
        out = whole(objective, ctx, data)
        found[mode] = out.loss.item()
        assert ("reference" in used) == (mode == "uniform") == ("objective/kl/mean" in out.metrics)
        if mode == "uniform":
            penalty = float(out.metrics["objective/kl/mean"])
    assert penalty > 1e-4 and found["uniform"] - found["none"] == pytest.approx(0.5 * penalty, rel=1e-3)


def test_penalty_is_towards_the_reference_not_the_old_policy(folder: Path) -> None:
    objective, ctx = astrolabe(folder)
    data = collect(objective, ctx)
    nudge(network_of(ctx))
    ctx.policies.copy("current", "old")
    assert float(whole(objective, ctx, data).metrics["objective/kl/mean"]) > 1e-4
    ctx.policies.copy("current", "reference")
    assert float(whole(objective, ctx, data).metrics["objective/kl/mean"]) == 0


class Ranked(CompositeReward):
    """Two rewards whose values the test chooses; the second is the auxiliary one."""

    def __init__(self, first: list[float], second: list[float]) -> None:
        self.values = {"first": torch.tensor(first), "second": torch.tensor(second)}
        given = {name: Given(value) for name, value in self.values.items()}
        super().__init__(given, {"first": 1.0, "second": 1.0}, plugins=dict.fromkeys(given, Given.name))


UP, DOWN = [float(n) for n in range(8)], [float(-n) for n in range(8)]


def test_the_penalty_is_selective(folder: Path) -> None:
    """Ranks against each other: gaps 7, 5, 3, 1 are not negative, and the 0.9 quantile is 6.4: the last sample only,
    which the primary reward likes best and the other least."""
    weight, penalties = {}, {}
    for mode, primary in (("selective", "first"), ("selective", "second"), ("uniform", "first")):
        objective, ctx = astrolabe(folder, f"kl.mode={mode}", "kl.weight=0.5")
        objective.config.kl.primary = primary
        ctx.rewards = Ranked(UP, DOWN)
        data = collect(objective, ctx)
        nudge(network_of(ctx))
        weight[mode + primary] = data["kl_weight"].tolist()
        penalties[mode + primary] = float(whole(objective, ctx, data).metrics["objective/kl/mean"])
        single = [float(whole(objective, ctx, data.candidates(n, n + 1)).metrics["objective/kl/mean"]) for n in (0, 7)]
        parts = accumulate(objective, ctx, data, Phase(), 2)[0], accumulate(objective, ctx, data, Phase(), 64)[0]
        assert parts[0] == pytest.approx(parts[1], rel=1e-6), "micro-batches keep the mean over the chosen samples"
        if mode == "selective":
            chosen = -1 if primary == "first" else 0
            assert single[chosen + 1] == 0 and single[chosen] == pytest.approx(8 * penalties[mode + primary], rel=1e-5)
    assert weight["selectivefirst"] == [0] * 7 + [8] and weight["selectivesecond"] == [8] + [0] * 7
    assert weight["uniformfirst"] == [1] * 8 and penalties["selectivefirst"] != penalties["selectivesecond"]


def digested(objective: Astrolabe, ctx: TrainContext, scores: dict[str, torch.Tensor]) -> Experience:
    """What the objective makes of the scores ``[N]`` of this process' candidates."""
    count = len(next(iter(scores.values())))
    x0, group = torch.zeros(count, 1), torch.arange(count) // GROUP
    return objective.digest(ctx, Experience({"x0": x0}, group, None, ["a"] * (count // GROUP), scores=scores))


def test_selection_is_over_all_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with one group each choose what one process with both groups chooses."""
    first, second = [3.0, 9.0, 4.0, 1.0, 5.0, 2.0, 6.0, 8.0], [2.0, 7.0, 1.0, 8.0, 2.5, 8.5, 4.0, 5.0]
    objective, ctx = astrolabe(folder, "kl.mode=selective")
    ctx.rewards = Ranked(first, second)
    both = digested(objective, ctx, ctx.rewards.values)
    assert 0 < (both["kl_weight"] > 0).sum() < 4
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts, selected = [], []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        whole_batch = {tuple(v[rank * GROUP :][:GROUP].tolist()): v for v in ctx.rewards.values.values()}
        monkeypatch.setattr(distributed, "all_gather", lambda t, known=whole_batch: known[tuple(t.tolist())])
        again = Astrolabe(objective.config)
        own = digested(again, ctx, {name: v[rank * GROUP :][:GROUP] for name, v in ctx.rewards.values.items()})
        parts.append(own)
        selected.append(own.metrics["objective/selected/mean"])
        assert again.state_dict() == objective.state_dict()
    for name in ("reward_weight", "signal", "kl_weight"):
        assert torch.equal(torch.cat([part[name] for part in parts]), both[name])
    assert sum(selected) / 2 == both.metrics["objective/selected/mean"]


def test_selection_needs_a_second_reward(folder: Path) -> None:
    objective, ctx = astrolabe(folder, "kl.mode=selective")
    with pytest.raises(UserError, match="needs two rewards or more"):
        judge(objective, ctx, torch.rand(8))
    objective, ctx = astrolabe(folder, "kl.mode=selective")
    objective.config.kl.primary = "frist"
    ctx.rewards = Ranked(UP, DOWN)
    with pytest.raises(UserError, match="'frist' is not among the rewards.*first"):
        collect(objective, ctx)


def steps(objective: Astrolabe, ctx: TrainContext, count: int) -> list[bool]:
    """Whether the reference was reset in each of some steps in which the weights move."""
    found, key = [], "transformer.proj_out.weight"
    for _ in range(count):
        data = collect(objective, ctx)
        nudge(network_of(ctx), 0.005)
        parts = [whole(objective, ctx, piece).sums for piece in (data.candidates(0, 4), data.candidates(4, 8))]
        ctx.sums = {name: value + parts[1][name] for name, value in parts[0].items()}
        objective.after_step(ctx)
        found.append(torch.equal(ctx.policies.weights("reference")[key], ctx.policies.weights("current")[key]))
        ctx.step += 1
    return found


def test_an_old_reference_is_replaced(folder: Path) -> None:
    objective, ctx = astrolabe(folder, "kl.reset_every=3")
    assert steps(objective, ctx, 7) == [False, False, True, False, False, True, False]
    assert steps(*astrolabe(folder), 3) == [False, False, False]
    assert steps(*astrolabe(folder, "kl.mode=none"), 2) == [False, False]


@pytest.mark.parametrize("space", ["x0", "velocity"])
def test_a_drifted_reference_is_replaced(space: str, folder: Path) -> None:
    """The drift of the first step over the variance of the target, both computed by hand, is the limit."""
    objective, ctx = astrolabe(folder, f"space={space}")
    data = collect(objective, ctx)
    nudge(network_of(ctx), 0.005)
    drift = float(whole(objective, ctx, data).metrics["objective/kl/mean"])
    variance = float(data["x0"].flatten(1).var(1).mean()) + (1.0 if space == "velocity" else 0.0)
    for factor, expected in ((0.9, True), (1.1, False)):
        objective, ctx = astrolabe(folder, f"space={space}", f"kl.reset_drift={factor * drift / variance}")
        assert steps(objective, ctx, 1) == [expected]


def test_the_drift_is_measured_by_a_running_variance(folder: Path) -> None:
    """Variances 1 and 100 in turn: 10.9, of which half is the limit; half of the last one would be 50."""
    found, key = [], "transformer.proj_out.weight"
    for drift in (5.4, 5.5):
        objective, ctx = astrolabe(folder, "kl.reset_drift=0.5")
        nudge(network_of(ctx), 0.005)
        for penalty, variance in ((0.0, 1.0), (drift, 100.0)):
            sums = {"penalty": 2 * penalty, "penalised": 2.0, "variance": 4 * variance, "samples": 4.0}
            ctx.sums = {name: torch.tensor(value) for name, value in sums.items()}
            objective.after_step(ctx)
        assert objective.kl.state.variance == pytest.approx(10.9)
        found.append(torch.equal(ctx.policies.weights("reference")[key], ctx.policies.weights("current")[key]))
    assert found == [False, True]


def test_sums_are_those_of_all_micro_batches_and_updates(folder: Path, tmp_path: Path) -> None:
    astrolabe(folder)  # writes the recipe
    overrides = ["trainer.prompts_per_step=2", "trainer.micro_batch=2", "objective.inner_updates=2"]
    trainer = Trainer(load_recipe(folder / "astrolabe.yaml", overrides), tmp_path / "run")
    for _ in range(2):
        trainer.train_step()
        assert float(trainer.ctx.sums["samples"]) == float(trainer.ctx.sums["penalised"]) == 2 * 2 * GROUP


def test_selection_and_reset_survive_a_restart(folder: Path, tmp_path: Path) -> None:
    settings = ("kl.mode=selective", "kl.reset_every=3")
    objective, ctx = astrolabe(folder, *settings)
    steps(objective, ctx, 4)
    state = objective.state_dict()
    assert state["age"] == 1 and len(state["gaps"]) == 4 and state["rho"] != 0.1 and state["variance"] > 0
    again, _ = astrolabe(folder, *settings)
    write_tensors(tmp_path / "state.pt", {"objective": state})
    again.load_state_dict(read_tensors(tmp_path / "state.pt")["objective"])
    assert again.state_dict() == state
    _, fresh = astrolabe(folder, *settings)
    fresh.step = 4
    assert steps(again, fresh, 3) == steps(objective, ctx, 3) == [False, True, False]
