"""Every objective says beforehand what it spends: the counts of real steps on tiny networks equal the prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from objective_helpers import GROUP, sections

from vidalign import registry
from vidalign.bench.budget import Budget
from vidalign.bench.cost import predict, step_costs, steps_within
from vidalign.cost import Cost, StepSizes
from vidalign.errors import UserError
from vidalign.objectives.base import Objective
from vidalign.recipe import Recipe, load_recipe
from vidalign.students.video.rollout import RolloutPlan
from vidalign.students.video.spec import Sampler
from vidalign.testing import check_objective
from vidalign.testing.trial import finished
from vidalign.trainer import Trainer
from vidalign.workflows.collect import collect_buffer

STEPS = 3
VARIANTS = [
    ("astrolabe", ("objective.kl.mode=none", "objective.clip.chunks=2")),
    ("astrolabe", ("objective.old_decay=0", "objective.inner_updates=2", "objective.clip.chunks=0")),
    ("afd", ("objective.kl_weight=0", "objective.updates=2", "objective.old_decay=0.5")),
    ("afd", ("discriminator.teacher_clips=3", "discriminator.updates=2", "discriminator.warm_up.max_steps=0")),
    ("afd", ("discriminator.warm_up.max_steps=3", "discriminator.warm_up.rollouts=2")),
    ("sft", ("objective.attention=bidirectional",)),
    ("dmd", ("objective.fake_score.updates=2", "trainer.micro_batch=1")),
    (
        "astrolabe",
        ("objective.kl={mode: selective, reset_every: 2}", "objective.old_decay=0", "objective.clip.score=video"),
    ),
    ("astrolabe", ("objective.kl.mode=selective", "objective.inner_updates=2", "objective.clip.chunks=1")),
    ("ar_copo", ("objective.anchors=2", "objective.inner_updates=3", "objective.pivots=1", "objective.neighbours=all")),
    ("flow_grpo", ("objective.inner_updates=2",)),
    ("diffusion_nft", ("objective.kl_weight=0", "objective.inner_updates=2")),
    ("dopd_video", ("objective.privilege=none", "objective.group_size=2", "rewards={motion_quality: 1.0}")),
    ("dopd_video", ("objective.privilege=future", "objective.privileged_share=0", "trainer.micro_batch=1")),
    ("dopd_video", ("objective.privilege=future", "objective.privileged_share=1")),
]


def recipe_of(folder: Path, name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    file = folder / f"{name}.yaml"
    file.write_text(sections(folder, name), encoding="utf-8")
    small = ["trainer.prompts_per_step=2", "trainer.micro_batch=4", f"trainer.steps={STEPS}"]
    return load_recipe(file, [*small, *overrides])


def counted(recipe: Recipe, run: Path) -> Cost:
    return finished(Trainer(recipe, run, callbacks=[Budget()])).cost


@pytest.mark.parametrize(("name", "overrides"), VARIANTS)
def test_prediction_is_what_is_counted(name: str, overrides: tuple[str, ...], folder: Path) -> None:
    """With settings that change the price; the defaults are tried with the other promises of every objective."""
    check_objective(name, overrides, promises=["cost"])


def same(found: Cost, expected: Cost) -> None:
    assert found.forwards > 0
    for field in ("forwards", "reward_calls", "teacher_calls"):
        assert getattr(found, field) == pytest.approx(getattr(expected, field), rel=0.01), field


def test_groups_of_a_buffer_cost_clean_passes_instead_of_rollouts(folder: Path, tmp_path: Path) -> None:
    collect_buffer(recipe_of(folder, "ar_copo"), tmp_path / "buffer", groups=12)
    recipe = recipe_of(folder, "ar_copo", (f"objective.buffer={tmp_path}/buffer", "seed=3"))
    costs = [cost for _, cost in zip(range(40), step_costs(recipe), strict=False)]
    loss = 2 * 2 * 4 * 4 * 2  # policies, updates, anchors, denoising steps, prompts
    assert {cost.forwards - loss for cost in costs} <= {0, 2, 4} and len({cost.forwards for cost in costs}) > 1
    assert predict(recipe).reward_calls == 0
    same(counted(recipe, tmp_path / "run"), predict(recipe))


def test_a_mixture_costs_what_takes_part(folder: Path, tmp_path: Path) -> None:
    """Each objective with its own rewards and its own number of updates, from its first step to its last."""
    content = yaml.safe_load(sections(folder, "dmd"))
    del content["objective"]
    content["rewards"] = {"text_alignment": 1.0, "motion_quality": 1.0, "visual_quality": 1.0}
    content["objectives"] = {
        "dmd": {"stop": 2},
        "flow": {"name": "flow_grpo", "group_size": GROUP, "start": 1, "rewards": {"motion_quality": 1.0}},
        "copo": {"name": "ar_copo", "group_size": GROUP, "start": 2, "inner_updates": 3},
    }
    file = folder / "mixture.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    recipe = load_recipe(file, ["trainer.prompts_per_step=2", "trainer.micro_batch=4", f"trainer.steps={STEPS}"])
    first, second, third = (cost for _, cost in zip(range(3), step_costs(recipe), strict=False))
    clips = 2 * GROUP
    assert [cost.teacher_calls for cost in (first, second, third)] == [2, 2, 0]
    assert [cost.reward_calls for cost in (first, second, third)] == [0, clips, clips * (1 + 3)]
    same(counted(recipe, tmp_path), predict(recipe))


def test_a_step_of_dmd_by_hand(folder: Path) -> None:
    """3 chunks of 4 steps with 2 clean passes: 14 a rollout; 5 fake-score updates and 1 comparison: 18; student: 5."""
    assert next(step_costs(recipe_of(folder, "dmd"))) == Cost(forwards=2 * (14 + 18 + 5), teacher_calls=2)


def test_rollout_counts_the_prefix_once() -> None:
    sizes = StepSizes(
        0, 0, prompts=2, chunks=4, reward_weights={}, sampler=Sampler([1.0, 0.5], first_sigmas=[1.0, 0.7, 0.4])
    )
    plan = RolloutPlan(prefix=2, branch=1, suffix=1, group_size=5)
    # first chunk 3 + 1, second 2 + 1, third (2 + 1) x 5, last 2 x 5 without a clean pass
    assert sizes.rollout(plan) == 2 * (4 + 3 + 15 + 10)
    assert [sizes.teacher_forcing(n) for n in (1, 2, 4)] == [1, 3, 7]


def test_a_budget_buys_the_most_steps_that_fit(folder: Path) -> None:
    recipe = recipe_of(folder, "astrolabe")  # forks at random: steps differ in price
    costs = [cost for _, cost in zip(range(40), step_costs(recipe), strict=False)]
    assert len({cost.forwards for cost in costs}) > 1
    for currency, price in (("forwards", lambda c: c.forwards), ("calls", lambda c: c.reward_calls + c.teacher_calls)):
        for amount in (price(costs[0]), 7.5 * price(costs[0]), 20 * price(costs[0]) + 1):
            steps = steps_within(recipe, currency, amount)
            assert sum(map(price, costs[:steps])) <= amount < sum(map(price, costs[: steps + 1]))


def test_budgets_that_buy_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(folder, "astrolabe")
    with pytest.raises(UserError, match="does not pay for one step"):
        steps_within(recipe, "forwards", 3)
    monkeypatch.setattr(registry.get("objectives", "astrolabe"), "cost", lambda self, sizes: Cost(forwards=1))
    with pytest.raises(UserError, match="spends no calls"):
        steps_within(recipe, "calls", 100)


def test_an_objective_without_cost_is_told_what_to_do() -> None:
    with pytest.raises(UserError, match="does not say what a step costs.*adding_an_objective"):
        Objective(None).cost(StepSizes(0, 0, 1, 1, {}, Sampler([1.0])))
