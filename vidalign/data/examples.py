"""One question to a language student, with everything that is known about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidalign.data.graders import Grader


@dataclass(frozen=True)
class Example:
    """A prompt with its privileged text; both are plain text without chat markers."""

    prompt: str
    privileged: str = ""
    """What only a privileged policy sees, in its user turn; empty: nothing."""
    images: tuple[Any, ...] = ()
    """PIL pictures, shown before the prompt."""
    answer: str = ""
    """Exact answer, for the grader; empty when it is not known."""
    response: str = ""
    """A full worked response, for supervised training; empty when there is none."""
    family: str = ""
    """Kind of problem, for tables."""
    steps: int = 0
    """Number of reasoning steps; 0 when it is not known."""
    before: tuple[tuple[str, str], ...] = ()
    """(role, text) of the turns of a conversation before the prompt, which is its last user turn."""
    grader: Grader | None = field(default=None, compare=False)
    """What compares a response with the answer; None: the response must be the answer."""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What else its source knows, for rewards: the further columns of a table."""
