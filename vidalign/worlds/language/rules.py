"""Choosing problems, the second token world: knowledge that is hard beside steps that are easy.

``rule : 3 | 1 a k | 2 c d`` is solved by ``1 gamma > 7 | 2 beta > 0 | = 0``. A pair of symbols, one of 196, names one
of 8 operations by a fixed random table; that is the knowledge. An operation is one permutation of the 10 states; it is
learned at once. Hints name the operations. A student that has mastered the steps but not the table gains much from
hints, and a teacher that knows most of the table does not make them worthless.

Splits: train and held_out (other problems) of 2 to 4 steps, deeper of 5 and 6. All families have the same
problems. They differ in the written answers that the teacher or the student, the `author`, learned from:

- ``F``: everybody names every operation. Hints suffice.
- ``G``: the teacher leaves the operation out in 70 % of its steps, ``1 > 7``: a style that the student cannot follow.
- ``G_plan``: lighter. Only where its hints have the operations the teacher refers to them, ``1 plan > 7``, in 70 % of
  its steps.
- ``H``: as ``G``, and the student's training has no problem with the operation `UNKNOWN`, which it cannot do.

Answers to leaky privilege are short: with the answer 90 % are the result alone, with executed hints 35 %. Sample n of a
split is a pure function of (seed, n).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from vidalign.data.examples import Example
from vidalign.engine.rng import generator
from vidalign.errors import DataError, nearest
from vidalign.worlds.language.tokens import MIXED

STATES = tuple("0123456789")
SYMBOLS = tuple("abcdefghijklmn")
OPERATIONS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
UNKNOWN = "theta"
"""The operation that the student of family H has never seen."""
SPLITS: dict[str, Sequence[int]] = {"train": (2, 3, 4), "held_out": (2, 3, 4), "deeper": (5, 6)}
"""Numbers of steps."""
FAMILIES = ("F", "G", "G_plan", "H")
AUTHORS = ("anyone", "student", "teacher")
"""Whose pre-training the problems are for; `anyone`: all problems, every operation named."""
BUCKETS = 5
"""One in so many problems is held out."""
SHORT = {"answer": 0.9, "executed": 0.35}
"""Share of the answers that are the result alone, by the privileged text beside them."""
LEFT_OUT = 0.7
"""Share of the teacher's steps that do not name their operation."""
Pair = tuple[str, str]


def _shuffled(items: Sequence[str], purpose: str) -> list[str]:
    """In an order that is random, and the same on every machine and for every version of every library."""
    return sorted(items, key=lambda item: hashlib.blake2b(f"rule world {purpose} {item}".encode()).digest())


@cache
def operation_of() -> dict[Pair, str]:
    """The table: the operation that a pair names. Every operation has 24 or 25 pairs."""
    pairs = _shuffled([f"{a} {b}" for a in SYMBOLS for b in SYMBOLS], "table")
    named = [(pair.split(), OPERATIONS[n % len(OPERATIONS)]) for n, pair in enumerate(pairs)]
    return {(a, b): name for (a, b), name in named}


@cache
def results_of() -> dict[str, dict[str, str]]:
    """By operation, the state after every state."""
    return {name: dict(zip(STATES, _shuffled(STATES, name), strict=True)) for name in OPERATIONS}


