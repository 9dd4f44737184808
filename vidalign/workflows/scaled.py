"""A run's student with more or less of what the run changed: ``W0 + s (W - W0)``.

The change of a run with an adapter is the adapter, so s is the adapter's scale. With a semi-on-policy run it is
``W_semi + s (W - W0)``, the merge of AR-CoPO (2603.17461), to rounding what `vidalign merge` writes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign.errors import UsageError
from vidalign.workflows.merge import same_start
from vidalign.workflows.opened import FINAL, FinishedRun, open_run
from vidalign.workflows.start import started_student

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.students.base import Student
    from vidalign.workflows.saved import Saved

MOST = 4.0
"""Largest scale; beyond it there is only noise."""


def check_scale(scale: float, where: str) -> None:
    """Raises `UsageError`, which names the option `where`, for a scale outside 0..MOST."""
    if not (math.isfinite(scale) and 0 <= scale <= MOST):
        raise UsageError(
            f"the scale is {scale!r}", where=where, why=f"it is a number in 0..{MOST:g}", fix="use 1 or 0.5"
        )


class Scaled:
    """The weights of a run at every scale, kept on the CPU in the type in which they were saved.

    run: the trained student; semi: the one that its change is added to, instead of the start weights. Raises
    `UserError` for runs that began with different weights.
    """

    def __init__(self, run: FinishedRun, semi: FinishedRun | None = None) -> None:
        if semi is not None:
            same_start({"semi": semi, "on_policy": run})
        start = started_student(run.recipe).state_dict()
        whole = {name: value.cpu() for name, value in run.student.state_dict().items()}
        base = start if semi is None else {name: value.cpu() for name, value in semi.student.state_dict().items()}
        if semi is not None:
            whole = {name: value + (whole[name] - start[name]) for name, value in base.items()}
        changed = [name for name, value in whole.items() if not torch.equal(base[name].to(value.dtype), value)]
        self._base, self._whole = ({name: part[name] for name in changed} for part in (base, whole))

    @torch.no_grad()
    def put(self, student: Student[Any], scale: float) -> None:
        """Write the weights at a scale, 0..MOST, into a student of the run; 1 without `semi` gives those of the run
        exactly, 0 the base."""
        own = student.state_dict()
        for name, base in self._base.items():
            own[name].copy_(_between(base, self._whole[name], scale))


def scaled(folder: Path, semi: Path | None = None, saved: Saved = FINAL) -> Scaled:
    """The scales of the student that is meant in a run's folder."""
    return Scaled(
        open_run(folder, saved=saved, student_only=True), None if semi is None else open_run(semi, student_only=True)
    )


def _between(base: Tensor, whole: Tensor, scale: float) -> Tensor:
    return base if not base.is_floating_point() else torch.lerp(base.float(), whole.float(), scale)
