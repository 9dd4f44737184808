"""The grader of the embedded language worlds: what stands after the last ``=`` of a response, word for word."""

from __future__ import annotations

from vidalign.data.graders import Grader


def final_answer(response: str) -> str | None:
    """The words after the last ``=``, single-spaced; None when there is no ``=``."""
    _, mark, answer = response.rpartition("=")
    return " ".join(answer.split()) if mark else None


class AfterEquals(Grader):
    """What stands after the last ``=`` of the response is the answer: "1 plus 2 > 3 | = 3" for 3."""

    def grade(self, response: str, answer: str) -> float:
        return float(final_answer(response) == " ".join(answer.split()))
