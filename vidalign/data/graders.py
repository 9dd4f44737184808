"""Graders: is a response right, given the known answer? One is chosen for the prompts of a source by ``data.grader``.

A grader is a plugin (kind ``graders``): a class with a nested dataclass ``Config``, made with it, and `grade`. It
travels with each `Example`, so that the reward and the metric `exact_match` grade every task in its own way.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from vidalign import registry
from vidalign.data.answers import boxed, mathematics, numbers, plain, same
from vidalign.errors import DataError, PluginError, UserError
from vidalign.guest import guest
from vidalign.ranges import require

Chosen = str | Mapping[str, Any]
"""A grader as a recipe names it: ``boxed``, or ``{name: regex, pattern: ...}``."""
LONGEST_BARE = 200
"""Characters of a response that may be one formula without dollars; to read longer prose as one takes seconds."""


class Grader:
    """Base of every grader."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    def can_grade(self, answer: str) -> bool:
        """Whether this is an answer that it can compare with; a prompt with another one is refused before any work."""
        return bool(answer.strip())

    def grade(self, response: str, answer: str) -> float:
        """1 for a right response, 0 for a wrong one, what lies between for a part; NaN where it cannot say."""
        raise NotImplementedError


class Equals(Grader):
    """The whole response is the answer, apart from white space."""

    @dataclass
    class Config:
        ignore_case: bool = False
        """Take capital and small letters for the same."""

    def grade(self, response: str, answer: str) -> float:
        return float(plain(response, self.config.ignore_case) == plain(answer, self.config.ignore_case))


class LastNumber(Grader):
    """The last number of the response equals the number of the answer: "The answer is 42." for 42."""

    @dataclass
    class Config:
        tolerance: float = 0.0
        """Largest difference that is right, as a share of the answer."""

        def __post_init__(self) -> None:
            require(self, "tolerance", least=0)

    def can_grade(self, answer: str) -> bool:
        return bool(numbers(answer))

    def grade(self, response: str, answer: str) -> float:
        given, right = numbers(response), numbers(answer)
        return float(bool(given) and abs(given[-1] - right[-1]) <= Fraction(self.config.tolerance) * abs(right[-1]))


class Boxed(Grader):
    r"""What stands in the last ``\boxed{...}`` of the response is the answer, as a text or as a number."""

    def can_grade(self, answer: str) -> bool:
        return bool(mathematics(answer))

    def grade(self, response: str, answer: str) -> float:
        given, right = boxed(response), boxed(answer)
        return float(given is not None and same(given, answer if right is None else right))


class MultipleChoice(Grader):
    """The letter that the response chooses last is that of the answer: "The answer is (B).", "B", "**C)** because"."""

    @dataclass
    class Config:
        letters: str = "ABCDEFGHIJ"
        """The choices."""

        def __post_init__(self) -> None:
            if not self.letters.isalpha() or not self.letters.isupper():
                raise ValueError("letters must be capital letters, such as ABCD")

    def can_grade(self, answer: str) -> bool:
        return self._chosen(answer) is not None

    def grade(self, response: str, answer: str) -> float:
        return float(self._chosen(response) == self._chosen(answer))

    def _chosen(self, text: str) -> str | None:
        """The letter alone; else the last that is called the answer or stands in a box, else that is called an option,
        else in brackets, else before a mark."""
        letter = f"([{self.config.letters}])"
        if alone := re.fullmatch(rf"[\s(*]*{letter}[\s).:*]*", text, re.IGNORECASE):
            return alone[1].upper()
        text = re.sub(r"\\(?:text|mathrm|textbf|boxed|fbox)\s*\{", "answer {", text).replace("*", " ")
        for pattern in (
            rf"(?i:\b(?:answer|choice))(?i:\s+is\b)?[\s:({{]*{letter}(?![\w'])",
            rf"(?i:\boption)(?i:\s+is\b)?[\s:({{]*{letter}(?![\w'])",
            rf"\({letter}\)",
            rf"(?:^|\s){letter}[).:]",
        ):
            if found := re.findall(pattern, text, re.MULTILINE):
                return str(found[-1])
        return None


