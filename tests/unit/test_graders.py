"""Graders: each on what students write, chosen by a recipe for its evaluation and its rewards."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from vidalign import registry
from vidalign.build import build_prompts
from vidalign.cli.list_ import _plugins
from vidalign.data.answers import boxed, numbers
from vidalign.data.examples import Example
from vidalign.data.graders import Grader, Math, graded, make_grader
from vidalign.data.source import open_source
from vidalign.errors import DataError, PluginError, RecipeError, UserError
from vidalign.evaluation.evaluator import Evaluator
from vidalign.recipe import load_recipe
from vidalign.rewards.exact_match import ExactMatch
from vidalign.testing import check_grader

Pairs = list[tuple[str, str]]
CASES: dict[str, tuple[Any, Pairs, Pairs]] = {
    "equals": ({}, [(" 42\n", "42"), ("a  b", "a b")], [("The answer is 42", "42"), ("B", "b"), ("42.0", "42")]),
    "equals, any case": ({"name": "equals", "ignore_case": True}, [("Yes", "yes")], [("Yes.", "yes")]),
    "last_number": (
        {},
        [
            ("The answer is 42", "42"),
            ("so \\boxed{42}", "42"),
            ("= 42.", "42"),
            ("1 + 41 = 42 apples", "42"),
            ("$1,234.50", "1234.5"),
            ("it is 007", "7"),
            ("-3", "\u22123"),
            ("10-3 is 7", "7"),
            ("3/4", "0.75"),
            ("about 1e3", "1000"),
            (".5", "1/2"),
            ("1,2,3", "3"),
            ("42", "#### 42"),
        ],
        [("42 or 43", "42"), ("none", "42"), ("4.2", "42"), ("3.14", "3.15"), ("-42", "42")],
    ),
    "last_number, nearly": ({"name": "last_number", "tolerance": 0.01}, [("3.15", "3.14")], [("3.2", "3.14")]),
    "boxed": (
        {},
        [
            ("so \\boxed{42}", "42"),
            ("\\boxed{1} no, $\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
            ("\\boxed{\\dfrac{1}{2}}", "\\frac12".replace("12", "{1}{2}")),
            ("\\boxed{1{,}000}"[:7] + "1,000}", "1000"),
            ("\\boxed{ \\text{Paris}. }", "Paris"),
            ("\\fbox{3.0}", "3"),
            ("\\boxed {x}", "\\boxed{x}"),
        ],
        [
            ("42", "42"),
            ("\\boxed{43}", "42"),
            ("\\boxed{42", "42"),
            ("\\boxed{42} then \\boxed{7}", "42"),
            ("boxed{42}", "42"),
        ],
    ),
    "multiple_choice": (
        {},
        [
            ("B", "B"),
            ("(b)", "B"),
            ("The answer is (B).", "B"),
            ("The correct answer is: **B**", "(B)"),
            ("Answer: B\nbecause A is wrong", "B"),
            ("\\boxed{B}", "B"),
            ("\\boxed{\\text{B}}", "B"),
            ("A is too small. A) no\nB) yes", "B"),
            ("I choose option C, no: option B", "B"),
            ("The answer is (B). Option C is wrong.", "B"),
            ("(A) is wrong, so (B)", "b"),
        ],
        [
            ("A", "B"),
            ("The answer is (C).", "B"),
            ("I do not know", "B"),
            ("A good question", "A"),
            ("the answer is a bird", "A"),
        ],
    ),
    "regex": (
        {"name": "regex", "pattern": r"Answer: (.*)"},
        [("Answer: 1\nAnswer:  two  words ", "two words")],
        [("two words", "two words"), ("Answer: 2 words", "two words")],
    ),
    "regex without a group": ({"name": "regex", "pattern": r"[a-z]\d"}, [("a1 b2", "b2")], [("a1", "b2")]),
    "after_equals": ({}, [("1 plus 2 > 3 | = 3", "3"), ("= 1 = 4  2", "4 2")], [("3", "3"), ("= 42.", "42")]),
    "math": (
        {},
        [("The answer is 42", "42"), ("so \\boxed{42}", "42"), ("$\\frac{1}{2}$", "0.5"), ("$x^2+2x+1$", "(x+1)^2")],
        [("43", "42"), ("no idea", "42")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_grader_keeps_its_promises(name: str) -> None:
    settings, right, wrong = CASES[name]
    if name == "math":
        pytest.importorskip("math_verify")
    check_grader(
        name.partition(" ")[0].rstrip(","), {k: v for k, v in settings.items() if k != "name"}, right=right, wrong=wrong
    )


def test_long_prose_is_not_read_as_one_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes seconds for a few thousand letters; an answer without dollars may be long."""
    library = pytest.importorskip("math_verify")
    grader, parsed, plain = make_grader("math"), [], library.parse
    monkeypatch.setattr(library, "parse", lambda text, **options: parsed.append(text) or plain(text, **options))
    assert grader.grade("word " * 1000, "42") == 0 and max(map(len, parsed)) == 5000
    assert grader.grade("x^2+2x+1", "(x+1)^2") == 1
    long = "+".join(["x^2"] * 80)
    assert grader.can_grade(long) and grader.grade("$80x^2$", long) == 1


