"""What was spent before a row was trained: on a teacher made for it, on a buffer. It is part of what the row used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from safetensors import SafetensorError

from vidalign.bench.budget import spent_of
from vidalign.bench.cost import predict
from vidalign.bench.results import Spent
from vidalign.errors import DataError
from vidalign.reading import check_object, parse_json
from vidalign.recipe import load_recipe
from vidalign.tensor_header import read_header
from vidalign.tracking.jsonl import FILE_NAME, read_history

SECONDS = "perf/step/seconds"
COST = "cost"
"""Metadata of a buffer's files: what each took, as JSON under the names of `Spent`."""
NAMES = [f.name for f in fields(Spent)]


def spent_before(folders: Sequence[str]) -> Spent:
    """The sum over folders of runs and buffers; memory is the largest. Raises `DataError` for anything else."""
    each = [_of_run(folder) if (folder / FILE_NAME).is_file() else _of_buffer(folder) for folder in map(Path, folders)]
    total = {name: sum(getattr(one, name) for one in each) for name in NAMES}
    return Spent(**total | {"peak_memory_mib": max((one.peak_memory_mib for one in each), default=0.0)})


def _of_run(folder: Path) -> Spent:
    """What a benchmark counted in the run; else what the cost model says of its recipe, and the seconds of steps."""
    history = read_history(folder / FILE_NAME)
    if "perf/spent/forwards" in history:
        return spent_of(history)
    recipe = load_recipe(folder / "recipe.yaml")
    steps = history.get(SECONDS, [])
    recipe.trainer.steps = steps[-1][0] if steps else recipe.trainer.steps
    cost, seconds = predict(recipe), sum(value for _, value in steps)
    return Spent(cost.forwards, cost.reward_calls, cost.teacher_calls, seconds, 0.0, cost.responses)


def _of_buffer(folder: Path) -> Spent:
    """The sum over the buffer's files."""
    costs = list(_costs(folder))
    if not costs:
        why = "it holds neither a run nor a buffer of this version"
        raise DataError(f"{folder} does not say what it cost", where="before", why=why, fix="make it again")
    return Spent(**{name: sum(cost.get(name, 0.0) for cost in costs) for name in NAMES})


def _costs(folder: Path) -> Iterator[dict[str, float]]:
    """What each file of a buffer took; `DataError` for one that does not say it."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            cost = check_object(parse_json(read_header(file).metadata[COST]), {})
            yield {name: float(cost[name]) for name in NAMES if name in cost}
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            what, why = f"{file} does not say what it cost", "it was made by an earlier version, or is damaged"
            raise DataError(what, where="before", why=why, fix="delete it and make it again") from error
