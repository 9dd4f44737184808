"""Models that do more to their logits than project: losses and rollouts see what the model itself computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from language_helpers import TEXT, generators, make

from vidalign.data.examples import Example
from vidalign.errors import UserError
from vidalign.losses.projected import projected_cross_entropy
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import LanguageSpec
from vidalign.students.scaled_logits import SCALES

CONFIGS: dict[str, dict[str, Any]] = {
    "cohere": {**TEXT, "logit_scale": 0.25},
    "cohere2": {**TEXT, "logit_scale": 0.25, "sliding_window": 8},
    "falcon_h1": dict(
        **TEXT,
        head_dim=8,
        lm_head_multiplier=0.3,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
    ),
    "gemma2": {**TEXT, "head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 8},
    "granite": {**TEXT, "logits_scaling": 8.0},
    "granitemoe": {**TEXT, "logits_scaling": 8.0, "num_local_experts": 2, "num_experts_per_tok": 1},
}
EXAMPLES = [Example("chain : 7 | 1 : plus 5"), Example("walk : p q | 3 4 | left")]


def tiny(kind: str) -> LanguageStudent:
    """In fp32: some of them have parts that compute in nothing wider."""
    spec = LanguageSpec.from_dict({"config": {"model_type": kind, **CONFIGS[kind]}, "sampling": {"max_new_tokens": 12}})
    student = LanguageStudent.from_spec(spec)
    with torch.no_grad():
        student.head_weight.mul_(40.0)
    return student.requires_grad_(False)


def test_all_of_them_are_tested() -> None:
    assert CONFIGS.keys() == SCALES.keys()


@pytest.mark.parametrize("kind", CONFIGS)
def test_projected_states_are_the_logits_of_the_model(kind: str) -> None:
    student = tiny(kind)
    batch = student.prompts(EXAMPLES[:1])
    logits = student.model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    hidden = student.hidden(batch.ids, batch.mask)
    torch.testing.assert_close(student.project(hidden), logits, rtol=0, atol=2e-5)
    assert (student.lm_head(hidden) - logits).abs().max() > 0.01, "a plain projection would be something else"


@pytest.mark.parametrize("kind", CONFIGS)
def test_rollouts_are_scored_as_they_were_drawn(kind: str) -> None:
    student = tiny(kind)
    rollout = student.generate(student.prompts(EXAMPLES), generators(0, 1))
    assert rollout.logprobs is not None
    composed = student.compose(EXAMPLES, rollout.response_ids, rollout.response)
    torch.testing.assert_close(student.logprobs(composed), rollout.logprobs, rtol=0, atol=3e-5, check_dtype=False)
    hidden = student.response_hidden(composed)[composed.response]
    losses, _ = projected_cross_entropy(hidden, student.project, composed.response_ids[composed.response])
    expected = -rollout.logprobs[rollout.response]
    torch.testing.assert_close(losses, expected, rtol=0, atol=3e-5, check_dtype=False)


def test_attention_that_fp64_would_spoil_is_refused() -> None:
    with pytest.raises(UserError, match="'gemma2' do not compute in fp64 - engine.precision"):
        tiny("gemma2").double()


def test_a_family_that_uses_the_same_entry_in_another_way_is_refused() -> None:
    """HyperCLOVA X multiplies by what Granite divides by."""
    config = {"model_type": "hyperclovax", **TEXT, "logits_scaling": 8.0}
    with pytest.raises(UserError, match="'hyperclovax' are not supported .* logits_scaling .* granite"):
        make(config=config)