def test_every_built_in_grader_is_tried_and_listed() -> None:
    built_in = {name for name, source in registry.names("graders").items() if source == "vidalign"}
    assert {name.partition(" ")[0].rstrip(",") for name in CASES} == built_in
    assert all(about.strip() for about in _plugins("graders").values())


@pytest.mark.parametrize(
    ("name", "answer"), [("last_number", "many"), ("multiple_choice", "blue"), ("boxed", "$ $"), ("equals", " ")]
)
def test_answers_that_cannot_be_compared_are_not_known(name: str, answer: str) -> None:
    example = Example("q", answer=answer, grader=make_grader(name))
    assert not ExactMatch.can_score(example)
    assert ExactMatch().score(["42"], [example])["exact_match"].isnan().all()


def test_numbers_and_boxes() -> None:
    assert [float(n) for n in numbers("1,234 and -2.5, 3/4; v1.2.3")][:3] == [1234, -2.5, 0.75]
    assert boxed("\\boxed{a{b}c} x") == "a{b}c" and boxed("nothing {a}") is None and boxed("\\boxed x {y}") is None


@pytest.mark.parametrize("text", ["1" * 5000, "hash 3e9482374", "1e-99999999", "9e" + "9" * 5000, "0." + "3" * 5000])
def test_numbers_of_any_length_are_read_at_once(text: str) -> None:
    """A model that repeats a digit ends no run; such a number is none that anybody asks for."""
    (value,) = numbers(text)
    assert value != 5 and abs(value.numerator) < 10**1000
    assert make_grader("last_number").grade(text, "5") == 0.0


def test_math_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UserError, match=r"needs the package math-verify - .* - pip install 'vidalign\[math\]'"):
        make_grader("math")
    (tmp_path / "t.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n')
    with pytest.raises(RecipeError, match=r"pip install 'vidalign\[math\]'"):
        load_recipe("tokens/opd", [f"data.prompts={tmp_path}/t.jsonl", "data.grader=math"])


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is an extra")
def test_math_in_a_thread_and_in_another_process() -> None:
    grader, found = pickle.loads(pickle.dumps(Math())), []
    thread = threading.Thread(target=lambda: found.append(grader.grade("$\\frac{1}{2}$", "0.5")))
    thread.start()
    thread.join()
    assert found == [1.0]


# --- in a recipe ---


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "t.csv").write_text("prompt,answer\n6 * 7,42\n")
    return tmp_path / "t.csv"


SAID = ["The answer is 42", "so \\boxed{42}", "= 42.", "42"]


def scores(recipe: Any) -> dict[str, list[float]]:
    """What the reward and the metric of a recipe say of some responses."""
    example = build_prompts(recipe)[0]
    reward = [float(ExactMatch().score([text], [example])["exact_match"]) for text in SAID]
    evaluator = Evaluator.from_recipe(recipe, None)
    metric = [
        float(evaluator(lambda examples, _, text=text: [text] * len(examples)).metrics["exact_match", "all"])
        for text in SAID
    ]
    return {"reward": reward, "metric": metric}


