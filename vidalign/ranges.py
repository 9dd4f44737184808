"""Ranges of settings, checked in ``__post_init__`` of a plugin's `Config`."""

from __future__ import annotations

import math
from typing import Any


def require(
    config: Any,
    *names: str,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Raise `ValueError` for the first of these fields of a dataclass whose value lies outside the range.

    above and below exclude the bound, least and most include it. A value of None passes: the field is optional.
    """
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, not {value}")
        low = (above is None or value > above) and (least is None or value >= least)
        if not (low and (below is None or value < below) and (most is None or value <= most)):
            optional = "None" in str(type(config).__dataclass_fields__[name].type)
            raise ValueError(f"{name} must {_words(above, least, below, most)}{', or null' if optional else ''}")


def _words(above: float | None, least: float | None, below: float | None, most: float | None) -> str:
    """What a range requires: "be positive", "lie in 0..1, 1 excluded"."""
    low, high = above if least is None else least, below if most is None else most
    if high is None:
        return "be positive" if above == 0 else f"be at least {low}" if above is None else f"be above {low}"
    excluded = [str(bound) for bound in (above, below) if bound is not None]
    return f"lie in {low}..{high}" + (f", {' and '.join(excluded)} excluded" if excluded else "")
