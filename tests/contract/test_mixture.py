"""Mixtures: one objective alone is itself bit for bit, weights scale gradients, objectives come and go by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from objective_helpers import GROUP, PROMPTS, collect, make, network_of, nudge, sections
from torch import Tensor

from vidalign.build import build_context, build_objective, planned_updates
from vidalign.context import TrainContext
from vidalign.errors import RecipeError
from vidalign.objectives.base import Experience, Objective, Phase
from vidalign.objectives.mixture import MixedBatch, MixedExperience, Mixture
from vidalign.recipe import load_recipe
from vidalign.recipe.explain import render
from vidalign.tracking.jsonl import read_history
from vidalign.tracking.tracker import Tracker
from vidalign.trainer import Trainer

PIECES = "trainer.micro_batch=4"
ASTROLABE = {"name": "astrolabe", "group_size": GROUP}


def recipe_file(folder: Path, objectives: dict[str, Any], base: str = "astrolabe") -> Path:
    """The recipe of `base`, with these objectives instead, and whatever networks they need."""
    content = yaml.safe_load(sections(folder, base))
    del content["objective"]
    content["objectives"] = objectives
    content["rewards"] = {"text_alignment": 1.0, "motion_quality": 1.0, "visual_quality": 1.0}
    content["trainer"] = {"steps": 4, "prompts_per_step": 2, "save_every": 2, "micro_batch": 4}
    content["evaluation"] = {"count": 1, "frames": 3}
    file = folder / "mixture.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file


def mixed(folder: Path, objectives: dict[str, Any], base: str = "astrolabe") -> tuple[Mixture, TrainContext]:
    recipe = load_recipe(recipe_file(folder, objectives, base))
    objective = build_objective(recipe)
    assert isinstance(objective, Mixture)
    return objective, build_context(recipe, objective, Tracker.silent())


def gradients(objective: Objective, ctx: TrainContext) -> dict[str, Tensor]:
    """Gradient of every role in the first update of a step, by role and parameter."""
    data, found = collect(objective, ctx, PROMPTS), {}
    for role in ctx.roles.engines:
        nudge(network_of(ctx, role))
    for phase in objective.phases(ctx.step):
        with ctx.roles.phase(phase.role) as engine:
            for piece in objective.micro_batches(ctx, data, phase):
                engine.backward(objective.loss(ctx, piece, phase).loss * piece.weight)
            for name, p in engine.named_trainable().items():
                if p.grad is not None:
                    found[f"{phase.role}.{name}"] = p.grad.clone()
    return found


def same(found: dict[str, Tensor], expected: dict[str, Tensor], *, exact: bool = False) -> bool:
    scale = {name: float(value.abs().max()) for name, value in expected.items()}
    limit = {name: 0.0 if exact else 1e-5 * scale[name] + 1e-9 for name in expected}
    return found.keys() == expected.keys() and all(
        float((found[name] - expected[name]).abs().max()) <= limit[name] for name in expected
    )


def test_one_objective_is_itself_through_training(folder: Path, tmp_path: Path) -> None:
    """Weights after four steps, checkpoints and metrics in between, are equal bit for bit; a resumed run too."""
    settings = {"group_size": GROUP, "kl": {"mode": "selective", "reset_every": 2}, "old_decay": 0.5}
    file = recipe_file(folder, {"astrolabe": settings})
    content = yaml.safe_load(file.read_text())
    content["objective"] = {"name": "astrolabe", **content.pop("objectives")["astrolabe"]}
    alone = folder / "alone.yaml"
    alone.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    weights, logs = [], []
    for recipe, run in ((load_recipe(alone), tmp_path / "alone"), (load_recipe(file), tmp_path / "mixture")):
        trainer = Trainer(recipe, run)
        trainer.fit()
        weights.append(trainer.ctx.policies.weights("current"))
        logs.append(read_history(run / "metrics.jsonl"))
    again = Trainer(load_recipe(tmp_path / "mixture" / "recipe.yaml", ["trainer.steps=2"]), tmp_path / "resumed")
    again.fit()
    resumed = Trainer(load_recipe(file), tmp_path / "resumed", resume=True)
    resumed.fit()
    weights.append(resumed.ctx.policies.weights("current"))
    for other in weights[1:]:
        assert all(torch.equal(other[name], value) for name, value in weights[0].items())
    for name in ("reward/mean", "objective/loss/mean", "health/grad_norm/mean"):
        mixture_name = name.replace("objective/", "objective/astrolabe_")
        assert logs[0][name] == logs[1][mixture_name], name


@pytest.mark.parametrize("name", ["astrolabe", "sft", "dmd"])
def test_one_objective_has_its_own_gradients(name: str, folder: Path) -> None:
    settings = {"group_size": GROUP} if name == "astrolabe" else {}
    expected = gradients(*make(folder, name, PIECES))
    assert same(gradients(*mixed(folder, {name: settings}, name)), expected, exact=True)


def test_weights_scale_gradients(folder: Path) -> None:
    """grad(2 A + 3 B) = 2 grad A + 3 grad B, of objectives that differ in window and step."""
    other = {"name": "astrolabe", "group_size": GROUP, "beta": 0.7, "clip": {"chunks": 2}}
    first = gradients(*mixed(folder, {"a": ASTROLABE}))
    second = gradients(*mixed(folder, {"b": other}))
    both = gradients(*mixed(folder, {"a": {**ASTROLABE, "weight": 2.0}, "b": {**other, "weight": 3.0}}))
    assert same(both, {name: 2 * first[name] + 3 * second[name] for name in first}) and not same(first, second)


def test_a_further_role_is_trained_by_its_objective(folder: Path) -> None:
    """dmd trains a fake score before the student; the weight of dmd is the student's alone."""
    settings = {"dmd": {"weight": 0.5}, "astrolabe": {"group_size": GROUP}}
    objective, ctx = mixed(folder, settings, "dmd")
    assert [phase.role for phase in objective.phases(ctx.step)] == ["fake_score", "student"]
    found, alone, nft = (
        gradients(objective, ctx),
        gradients(*make(folder, "dmd", PIECES)),
        gradients(*make(folder, "astrolabe", PIECES)),
    )
    expected = {
        name: 0.5 * value + nft[name] if name.startswith("student.") else value for name, value in alone.items()
    }
    assert same(found, expected)


