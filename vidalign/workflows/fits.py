"""Whether a step fits on a GPU: the table of a plan, its largest item, and the cheapest changes of the recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vidalign.errors import DoesNotFit, UsageError, UserError, first_line, nearest
from vidalign.workflows.plan import Plan, plan_step

if TYPE_CHECKING:
    import torch

    from vidalign.recipe import Recipe

MIB = 2**20
GPUS = {
    "l4": 23034 * MIB,
    "rtx4090": 24564 * MIB,
    "rtx5090": 32607 * MIB,
    "l40s": 46068 * MIB,
    "rtx6000": 49140 * MIB,
    "a100": 81920 * MIB,
    "h100": 81559 * MIB,
    "h200": 143771 * MIB,
    "b200": 183359 * MIB,
}
"""Memory of accelerators, as `nvidia-smi` shows it."""
RESERVE = 2 * 10**9
"""Bytes of a GPU that a plan does not count: the driver's context, workspaces of kernels, fragments."""


def memory_of(gpu: str) -> int:
    """Bytes of a GPU by its name, or of a size such as ``80GB``. Raises `UsageError` for neither."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*gb", gpu.strip().lower()):
        return int(float(match[1]) * 1e9)
    name = re.sub(r"[\s_-]", "", gpu.lower())
    if name not in GPUS:
        near = nearest(name, GPUS)
        fix = f"did you mean {near!r}?" if near else "use one of them, or a size such as 80GB"
        raise UsageError(f"unknown GPU {gpu!r}", where="--gpu", why=f"known: {', '.join(GPUS)}", fix=fix)
    return GPUS[name]


def table(plan: Plan) -> str:
    """One line an item and a phase, in GB (10^9 bytes)."""
    parts = {
        "held through the step": plan.held,
        "peak of a phase, all that is held included": plan.phases,
        f"beside what is held, in the phase `{plan.at}`": plan.largest_phase,
    }
    lines = ["GB a GPU"]
    for title, items in parts.items():
        lines += [title, *(_row(name, [f"{size / 1e9:8.2f}"]) for name, size in items.items())]
    return "\n".join(lines)


def comparison(plan: Plan, real: Plan, device: torch.device) -> str:
    """What was planned beside what a real step held, and their ratio."""
    lines = [f"measured on {device.type}, in GB", _row("", ["planned", "measured", "ratio"])]
    pairs = {f"peak of {name}": (size, real.phases[name]) for name, size in plan.phases.items()}
    for name, (expected, found) in {**pairs, "peak of the step": (plan.peak, real.peak)}.items():
        lines.append(_row(name, [f"{expected / 1e9:.3f}", f"{found / 1e9:.3f}", f"{found / max(expected, 1):.3f}"]))
    return "\n".join([*lines, *HOST_NOTE] if device.type == "cpu" else lines)


HOST_NOTE = (
    "There is no accelerator here: the tensors of the step were counted on the CPU, those of the host included. The",
    "resident memory of the process says nothing about a GPU. Kernels of a CPU need other buffers, most of all in the",
    "backward pass of attention. Measure on the GPU before you rely on it.",
)


def _row(name: str, cells: Sequence[str]) -> str:
    return f"  {name:<34}" + "".join(f"{cell:>10}" for cell in cells)


def changes(recipe: Recipe, plan: Plan, gpus: int) -> list[str]:
    """Changes of the recipe that lower the peak, the cheapest first: first those that cost nothing, then time, then
    what a step learns."""
    trainer, adapter, at = recipe.trainer, recipe.student.adapter, plan.at.split(" of ")[0]
    objectives = recipe.objectives.values() or [recipe.objective]
    group = max(getattr(one.config, "group_size", 1) for one in objectives)
    clips = group * trainer.prompts_per_step // gpus
    rollout = min(trainer.rollout_batch or clips, clips)
    options = [
        (recipe.engine.precision not in ("bf16", "auto"), "engine.precision=bf16"),
        (at in ("rollout", "warm-up") and rollout > 1, f"trainer.rollout_batch={max(1, rollout // 2)}"),
        (at == "loss" and not recipe.student.checkpointing, "student.checkpointing=true"),
        (at == "loss" and trainer.micro_batch > 1, f"trainer.micro_batch={max(1, trainer.micro_batch // 2)}"),
        (at == "decode", "student.init.codec.dtype=bf16"),
        (adapter is not None and adapter.frozen_precision == "fp32", "student.adapter.frozen_precision=bf16"),
        (gpus > 1 and recipe.engine.name == "plain", "engine.name=deepspeed"),
        (adapter is None, "student.adapter.rank=32"),
        (adapter is not None and adapter.rank > 32, f"student.adapter.rank={adapter.rank // 2 if adapter else 0}"),
        (trainer.prompts_per_step > gpus, f"trainer.prompts_per_step={max(gpus, trainer.prompts_per_step // 2)}"),
        (clips > 2, "a smaller group, or shorter clips (data.frames)"),
    ]
    return [text for applies, text in options if applies]


def advice(recipe: Recipe, plan: Plan, gpus: int) -> str:
    """The largest item and the two cheapest changes."""
    name, size = max((plan.held | plan.largest_phase).items(), key=lambda item: item[1])
    cheapest = changes(recipe, plan, gpus)[:2]
    ending = f"; the cheapest changes: {', then '.join(cheapest)}" if cheapest else ""
    return f"peak {plan.peak / 1e9:.1f} GB in `{plan.at}`, largest item: {name}, {size / 1e9:.1f} GB{ending}"


def check_fits(recipe: Recipe, plan: Plan, gpu: str, gpus: int) -> None:
    """Raises `DoesNotFit` where a plan needs more than a GPU has."""
    size = memory_of(gpu)
    if plan.peak + RESERVE > size:
        raise DoesNotFit(
            f"a step needs {(plan.peak + RESERVE) / 1e9:.1f} GB, {RESERVE / 1e9:.0f} GB of reserve included",
            where=f"--gpu {gpu}: {size / 1e9:.1f} GB",
            why=f"largest in the phase {plan.at}",
            fix="; ".join(filter(None, [", then ".join(changes(recipe, plan, gpus)[:2]), "see docs/memory.md"])),
        )


@contextmanager
def explaining_memory(recipe: Recipe, gpus: int) -> Iterator[None]:
    """Inside, an accelerator that runs out of memory is reported with the table of the plan. Raises `DoesNotFit`."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        what = first_line(error)
    else:
        return
    try:
        plan = plan_step(recipe, gpus)
    except UserError as error:
        raise DoesNotFit("out of memory", why=what, fix=f"no plan can be made: {error}") from None
    lines = f"{table(plan)}\n{advice(recipe, plan, gpus)}"
    raise DoesNotFit(f"out of memory\n{lines}", where="the plan of this recipe", why=what)
