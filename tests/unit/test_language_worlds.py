"""The token and the picture world: answers by an independent reading of the texts and of the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vidalign.build import build_prompts
from vidalign.data.examples import Example
from vidalign.data.source import check_gives, open_source
from vidalign.errors import DataError, RecipeError
from vidalign.recipe import load_recipe
from vidalign.rewards.exact_match import ExactMatch
from vidalign.worlds.language import pictures, problems, tokens, vocabulary
from vidalign.worlds.language.grader import AfterEquals, final_answer
from vidalign.worlds.video.constants import COLOURS, PALETTE

# --- token world ---


def solve(prompt: str) -> str:
    """Another interpreter: reads the prompt's own words, sorts the steps by number, executes them."""
    head, *told = prompt.split(" | ")
    family, _, body = head.partition(" : ")
    state, *table = [part.split() for part in body.replace(" , ", ",").strip(" ,").split(",")]
    if family == "walk":
        state, table = [body.split()[0]], [row.split() for row in body.split(" ", 1)[1].split(",") if row.strip()]
    steps = dict(text.split(" : ") for text in told)
    for number in sorted(steps, key=int):
        name, *arguments = steps[number].split()
        if name == "plus":
            state = [str((int(state[0]) + int(arguments[0])) % 10)]
        elif name == "minus":
            state = [str((int(state[0]) - int(arguments[0])) % 10)]
        elif name == "times":
            state = [str((int(state[0]) * int(arguments[0])) % 10)]
        elif name == "change":
            state = " ".join(state).replace(*arguments).split()
        elif name in ("red", "blue"):
            (row,) = [row for row in table if row[0] == state[0]]
            state = [row[1] if name == "red" else row[2]]
        else:
            a, b, c, d = state
            orders = {"reverse": (d, c, b, a), "rotate": (b, c, d, a), "swap": (b, a, c, d), "double": (a, a, b, c)}
            state = list(orders[name])
    return " ".join(state)


@pytest.mark.parametrize("split", tokens.SPLITS)
def test_answers_are_right(split: str) -> None:
    families, steps = tokens.SPLITS[split]
    found = [tokens.example(split, 0, n, "hints") for n in range(240)]
    for example in found:
        assert solve(example.prompt) == example.answer == final_answer(example.response), example
    assert {e.family for e in found} == set(families) and {e.steps for e in found} == set(steps)
    assert len({e.prompt for e in found}) > 230


def test_no_training_problem_is_held_out() -> None:
    def key(problem: problems.Problem) -> tuple[object, ...]:
        return problem.family, problem.start, frozenset(problem.facts), problem.steps

    train = {key(tokens.problem("train", 0, n)) for n in range(600)}
    other = {key(tokens.problem("held_out", 0, n)) for n in range(600)}
    assert len(train) > 500 and len(other) > 500 and not train & other
    assert all(tokens.problem("train", seed, 4).bucket(tokens.BUCKETS) != 0 for seed in range(20))
    again = problems.Problem("chain", ("3",), (), (("plus", "1"), ("plus", "2")), (0, 1))
    told = problems.Problem("chain", ("3",), (), (("plus", "1"), ("plus", "2")), (1, 0))
    assert again.prompt != told.prompt and again.bucket(997) == told.bucket(997), "the same problem, told otherwise"


def test_forms_of_privilege() -> None:
    problem = problems.Problem("chain", ("7",), (), (("plus", "5"), ("times", "3"), ("minus", "9")), (2, 0, 1))
    assert problem.prompt == "chain : 7 | 3 : minus 9 | 1 : plus 5 | 2 : times 3"
    assert problem.response == "1 plus 5 > 2 | 2 times 3 > 6 | 3 minus 9 > 7 | = 7"
    assert problem.privileged("hints") == "plan : 1 plus 5 | 2 times 3 | 3 minus 9"
    assert problem.privileged("executed") == "plan : 1 plus 5 > 2 | 2 times 3 > 6 | 3 minus 9 > 7"
    assert problem.privileged("summary") == "summary : 3 steps with minus plus times"
    assert problem.privileged("answer") == "answer : 7" and problem.privileged("none") == ""


