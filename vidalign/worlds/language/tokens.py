"""Splits of the token world. Sample n is a pure function of (seed, n); no training problem is in another split.

train: four families, 2 to 4 steps. held_out: the same families and numbers of steps, other problems. deeper: 5 and 6
steps. family: a family that was never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

from vidalign.data.examples import Example
from vidalign.engine.rng import generator
from vidalign.errors import DataError, nearest
from vidalign.worlds.language.problems import FAMILIES, Problem, draw

FORMS = ("hints", "executed", "summary", "answer", "none")
"""What a privileged policy may be given."""
MIXED = ("hints", "executed", "hints", "summary", "hints", "answer")
"""The turns of form `mixed`: hints, the hardest to use, come three times."""
TRAINED = FAMILIES[:4]
SPLITS: dict[str, tuple[Sequence[str], Sequence[int]]] = {
    "train": (TRAINED, (2, 3, 4)),
    "held_out": (TRAINED, (2, 3, 4)),
    "deeper": (TRAINED, (5, 6)),
    "family": (FAMILIES[4:], (2, 3, 4)),
}
BUCKETS = 5
"""One in so many problems is held out."""


def problem(split: str, seed: int, sample: int) -> Problem:
    """Problem `sample` of a split: families and numbers of steps take turns; drawn until it is on the right side."""
    check_split(split)
    families, steps = SPLITS[split]
    turn, place = divmod(sample, len(families))
    numbers = generator(seed, f"token world {split}", 0, sample)
    while True:
        candidate = draw(families[place], steps[turn % len(steps)], numbers)
        if (candidate.bucket(BUCKETS) == 0) == (split != "train"):
            return candidate


def example(split: str, seed: int, sample: int, form: str) -> Example:
    """The problem with its privileged text; form `mixed` takes the turns of `MIXED`."""
    task = problem(split, seed, sample)
    if form == "mixed":
        form = MIXED[sample // len(SPLITS[split][0]) // len(SPLITS[split][1]) % len(MIXED)]
    steps = len(task.steps)
    return Example(task.prompt, task.privileged(form), (), task.answer, task.response, task.family, steps)


def check_split(split: str) -> None:
    """Raises `DataError` unless there is such a split."""
    if split not in SPLITS:
        near = nearest(split, SPLITS)
        raise DataError(
            f"the token world has no split {split!r}",
            where=f"tokens:{split}",
            fix=f"did you mean {near!r}?" if near else f"known: {', '.join(SPLITS)}",
        )
