"""What ends a turn is what the template writes after an assistant's: in training data and in generation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from chat_families import FAMILIES, save, tokenizer
from language_helpers import generators
from transformers import AutoModelForCausalLM, GenerationConfig

from vidalign.build import build_context, build_objective, build_prompts
from vidalign.context import Batch
from vidalign.data.examples import Example
from vidalign.recipe import load_recipe
from vidalign.students.chat import ChatEncoder
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import ChatConfig, Sampling
from vidalign.tracking.tracker import Tracker


def whole(name: str, text: str) -> list[int]:
    """The conversation with the assistant's turn in it, as the template writes it, in one go."""
    tok = tokenizer(name)
    turns = [{"role": "user", "content": "What is x?"}, {"role": "assistant", "content": text}]
    written = tok.apply_chat_template(turns, tokenize=False)
    return list(tok(written, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_response_ends_as_the_template_ends_a_turn(name: str) -> None:
    chat, end = ChatEncoder(tokenizer(name), ChatConfig()), FAMILIES[name].turn_end
    ids, mask = chat.responses(["x = 4", "x"])
    last = [row[keep][-1].item() for row, keep in zip(ids, mask, strict=True)]
    assert last == [chat.tokenizer.convert_tokens_to_ids(end)] * 2
    if name != "gpt2":  # its template ends a turn with no token
        assert last[0] in whole(name, "x = 4")[-3:], "as in the conversation that the template writes in one go"


def test_what_stands_before_the_end_of_a_turn_is_learnt_too() -> None:
    tok = tokenizer("phi")
    tok.chat_template = tok.chat_template.replace("}}<|end|>", "}}\n\n<|end|>")
    ids, mask = ChatEncoder(tok, ChatConfig()).responses(["x = 4"])
    assert tok.decode(ids[0][mask[0]]) == "x = 4\n\n<|end|>"


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no turns') }}", "{{ messages[0]['content'] }}"])
def test_without_a_turn_in_the_template_the_text_ends(template: str | None) -> None:
    tok = tokenizer("gemma")
    tok.chat_template = template
    chat = ChatEncoder(tok, ChatConfig())
    assert chat.responses(["x"])[0][0, -1] == tok.eos_token_id and chat.closing == ""


def test_generation_stops_at_the_end_of_a_turn(tmp_path: Path) -> None:
    """A published Gemma names <eos> alone in some of its settings: the template says what ends a turn."""
    student = LanguageStudent.load(save("gemma", tmp_path / "gemma"))
    end = student.chat.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert student.stop_ids == sorted([end, student.chat.tokenizer.eos_token_id])
    student.model.lm_head = torch.nn.Linear(32, len(student.chat.tokenizer))  # untied, with a bias that decides
    with torch.no_grad():
        student.model.lm_head.bias[end] = 1e4
    out = student.generate(student.prompts([Example("What is x?")]), generators(0), Sampling(max_new_tokens=5))
    assert out.response_ids.tolist() == [[end]]
    student.save(tmp_path / "left" / "model.safetensors")
    ends = GenerationConfig.from_pretrained(tmp_path / "left").eos_token_id
    assert end in ends, "servers stop there too"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "left").generation_config.eos_token_id == ends


@pytest.mark.parametrize("objective", ["lm_sft", "gkd"])
def test_written_responses_of_a_run_end_so(objective: str, tmp_path: Path) -> None:
    folder, table = save("gemma", tmp_path / "gemma"), tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Solve x + {n}", "response": f"x = {n}"} for n in range(4)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    teacher = f"teacher: {{name: language, path: {folder}}}\n" if objective == "gkd" else ""
    share = ", on_policy: 0.0, group_size: 1" if objective == "gkd" else ""
    (tmp_path / "recipe.yaml").write_text(
        f"# A run.\nstudent: {{name: language, path: {folder}, sampling: {{max_new_tokens: 4}}}}\n{teacher}"
        f"objective: {{name: {objective}{share}}}\ndata: {{prompts: {table}, eval_prompts: {table}}}\n"
        "trainer: {steps: 1, prompts_per_step: 4, micro_batch: 2}\ntracking: {tensorboard: false, panel: none}\n",
        encoding="utf-8",
    )
    recipe = load_recipe(tmp_path / "recipe.yaml", [])
    made = build_objective(recipe)
    ctx = build_context(recipe, made, Tracker.silent())
    prompts = build_prompts(recipe)
    data = made.collect(ctx, Batch(0, [prompts[n] for n in range(4)], list(range(4))))
    ids = data["ids" if objective == "lm_sft" else "response_ids"]
    end = ctx.student.chat.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    for row, keep in zip(ids, data["response"].bool(), strict=True):
        assert row[keep][-1] == end and ctx.student.chat.tokenizer.eos_token_id not in row[keep]
