"""What judges are given beside clips and prompts: whatever their `score` has an argument for."""

from __future__ import annotations

import inspect
from typing import Any

from vidalign.errors import UserError


def asks_for(judge: Any, argument: str) -> bool:
    """Whether the `score` of a reward or a metric, or of its class, has an argument of this name."""
    try:
        return argument in inspect.signature(judge.score).parameters
    except (AttributeError, TypeError, ValueError):  # what has no signature is called with clips and prompts
        return False


def needs_rate(judge: Any) -> bool:
    """Whether the `score` of a judge cannot do without the frame rate: it has an argument `fps` without default."""
    if not asks_for(judge, "fps"):
        return False
    return inspect.signature(judge.score).parameters["fps"].default is inspect.Parameter.empty


def rate_for(judge: Any, kind: str, name: str, fps: float | None) -> dict[str, float]:
    """The frame rate of the clips as an argument for a judge that asks for it, else nothing.

    Raises `UserError` where it needs one and there is none.
    """
    if fps is None and needs_rate(judge):
        raise without_rate(kind, name)
    return {"fps": float(fps)} if fps is not None and asks_for(judge, "fps") else {}


def without_rate(kind: str, name: str) -> UserError:
    """The error of a judge that samples by seconds, for clips without a frame rate."""
    return UserError(
        f"the {kind} {name!r} has no frame rate to sample by",
        where="student.fps",
        why="it judges so many frames of every second, and the student does not say how many its clips have",
        fix="set student.fps to the frames a second that the student was trained for, such as 16 for Wan2.1",
    )
