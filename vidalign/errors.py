"""Mistakes that a user can repair, each reported as: what - where - why - fix.

Broken invariants of our own code are `assert`. Everything here is shown without a traceback and ends the command with
its exit code (2: the recipe or the command line, 3: the run, 4: memory).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Problem:
    """One mistake in four short texts; the empty ones are not shown."""

    what: str
    where: str = ""
    why: str = ""
    fix: str = ""

    def __str__(self) -> str:
        return " - ".join(part for part in (self.what, self.where, self.why, self.fix) if part)


class UserError(Exception):
    """A mistake that the user can repair; the command ends with `exit_code`."""

    exit_code = 3
    label = "error"
    """How the command line begins the message."""

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.problems = [Problem(what, where, why, fix)]
        super().__init__(str(self))

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class RecipeError(UserError):
    """Every mistake of a recipe, collected and shown together; nothing was started."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "a RecipeError needs at least one problem"
        super().__init__(problems[0].what)
        self.problems = list(problems)
        self.args = (str(self),)

    def __reduce__(self) -> tuple[type[RecipeError], tuple[list[Problem]]]:
        return type(self), (self.problems,)


class UsageError(UserError):
    """A mistake on the command line, such as a name that does not exist; nothing was started."""

    exit_code = 2


class CheckpointError(UserError):
    """A checkpoint that is missing, half-written, damaged, of other shapes, or that cannot be written."""


class DataError(UserError):
    """Data that cannot be used: an empty prompt file, an unreadable clip."""


class PluginError(UserError):
    """A plugin that cannot be imported or does not keep its contract."""


class DoesNotFit(UserError):
    """A step needs more memory than the accelerator has, by its plan or at run time."""

    exit_code = 4


class Interrupted(UserError):
    """Ctrl-C while training: no mistake, but the message says what is saved and how to go on."""

    exit_code = 130
    label = "interrupted"


@contextmanager
def before_work() -> Iterator[None]:
    """Mistakes met inside are those of the command line: nothing was started, and the command ends with 2."""
    try:
        yield
    except UserError as error:
        if error.exit_code == UserError.exit_code:
            error.exit_code = UsageError.exit_code
        raise


def first_line(error: BaseException) -> str:
    """The first line of what an error of a library says; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The valid name most like `name`, or '' when none is close."""
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
    return matches[0] if matches else ""