@dataclass(frozen=True)
class Problem:
    """One problem; all texts are words separated by spaces."""

    start: str
    pairs: tuple[Pair, ...]
    """What names the operations, in the order of their execution."""

    @property
    def operations(self) -> tuple[str, ...]:
        return tuple(operation_of()[pair] for pair in self.pairs)

    @property
    def states(self) -> tuple[str, ...]:
        """The state after every step."""
        states, state = [], self.start
        for name in self.operations:
            state = results_of()[name][state]
            states.append(state)
        return tuple(states)

    @property
    def prompt(self) -> str:
        return f"rule : {self.start}" + "".join(f" | {n} {a} {b}" for n, (a, b) in enumerate(self.pairs, 1))

    @property
    def answer(self) -> str:
        return self.states[-1]

    def worked(self, words: Sequence[str]) -> str:
        """Every step with its result; words: what stands for the operations, nothing where empty."""
        steps = [" ".join([str(n), *word.split(), ">"]) for n, word in enumerate(words, 1)]
        return " | ".join(f"{step} {state}" for step, state in zip(steps, self.states, strict=True))

    def privileged(self, form: str) -> str:
        """The privileged text of a form: `hints`, `executed`, `summary`, `answer` or `none`."""
        names = self.operations
        if form == "none":
            return ""
        if form == "answer":
            return f"answer : {self.answer}"
        if form == "executed":
            return f"plan : {self.worked(names)}"
        if form == "summary":
            return f"summary : {len(names)} steps with {' '.join(sorted(set(names)))}"
        assert form == "hints", f"unknown form of privilege {form!r}"
        return "plan : " + " | ".join(f"{n} {name}" for n, name in enumerate(names, 1))

    def bucket(self, count: int) -> int:
        """A number in 0 .. count - 1 that depends on the problem alone."""
        digest = hashlib.blake2b(self.prompt.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % count


def problem(split: str, seed: int, sample: int, *, without: str = "") -> Problem:
    """Problem `sample` of a split: numbers of steps take turns; drawn until it is on the right side.

    without: an operation that no training problem has.
    """
    check_split(split)
    steps = SPLITS[split][sample % len(SPLITS[split])]
    numbers = generator(seed, f"rule world {split}", 0, sample)
    while True:
        start = STATES[_below(len(STATES), numbers)]
        drawn = [(SYMBOLS[_below(len(SYMBOLS), numbers)], SYMBOLS[_below(len(SYMBOLS), numbers)]) for _ in range(steps)]
        candidate = Problem(start, tuple(drawn))
        if split != "train" and (split == "deeper" or candidate.bucket(BUCKETS) == 0):
            return candidate
        if split == "train" and candidate.bucket(BUCKETS) != 0 and without not in candidate.operations:
            return candidate


@dataclass(frozen=True)
class Style:
    """How the written answers of a source come about."""

    family: str = "F"
    author: str = "anyone"
    privileged_share: float = 1.0
    """Share of the problems that have a privileged text."""


def example(split: str, seed: int, sample: int, form: str, style: Style | None = None) -> Example:
    """The problem with its privileged text and a written answer; form `mixed` takes the turns of `MIXED`."""
    style = style or Style()
    lacks = style.family == "H" and style.author == "student"
    task = problem(split, seed, sample, without=UNKNOWN if lacks else "")
    numbers = generator(seed, f"rule world answers {split}", 0, sample)
    shown, short, *left_out = torch.rand(2 + len(task.pairs), generator=numbers, dtype=torch.float64).tolist()
    if form == "mixed":
        form = MIXED[sample // len(SPLITS[split]) % len(MIXED)]
    if shown >= style.privileged_share:
        form = "none"
    privileged = task.privileged(form)
    if short < SHORT.get(form, 0.0):
        response = f"= {task.answer}"
    else:
        response = f"{task.worked(_words(task, form, style, left_out))} | = {task.answer}"
    return Example(task.prompt, privileged, (), task.answer, response, style.family, len(task.pairs))


def _words(task: Problem, form: str, style: Style, draws: Sequence[float]) -> list[str]:
    """What stands for the operation in every step of a written answer."""
    instead = None
    if style.author == "teacher" and style.family in ("G", "H"):
        instead = ""
    elif style.author == "teacher" and style.family == "G_plan" and form in ("hints", "executed"):
        instead = "plan"
    if instead is None:
        return list(task.operations)
    return [instead if draw < LEFT_OUT else name for name, draw in zip(task.operations, draws, strict=True)]


def check_split(split: str) -> None:
    """Raises `DataError` unless there is such a split."""
    if split not in SPLITS:
        near = nearest(split, SPLITS)
        raise DataError(
            f"the rule world has no split {split!r}",
            where=f"rules:{split}",
            fix=f"did you mean {near!r}?" if near else f"known: {', '.join(SPLITS)}",
        )


def _below(limit: int, g: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=g))
