"""Chat templates that a recipe gives, those that refuse a system turn, and chat settings of a teacher's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from chat_families import FAMILIES, save, tokenizer
from chat_runs import write_recipe
from safetensors.torch import save_file
from tiny_eyes import save as save_eyes
from transformers import AutoProcessor, AutoTokenizer

from vidalign.build import build_context, build_objective, build_prompts
from vidalign.context import Batch, TrainContext
from vidalign.data.examples import Example
from vidalign.errors import RecipeError, UserError
from vidalign.objectives.base import Experience
from vidalign.objectives.parts import tokens
from vidalign.recipe import load_recipe
from vidalign.students.chat import ChatEncoder
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import ChatConfig
from vidalign.tracking.tracker import Tracker
from vidalign.trainer import Trainer

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}{{ eos_token }}{% endfor %}<assistant>"


def refused(file: Path, *changes: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(file, list(changes))
    return str(error.value)


def spoil(folder: Path) -> None:
    """Weights that no model can be made of."""
    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(
        (folder / "config.json")
        .read_text()
        .replace('"hidden_size": 32', '"hidden_size": 33')
        .replace('"n_embd": 32', '"n_embd": 33'),
        encoding="utf-8",
    )


def started(file: Path, *changes: str) -> tuple[TrainContext, Experience]:
    recipe = load_recipe(file, list(changes))
    objective = build_objective(recipe)
    ctx = build_context(recipe, objective, Tracker.silent())
    prompts = build_prompts(recipe)
    with torch.no_grad():
        return ctx, objective.collect(ctx, Batch(0, [prompts[n] for n in range(4)], list(range(4))))


@pytest.mark.parametrize("given", ["text", "file"])
def test_a_base_model_is_trained_with_the_template_of_the_recipe(given: str, tmp_path: Path) -> None:
    base, file = save("gpt2", tmp_path / "base", template=False), tmp_path / "own.jinja"
    file.write_text(TEMPLATE, encoding="utf-8")
    recipe = write_recipe(tmp_path, f'path: {base}, chat: {{template: "{TEMPLATE if given == "text" else file}"}}')
    run = Trainer(load_recipe(recipe, []), tmp_path / "run").fit()
    file.unlink()
    left = AutoTokenizer.from_pretrained(run / "student")
    assert left.chat_template == TEMPLATE, "servers write the turns that it was trained on"
    again = LanguageStudent.load(run / "student")
    assert again.spec.chat.template == TEMPLATE, "and so does vidalign"
    expected = "<user> hi<|endoftext|><assistant>"
    assert again.chat.text(Example("hi")) == expected
    turns = [{"role": "user", "content": "hi"}]
    assert left.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == expected
    assert again.chat.end == left.eos_token_id
    assert AutoTokenizer.from_pretrained(base).chat_template is None, "the base is as it was"


def test_a_template_instead_of_the_model_s_own_ends_turns_in_its_way(tmp_path: Path) -> None:
    student = LanguageStudent.load(save("gemma", tmp_path / "gemma"))
    end, eos = student.chat.end, student.chat.tokenizer.eos_token_id
    assert student.configure(ChatConfig(template=TEMPLATE)).chat.end == eos != end
    assert student.stop_ids == [eos]


def test_a_processor_is_saved_with_it(tmp_path: Path) -> None:
    student = LanguageStudent.load(save_eyes("llava", tmp_path / "llava"))
    own = TEMPLATE.replace("m['content']", "m['content'][0]['text']")
    student.configure(ChatConfig(template=own)).save(tmp_path / "left" / "model.safetensors")
    assert AutoProcessor.from_pretrained(tmp_path / "left").chat_template == own
    assert AutoTokenizer.from_pretrained(tmp_path / "left").chat_template == own
    assert student.chat.processor.chat_template != own, "that of the base is as it was"


def test_templates_that_cannot_be_used_are_refused_before_any_work(tmp_path: Path) -> None:
    base = save("gpt2", tmp_path / "base", template=False)
    recipe = write_recipe(tmp_path, f"path: {base}, chat: {{system: ''}}")
    spoil(base)
    assert "no chat template" in refused(recipe) and "student.chat.template" in refused(recipe)
    message = refused(recipe, "student.chat.template=tempalte.jinja")
    assert "'tempalte.jinja'" in message and "student.chat.template" in message and "No such file" in message
    message = refused(recipe, "student.chat.template='{{ messages }'")
    assert "student.chat.template" in message and "unexpected '}'" in message
    message = refused(recipe, "student.chat.template='{{ messages[0].nothing.more }}'")
    assert "cannot write the conversation" in message


def test_without_chat_settings_a_base_model_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    base = save("qwen", tmp_path / "base", max_position_embeddings=1024)
    recipe = load_recipe(write_recipe(tmp_path, f"path: {base}"), ["~student.sampling"])
    (base / "chat_template.jinja").unlink()  # as a name of the hub, whose files are read when the run begins
    spoil(base)
    with pytest.raises(UserError, match=r"no chat template - student\.chat\.template"):
        build_context(recipe, build_objective(recipe), Tracker.silent())
    assert "no chat template" in refused(tmp_path / "recipe.yaml", "~student.sampling")


@pytest.mark.parametrize("left_out", [False, True])
def test_a_refused_system_turn_is_one_clear_line(left_out: bool, tmp_path: Path) -> None:
    base = save("gemma", tmp_path / "gemma")
    if left_out:  # worse than a refusal: the text is gone without a word
        tok = AutoTokenizer.from_pretrained(base)
        tok.chat_template = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
        tok.save_pretrained(base)
    recipe = write_recipe(tmp_path, f"path: {base}, chat: {{system: Be kind}}")
    message = refused(recipe)
    assert len(message.splitlines()) == 1 and "refuses a system turn" in message and "student.chat.system" in message
    assert ("it writes nothing of it" if left_out else "System role not supported") in message
    with pytest.raises(UserError, match="refuses a system turn"):
        ChatEncoder(AutoTokenizer.from_pretrained(base), ChatConfig(system="Be kind")).check()
    load_recipe(recipe, ["student.chat.system=''"])


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"gemma"}))
def test_templates_that_write_it_pass(name: str) -> None:
    ChatEncoder(tokenizer(name), ChatConfig(system="Be kind")).check()


TEACHER = {
    "thinking": ("qwen", "options: {enable_thinking: true}", None),
    "system": ("qwen", "system: You are an expert", "You are an expert"),
    "template": ("llama", "template: '<|end_of_text|>{{ messages[0].content }}'", "<|end_of_text|>"),
}


@pytest.mark.parametrize("case", TEACHER)
@pytest.mark.parametrize("objective", ["opd", "gkd", "dopd"])
def test_a_teacher_reads_prompts_of_its_own(case: str, objective: str, tmp_path: Path) -> None:
    """Its scores are those of its own conversation, written by hand; the response tokens are the student's."""
    family, chat, begin = TEACHER[case]
    bases = [save(family, tmp_path / f"base{seed}", seed) for seed in (0, 1)]
    student = f"path: {bases[0]}, chat: {{options: {{enable_thinking: false}}}}"
    recipe = write_recipe(tmp_path, student, objective, f"path: {bases[1]}, chat: {{{chat}}}")
    ctx, data = started(recipe, "objective.group_size=1", "engine.precision=fp64")
    teacher, tok = ctx.teacher.model, ctx.student.chat.tokenizer
    hints = [example.privileged for example in data.prompts]
    states = tokens.states(ctx, teacher, data, hints)
    row = 0
    for n, example in enumerate(data.prompts):
        user = f"{example.prompt}\n\n{example.privileged}"
        text = {
            "thinking": f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n",
            "system": f"<|im_start|>system\n{begin}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
            "<|im_start|>assistant\n",
            "template": f"{begin}{user}",
        }[case]
        before, own = tok(text, add_special_tokens=False).input_ids, data["response_ids"][n][data["response"][n]]
        plain = teacher.model.base_model(torch.tensor([[*before, *own.tolist()]])).last_hidden_state[0]
        expected = plain[len(before) - 1 : -1]
        torch.testing.assert_close(states[row : row + len(own)], expected, rtol=0, atol=1e-5)
        row += len(own)
    assert "</think>" not in teacher.chat.text(data.prompts[0])
    if family == "qwen":
        assert "</think>" in ctx.student.chat.text(data.prompts[0])


