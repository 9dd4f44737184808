"""`vidalign plan` of language students: the trace beside a real step, and the parts that are counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vidalign.recipe import Recipe, load_recipe
from vidalign.workflows.plan import measure_step, plan_step

CONFIG: dict[str, Any] = dict(
    model_type="qwen3",
    vocab_size=2048,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    eos_token_id=2,
    pad_token_id=0,
)
LONGEST = 24
"""Tokens of a response: one of 2,048 at random is rarely the last one before."""


def small(name: str, *overrides: str) -> Recipe:
    """A recipe of the token world on random students; no teacher of another size is shipped."""
    init = {"config": CONFIG, "sampling": {"max_new_tokens": LONGEST}}
    changes = [f"student.init={json.dumps(init)}", "engine.precision=fp32"]
    changes += ["~student.path"] if name == "opsd" else []
    changes += ["trainer.prompts_per_step=3", "trainer.micro_batch=6"]
    return load_recipe(f"tokens/{name}", [*changes, *overrides])


@pytest.mark.parametrize("name", ["opsd", "pretrain/student"])
def test_the_trace_counts_what_a_real_step_allocates(name: str) -> None:
    recipe = small(name)
    plan = plan_step(recipe)
    real, _ = measure_step(recipe, plan)
    assert plan.peak == pytest.approx(real.peak, rel=0.1)
    assert plan.held.keys() == real.held.keys()
    for item in ("trained weights", "optimiser"):
        assert plan.held[item] == pytest.approx(real.held[item], rel=0.05)


def test_responses_are_as_long_as_they_may_be() -> None:
    """What a rollout holds beside the weights grows with them."""
    short, long = (
        plan_step(small("opsd", f"student.sampling.max_new_tokens={tokens}")) for tokens in (LONGEST, 8 * LONGEST)
    )
    held = sum(short.held.values())
    assert long.phases["rollout"] - held > 2 * (short.phases["rollout"] - held)
    assert long.phases["loss"] - held > 4 * (short.phases["loss"] - held)


def test_teacher_and_student_targets_are_items() -> None:
    plan = plan_step(load_recipe("tokens/dopd", ["objective.student_target=frozen", "engine.precision=fp32"]))
    assert plan.held["weights `reference`"] == plan.held["trained weights"]
    assert plan.held["network of `teacher`"] > 0
