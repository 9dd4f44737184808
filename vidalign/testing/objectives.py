"""The promises of an objective, each tried by real training steps on tiny networks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidalign import registry
from vidalign.bench.cost import predict
from vidalign.errors import UserError
from vidalign.objectives.base import MicroBatch, Objective
from vidalign.testing import ranks
from vidalign.testing.dtypes import MixedDtypes
from vidalign.testing.plugins import broken, check_config, lent, on_the_cpu, own_numbers
from vidalign.testing.trial import STEPS, Trial, collected, in_pieces, nudge

if TYPE_CHECKING:
    from vidalign.context import TrainContext

PROMPTS = 4
"""Prompts of an experience that is cut into micro-batches."""
SIZES = (1, 3)
"""Sizes of micro-batches beside the whole: pieces of a group, and whole groups where they are small."""


def check_objective(
    objective: type[Objective] | str,
    overrides: Sequence[str] = (),
    *,
    promises: Sequence[str] = (),
    folder: Path | None = None,
) -> None:
    """Try the promises of an objective; raises `AssertionError` with a sentence for the first that is broken.

    objective: a class, which must stand at the top of a module so that a second process finds it, or a registered name.
    overrides: ``key=value``, as on the command line, on top of a recipe that gives the objective what its `needs` say.
    promises: some of `PROMISES`; all unless given. folder: where runs and weights go; a temporary one unless given.
    """
    unknown = set(promises) - PROMISES.keys()
    assert not unknown, f"no such promise: {sorted(unknown)}; there are {sorted(PROMISES)}"
    with tempfile.TemporaryDirectory() as own, lent("objectives", objective) as name:
        trial = Trial(name, overrides, folder or Path(own))
        for promise in promises or PROMISES:
            with nullcontext() if promise == "device" else on_the_cpu():
                PROMISES[promise](trial)


def _config(trial: Trial) -> None:
    check_config(trial.name, registry.get("objectives", trial.name))


def _micro_batches(trial: Trial) -> None:
    """Loss, gradient and log of every phase in pieces are those of the whole."""
    objective, ctx = trial.start()
    data = collected(objective, ctx, [ctx.prompts[n] for n in range(PROMPTS)])
    for engine in ctx.roles.engines.values():
        nudge(engine.network)
    ctx.update = 1  # the networks have moved
    for phase in objective.phases(ctx.step):
        whole = in_pieces(objective, ctx, data, phase, len(data))
        if not any(gradient.any() for gradient in whole.gradient.values()):
            broken(trial.name, f"gives the {phase.role} no gradient: its loss is {whole.loss:g} whatever the weights")
        for size in SIZES:
            parts = in_pieces(objective, ctx, data, phase, size)
            where = f"in {parts.count} micro-batches of at most {size}, and {{}} in one of {len(data)}"
            if not _near(parts.loss, whole.loss):
                one, other = f"{parts.loss:.8g}", where.format(f"{whole.loss:.8g}")
                broken(trial.name, f"depends on trainer.micro_batch: the loss of the {phase.role} is {one} {other}")
            if worst := _furthest(parts.gradient, whole.gradient, rel=1e-4):
                size_of = f"{_norm(parts.gradient):.8g} {where.format(f'{_norm(whole.gradient):.8g}')}"
                broken(
                    trial.name,
                    f"depends on trainer.micro_batch: the norm of the gradient of the {phase.role} is {size_of}; "
                    f"{worst[0]} differs by {worst[1]:.1e}",
                )
            _same_log(trial.name, parts.metrics, whole.metrics, where)


def _random_numbers(trial: Trial) -> None:
    """A step is a function of seed and step: it gives the same numbers again."""
    runs = []
    for _ in range(2):
        objective, ctx = trial.start()
        ctx.step = 1
        with own_numbers(trial.name):
            runs.append(_numbers(objective, ctx))
    for what, number in runs[0].items():
        if number != runs[1][what]:
            broken(trial.name, f"has a {what} of {number:.8g}, and {runs[1][what]:.8g} when the step is repeated")


def _ranks(trial: Trial) -> None:
    """Two processes train the weights of one."""
    one, two = ranks.train_on(1, trial), ranks.train_on(2, trial)
    start = {
        f"{role}/{name}": weight.detach().cpu()
        for role, engine in trial.start()[1].roles.engines.items()
        for name, weight in engine.named_trainable().items()
    }
    moved = max(float((one.weights[name] - start[name]).abs().max()) for name in start)
    if not moved:
        broken(trial.name, f"moves no weight in {ranks.STEPS} steps")
    apart, where = max((float((two.weights[name] - one.weights[name]).abs().max()), name) for name in start)
    if not apart <= 1e-5 * moved:
        broken(
            trial.name,
            f"depends on the number of processes: {ranks.STEPS} steps move the weights by {moved:.1e}, and those of "
            f"two processes are {apart:.1e} away from those of one, furthest {where}",
        )
    for metrics, other in zip(two.metrics, one.metrics, strict=True):
        _same_log(trial.name, metrics, other, "on two processes, and {} on one")


def _resume(trial: Trial) -> None:
    """A run that is stopped and resumed is the uninterrupted one, bit for bit."""
    whole, resumed = trial.straight, trial.interrupted()
    apart = [name for name, weight in whole.weights.items() if not torch.equal(weight, resumed.weights[name])]
    if apart:
        largest = max(float((whole.weights[name] - resumed.weights[name]).abs().max()) for name in apart)
        broken(
            trial.name,
            f"cannot be resumed: stopped after step {STEPS - 1} of {STEPS}, {len(apart)} of {len(whole.weights)} "
            f"weights differ from those of the uninterrupted run, by up to {largest:.1e}; what it remembers belongs "
            "into state_dict()",
        )


def _cost(trial: Trial) -> None:
    """What a run counts is what `cost` says of it."""
    try:
        expected = predict(trial.recipe())
    except UserError as error:
        broken(trial.name, f"says nothing of its cost: {error}")
    counted = trial.straight.cost
    for unit in ("forwards", "reward_calls", "teacher_calls", "responses"):
        said, actual = getattr(expected, unit), getattr(counted, unit)
        if not _near(actual, said, rel=1e-9):
            broken(trial.name, f"takes {actual:g} {unit} in {STEPS} steps, but its cost() says {said:g}")


def _device(trial: Trial) -> None:
    """In fp64 everything is computed in fp64; on an accelerator, where there is one, everything happens there."""
    objective, ctx = trial.start("engine.precision=fp64")
    with MixedDtypes(type(objective)) as watch:
        data = collected(objective, ctx, [ctx.prompts[n] for n in range(2)])
        latents = (data.tensors | data.shared).items()
        narrow = [f"{key} ({value.dtype})" for key, value in latents if value.ndim >= 4 and _is_narrow(value)]
        if narrow:
            broken(trial.name, f"keeps {len(narrow)} tensors in another precision than fp64: {', '.join(narrow)}")
        for phase in objective.phases(ctx.step):
            with ctx.roles.phase(phase.role):
                loss = objective.loss(ctx, MicroBatch(data, 1.0), phase).loss
            if loss.dtype != torch.float64 or loss.device.type != ctx.device.type:
                broken(trial.name, f"gives a loss of {loss.dtype} on {loss.device} for weights of fp64 on {ctx.device}")
    if watch.problems:
        broken(trial.name, f"mixes precisions at {watch.problems[0]}: make tensors with the dtype and device of others")
    if ctx.device.type != "cpu":
        numbers = _numbers(*trial.start("engine.precision=fp64"))
        with on_the_cpu():
            expected = _numbers(*trial.start("engine.precision=fp64"))
        for what, number in expected.items():
            if not _near(numbers[what], number, rel=1e-3, floor=1e-6):
                broken(trial.name, f"has a {what} of {numbers[what]:.8g} on the accelerator, {number:.8g} on the CPU")


PROMISES: dict[str, Callable[[Trial], None]] = {
    "config": _config,
    "micro_batches": _micro_batches,
    "random_numbers": _random_numbers,
    "resume": _resume,
    "cost": _cost,
    "device": _device,
    "ranks": _ranks,
}
"""What an objective promises, cheapest first."""


def _numbers(objective: Objective, ctx: TrainContext) -> dict[str, float]:
    """Loss and norm of the gradient of every role, for two prompts."""
    numbers: dict[str, float] = {}
    data = collected(objective, ctx, [ctx.prompts[n] for n in range(2)])
    for phase in objective.phases(ctx.step):
        whole = in_pieces(objective, ctx, data, phase, len(data))
        numbers |= {f"{phase.role} loss": whole.loss, f"{phase.role} gradient": _norm(whole.gradient)}
    return numbers


def _is_narrow(value: Tensor) -> bool:
    return value.is_floating_point() and value.dtype != torch.float64


def _near(actual: float, expected: float, rel: float = 1e-5, floor: float = 1e-9) -> bool:
    return abs(actual - expected) <= rel * abs(expected) + floor


def _norm(gradient: Mapping[str, Tensor]) -> float:
    return float(torch.stack([value.double().norm() for value in gradient.values()]).norm())


def _furthest(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], rel: float) -> tuple[str, float] | None:
    """The tensor that differs by more than `rel` of its largest entry, and by how much; None where all agree."""
    for name, value in expected.items():
        apart = float((actual[name] - value).abs().max())
        if not apart <= rel * float(value.abs().max()) + 1e-9:
            return name, apart
    return None


def _same_log(name: str, actual: Mapping[str, float], expected: Mapping[str, float], where: str) -> None:
    """What is logged, time and memory left out, is the same."""
    for key, value in expected.items():
        if key.startswith("perf/") or (key not in actual and value != value):
            continue
        if key not in actual or not _near(actual[key], value, rel=1e-3):
            one = f"{actual[key]:.6g}" if key in actual else "not logged"
            broken(name, f"logs {key} as {one} {where.format(f'{value:.6g}')}")
