"""The folder of a run: its name, and the student, the adapter and the rewards that training leaves in it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign.build import REWARDS, student_kind
from vidalign.engine import distributed
from vidalign.provenance import describe_run
from vidalign.students.base import Student
from vidalign.tensor_writing import save_tensors

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.engine.policies import Policies
    from vidalign.recipe import Recipe


def new_run_dir(recipe: Recipe) -> Path:
    """A new folder runs/NAME-TIME below the working folder, the same on every rank; with a number behind the time where
    another run has taken it."""
    distributed.setup(single=recipe.engine.name == "deepspeed")
    name = f"{Path(recipe.name).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    return distributed.broadcast_object(_taken(name) if distributed.rank() == 0 else Path())


def _taken(name: str) -> Path:
    """The first of runs/NAME, runs/NAME-2 and so on that is not there yet, made."""
    for number in itertools.count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:
            pass  # reported with what is written into it
        return folder
    raise AssertionError("counting does not end")


def save_student(ctx: TrainContext, folder: Path, recipe: Recipe) -> None:
    """Write the trained student (its moving average if there is one) to a run's folder, adapters merged; all ranks call
    it. The adapter, if there is one, is kept by itself too, in the folder ``adapter``."""
    name, network = ctx.policies.kept, ctx.roles.engines["student"].network
    assert isinstance(network, Student), "the role of the student holds one"
    if ctx.policies.adapter is not None:
        write_adapter(ctx.policies, network, name, folder / "adapter")
    weights = ctx.policies.weights(name)
    if distributed.rank() != 0:
        return
    dtype = getattr(torch, recipe.trainer.save_dtype)
    student = with_weights(network, weights, dtype)
    student.save(folder / student_kind(recipe).saved, describe_run(recipe))


def write_adapter(policies: Policies, student: Student[Any], name: str, folder: Path) -> None:
    """Write adapter `name` as the PEFT folder of the network inside the student; all ranks call it."""
    policies.save_adapter(name, folder, student.inside, **student.adapter_settings())


def with_weights(network: Any, weights: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> Any:
    """A plain student like `network` on the CPU with these weights, rounded to `dtype`."""
    student = type(network).from_spec(network.spec_of(weights)).to(dtype)
    student.load_state_dict({key: value.to(dtype) for key, value in weights.items()})
    return student


def save_rewards(ctx: TrainContext, run: Path) -> None:
    """Write the trained weights of the rewards that learn, for judgements after training; all ranks call it."""
    for reward in ctx.rewards.trainable if ctx.rewards else ():
        engine = ctx.roles.engines[reward.role]
        with engine.gathered():
            tensors = {name: p.detach().cpu().contiguous() for name, p in engine.named_trainable().items()}
        if distributed.rank() == 0:
            (run / REWARDS).mkdir(parents=True, exist_ok=True)
            save_tensors(tensors, run / REWARDS / f"{reward.name}.safetensors")
