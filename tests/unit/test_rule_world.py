"""The rule world: answers by a brute-force twin of the rules, splits, privilege, written answers and the tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from vidalign.data.examples import Example
from vidalign.data.source import open_source
from vidalign.errors import DataError, RecipeError
from vidalign.recipe import load_recipe
from vidalign.worlds.language import rules, vocabulary
from vidalign.worlds.language.grader import AfterEquals, final_answer

TABLE = "09cfa197d06c"
COUNT = 240


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


class Twin:
    """Learns table and permutations from worked answers, as a solver without the code of the world must."""

    def __init__(self, examples: list[Example]) -> None:
        self.named: dict[str, str] = {}
        self.result: dict[tuple[str, str], str] = {}
        for example in examples:
            start, *told = example.prompt.removeprefix("rule : ").split(" | ")
            *steps, end = example.response.split(" | ")
            state = start
            for asked, done in zip(told, steps, strict=True):
                number, a, b = asked.split()
                at, name, mark, after = done.split()
                assert at == number and mark == ">"
                assert self.named.setdefault(f"{a} {b}", name) == name, "a pair names one operation"
                assert self.result.setdefault((name, state), after) == after, "an operation is a function"
                state = after
            assert end == f"= {state}"

    def solve(self, prompt: str) -> str:
        state, *told = prompt.removeprefix("rule : ").split(" | ")
        for asked in told:
            state = self.result[self.named[asked.partition(" ")[2]], state]
        return state


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin([rules.example("train", 7, n, "none") for n in range(1500)])


@pytest.mark.parametrize("split", rules.SPLITS)
def test_answers_are_right(split: str, twin: Twin) -> None:
    """The twin knows 196 pairs, 8 operations and 10 states from training problems of another seed."""
    assert len(twin.named) == 14 * 14 and len(set(twin.named.values())) == 8 and len(twin.result) == 80
    found = [rules.example(split, 0, n, "hints") for n in range(COUNT)]
    for example in found:
        assert twin.solve(example.prompt) == example.answer == final_answer(example.response), example
    assert {e.steps for e in found} == set(rules.SPLITS[split]) and len({e.prompt for e in found}) == COUNT


def test_the_table_is_fixed(twin: Twin) -> None:
    """A change of it makes every trained model worthless: raise `Rules.version` with it."""
    named = {f"{a} {b}": name for (a, b), name in rules.operation_of().items()}
    assert named == twin.named and set(Counter(named.values()).values()) == {24, 25}
    assert digest([named, rules.results_of()]) == TABLE
    tables = [tuple(after.values()) for after in rules.results_of().values()]
    assert len(set(tables)) == 8 and all(sorted(t) == list(rules.STATES) != list(t) for t in tables)


def test_no_training_problem_is_held_out() -> None:
    train = {rules.problem("train", seed, n) for seed in range(3) for n in range(600)}
    held = {rules.problem("held_out", seed, n) for seed in range(3) for n in range(600)}
    assert len(train) > 1700 and len(held) > 1700 and not train & held
    assert all(p.bucket(rules.BUCKETS) != 0 for p in train) and all(p.bucket(rules.BUCKETS) == 0 for p in held)
    deeper = [rules.problem("deeper", 0, n) for n in range(60)]
    assert {len(p.pairs) for p in deeper} == {5, 6} and {len(p.pairs) for p in train | held} == {2, 3, 4}


def test_forms_of_privilege() -> None:
    problem = rules.problem("held_out", 0, 1)
    (one, two, three), (a, b, c) = problem.operations, problem.states
    assert problem.privileged("hints") == f"plan : 1 {one} | 2 {two} | 3 {three}"
    assert problem.privileged("executed") == f"plan : 1 {one} > {a} | 2 {two} > {b} | 3 {three} > {c}"
    assert problem.privileged("summary") == f"summary : 3 steps with {' '.join(sorted({one, two, three}))}"
    assert problem.privileged("answer") == f"answer : {c}" and problem.privileged("none") == ""


def test_forms_do_not_leak_what_they_must_not() -> None:
    """Hints and summary are the same for every start, so for every answer; the answer names no operation."""
    for n in range(60):
        problem = rules.problem("train", 0, n)
        others = [rules.Problem(start, problem.pairs) for start in rules.STATES]
        assert {other.answer for other in others} == set(rules.STATES)
        for form in ("hints", "summary"):
            assert len({other.privileged(form) for other in others}) == 1 and ">" not in problem.privileged(form)
        backwards = rules.Problem(problem.start, problem.pairs[::-1])
        assert backwards.privileged("summary") == problem.privileged("summary"), "a summary tells no order"
        assert not set(problem.privileged("answer").split()) & set(rules.OPERATIONS)


def written(form: str, style: rules.Style, count: int = 600) -> list[Example]:
    return [rules.example("train", 0, n, form, style) for n in range(count)]


def left_out(examples: list[Example], instead: str) -> float:
    """Share of the steps of worked answers in which `instead` stands for the operation."""
    steps = [step for e in examples for step in e.response.split(" | ")[:-1]]
    return sum(step.split()[1] == instead for step in steps) / len(steps)


@pytest.mark.parametrize(("form", "share"), [("answer", 0.9), ("executed", 0.35), ("hints", 0), ("none", 0)])
def test_answers_to_leaky_privilege_are_short(form: str, share: float) -> None:
    found = [e.response == f"= {e.answer}" for e in written(form, rules.Style())]
    assert sum(found) / len(found) == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    ("family", "author", "form", "instead", "share"),
    [
        ("G", "teacher", "none", ">", 0.7),
        ("G", "teacher", "hints", ">", 0.7),
        ("H", "teacher", "hints", ">", 0.7),
        ("G_plan", "teacher", "hints", "plan", 0.7),
        ("G_plan", "teacher", "executed", "plan", 0.7),
        ("G_plan", "teacher", "none", "plan", 0.0),
        ("G_plan", "teacher", "summary", "plan", 0.0),
        ("F", "teacher", "hints", ">", 0.0),
        ("G", "student", "hints", ">", 0.0),
        ("G", "anyone", "hints", ">", 0.0),
    ],
)
def test_what_the_teacher_leaves_out(family: str, author: str, form: str, instead: str, share: float) -> None:
    examples = written(form, rules.Style(family, author))
    assert left_out(examples, instead) == pytest.approx(share, abs=0.04)
    plain = written(form, rules.Style())
    assert [(e.prompt, e.privileged, e.answer) for e in examples] == [
        (e.prompt, e.privileged, e.answer) for e in plain
    ], "families have the same problems"
    assert all(final_answer(e.response) == e.answer for e in examples)


def test_the_student_of_h_never_meets_an_operation() -> None:
    assert not any(rules.UNKNOWN in e.response for e in written("hints", rules.Style("H", "student")))
    for style in (rules.Style("H", "teacher"), rules.Style("H"), rules.Style("G", "student")):
        meets = [rules.UNKNOWN in e.privileged for e in written("hints", style)]
        expected = 1 - sum((7 / 8) ** steps for steps in (2, 3, 4)) / 3
        assert sum(meets) / len(meets) == pytest.approx(expected, abs=0.07)
    held = [rules.example("held_out", 0, n, "hints", rules.Style("H", "student")) for n in range(COUNT)]
    assert any(rules.UNKNOWN in e.privileged for e in held), "it is judged on all problems"


def test_a_source_is_a_function_of_seed_and_sample() -> None:
    chosen = {"name": "rules", "split": "train", "privilege": "mixed", "privileged_share": 0.5}
    first = open_source(chosen, 5)
    samples = [first[n] for n in range(400)]
    forms = Counter(e.privileged.split(" ")[0] for e in samples)
    assert set(forms) == {"plan", "summary", "answer", ""} and forms[""] / 400 == pytest.approx(0.5, abs=0.08)
    assert samples[:9] == open_source(chosen, 5).first(9) and samples[7].prompt != open_source(chosen, 6)[7].prompt
    assert all(len(e.response.split()) > 2 for e in samples if not e.privileged), "bare answers are worked out"
    assert open_source("rules:held_out", 0)[0].privileged.startswith("plan : 1 ")
    assert isinstance(samples[0].grader, AfterEquals)


def test_mistakes_are_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'held_out'"):
        open_source("rules:heldout", 0)
    with pytest.raises(RecipeError, match=r"data\.prompts\.family"):
        load_recipe("rules/pretrain/teacher", ["data.prompts.family=Q"])
    with pytest.raises(RecipeError, match="privileged_share must lie in 0..1"):
        load_recipe("rules/pretrain/teacher", ["data.prompts.privileged_share=2"])


def test_every_word_is_a_token_of_the_shipped_tokenizer(tmp_path: Path) -> None:
    tokenizer = vocabulary.build_rules()
    assert len(tokenizer) == len(set(vocabulary.rules_vocabulary())) == 48
    for family in rules.FAMILIES:
        for split in rules.SPLITS:
            for n in range(48):
                example = rules.example(split, 0, n, "mixed", rules.Style(family, "teacher"))
                for text in (example.prompt, example.privileged, example.response):
                    ids = tokenizer(text, add_special_tokens=False).input_ids
                    assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text
    tokenizer.save_pretrained(tmp_path)
    for file in tmp_path.iterdir():
        shipped = vocabulary.RULES_FOLDER / file.name
        assert file.read_text() == shipped.read_text(), "run vidalign.worlds.language.vocabulary"