def labels(objective: Mixture, ctx: TrainContext, data: Experience) -> set[str]:
    """Whose micro-batches the student's phase has."""
    found = list(objective.micro_batches(ctx, data, Phase()))
    assert all(isinstance(piece, MixedBatch) for piece in found)
    return {piece.label for piece in found if isinstance(piece, MixedBatch)}


def test_objectives_come_and_go(folder: Path) -> None:
    """early: steps 0 and 1; late: from step 1 on. A late one begins with old as the student is by then, and leaves the
    early one's alone."""
    objective, ctx = mixed(
        folder, {"early": {**ASTROLABE, "stop": 2, "old_decay": 1.0}, "late": {**ASTROLABE, "start": 1}}
    )
    active, equal, key = [], [], "transformer.proj_out.weight"
    for ctx.step in range(4):
        data = collect(objective, ctx)
        assert isinstance(data, MixedExperience) and list(data.parts) == objective.active
        active.append(objective.active)
        now = ctx.policies.weights("current")[key]
        equal.append(tuple(torch.equal(ctx.policies.weights(name)[key], now) for name in ("old", "old_2")))
        assert labels(objective, ctx, data) == set(objective.active)
        nudge(network_of(ctx), 0.001)
    assert active == [["early"], ["early", "late"], ["late"], ["late"]]
    assert equal == [(True, True), (False, True), (False, False), (False, False)]


def test_each_objective_moves_its_own_weight_sets(folder: Path, tmp_path: Path) -> None:
    """One keeps its old policy, one lets it follow, one decays it and resets its reference: none moves another's."""
    settings = {
        "kept": {**ASTROLABE, "old_decay": 1.0},
        "resets": {**ASTROLABE, "old_decay": 0.5, "kl": {"reset_every": 1}},
        "follows": {**ASTROLABE, "old_decay": 0.0},
    }
    trainer = Trainer(load_recipe(recipe_file(folder, settings), ["trainer.learning_rate=0.01"]), tmp_path / "run")
    policies, key = trainer.ctx.policies, "transformer.proj_out.weight"
    start = policies.weights("current")[key]
    trainer.train_step()
    now = policies.weights("current")[key]
    expected = {"old": start, "old_2": (start + now) / 2, "old_3": now, "reference": start, "reference_2": now}
    assert set(policies.names) == set(expected) and not torch.equal(now, start)
    for name, value in expected.items():
        torch.testing.assert_close(policies.weights(name)[key], value, rtol=0, atol=1e-12)


