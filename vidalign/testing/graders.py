"""The promises of a grader: grades in [0, 1], the same for the same words, and those of cases that its author knows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vidalign import registry
from vidalign.data.graders import Grader, graded
from vidalign.recipe.plugins import make
from vidalign.testing.plugins import broken, check_config, lent

ODD = ("", " \n", "nothing of the kind", "\\boxed{", "((((", "\N{SNOWMAN}", "a" * 5000)
"""Responses that a student may give at any time."""


def check_grader(
    grader: type[Grader] | str,
    settings: Mapping[str, Any] | None = None,
    *,
    right: Sequence[tuple[str, str]],
    wrong: Sequence[tuple[str, str]] = (),
) -> None:
    """Try the promises of a grader; raises `AssertionError` with a sentence for the first that is broken.

    grader: a class or a registered name. settings: those of its `Config`. right and wrong: pairs of a response and an
    answer that get 1 and less than 1.
    """
    with lent("graders", grader) as name:
        check_config(name, registry.get("graders", name))
        made: Grader = make("graders", name, settings, name)
        for _, answer in (*right, *wrong):
            if made.can_grade(answer) is not True:
                broken(name, f"cannot grade the answer {answer!r}, which stands in a case")
        for cases, expected in ((right, True), (wrong, False)):
            for response, answer in cases:
                grade = graded(made, response, answer)
                if (grade == 1) != expected:
                    broken(name, f"gives {grade:g} to {response!r:.60} for the answer {answer!r:.60}")
        for answer in dict.fromkeys(answer for _, answer in (*right, *wrong)):
            for response in ODD:
                first, again = graded(made, response, answer), graded(made, response, answer)
                if first != again and not (math.isnan(first) and math.isnan(again)):
                    broken(name, f"gives {first:g} and {again:g} to the same response {response!r:.60}")
        if made.can_grade(""):
            broken(name, "takes an empty answer for one that it can grade")
