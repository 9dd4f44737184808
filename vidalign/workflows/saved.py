"""The students that a run's checkpoints hold: which one is meant, and how it is rebuilt without training parts.

As at the end of a run, the moving average is taken where the recipe keeps one, and adapters are merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign.build import averaged, build_student
from vidalign.engine import distributed
from vidalign.engine.checkpoint import (
    Checkpoints,
    check_shapes,
    read_manifest,
    read_tensors,
    reading_state,
    refuse_foreign_code,
    verify,
)
from vidalign.engine.policies import Policies
from vidalign.errors import CheckpointError, UsageError
from vidalign.run_folder import with_weights, write_adapter

if TYPE_CHECKING:
    from vidalign.recipe import Recipe

SHOWN = 8
"""Steps that a message lists."""


@dataclass(frozen=True)
class Saved:
    """Which student of a run: the final one, that of a step, or the one with the best held-out score."""

    step: int | None = None
    best: bool = False
    trust: bool = False
    """Read files of DeepSpeed, which are code, even where another user wrote them."""

    def __post_init__(self) -> None:
        if self.best and self.step is not None:
            raise UsageError("--best and --step name two students", where="--step", fix="give one of them")

    @property
    def final(self) -> bool:
        """Whether no checkpoint is meant."""
        return self.step is None and not self.best

    def checkpoint(self, run: Path) -> Path:
        """Folder of the checkpoint that is meant; `UsageError` when there is none, naming the nearest."""
        checkpoints = Checkpoints(run / "checkpoints")
        step = checkpoints.best() if self.best else self.step
        if step is None:
            raise UsageError(
                "no checkpoint carries a held-out score",
                where=str(checkpoints.root),
                why="scores are taken every trainer.eval_every steps, 0 for never, and kept with those weights",
                fix=f"name a step: {_listed(checkpoints.all_steps(), 0)}",
            )
        if step not in (steps := checkpoints.all_steps()):
            raise UsageError(
                f"there is no checkpoint of step {step}",
                where=str(checkpoints.root),
                why="it was not kept, see trainer.save_every and trainer.keep",
                fix=f"name one that there is: {_listed(steps, step)}",
            )
        return checkpoints.path(step)


def _listed(steps: list[int], target: int) -> str:
    """The steps, nearest first."""
    near = sorted(steps, key=lambda step: (abs(step - target), step))
    more = f" and {len(near) - SHOWN} more" if len(near) > SHOWN else ""
    return (", ".join(map(str, near[:SHOWN])) or "there is none") + more


def step_of(checkpoint: Path) -> int:
    """The step of an intact checkpoint; `CheckpointError` for any other."""
    if problem := verify(checkpoint):
        raise CheckpointError(
            "the checkpoint cannot be used", where=str(checkpoint), why=problem, fix="name another step with --step"
        )
    return int(read_manifest(checkpoint)["step"])


def held_out_score(checkpoint: Path) -> float | None:
    """The score of the weights that `student_at` gives, if one was taken."""
    return read_manifest(checkpoint).get("score")


def student_at(recipe: Recipe, checkpoint: Path, *, trust: bool = False) -> Any:
    """The student of a recipe with the weights of an intact checkpoint, on this process' device."""
    student, policies = _policies_at(recipe, checkpoint, trust)
    return with_weights(student, policies.weights(policies.kept)).to(distributed.device())


def save_adapter_at(recipe: Recipe, checkpoint: Path, folder: Path, *, trust: bool = False) -> None:
    """Write the adapter of an intact checkpoint to a folder, as PEFT does."""
    student, policies = _policies_at(recipe, checkpoint, trust)
    write_adapter(policies, student, policies.kept, folder)


def _policies_at(recipe: Recipe, checkpoint: Path, trust: bool) -> tuple[Any, Policies]:
    """The student of a recipe and its weight sets, as they are in an intact checkpoint."""
    if not trust:
        refuse_foreign_code(checkpoint)
    student = build_student(recipe)
    policies = Policies(student, averaged(recipe), recipe.student.adapter, seed=recipe.seed)
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    with reading_state(checkpoint / "student"), torch.no_grad():
        weights = _weights(checkpoint / "student")
        check_shapes(checkpoint / "student", weights, trained)
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
    policies.attach()
    if policies.names:
        with reading_state(checkpoint / "policies"):
            policies.load(checkpoint / "policies")
    return student, policies


def _weights(part: Path) -> dict[str, torch.Tensor]:
    """The trained weights of the student's engine, whichever wrote them."""
    if (part / "engine.pt").is_file():
        return dict(read_tensors(part / "engine.pt")["weights"])
    from vidalign.engine.deepspeed import read_weights

    return read_weights(part)