def test_each_objective_gets_its_own_sums(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, ctx = mixed(folder, {"a": ASTROLABE, "b": {**ASTROLABE, "group_size": 2}})
    data, found = collect(objective, ctx), {}
    with ctx.roles.phase("student"):
        for piece in objective.micro_batches(ctx, data, Phase()):
            for name, value in objective.loss(ctx, piece, Phase()).sums.items():
                ctx.sums[name] = ctx.sums.get(name, torch.tensor(0.0)) + value
    everyone = dict(ctx.sums)
    for label, part in objective.objectives.items():
        monkeypatch.setattr(part, "after_step", lambda ctx, label=label: found.update({label: ctx.sums}))
    objective.after_step(ctx)
    assert {label: float(sums["samples"]) for label, sums in found.items()} == {"a": 8, "b": 4}
    assert ctx.sums == everyone


def test_weight_sets_of_one_rule_are_held_once(folder: Path) -> None:
    """The student after every step, and the initial student."""
    copo = {"name": "ar_copo", "group_size": GROUP}
    settings = {
        "semi": {**copo, "buffer": "a folder"},
        "on": copo,
        "grpo": {"name": "flow_grpo", "group_size": GROUP},
        "nft": {"name": "diffusion_nft", "group_size": GROUP},
        "rl": {**ASTROLABE, "old_decay": 0.0},
    }
    objective = build_objective(load_recipe(recipe_file(folder, settings)))
    assert isinstance(objective, Mixture)
    assert {label: sets["old"] for label, sets in objective.sets.items()} == {
        "semi": "old",
        "on": "old_2",
        "grpo": "old_2",
        "nft": "old_3",
        "rl": "old_2",
    }
    assert objective.sets["nft"]["reference"] == objective.sets["rl"]["reference"] == "reference"


def test_a_late_trust_region_lies_around_the_initial_student(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copo = {"name": "ar_copo", "group_size": GROUP, "buffer": "a folder", "start": 1}
    objective, ctx = mixed(folder, {"rl": ASTROLABE, "semi": copo})
    found, start, key = [], ctx.policies.weights("current"), "transformer.proj_out.weight"

    def collected(ctx: TrainContext, batch: Any) -> Experience:
        found.append(ctx.policies.weights("old")[key])
        return Experience({}, torch.empty(0), None, batch.prompts)

    monkeypatch.setattr(objective.objectives["semi"], "collect", collected)
    monkeypatch.setattr(objective.objectives["semi"], "digest", lambda ctx, experience: experience)
    for ctx.step in range(2):
        collect(objective, ctx)
        objective.after_step(ctx)
        nudge(network_of(ctx), 0.001)
    assert len(found) == 1 and torch.equal(found[0], start[key])


def test_learning_rates_fall_over_the_updates_that_are_made(folder: Path, tmp_path: Path) -> None:
    """rl: three updates in steps 0 and 1; dmd: its student and fake score from step 1 on; the last rates are equal."""
    settings = {
        "rl": {**ASTROLABE, "inner_updates": 3, "stop": 2},
        "dmd": {"start": 1, "fake_score": {"updates": 2}},
    }
    recipe = load_recipe(recipe_file(folder, settings, "dmd"), ["trainer.schedule=cosine"])
    planned = planned_updates(build_objective(recipe), [], 4)
    assert planned == {"student": 3 + 3 + 1 + 1, "fake_score": 3 * 2}
    trainer = Trainer(recipe, tmp_path / "run")
    made = dict.fromkeys(planned, 0)
    for role, engine in trainer.ctx.roles.engines.items():
        step = engine.step

        def counted(role: str = role, step: Any = step) -> float:
            made[role] += 1
            return step()

        engine.step = counted  # type: ignore[method-assign]
    trainer.fit()
    assert made == planned
    assert all(engine.learning_rate == pytest.approx(0) for engine in trainer.ctx.roles.engines.values())


def test_an_objective_leaves_the_updates_that_it_does_not_ask_for(folder: Path) -> None:
    objective, ctx = mixed(folder, {"once": ASTROLABE, "thrice": {**ASTROLABE, "inner_updates": 3}})
    data, (phase,) = collect(objective, ctx), objective.phases(ctx.step)
    assert phase.updates == 3
    for ctx.update, expected in enumerate([{"once", "thrice"}, {"thrice"}, {"thrice"}]):
        assert labels(objective, ctx, data) == expected


def test_objectives_have_rewards_of_their_own(folder: Path) -> None:
    chosen = {"text_alignment": 2.0}
    objective, ctx = mixed(folder, {"a": {**ASTROLABE, "rewards": chosen}, "b": ASTROLABE})
    everyone = ctx.rewards
    data = collect(objective, ctx)
    assert isinstance(data, MixedExperience) and ctx.rewards is everyone
    names = {
        label: {name.split("/")[1] for name in part.metrics if name.startswith("reward/") and name.count("/") == 2}
        for label, part in data.parts.items()
    }
    assert names == {"a": {"text_alignment"}, "b": {"text_alignment", "motion_quality", "visual_quality"}}
    assert "objective/a_advantage/max" in data.metrics and "health/motion/mean" in data.metrics
    assert torch.equal(data.parts["a"]["x0"], data.parts["b"]["x0"])
    assert not torch.equal(data.parts["a"]["reward_weight"], data.parts["b"]["reward_weight"])


def test_state_is_kept_by_label(folder: Path) -> None:
    settings = {"a": {**ASTROLABE, "kl": {"mode": "selective"}}, "b": ASTROLABE}
    objective, ctx = mixed(folder, settings)
    collect(objective, ctx)
    state = objective.state_dict()
    assert len(state["a"]["gaps"]) == 1 and state["b"]["gaps"] == []
    again, _ = mixed(folder, settings)
    again.load_state_dict(state)
    assert again.state_dict() == state


@pytest.mark.parametrize(
    ("objectives", "told"),
    [
        ({"a": {**ASTROLABE, "weight": 0}}, "weight must be positive"),
        ({"a": {**ASTROLABE, "start": 2, "stop": 2}}, "stop must come after start"),
        ({"a": {**ASTROLABE, "start": 1}}, "no objective takes part in step 0"),
        ({"a": {**ASTROLABE, "stop": 3}}, "no objective takes part in step 3"),
        ({"a": {**ASTROLABE, "rewards": {"beauty": 1.0}}}, "reward 'beauty' that the recipe does not name"),
        ({"a": {**ASTROLABE, "wieght": 2}}, "unknown key 'objectives.a.wieght'"),
        ({"a": {**ASTROLABE, "group_size": 1}}, "a group size of 1 is too small for 'astrolabe'"),
        ({"astrolab": {}}, "'astrolab' is not among the objectives.*did you mean 'astrolabe'"),
        ({"a": ASTROLABE, "b": {"name": "dmd"}}, "there is no teacher"),
        ({}, "objectives must be a mapping"),
    ],
)
def test_impossible_mixtures_are_refused(objectives: dict[str, Any], told: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=f"(?s){told}") as caught:
        load_recipe(recipe_file(folder, objectives))
    assert len(caught.value.problems) == 1, "one mistake is reported once"


def test_one_or_several_not_both(folder: Path) -> None:
    file = recipe_file(folder, {"a": ASTROLABE})
    with pytest.raises(RecipeError, match="both objective and objectives"):
        load_recipe(file, ["objective.name=astrolabe"])


def test_a_mixture_is_written_and_read_back(folder: Path) -> None:
    settings = {"a": {**ASTROLABE, "weight": 2.0, "stop": 3}, "dmd": {"start": 3, "shift": 3.0}}
    recipe = load_recipe(recipe_file(folder, settings, "dmd"), ["objectives.a.weight=0.5"])
    copy = folder / "copy.yaml"
    copy.write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe(copy)
    assert again.objectives == recipe.objectives and again.hash == recipe.hash
    assert again.objectives["a"].weight == 0.5 and again.objectives["dmd"].config.shift == 3.0
    explained = folder / "explained.yaml"
    explained.write_text(render(recipe, explain=True), encoding="utf-8")
    assert load_recipe(explained).hash == recipe.hash
    assert "# Factor of its loss." in explained.read_text()
