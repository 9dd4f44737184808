"""What graders look for in a text: numbers, boxes, and whether two short pieces of mathematics are the same."""

from __future__ import annotations

import re
from fractions import Fraction

WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
NUMBER = re.compile(rf"(?<![\d.])[-+\u2212]?(?:{WHOLE}(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)
"""A number in a text: 42, -3.10, 1,234.5, .5, 2e-3."""
LONGEST = 400
"""Digits of a number, and its largest exponent."""


def numbers(text: str) -> list[Fraction]:
    """The numbers of a text, in their order; 3/4 is one."""
    found: list[Fraction] = []
    end = 0
    for match in NUMBER.finditer(text):
        value = _value(match[0].replace(",", "").replace("\u2212", "-").lower())
        if found and text[end : match.start()].strip() == "/" and value > 0:
            found[-1] /= value
        else:
            found.append(value)
        end = match.end()
    return found


def _value(text: str) -> Fraction:
    """A number as it is written. Of a longer one than any answer, which a model that repeats itself writes, the first
    digits count, and of an exponent at most `LONGEST`: exact arithmetic would take seconds, or refuse."""
    mantissa, _, exponent = text.partition("e")
    power = int(exponent[:5] or 0)
    return Fraction(f"{mantissa[:LONGEST]}e{max(-LONGEST, min(LONGEST, power))}")


def boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{...}`` (or ``\fbox``), braces counted; None where there is none."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    opening = text.find("{", start)
    if start < 0 or opening < 0 or text[start:opening].strip() not in ("\\boxed", "\\fbox"):
        return None
    depth = 0
    for at in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if not depth:
            return text[opening + 1 : at]
    return None


def plain(text: str, ignore_case: bool = False) -> str:
    """Single-spaced."""
    words = " ".join(text.split())
    return words.casefold() if ignore_case else words


def same(given: str, right: str) -> bool:
    """Whether two short pieces of mathematics are the same text, or both are one and the same number."""
    given, right = mathematics(given), mathematics(right)
    if given == right:
        return True
    values = [numbers(text) for text in (given, right)]
    whole = [bool(re.fullmatch(r"[-+\u2212]?[\d.,]+(?:/\d+)?", text)) for text in (given, right)]
    return all(whole) and all(len(value) == 1 for value in values) and values[0] == values[1]


def mathematics(text: str) -> str:
    """Without what LaTeX writes for the eye: spaces, dollars, sizes of brackets, text around words, a full stop."""
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:left|right|displaystyle|,|!|;|:|quad|\s)", "", text)
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\%", "%").replace("$", "")
    return re.sub(r"\s+", "", text).rstrip(".")
