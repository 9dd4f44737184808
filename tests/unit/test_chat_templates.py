"""Corners of tokenizers and templates: rollout and scoring stay one function, token for token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from language_helpers import generators, make

from vidalign.errors import UserError
from vidalign.students.chat import ChatEncoder
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import ChatConfig
from vidalign.worlds.language import tokens

EXAMPLES = [tokens.example("train", 0, sample, "hints") for sample in (0, 3, 5)]


def student_with(chat: dict[str, Any] | None = None, **changes: Any) -> LanguageStudent:
    """A random student whose tokenizer differs from the shipped one in `changes`."""
    student = make()
    tokenizer = copy.deepcopy(student.chat.tokenizer)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    student.chat = ChatEncoder(tokenizer, ChatConfig(**(chat or {})))
    return student


def check_rollout(student: LanguageStudent) -> torch.Tensor:
    """Scores of a padded batch are those that the rollout had, and those of every conversation alone, unpadded."""
    rollout = student.generate(student.prompts(EXAMPLES), generators(0, 1, 2))
    assert rollout.logprobs is not None
    composed = student.compose(EXAMPLES, rollout.response_ids, rollout.response)
    torch.testing.assert_close(student.logprobs(composed), rollout.logprobs, rtol=0, atol=3e-6, check_dtype=False)
    for n, example in enumerate(EXAMPLES):
        before = student.chat.tokenizer(student.chat.text(example), add_special_tokens=False).input_ids
        own = rollout.response_ids[n][rollout.response[n]]
        logp = student.model(input_ids=torch.tensor([[*before, *own.tolist()]])).logits[0].log_softmax(-1)
        expected = logp[len(before) - 1 : -1].gather(1, own[:, None])[:, 0]
        found = rollout.logprobs[n][rollout.response[n]]
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-6, check_dtype=False)
    return rollout.ids


def test_a_tokenizer_without_padding_pads_with_its_end() -> None:
    student = student_with(pad_token=None)
    end = student.chat.tokenizer.eos_token_id
    assert student.chat.pad == end != make().chat.pad
    ids = check_rollout(student)
    assert (ids == end).sum() > 3, "padding and the end of turns are the same token"


def test_a_template_that_writes_the_beginning_of_text_has_it_once() -> None:
    """The tokenizer adds the same token by itself, as Llama's does: the conversation must not begin with two."""
    plain = make().chat.tokenizer
    student = student_with(bos_token="<system>", chat_template="{{ bos_token }} " + plain.chat_template)
    from tokenizers.processors import TemplateProcessing

    begin = student.chat.tokenizer.bos_token_id
    student.chat.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<system> $A", special_tokens=[("<system>", begin)]
    )
    twice = student.chat.tokenizer(student.chat.text(EXAMPLES[0])).input_ids
    assert twice[:2] == [begin, begin], "what a careless call would give"
    ids, mask = (getattr(student.prompts(EXAMPLES), name) for name in ("ids", "mask"))
    assert [(row[keep] == begin).sum().item() for row, keep in zip(ids, mask, strict=True)] == [1, 1, 1]
    written, _ = student.chat.responses(["3 4"])
    assert begin not in written, "nor does a written response begin anew"
    check_rollout(student)


@pytest.mark.parametrize("thinking", [True, False, None])
def test_options_reach_the_template(thinking: bool | None) -> None:
    """Qwen3's template closes an empty thought when it is told not to think."""
    template = make().chat.tokenizer.chat_template + (
        "{% if enable_thinking is defined and not enable_thinking %} plan plan {% endif %}"
    )
    options = {} if thinking is None else {"enable_thinking": thinking}
    student = student_with({"options": options}, chat_template=template)
    ids = student.prompts(EXAMPLES).ids
    plan, assistant = student.chat.tokenizer.convert_tokens_to_ids(["plan", "<assistant>"])
    ending = [assistant, plan, plan] if thinking is False else [assistant]
    assert ids[:, -len(ending) :].tolist() == [ending] * 3
    told = student.prompts(EXAMPLES, ["the hint"] * 3).ids
    assert told[:, -len(ending) :].tolist() == [ending] * 3, "after the privileged text too"
    check_rollout(student)


def test_a_tokenizer_without_a_template_is_refused() -> None:
    student = student_with(chat_template=None)  # a teacher may lack one: it reads the student's prompts
    with pytest.raises(UserError, match=r"no chat template - student\.chat\.template"):
        student.prompts(EXAMPLES)