class Regex(Grader):
    """The last match of a pattern in the response is the answer."""

    @dataclass
    class Config:
        pattern: str
        """Regular expression of Python; its first group is compared, or all of it where it has none."""
        ignore_case: bool = False
        """Take capital and small letters for the same."""

        def __post_init__(self) -> None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern is no regular expression: {error}") from error

    def grade(self, response: str, answer: str) -> float:
        flags = re.IGNORECASE if self.config.ignore_case else 0
        found = list(re.finditer(self.config.pattern, response, flags))
        if not found:
            return 0.0
        given = (found[-1][1] if found[-1].re.groups else found[-1][0]) or ""
        return float(plain(given, self.config.ignore_case) == plain(answer, self.config.ignore_case))


class Math(Grader):
    """The response and the answer are the same mathematics, by the library math-verify.

    It is an extra: `pip install 'vidalign[math]'`.
    """

    @dataclass
    class Config:
        precision: int = 6
        """Digits behind the point in which numbers must agree."""
        seconds: int = 5
        """Longest time for one comparison; what takes longer is wrong."""

        def __post_init__(self) -> None:
            require(self, "precision", least=0)
            require(self, "seconds", least=1)

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        try:
            import math_verify
        except ImportError as error:
            raise UserError(
                "the grader 'math' needs the package math-verify", why=str(error), fix="pip install 'vidalign[math]'"
            ) from error
        self._library: Any = math_verify

    def __reduce__(self) -> tuple[type[Math], tuple[Any]]:
        return type(self), (self.config,)  # a module cannot be pickled

    def can_grade(self, answer: str) -> bool:
        return bool(self._parsed(answer))

    def grade(self, response: str, answer: str) -> float:
        right, given = self._parsed(answer), self._parsed(response, LONGEST_BARE)
        seconds = self._seconds()
        return float(self._library.verify(right, given, float_rounding=self.config.precision, timeout_seconds=seconds))

    def _parsed(self, text: str, longest_bare: float = math.inf) -> list[Any]:
        """Expressions of a text: LaTeX between dollars or in a box, a number or an expression, else all of it."""
        found: list[Any] = self._library.parse(text, parsing_timeout=self._seconds())
        if found or len(text) > longest_bare:
            return found
        return list(self._library.parse(f"${text}$", parsing_timeout=self._seconds()))

    def _seconds(self) -> int | None:
        """Its clock is a signal, which only the main thread can wait for."""
        return self.config.seconds if threading.current_thread() is threading.main_thread() else None


def make_grader(chosen: Chosen) -> Grader:
    """The grader that a recipe names; `UserError` for one that does not exist or has other settings."""
    name, settings = spelled_out(chosen)
    kind = registry.get("graders", name)
    with guest("grader", name, kind):
        try:
            config = kind.Config(**settings)
        except (TypeError, ValueError) as error:
            raise DataError(f"the grader {name!r} cannot be made", where="data.grader", why=str(error)) from error
        grader: Grader = kind(config)
    return grader


def spelled_out(chosen: Chosen) -> tuple[str, dict[str, Any]]:
    """Name of a grader and its settings."""
    if isinstance(chosen, str):
        return chosen, {}
    settings = dict(chosen)
    return str(settings.pop("name", "")), settings


def graded(grader: Grader, response: str, answer: str) -> float:
    """One grade; `PluginError` for what is no number in [0, 1] and not NaN."""
    name = type(grader).__name__
    with guest("grader", name, grader):
        value = grader.grade(response, answer)
    if not isinstance(value, bool | int | float) or not (math.isnan(value) or 0 <= value <= 1):
        raise PluginError(
            f"the grader {name!r} returned {value!r:.60}",
            where=type(grader).__qualname__,
            why="a grade is a number in [0, 1], or NaN",
        )
    return float(value)