@pytest.mark.parametrize(
    ("grader", "expected"),
    [
        ("last_number", [1, 1, 1, 1]),
        ("boxed", [0, 1, 0, 0]),
        ("equals", [0, 0, 0, 1]),
        ("{name: regex, pattern: 'answer is (.*)'}", [1, 0, 0, 0]),
        (None, [0, 0, 0, 1]),
    ],
)
def test_a_recipe_chooses_for_reward_and_evaluation(grader: str | None, expected: list[float], table: Path) -> None:
    chosen = [f"data.grader={grader}"] if grader else []
    recipe = load_recipe("tokens/opd", [f"data.prompts={table}", f"data.eval_prompts={table}", *chosen])
    assert scores(recipe) == {"reward": expected, "metric": expected}
    (table.parent / "recipe.yaml").write_text(recipe.to_yaml())
    assert scores(load_recipe(table.parent / "recipe.yaml"))["reward"] == expected


def test_each_source_may_have_its_own(table: Path) -> None:
    own = f"data.eval_prompts={{name: table, path: {table}, grader: boxed}}"
    recipe = load_recipe("tokens/opd", [f"data.prompts={table}", own, "data.grader=last_number"])
    assert scores(recipe) == {"reward": [1, 1, 1, 1], "metric": [0, 1, 0, 0]}


def test_the_embedded_worlds_keep_theirs(table: Path) -> None:
    example = open_source("tokens:train", 0)[0]
    assert ExactMatch().score([f"= {example.answer}", example.answer], [example, example])["exact_match"].tolist() == [
        1,
        0,
    ]
    recipe = load_recipe("tokens/opd", [f"data.prompts={table}", "data.grader=boxed"])
    held_out = open_source(recipe.judged_prompts, 0)[0]
    assert ExactMatch().score([held_out.response], [held_out])["exact_match"].tolist() == [1]


def told(table: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe("tokens/opd", [f"data.prompts={table}", *overrides])
    return str(caught.value)


def test_mistakes_are_told_before_any_work(table: Path) -> None:
    assert "'last_numbr' is not among the graders" in told(table, "data.grader=last_numbr")
    assert "did you mean 'last_number'" in told(table, "data.grader=last_numbr")
    assert "data.grader.pattern is missing" in told(table, "data.grader=regex")
    assert "pattern is no regular expression" in told(table, "data.grader={name: regex, pattern: '('}")
    assert "unknown key 'data.grader.patern'" in told(table, "data.grader={name: regex, patern: a}")
    assert "letters must be capital letters" in told(table, "data.grader={name: multiple_choice, letters: abc}")
    own = f"data.prompts={{name: table, path: {table}, grader: nothing}}"
    assert "'nothing' is not among the graders" in told(table, own)
    with pytest.raises(RecipeError, match=r"data\.grader has no effect"):
        load_recipe("tokens/opd", ["data.grader=boxed"])
    (table.parent / "t.csv").write_text("prompt,answer\n6 * 7,42\n2 + 2,four\n")
    message = told(table, "data.grader=last_number", "rewards.exact_match=1")
    assert "no reward of the recipe can score a prompt" in message and "row 1" in message
    with pytest.raises(DataError, match="the grader 'regex' cannot be made"):
        make_grader({"name": "regex", "patern": "a"})


# --- plugins ---


class Half(Grader):
    """Half of it for every response."""

    name = "half"

    def grade(self, response: str, answer: str) -> float:
        return 0.5


def test_a_grader_of_ones_own(table: Path) -> None:
    registry.register("graders", "half")(Half)
    try:
        recipe = load_recipe("tokens/opd", [f"data.prompts={table}", "data.grader=half"])
        assert ExactMatch().score(["x"], [build_prompts(recipe)[0]])["exact_match"].tolist() == [0.5]
    finally:
        registry.unregister("graders", "half")


def test_what_a_grader_must_not_do() -> None:
    class Wild(Half):
        value: Any = 2.0

        def grade(self, response: str, answer: str) -> float:
            if self.value is None:
                raise KeyError("oops")
            return self.value

    for value in (2.0, "1", torch.tensor(1.0)):
        Wild.value = value
        with pytest.raises(PluginError, match="a grade is a number in"):
            graded(Wild(), "a", "b")
    Wild.value = None
    with pytest.raises(PluginError, match="the grader 'Wild' failed"):
        graded(Wild(), "a", "b")
    with pytest.raises(AssertionError, match="gives 0.5 to 'a' for the answer 'a'"):
        check_grader(Half, right=[("a", "a")])
    with pytest.raises(AssertionError, match="gives 1 to 'a' for the answer 'a'"):
        check_grader("equals", right=[], wrong=[("a", "a")])