def test_examples_are_a_function_of_seed_and_sample() -> None:
    mixed = {"name": "tokens", "split": "train", "privilege": "mixed"}
    first = open_source(mixed, 5)
    forms = {first[n].privileged.split(" ")[0] for n in range(96)}
    assert forms == {"plan", "summary", "answer"} and first[7] == open_source(mixed, 5)[7]
    assert first[7].prompt != open_source(mixed, 6)[7].prompt
    held = open_source({**mixed, "split": "held_out", "privilege": "none"}, 0).first(9)
    assert len(held) == 9 and all(not e.privileged for e in held)


# --- picture world ---


def components(example: Example) -> list[tuple[str, float, float]]:
    """Colour and centre of mass of every object, by flood fill over palette colours."""
    pixels = np.asarray(example.images[0]).astype(float) / 255
    palette = np.array([PALETTE[name] for name in COLOURS])
    distance = ((pixels[:, :, None] - palette) ** 2).sum(-1)
    label = np.where(distance.min(-1) < 0.02, distance.argmin(-1), -1)
    found, seen = [], np.zeros_like(label, dtype=bool)
    for start in zip(*np.nonzero(label >= 0), strict=True):
        if seen[start]:
            continue
        stack, inside = [start], []
        seen[start] = True
        while stack:
            y, x = stack.pop()
            inside.append((y, x))
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if min(near) >= 0 and max(near) < 32 and not seen[near] and label[near] == label[start]:
                    seen[near] = True
                    stack.append(near)
        y, x = np.mean(inside, 0)
        found.append((COLOURS[label[start]], float(x) + 0.5, float(y) + 0.5))
    return found


def place(x: float, y: float) -> str:
    return f"{'top' if y < 16 else 'bottom'} {'left' if x < 16 else 'right'}"


@pytest.mark.parametrize("split", pictures.SPLITS)
def test_answers_are_in_the_picture(split: str) -> None:
    seen = set()
    for n in range(80):
        example = pictures.example(split, 0, n, "hints")
        found, words = components(example), example.prompt.split()
        fewest, most = pictures.SPLITS[split]
        assert fewest <= len(found) <= most and final_answer(example.response) == example.answer
        if example.family == "colour":
            assert [c for c, x, y in found if place(x, y) == " ".join(words[-3:-1])] == [example.answer]
        elif example.family == "position":
            assert example.answer in [place(x, y) for c, x, y in found if c == words[3]]
        elif example.family == "count" and words[-2] in COLOURS:
            assert example.answer == str(sum(c == words[-2] for c, _, _ in found))
            seen.add("count by colour")
        elif example.family == "relation":
            first = [(x, y) for c, x, y in found if c == words[2]]
            second = [(x, y) for c, x, y in found if c == words[-3]]
            if len(first) == len(second) == 1:
                (ax, ay), (bx, by) = (tuple(v < 16 for v in pair) for pair in (first[0], second[0]))
                axis = {"left": ax and not bx, "right": bx and not ax, "above": ay and not by, "below": by and not ay}
                assert example.answer == ("yes" if axis[words[4]] else "no"), example
                seen.add(example.answer)
    assert seen >= {"yes", "no", "count by colour"}


def test_boxes_hold_their_objects() -> None:
    for n in range(0, 40, 2):
        example = pictures.example("train", 1, n, "hints")
        if example.family == "count" and example.answer == "0":
            continue
        for text in example.privileged.removeprefix("boxes : ").split(" | "):
            colour, _, *numbers = text.split()
            left, top, right, bottom = map(int, numbers)
            inside = [(x, y) for c, x, y in components(example) if c == colour]
            assert any(left <= x <= right + 1 and top <= y <= bottom + 1 for x, y in inside), example
    assert pictures.example("train", 1, 0, "none").privileged == ""


def test_unseen_combinations_are_unseen() -> None:
    labels = {f"{COLOURS[c]} {pictures.SHAPES[s]}" for c, s in pictures.UNSEEN}
    assert len(labels) == 3 and {c.split()[1] for c in labels} == set(pictures.SHAPES)
    for n in range(60):
        things = pictures.draw_things("train", torch.Generator().manual_seed(n))
        assert not labels & {t.label for t in things} and len({t.place for t in things}) == len(things)
        asked = pictures.example("combinations", 0, n, "hints")
        if asked.family in ("colour", "position"):
            assert any(label in asked.response for label in labels)


# --- grader, tokenizer, tables ---


