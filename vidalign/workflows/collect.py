"""`collect_buffer`: groups of the student that a recipe begins with, rolled out once, scored and kept in a folder."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import track

from vidalign.bench.counter import Counter
from vidalign.build import build_context, build_objective
from vidalign.context import Batch
from vidalign.cost import Cost
from vidalign.data.source import open_source
from vidalign.engine import distributed
from vidalign.errors import UserError
from vidalign.objectives.ar_copo import ARCoPO
from vidalign.provenance import weights_hash
from vidalign.students.video.rollout.buffer import Buffer, BufferHeader
from vidalign.tracking.tracker import Tracker

if TYPE_CHECKING:
    from vidalign.recipe import Recipe


@torch.no_grad()
def collect_buffer(recipe: Recipe, out: str | Path, groups: int = 100) -> Buffer:
    """Fill the folder `out` with `groups` groups (AR-CoPO, semi-on-policy); groups that are there are kept.

    Group n is a pure function of recipe and n, so an interrupted collection goes on to the same buffer. Rewards that
    learn judge as they are after their warm-up on the initial student, whose cost is that of the first set. Groups come
    in sets of `trainer.prompts_per_step` that share their pivot; their number is rounded up to whole sets. Raises
    `UserError` for another objective, `DataError` when `out` was begun with another student, recipe or settings.
    """
    objective = build_objective(recipe)
    if not isinstance(objective, ARCoPO):
        raise UserError(
            f"the objective {recipe.objective.name!r} does not train from a buffer",
            where="objective.name",
            why="groups that fork at a pivot chunk are ar_copo's",
            fix="use objective.name=ar_copo",
        )
    if groups < 1:
        raise UserError(f"cannot collect {groups} groups", where="--groups", fix="use 1 or more")
    size = recipe.trainer.prompts_per_step
    sets = -(-groups // size)
    ctx = build_context(recipe, objective, Tracker.silent(), samples=sets * size)
    ranks = distributed.world_size()
    if size % ranks:
        raise UserError(
            f"{size} prompts a set cannot be shared out to {ranks} processes",
            where="trainer.prompts_per_step",
            fix=f"use a multiple of {ranks}",
        )
    student = weights_hash(ctx.policies.weights("old"))
    header = BufferHeader(student, recipe.hash, sets * size, objective.fresh.settings(ctx))
    if distributed.rank() == 0:
        Buffer.create(out, header)
    distributed.barrier()
    buffer = Buffer.open(out, whole=False)
    missing = {n // size for n in distributed.broadcast_object(buffer.missing())}
    prompts = open_source(recipe.training_prompts, recipe.seed, size)
    counter = Counter(ctx)
    assert ctx.rewards is not None, "ar_copo needs rewards"
    console = Console(stderr=True, quiet=distributed.rank() != 0)
    for step in track(sorted(missing), f"{sets * size} groups", console=console):
        ctx.step, started = step, time.perf_counter()
        counter.start_from(Cost())
        if step == min(missing):  # rewards that learn stay as they are then, so that every group has the same judge
            ctx.rewards.warm_up(prompts)
        ids = list(range(step * size + distributed.rank(), (step + 1) * size, ranks))
        forked = objective.fresh.groups(ctx, Batch(step, [prompts[n] for n in ids], ids))
        assert forked.request is not None, "ar_copo asks for a judgement"
        judged = forked.groups.judged(ctx.judge(forked.request))
        cost = asdict(counter.total()) | {"seconds": time.perf_counter() - started}
        buffer.write(ids, judged, {name: amount / len(ids) for name, amount in cost.items()})
    distributed.barrier()
    return Buffer.open(out)
