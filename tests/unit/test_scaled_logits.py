"""Models that do more to their logits than project: losses and rollouts see what the model itself computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from language_helpers import TEXT, generators, make

from vidalign.data.examples import Example
from vidalign.errors import UserError
from vidalign.losses.projected import Toward, Written
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import LanguageSpec
from vidalign.students.scaled_logits import FACTORS

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
    assert CONFIGS.keys() == FACTORS.keys()


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


@pytest.mark.parametrize("kind", CONFIGS)
def test_losses_are_those_of_the_model_s_own_logits(kind: str) -> None:
    """Towards written tokens, and towards a target by the student's own head."""
    student = tiny(kind)
    batch = student.prompts(EXAMPLES[:1])
    hidden = student.hidden(batch.ids, batch.mask)[0].requires_grad_()
    logits = student.model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits[0]
    count = len(hidden)
    rows, even, tokens = torch.arange(count), torch.full((count,), 1.0 / count), torch.arange(count) + 9
    found = student.distil(hidden, [Written(rows, even, tokens)])
    expected = torch.nn.functional.cross_entropy(logits, tokens)
    torch.testing.assert_close(found.total, expected, rtol=1e-4, atol=1e-5)
    other = hidden.detach().flip(0)
    found = student.distil(hidden, [Toward(rows, even, other, None)])
    ours, theirs = student.project(hidden), student.project(other)
    losses = (ours.softmax(-1) * (ours.log_softmax(-1) - theirs.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(found.total, losses.mean(), rtol=1e-4, atol=1e-5)
    (mine,), (reference,) = (torch.autograd.grad(loss, hidden) for loss in (found.total, losses.mean()))
    torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-6)


def test_attention_that_fp64_would_spoil_is_refused() -> None:
    config = {"model_type": "gemma2", **TEXT, "head_dim": 8, "final_logit_softcapping": None, "sliding_window": 8}
    with pytest.raises(UserError, match="'gemma2' do not compute in fp64 - engine.precision"):
        make(config=config)


def test_capped_logits_are_refused() -> None:
    config = {"model_type": "gemma2", **TEXT, "head_dim": 8}
    with pytest.raises(UserError, match="'gemma2' are not supported .* final_logit_softcapping"):
        make(config=config)


def test_a_family_that_uses_the_same_entry_in_another_way_is_refused() -> None:
    """HyperCLOVA X multiplies by what Granite divides by."""
    config = {"model_type": "hyperclovax", **TEXT, "logits_scaling": 8.0}
    with pytest.raises(UserError, match="'hyperclovax' are not supported .* logits_scaling .* granite"):
        make(config=config)
