"""The head of a language student apart from its model: copied, in a module of its own, in the precision of a call."""

from __future__ import annotations

import pytest
import torch
from language_helpers import generators, make

from vidalign.data.examples import Example
from vidalign.engine.base import Dispatch, View, set_precision
from vidalign.engine.config import AdapterConfig
from vidalign.engine.policies import Policies
from vidalign.losses.projected import Written

EXAMPLES = [Example("1 + 1"), Example("12 + 34")]


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_a_copied_head_is_the_head_of_its_time(name: str) -> None:
    """It projects as the head does, with an adapter on it too, and does not follow the weights."""
    student = make(name).double()
    Policies(student, (), AdapterConfig(rank=2, alpha=4, targets=["*"]))
    with torch.no_grad():
        for key, parameter in student.named_parameters():
            if "lora_B" in key:
                parameter.uniform_(-0.1, 0.1)
    hidden = torch.randn(5, 32, dtype=torch.float64)
    head, expected = student.copied_head(), student.project(hidden)
    torch.testing.assert_close(head(hidden), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        student.head_weight.add_(1.0)
    assert not torch.allclose(student.project(hidden), expected)
    torch.testing.assert_close(head(hidden), expected, rtol=1e-12, atol=1e-12)


def test_the_module_of_the_losses_has_no_weights() -> None:
    """It would be saved, trained or adapted else; the gradient goes to the head itself."""
    student = make("llama").requires_grad_(True)
    assert not list(student.losses.parameters()) and not any(key.startswith("losses") for key in student.state_dict())
    rows = torch.arange(3)
    part = Written(rows, torch.ones(3) / 3, torch.tensor([4, 5, 6]))
    hidden = torch.randn(3, 32, dtype=student.head_weight.dtype)
    (found,) = torch.autograd.grad(student.distil(hidden, [part]).total, student.head_weight)
    wanted = torch.nn.functional.cross_entropy(student.project(hidden), part.tokens)
    (expected,) = torch.autograd.grad(wanted, student.head_weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_a_sampler_keeps_the_precision_of_the_call() -> None:
    """With frozen weights in bf16 it answers outside of that call as `generate` does inside."""
    student = make("llama").float()
    Policies(student, (), AdapterConfig(rank=2, alpha=4))
    set_precision(student, "bf16")
    view = View(student, Dispatch(student, "bf16"))
    answers = view.sampler(temperature=1.0)(EXAMPLES, generators(0, 1))
    assert answers == student.chat.decode(*_of(view.generate(view.prompts(EXAMPLES), generators(0, 1))))


def _of(batch: object) -> tuple[torch.Tensor, torch.Tensor]:
    return batch.response_ids, batch.response  # type: ignore[attr-defined]
