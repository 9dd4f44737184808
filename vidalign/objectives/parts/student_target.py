"""Which weights of the student its privileged self has, as a target: S^p of DOPD, the teacher of OPSD.

A target that moves with the student confirms the student's own errors: with large steps both collapse onto what the
student already answers. A frozen or slowly moving one does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vidalign.engine.blueprint import PolicyRule
from vidalign.engine.policies import CURRENT
from vidalign.ranges import require

if TYPE_CHECKING:
    from vidalign.context import TrainContext

REFERENCE = "reference"


@dataclass
class StudentTarget:
    """Settings of the privileged student."""

    student_target: Literal["current", "ema", "frozen"] = "current"
    """Its weights: those that are trained, their moving average, or those at the start."""
    target_decay: float = 0.99
    """Decay of the moving average, per step."""

    def __post_init__(self) -> None:
        require(self, "target_decay", least=0, below=1)

    @property
    def weight_set(self) -> str:
        """Its name among the weight sets of the student."""
        return CURRENT if self.student_target == "current" else REFERENCE

    @property
    def policies(self) -> Mapping[str, PolicyRule]:
        """The weight sets that it needs, see `Blueprint`."""
        return {} if self.weight_set == CURRENT else {REFERENCE: "own" if self.student_target == "ema" else "fixed"}

    def follow(self, ctx: TrainContext) -> None:
        """Move the average behind the weights of a step."""
        if self.student_target == "ema":
            ctx.policies.ema_update(REFERENCE, CURRENT, self.target_decay)
