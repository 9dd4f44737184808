"""Prompts longer than the model's context, or than the recipe says: refused with their place, dropped, or cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from chat_families import save, tokenizer
from chat_runs import write_recipe
from language_helpers import generators, make
from PIL import Image
from tiny_eyes import save as save_eyes

from vidalign.build import build_context, build_objective
from vidalign.context import TrainContext
from vidalign.data.examples import Example
from vidalign.errors import DataError, RecipeError, UserError
from vidalign.recipe import load_recipe
from vidalign.students.chat import ChatEncoder
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import ChatConfig, Sampling
from vidalign.students.language_stand_in import stand_in
from vidalign.students.lengths import FittingPrompts, Room, latest_part
from vidalign.tracking.tracker import Tracker
from vidalign.trainer import Trainer

SHORT = [{"prompt": f"What is {n}?", "response": f"x = {n}", "privileged": "think", "answer": str(n)} for n in range(5)]
LONG = {"prompt": "step by step " * 90, "response": "x", "privileged": "think", "answer": "1"}
HINTED = {"prompt": "What now?", "response": "x", "privileged": "step by step " * 90, "answer": "1"}


def student(family: str, folder: Path, **chat: Any) -> LanguageStudent:
    made = LanguageStudent.load(save(family, folder / family))
    return made.configure(ChatConfig(**chat), Sampling(max_new_tokens=16))


def context(folder: Path, rows: list[dict[str, Any]], chat: str = "{}", objective: str = "opd") -> TrainContext:
    base = save("qwen", folder / "base")
    teacher = f"path: {base}" if objective == "opd" else ""
    recipe = load_recipe(write_recipe(folder, f"path: {base}, chat: {chat}", objective, teacher, rows), [])
    return build_context(recipe, build_objective(recipe), Tracker.silent())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_prompt_beyond_the_context_is_refused_by_name(family: str, tmp_path: Path) -> None:
    """GPT-2 ended in an IndexError, Llama went on."""
    one = student(family, tmp_path)
    with pytest.raises(DataError, match=r"too long - 'step by step .* context is 256 less 16 for the response"):
        one.prompts([Example("What is x?"), Example(LONG["prompt"])])
    room = one.chat.room.prompt
    assert room == 240
    words = one.chat.tokenizer.tokenize(" step")
    assert len(words) == 1
    base = one.prompts([Example("x")]).ids.shape[1]
    fits = Example("x" + " step" * (room - base))
    assert one.prompts([fits]).ids.shape[1] == 240, "up to the last token"
    out = one.generate(one.prompts([fits]), generators(0))
    assert out.ids.shape[1] <= 256
    with pytest.raises(DataError, match="241 tokens"):
        one.prompts([Example("x" + " step" * (room - base + 1))])


def test_a_response_beyond_the_context_is_refused(tmp_path: Path) -> None:
    """Written ones may be longer than those that are sampled."""
    one = student("gpt2", tmp_path)
    ids, mask = one.chat.responses(["x = 4", " step" * 250])
    with pytest.raises(DataError, match=r"'second' with its response"):
        one.compose([Example("first"), Example("second")], ids, mask)
    with pytest.raises(UserError, match="longer than the context of the student"):
        one.generate(one.prompts([Example("x")]), generators(0), Sampling(max_new_tokens=255))
    with pytest.raises(UserError, match="longer than the context"):
        one.hidden(torch.ones(1, 257, dtype=torch.long), torch.ones(1, 257, dtype=torch.bool))
    padded = torch.ones(1, 300, dtype=torch.bool)
    padded[:, :60] = False
    assert one.hidden(torch.ones(1, 300, dtype=torch.long), padded).shape[1] == 300, "padding takes no place"


def test_the_setting_is_the_limit(tmp_path: Path) -> None:
    one = student("qwen", tmp_path, max_prompt_length=20)
    with pytest.raises(DataError, match=r"student\.chat\.max_prompt_length is 20"):
        one.prompts([Example("step by step " * 9)])
    with pytest.raises(DataError):
        one.prompts([Example("x")], ["a long hint " * 9])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_cut_leaves_the_end_of_the_question_in_a_whole_conversation(name: str) -> None:
    room = Room(longest=60)
    chat = ChatEncoder(tokenizer(name), ChatConfig(max_prompt_length=60, long_prompts="cut"), room=room)
    prompt = "first " + "step by step " * 30 + "what is x?"
    batch = chat.prompts([Example(prompt), Example("What?")], ["", "a hint"])
    assert 54 <= batch.mask[0].sum() <= 60, "as much as fits"
    text = chat.tokenizer.decode(batch.ids[0][batch.mask[0]])
    begin, end = chat.text(Example("@")).split("@")
    bare = text.replace(" ", "")
    assert "whatisx?" in bare and "first" not in bare
    assert bare.startswith(begin.replace(" ", "")) and bare.endswith(end.replace(" ", ""))
    alone = chat.prompts([Example("What?")], ["a hint"])
    assert torch.equal(batch.ids[1][batch.mask[1]], alone.ids[0])
    with pytest.raises(DataError, match="too long"):
        chat.prompts([Example("x")], ["a long hint " * 90])


def test_the_latest_part() -> None:
    assert latest_part("abcdef", lambda text: len(text) <= 4) == "cdef"
    assert latest_part("abcdef", lambda text: False) == ""


def test_pictures_count(tmp_path: Path) -> None:
    one = LanguageStudent.load(save_eyes("qwen2_vl", tmp_path / "qwen"))
    one.configure(ChatConfig(max_prompt_length=20), Sampling(max_new_tokens=4))
    assert one.prompts([Example("hi")]).ids.shape[1] <= 20
    with pytest.raises(DataError, match="'hi' .* tokens"):
        one.prompts([Example("hi", images=(Image.new("RGB", (64, 64)),))])


@pytest.mark.parametrize("where", ["train", "evaluation"])
def test_a_run_names_the_row_before_any_work(where: str, tmp_path: Path) -> None:
    rows = [*SHORT, LONG] if where == "train" else [LONG, *SHORT]
    with pytest.raises(DataError) as error:
        context(tmp_path, rows)
    message = str(error.value)
    assert f"row {rows.index(LONG)}" in message and "student.chat" not in message.split(" - ")[1]
    assert ("for evaluation" in message) == (where == "evaluation") and len(message.splitlines()) == 1


def test_privileged_text_counts_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a prompt is too long - .*row 5"):
        context(tmp_path, [*SHORT, HINTED])


def test_a_prompt_beyond_what_the_teacher_reads_is_refused_before_training(tmp_path: Path) -> None:
    base = save("qwen", tmp_path / "base")
    short, middle = {"prompt": "a"}, {"prompt": "step by step " * 9}
    rows = [{"privileged": "b", "response": "x", "answer": "1", **one} for one in (short, middle, short, short)]
    teacher = f"path: {base}, chat: {{max_prompt_length: 30}}"
    recipe = load_recipe(write_recipe(tmp_path, f"path: {base}", "opd", teacher, rows), [])
    with pytest.raises(DataError, match=r"too long - .*row 1 - \d+ tokens, and teacher.chat.max_prompt_length is 30"):
        build_context(recipe, build_objective(recipe), Tracker.silent())


@pytest.mark.parametrize("objective", ["opsd", "dopd"])
def test_examples_without_privileged_text_are_reported(objective: str, tmp_path: Path) -> None:
    base = save("qwen", tmp_path / "base")
    rows = [{"prompt": f"What is {n}?", "answer": str(n), "hint": "think"} for n in range(4)]
    teacher = f"path: {base}" if objective == "dopd" else ""
    file = write_recipe(tmp_path, f"path: {base}", objective, teacher, rows)
    (warning,) = [str(one) for one in load_recipe(file, []).warnings if "privileged" in str(one)]
    assert f"no example has the privileged text that {objective} learns from" in warning
    assert not [
        one for one in load_recipe(file, ["data.columns={privileged: hint}"]).warnings if "privileged" in one.what
    ]


def test_dropped_prompts_are_counted_and_others_take_their_place(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"2 prompts are too long and left out, first .*row 5"):
        ctx = context(tmp_path, [*SHORT, LONG, HINTED], "{long_prompts: drop}")
    seen = [ctx.prompts[n].prompt for n in range(40)]
    assert set(seen) == {row["prompt"] for row in SHORT}
    assert seen == [ctx.prompts[n].prompt for n in range(40)], "the same in a resumed run"
    assert ctx.prompts.gives == "examples" and len(ctx.prompts) == 7
    assert [example.prompt for example in ctx.prompts.first(7)] == [row["prompt"] for row in SHORT]
    assert [place.rpartition(" ")[2] for place, _ in ctx.prompts.questions()] == list("01234")
    with pytest.raises(DataError, match="for evaluation"):
        context(tmp_path, [LONG, *SHORT], "{long_prompts: drop}")
    none = FittingPrompts(ctx.prompts.source, lambda example: False)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="64 in a row do not fit"), pytest.warns(UserWarning, match="left out, 1 up"):
        _ = none[0]


def test_a_run_goes_on_without_them(tmp_path: Path) -> None:
    base = save("qwen", tmp_path / "base")
    recipe = write_recipe(tmp_path, f"path: {base}, chat: {{long_prompts: drop}}", rows=[*SHORT, LONG])
    with pytest.warns(UserWarning, match="1 prompts are too long"):
        Trainer(load_recipe(recipe, ["trainer.steps=2"]), tmp_path / "run").fit()
    Trainer(load_recipe(recipe, ["student.chat.long_prompts=cut", "trainer.steps=2"]), tmp_path / "cut").fit()


def test_settings_that_leave_no_room_are_refused(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, f"path: {save('gpt2', tmp_path / 'base')}")
    for change, message in {
        "student.sampling.max_new_tokens=256": "no room is left for a prompt",
        "student.chat.max_prompt_length=253": "use 252 or less",
        "student.chat.max_prompt_length=0": "max_prompt_length is 0",
        "student.chat.long_prompts=crop": "'cut'",
    }.items():
        with pytest.raises(RecipeError, match=message):
            load_recipe(recipe, [change])


def test_a_stand_in_counts_prompts_of_any_length() -> None:
    spec = make(chat={"max_prompt_length": 5}).spec
    assert stand_in(spec).prompts([Example("walk " * 3000)]).ids.shape[1] > 3000