def test_without_settings_a_teacher_reads_the_student_s_prompts(tmp_path: Path) -> None:
    """Its own template is not asked for: a base model may teach."""
    student, teacher = save("qwen", tmp_path / "student"), save("qwen", tmp_path / "teacher", 1, template=False)
    recipe = write_recipe(tmp_path, f"path: {student}", "opd", f"path: {teacher}")
    ctx, data = started(recipe)
    expected = tokens.states(ctx, ctx.teacher.model, data)
    assert not ctx.teacher.model.own_prompts
    batch = ctx.student.compose(
        [data.prompts[g] for g in data.group_index.tolist()], data["response_ids"], data["response"]
    )
    torch.testing.assert_close(ctx.teacher.model.response_hidden(batch)[batch.response], expected)


def test_a_teacher_s_settings_are_checked_too(tmp_path: Path) -> None:
    bases = [save("gemma", tmp_path / f"base{seed}", seed) for seed in (0, 1)]
    recipe = write_recipe(tmp_path, f"path: {bases[0]}", "opd", f"path: {bases[1]}, chat: {{system: Be kind}}")
    message = refused(recipe)
    assert "refuses a system turn" in message and "teacher.chat.system" in message
    assert "did you mean 'options'" in refused(recipe, "~teacher.chat", "teacher.chat.option={}")
