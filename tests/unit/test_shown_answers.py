"""The responses of a language student: which come first on the page, whose grades they bear, and their file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from report_example import run

from vidalign import cli
from vidalign.data.examples import Example
from vidalign.errors import DataError
from vidalign.evaluation.evaluator import Evaluation, Evaluator
from vidalign.evaluation.metrics.exact_match import ExactMatch
from vidalign.report import Answer, ShownAnswers, render
from vidalign.report.kept import read_answers, write_answers
from vidalign.report.page import ANSWERS
from vidalign.workflows.shown_answers import LONGEST, kept_answers

NAN = float("nan")


class Sums:
    """Three sums as a prompt source; only what the evaluator asks for."""

    examples = [Example(f"{n} + 1 =", answer=str(n + 1)) for n in range(3)]

    def first(self, count: int) -> list[Example]:
        return self.examples[:count]


def evaluation(scores: Sequence[float], texts: Sequence[str] | None = None) -> Evaluation:
    said = list(texts or [f"answer {n}" for n in range(len(scores))])
    prompts = [f"prompt {n}" for n in range(len(scores))]
    beside = [{"exact_match": score} for score in scores]
    values = {("exact_match", "all"): torch.tensor(scores)}
    return Evaluation(prompts, values, torch.empty(0, 0, 3, 0, 0), beside, said)


def test_answers_bear_the_grade_of_the_response_that_is_shown() -> None:
    """Two responses an example: the first is right of example 0 alone, the second of all, so the means are others."""
    calls = iter([["1", "0", "0"], ["1", "2", "3"]])

    def generate(prompts: list[Any], generators: list[torch.Generator]) -> list[str]:
        return next(calls)

    judged = Evaluator(Sums(), [ExactMatch()], count=3, seeds=2)(generate)  # type: ignore[arg-type]
    assert judged.metrics["exact_match", "all"].tolist() == [1.0, 0.5, 0.5]
    assert judged.responses == ["1", "0", "0"]
    assert judged.output_scores == [{"exact_match": 1.0}, {"exact_match": 0.0}, {"exact_match": 0.0}]


def test_the_largest_changes_come_first_in_either_direction() -> None:
    before, after = [1.0, 0.0, 1.0, 0.4, 0.0, 0.0], [1.0, 1.0, 0.0, 0.9, NAN, 0.0]
    kept = kept_answers({"before": evaluation(before), "after": evaluation(after, [*"abcde", "f" * (LONGEST + 5)])})
    assert [one.prompt for one in kept] == [f"prompt {n}" for n in (1, 2, 3, 0, 5, 4)]
    assert [one.change for one in kept[:5]] == pytest.approx([1.0, -1.0, 0.5, 0.0, 0.0])
    assert [(a.row, a.text, a.score) for a in kept[0].answers] == [("before", "answer 1", 0.0), ("after", "b", 1.0)]
    assert len(kept[4].answers[1].text) < LONGEST + 30 and "20,005 characters" in kept[4].answers[1].text


def test_the_file_reads_back(tmp_path: Path) -> None:
    shown = [
        ShownAnswers("ünd\n2", [Answer("before", "a", 0.0), Answer("after", "b", 1.0)], 1.0),
        ShownAnswers("3", [Answer("before", "c"), Answer("after", "d")]),
    ]
    write_answers(file := tmp_path / "answers.json", shown)
    assert str(read_answers(file)) == str(shown)  # NaN is not equal to itself
    json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda constant: pytest.fail(constant))


@pytest.mark.parametrize("text", ["{", "[]", '{"prompts": [1]}', '{"prompts": [{"prompt": "a", "answers": [{}]}]}'])
def test_a_damaged_file_is_one_clear_error(text: str, tmp_path: Path) -> None:
    (file := tmp_path / "answers.json").write_text(text)
    with pytest.raises(DataError, match=r"the responses of the run cannot be read.*vidalign evaluate --run RUN"):
        read_answers(file)


def test_the_page_shows_right_and_wrong_and_takes_texts_as_texts() -> None:
    odd = "</pre><script>alert(1)</script>{{ 7 * 7 }}"
    shown = [ShownAnswers(odd, [Answer("before", "= 2", 0.0), Answer("after", odd, 1.0)], 1.0)]
    shown += [ShownAnswers(f"p{n}", [Answer("before", "x", 0.25), Answer("after", "y")], 0.5) for n in range(ANSWERS)]
    html = render(run(prompts=[], answers=shown, answers_note="Largest changes first."))
    assert "<script>alert" not in html and html.count(odd.replace("<", "&lt;").replace(">", "&gt;")) == 2
    captions = [re.sub(r"<[^>]+>", "", part) for part in re.findall(r"<figcaption>(.*?)</figcaption>", html)]
    said = [" ".join(caption.split()) for caption in captions if caption.split()[:1] in (["before"], ["after"])]
    assert said[:4] == ["before ✗ wrong", "after ✓ right", "before 0.250", "after"]
    assert html.count('class="card answers"') == ANSWERS and f"{ANSWERS} of {ANSWERS + 1} prompts are shown" in html
    assert html.index("+0.200 on the held-out") < html.index('id="answers"') < html.index('id="pairs"')
    assert 'id="answers"' not in render(run())


def vidalign(*arguments: str) -> None:
    try:
        cli.main(list(arguments))
    except SystemExit as leaving:
        assert not leaving.code


def test_runs_of_language_students_show_their_answers_alone_and_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["trainer.steps=1", "trainer.prompts_per_step=2", "evaluation.count=8", "evaluation.seeds=1"]
    quiet = ["tracking={panel: none, tensorboard: false}"]
    for name, rate in (("one", "3e-3"), ("two", "1e-5")):
        vidalign("train", "tokens/dopd", "--run", name, *tiny, *quiet, f"trainer.learning_rate={rate}")
    kept = read_answers(Path("one/evaluation-responses.json"))
    judged = json.loads(Path("one/evaluation.json").read_text())
    values = dict(zip(judged["prompts"], judged["values"]["after"]["exact_match/all"], strict=True))
    assert {one.prompt: one.answers[1].score for one in kept} == values
    page = Path("one/report.html").read_text(encoding="utf-8")
    counts = re.search(r"Of 8 answers, (\d) became right, (\d) became wrong, (\d) stayed right\s+and (\d) wrong", page)
    assert counts and sum(map(int, counts.groups())) == 8
    vidalign("report", "one", "two", "--out", "both.html")
    both = Path("both.html").read_text(encoding="utf-8")
    assert re.findall(r'<figure data-row="(\w+)">', both)[:3] == ["before", "one", "two"]
    assert both.count('class="card answers"') == 8
    Path("one/evaluation-responses.json").unlink()
    vidalign("report", "one")
    assert "this run kept no responses" in Path("one/report.html").read_text(encoding="utf-8")