def test_grader() -> None:
    asked = [Example("q", answer=answer, grader=AfterEquals()) for answer in ("4 2", "4", "4", "")]
    said = ["1 > 3 | = 4  2", "= 5 | = 4", "4", "= 4"]
    assert ExactMatch().score(said, asked)["exact_match"].nan_to_num(-1).tolist() == [1, 1, 0, -1]
    assert final_answer("= 4 | = ") == "" and final_answer("") is None


def test_the_shipped_tokenizer_is_the_one_that_is_built(tmp_path: Path) -> None:
    vocabulary.build()[1].save_pretrained(tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja", "processor_config.json", "tokenizer_config.json"):
        expected = (vocabulary.FOLDER / name).read_text()
        assert (tmp_path / name).read_text() == expected, "run vidalign.worlds.language.vocabulary"


def test_every_word_of_the_worlds_is_a_token() -> None:
    tokenizer, _ = vocabulary.build()
    for world, splits in ((tokens, tokens.SPLITS), (pictures, pictures.SPLITS)):
        for split in splits:
            for n in range(60):
                example = world.example(split, 0, n, "mixed" if world is tokens else "hints")
                for text in (example.prompt, example.privileged, example.response):
                    ids = tokenizer(text, add_special_tokens=False).input_ids
                    assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text


def test_tables_bring_prompts_privilege_and_pictures(tmp_path: Path) -> None:
    import datasets

    image = pictures.example("train", 0, 0, "none").images[0]
    rows = {"prompt": ["one", "two"], "privileged": ["hint", None], "images": [[image], []], "answer": ["1", "2"]}
    table = datasets.Dataset.from_dict(rows).cast_column("images", datasets.List(datasets.Image()))
    table.to_parquet(tmp_path / "t.parquet")
    first, second = open_source(str(tmp_path / "t.parquet"), 0).first(5)
    assert (first.prompt, first.privileged, first.answer) == ("one", "hint", "1") and second.privileged == ""
    assert np.array_equal(np.asarray(first.images[0]), np.asarray(image)) and second.images == ()
    shuffled = open_source(str(tmp_path / "t.parquet"), 0, 2)
    assert {shuffled[0].prompt, shuffled[1].prompt} == {"one", "two"} == {shuffled[6].prompt, shuffled[7].prompt}
    image.save(tmp_path / "p.png")
    (tmp_path / "p.jsonl").write_text('{"prompt": "one", "answer": 0, "images": ["p.png"]}\n')
    (third,) = open_source(str(tmp_path / "p.jsonl"), 0).first(5)
    assert np.array_equal(np.asarray(third.images[0]), np.asarray(image)) and third.answer == "0"
    for place in (f"{tmp_path}/p.png", f"../{tmp_path.name}/p.png"):
        (tmp_path / "out.jsonl").write_text(f'{{"prompt": "one", "images": ["{place}"]}}\n')
        with pytest.raises(DataError, match="leads out of the folder"):
            open_source(str(tmp_path / "out.jsonl"), 0).first(5)
    (tmp_path / "t.jsonl").write_text('{"question": "one"}\n')
    with pytest.raises(DataError, match="no column 'prompt'"):
        open_source(str(tmp_path / "t.jsonl"), 0)
    with pytest.raises(DataError, match="did you mean 'held_out'"):
        open_source("tokens:heldout", 0)
    with pytest.raises(DataError, match="a language student cannot use"):
        check_gives(str(tmp_path / "t.txt"), "language", "examples")
    with pytest.raises(DataError, match="there are no examples"):
        open_source(str(tmp_path / "none.csv"), 0)


def test_a_table_without_answers_is_not_trained_on_by_exact_match(tmp_path: Path) -> None:
    """What `validate` does not read, such as a table of a hub, is looked at before the first step."""
    (tmp_path / "t.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n{"prompt": "why?"}\n')
    recipe = load_recipe("tokens/opd", ["rewards.exact_match=1"])
    recipe.data.prompts = str(tmp_path / "t.jsonl")
    with pytest.raises(RecipeError, match=r"can score a prompt - .*t.jsonl, row 1 - exact_match .* 'why\?'"):
        build_prompts(recipe)
    recipe.rewards["exact_match"].weight = 0.0
    assert build_prompts(recipe)[0].prompt in ("1 + 1", "why?")
