"""Are student and teacher of the rule or sign world such that on-policy distillation has something to show?

    python -m vidalign.worlds.language.bands --student PATH --teacher PATH --family F
    python -m vidalign.worlds.language.bands --student PATH --teacher PATH --world signs

prints four shares of right answers, greedy, on held-out problems: the student without and with hints (S, S^p), the
teacher without and with them (T, T^p). Weights outside a band are refused, with exit code 3:

- S .4 to .6: the student has much to learn, and its rollouts are of use;
- S^p at least .9: hints lift it far. In family H it lacks one of 8 operations, and solves the share of problems without
  it, .674 of 2 to 4 steps and a tenth of the others by chance: .55 to .75, and S .27 to .6;
- T .75 to .85: a teacher that is perfect without hints makes privilege worthless;
- T^p at least .98.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidalign.data.examples import Example
from vidalign.errors import Problem, UsageError, UserError
from vidalign.evaluation.judging import BATCH
from vidalign.provenance import commit, machine
from vidalign.worlds.language import rules, signs
from vidalign.worlds.language.grader import AfterEquals
from vidalign.worlds.language.vocabulary import rules_vocabulary, signs_vocabulary

if TYPE_CHECKING:
    from vidalign.students.language import LanguageStudent

Band = tuple[float, float]
BANDS: dict[str, Band] = {"S": (0.4, 0.6), "S^p": (0.9, 1.0), "T": (0.75, 0.85), "T^p": (0.98, 1.0)}
OWN: dict[str, dict[str, Band]] = {"H": {"S": (0.27, 0.6), "S^p": (0.55, 0.75)}}
"""Bands of families that have others."""


@dataclass(frozen=True)
class Share:
    """Share of right answers of one policy."""

    name: str
    right: int
    count: int
    band: Band

    @property
    def value(self) -> float:
        return self.right / self.count

    @property
    def inside(self) -> bool:
        return self.band[0] <= self.value <= self.band[1]

    def __str__(self) -> str:
        error = (self.value * (1 - self.value) / self.count) ** 0.5
        low, high = self.band
        return f"{self.name} {self.value:.3f} (standard error {error:.3f}), band {low:.2f} .. {high:.2f}"


def bands_of(family: str) -> dict[str, Band]:
    """The bands of a family by policy."""
    return {**BANDS, **OWN.get(family, {})}


@dataclass(frozen=True)
class World:
    """What is asked of the models of one world."""

    words: Callable[[], list[str]]
    """The tokens that a model must know."""
    question: Callable[[str, int], Example]
    """A held-out question of seed 0 with hints, by its family and number."""
    families: tuple[str, ...]
    """The first one is the default; a world without families has one that is named as it is."""


WORLDS = {
    "rules": World(
        rules_vocabulary,
        lambda family, n: rules.example("held_out", 0, n, "hints", rules.Style(family)),
        rules.FAMILIES,
    ),
    "signs": World(signs_vocabulary, lambda _, n: signs.example("held_out", 0, n, "hints"), ("signs",)),
}


def problems(world: str, family: str, count: int) -> list[Example]:
    """The first `count` held-out problems of seed 0, with hints."""
    return [WORLDS[world].question(family, n) for n in range(count)]


def measure(
    student: LanguageStudent, teacher: LanguageStudent, examples: Sequence[Example], bands: dict[str, Band]
) -> list[Share]:
    """S, S^p, T and T^p on `examples`, whose privileged texts are the hints."""
    hints, count = [example.privileged for example in examples], len(examples)
    asked = {"S": (student, None), "S^p": (student, hints), "T": (teacher, None), "T^p": (teacher, hints)}
    return [Share(name, _right(model, examples, texts), count, bands[name]) for name, (model, texts) in asked.items()]


def refuse(shares: Sequence[Share]) -> None:
    """Raise `UserError`, a line for each, for shares outside their bands."""
    outside = [share for share in shares if not share.inside]
    if outside:
        error = UserError("weights outside their bands")
        fix = {"S": "train the student further, or less", "T": "train the teacher further, or less"}
        error.problems = [
            Problem(f"{share.name} is outside its band", str(share), WHY[share.name], fix[share.name[0]])
            for share in outside
        ]
        raise error


WHY = {
    "S": "its rollouts must be of use and leave much to learn",
    "S^p": "hints must lift the student far",
    "T": "a teacher that is perfect without hints makes privilege worthless, a poor one teaches errors",
    "T^p": "a privileged teacher must be right",
}
"""What a band is for."""


def _right(model: LanguageStudent, examples: Sequence[Example], hints: Sequence[str] | None) -> int:
    """How many answers are right, greedy, behind bare prompts or with hints."""
    sampling = replace(model.spec.sampling, temperature=0.0)
    grader, right = AfterEquals(), 0.0
    for start in range(0, len(examples), BATCH):
        rows = slice(start, start + BATCH)
        prompts = model.prompts(examples[rows], None if hints is None else hints[rows])
        answers = model.decode(model.generate(prompts, None, sampling))
        right += sum(grader.grade(said, e.answer) for said, e in zip(answers, examples[rows], strict=True))
    return round(right)


def _load(path: str, option: str, world: str) -> LanguageStudent:
    """A model whose tokens are those of the world."""
    from vidalign.students.language import LanguageStudent

    model = LanguageStudent.load(path)
    known = model.chat.tokenizer.get_vocab()
    missing = [word for word in WORLDS[world].words() if word not in known]
    if missing:
        raise UsageError(
            f"a model that cannot write the answers of the world {world}",
            where=f"{option} {path}",
            why=f"its tokenizer has no {missing[0]!r}",
            fix=f"train one with student.init.tokenizer: {world}",
        )
    return model


def parse(arguments: Sequence[str] | None = None) -> Any:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vidalign.worlds.language.bands", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--student", required=True, help="weights: a file, a folder or a shipped name")
    parser.add_argument("--teacher", required=True, help="the same of the teacher")
    parser.add_argument("--world", choices=WORLDS, default="rules")
    parser.add_argument("--family", help=f"of the rule world: {', '.join(rules.FAMILIES)}; default F")
    parser.add_argument("--count", type=int, default=480, help="held-out problems")
    parser.add_argument("--out", type=Path, help="all numbers as JSON")
    asked = parser.parse_args(arguments)
    if asked.count < 1:
        parser.error("--count must be at least 1")
    families = WORLDS[asked.world].families
    asked.family = asked.family or families[0]
    if asked.family not in families:
        parser.error(f"--family: the world {asked.world} has no {asked.family!r}, it has {', '.join(families)}")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the four shares; 0 where all are inside their bands, else the exit code of the error."""
    asked = parse(arguments)
    try:
        student = _load(asked.student, "--student", asked.world)
        teacher = _load(asked.teacher, "--teacher", asked.world)
        examples = problems(asked.world, asked.family, asked.count)
        shares = measure(student, teacher, examples, bands_of(asked.family))
        print(f"world {asked.world}, family {asked.family}, {asked.count} held-out problems")
        for share in shares:
            print(f"  {share}{'' if share.inside else '  OUTSIDE'}")
        if asked.out is not None:
            asked.out.write_text(json.dumps(_document(asked, shares), indent=1) + "\n", encoding="utf-8")
        refuse(shares)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _document(asked: Any, shares: Sequence[Share]) -> dict[str, Any]:
    values = {s.name: {"value": round(s.value, 5), "band": list(s.band), "inside": s.inside} for s in shares}
    command = (
        f"python -m vidalign.worlds.language.bands --world {asked.world} --family {asked.family} --count {asked.count}"
    )
    return {"command": command, "seed": 0, "commit": commit(), "machine": machine(), "shares": values}


if __name__ == "__main__":
    sys.exit(main())
