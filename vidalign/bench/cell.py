"""One cell of a benchmark, a row with one training seed, in a process of its own.

    python -m vidalign.bench.cell PROTOCOL --row ROW --seed SEED [--small] [--plugin FILE] [key=value ...]

Writes ``runs/bench/NAME/ROW-SEED/`` (an ordinary training run, resumed from its checkpoint after a stop),
``ROW-SEED.npz`` (clips for the report) and, last, ``ROW-SEED.json`` (the finished cell).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vidalign import registry
from vidalign.bench.before import spent_before
from vidalign.bench.budget import FIELDS, Budget, spent_of, time_steps
from vidalign.bench.cost import predict, steps_within
from vidalign.bench.differences import first_difference
from vidalign.bench.judging import Judged, Source, judge, judge_few, save_clips
from vidalign.bench.protocol import Protocol, load_protocol, weights_hash
from vidalign.bench.results import Cell, Predicted, sealed_health, write_json
from vidalign.context import TrainContext
from vidalign.data.source import find_source, listed, open_source
from vidalign.engine import distributed
from vidalign.errors import DataError, PluginError, UserError
from vidalign.evaluation.evaluator import build_metrics
from vidalign.evaluation.metrics.base import Metric
from vidalign.owner import LOCK, owned, replacing
from vidalign.provenance import commit, machine
from vidalign.reading import regular
from vidalign.recipe import Recipe, load_recipe
from vidalign.recipe.load import written
from vidalign.recipe.schema import StudentChoice
from vidalign.students.base import Student
from vidalign.tracking.jsonl import read_history, read_records
from vidalign.trainer import Trainer

_STEPS: dict[tuple[str, str, float], int] = {}
"""Steps of a budget by recipe hash, currency and amount: a runner asks for those of a cell several times."""
STEPS = "bench-steps"
"""File in a run folder: how many steps a budget in seconds buys on this machine."""


def cell_recipe(protocol: Protocol, row: str, seed: int, steps: int | None = None) -> Recipe:
    """The recipe of a cell: the row's own with the protocol's start weights, its seed and the steps of the budget.

    Without `steps` a budget in seconds leaves the recipe's own number. Raises `UserError` when the row does not fit
    the protocol: other latents, training prompts that it judges on, a budget below one step.
    """
    recipe = row_recipe(protocol, row, seed)
    budget = protocol.budget
    if steps is None and budget.currency != "seconds":
        key = (recipe.hash, budget.currency, budget.amount)
        if key not in _STEPS:
            _STEPS[key] = steps_within(recipe, budget.currency, budget.amount)
        steps = _STEPS[key]
    if steps is None:
        return recipe
    words = [*protocol.objectives[row].overrides, *_fixed(protocol, row, seed), f"trainer.steps={steps}"]
    return load_recipe(protocol.objectives[row].recipe, words)


def row_recipe(protocol: Protocol, row: str, seed: int) -> Recipe:
    """The recipe of a row with its own number of steps; raises `UserError` as `cell_recipe`, but for the budget."""
    config = protocol.objectives[row]
    if config.plugin:
        registry.load_plugin_file(config.plugin)
    if config.student:
        protocol.student_kind.check_same_start(protocol.student.path, config.student)
    judged = protocol.student_name
    trains = written(config.recipe, config.overrides, "student", "name") or StudentChoice.name
    if trains != judged:
        raise UserError(
            f"{config.recipe} trains a student of kind {trains!r}",
            where=f"objectives.{row}.recipe",
            why=f"the protocol judges students of kind {judged!r}",
            fix="name a recipe of such a student",
        )
    _check_teacher(protocol, row)
    recipe = load_recipe(config.recipe, [*config.overrides, *_fixed(protocol, row, seed)])
    _check_unseen(protocol, recipe)
    return recipe


def _fixed(protocol: Protocol, row: str, seed: int) -> list[str]:
    """What a protocol fixes in the recipe of a row."""
    start = protocol.objectives[row].student or protocol.student.path
    quiet = ["trainer.eval_every=0", "tracking.panel=none", "tracking.tensorboard=false", "tracking.clips_every=0"]
    return [f"seed={seed}", f"student.path={start}", *quiet]


def _check_teacher(protocol: Protocol, row: str) -> None:
    """The gap is that to the protocol's teacher, so a row learns from it unless it says so. Raises `UserError`."""
    config, goal = protocol.objectives[row], protocol.teacher
    name, path = (written(config.recipe, config.overrides, "teacher", key) for key in ("name", "path"))
    said = any(text.startswith("teacher.path=") for text in config.overrides)
    if goal is None or said or name != protocol.student_name or path == goal.path:
        return
    raise UserError(
        f"{row!r} learns from {path}, and the protocol's teacher is {goal.path}",
        where=f"objectives.{row}.overrides",
        why="the share of the gap that is closed would be that to another teacher",
        fix=f"add teacher.path={goal.path}, or the path that is meant",
    )


def _check_unseen(protocol: Protocol, recipe: Recipe) -> None:
    """Prompts that are judged are not trained on; sources that list none have disjoint splits by construction. The
    other way round where the protocol tunes."""
    if protocol.trained_prompts:
        check_trained(protocol.prompts.source, protocol.all_prompts, recipe)
        return
    seen = set(listed(recipe.training_prompts) or ()) & set(protocol.all_prompts)
    if seen:
        raise UserError(
            f"{len(seen)} of the protocol's prompts are trained on, the first is {min(seen)!r}",
            where="data.prompts",
            fix="train on another split",
        )


def check_trained(source: str, prompts: Sequence[str], recipe: Recipe) -> None:
    """Prompts to tune on are those that a recipe trains on; raises `UserError` otherwise."""
    known, chosen = listed(recipe.training_prompts), find_source(recipe.training_prompts)
    other = sorted(set(prompts) - set(known)) if known is not None else []
    if other or (known is None and find_source(source) != chosen):
        name, argument = chosen[0].__name__, chosen[1]
        raise UserError(
            f"{source!r} holds prompts that {recipe.name} does not train on",
            where="tuning.prompts.source",
            why=f"settings are chosen on training prompts; those are {name} {argument!r}"
            + (f", without {other[0]!r}" if other else ""),
            fix="name the recipe's own data.prompts",
        )


def run_row(protocol: Protocol, row: str, seed: int) -> Cell:
    """Train (or go on training) and judge one cell of an objective."""
    folder = protocol.folder / f"{row}-{seed}"
    steps = timed_steps(protocol, row, seed, folder) if protocol.budget.currency == "seconds" else None
    recipe = cell_recipe(protocol, row, seed, steps)
    check_same_recipe(folder, recipe)
    before = spent_before(protocol.objectives[row].before)
    metrics = build_metrics(protocol.metrics, protocol.frame_rate)
    trained = folder / protocol.student_kind.saved
    if not trained.is_file():
        evaluation = protocol.evaluation

        def curve(ctx: TrainContext) -> dict[str, float]:
            generate = ctx.student.sampler(
                evaluation.frames, features=ctx.features, codec=ctx.codec, temperature=evaluation.temperature
            )
            return judge_few(generate, protocol, metrics)

        seconds = protocol.budget.amount if protocol.budget.currency == "seconds" else None
        budget = Budget(curve, evaluation.curve_points, seconds)
        Trainer(recipe, folder, resume=True, callbacks=[budget]).fit()
    student = _load(protocol, trained)
    history = read_history(folder / "metrics.jsonl")
    cell = Cell(row, "objective", seed, recipe=protocol.objectives[row].described, recipe_hash=recipe.hash)
    cell.spent, cell.before = spent_of(history), before
    cell.predicted = _predicted(recipe, int(history["perf/spent/forwards"][-1][0]))
    cell.curve = _curve(history)
    records = [record for record in read_records(folder / "metrics.jsonl") if record["kind"] == "health"]
    cell.warnings = list(dict.fromkeys(f"step {r['step']}, {r['name']}: {r['message']}" for r in records))
    cell.warnings += off_prediction(cell)
    return _finish(protocol, cell, _judge(protocol, student, metrics))


def off_prediction(cell: Cell) -> list[str]:
    """What was spent by more than 1 % off the cost model: such a budget is not equal to the others."""
    deviations = []
    for name in ("forwards", "reward_calls", "teacher_calls", "responses"):
        spent, predicted = getattr(cell.spent, name), getattr(cell.predicted, name)
        if abs(spent - predicted) > 0.01 * predicted:
            deviations.append(f"cost: {spent:g} {name} were counted, {predicted:g} predicted")
    return deviations


def run_reference(protocol: Protocol, row: str) -> Cell:
    """Judge the start weights, the teacher, the ground truth, or a student that was made for other rows."""
    cell, evaluation = Cell(row=row, kind="reference", seed=0), protocol.evaluation
    metrics = build_metrics(protocol.metrics, protocol.frame_rate)
    if row == "base":
        return _finish(protocol, cell, _judge(protocol, _load(protocol, protocol.student.path), metrics))
    if row == "ground_truth":
        return _finish(protocol, cell, judge(_truth(protocol), protocol, metrics))
    if row in protocol.made:
        run, weights = protocol.made[row], protocol.made_weights(row)
        cell.recipe, cell.recipe_hash, cell.before = run, weights_hash(protocol, row), spent_before([run])
        return _finish(protocol, cell, _judge(protocol, _load(protocol, weights), metrics))
    assert protocol.teacher is not None, "a teacher is a row when the protocol names one"
    network, config = _load(protocol, protocol.teacher.path).eval(), protocol.teacher
    cell.recipe, cell.recipe_hash = config.path, weights_hash(protocol, row)
    steps = {"steps": config.steps, "shift": config.shift, "eta": config.eta}
    generate = network.sampler(evaluation.frames, "teacher", temperature=evaluation.temperature, **steps)
    # no long clips: a bidirectional teacher makes none beyond the length that it was trained on
    return _finish(protocol, cell, judge(Source(generate), protocol, metrics))


def _truth(protocol: Protocol) -> Source:
    """The worked answers of examples, else the ground truth of the prompts' source."""
    if protocol.examples:
        return Source(lambda examples, _: [example.response for example in examples])
    source, evaluation = open_source(protocol.prompts.source, 0), protocol.evaluation
    long = partial(source.truth, frames=evaluation.frames * evaluation.long_factor)
    return Source(partial(source.truth, frames=evaluation.frames), long if evaluation.long_factor else None)


def _judge(protocol: Protocol, student: Student[Any], metrics: list[Metric]) -> Judged:
    """A student by everything that the protocol sets."""
    evaluation, student = protocol.evaluation, student.eval()
    long = student.sampler(evaluation.frames * evaluation.long_factor) if evaluation.long_factor else None
    return judge(
        Source(student.sampler(evaluation.frames, temperature=evaluation.temperature), long), protocol, metrics
    )


def _finish(protocol: Protocol, cell: Cell, judged: Judged) -> Cell:
    """Keep a few clips and write the cell: the last thing that happens to it."""
    cell.metrics, cell.drift, cell.prompt_split = judged.metrics, judged.drift, protocol.split
    name = f"{cell.row}-{cell.seed}"
    if len(judged.shown):
        save_clips(protocol.folder / f"{name}.npz", judged.shown)
        cell.clips = f"{protocol.name}/{name}.npz"
    cell.commit, cell.device = commit(), machine()
    write_json(protocol.folder / f"{name}.json", {"protocol": protocol.conditions, "cell": asdict(cell.sealed())})
    return cell


def _load(protocol: Protocol, path: str | Path) -> Student[Any]:
    """Weights of the kind of student that the protocol judges."""
    student: Student[Any] = protocol.student_kind.load(path, device=distributed.device())
    return student


def check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """A run that was begun by another recipe is not gone on with."""
    begun = folder / "recipe.yaml"
    if not begun.is_file():
        return
    if difference := first_difference(recipe.to_yaml(), begun.read_text(encoding="utf-8", errors="replace")):
        raise UserError(
            "the run was begun with another recipe",
            where=str(folder),
            why=difference,
            fix="put the recipe back, or remove the folder to train anew",
        )


def timed_steps(protocol: Protocol, row: str, seed: int, folder: Path) -> int:
    """Steps that fit into the budget's seconds, timed once before the run begins, so that schedules see their end."""
    file = folder / STEPS
    if not file.is_file():
        with tempfile.TemporaryDirectory() as trial:
            seconds = time_steps(cell_recipe(protocol, row, seed, steps=4), Path(trial))
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_text(str(max(1, int(protocol.budget.amount / seconds))), encoding="utf-8")
    try:
        return int(regular(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = "the number of steps cannot be read"
        raise DataError(what, where=str(file), why=str(error), fix="remove the file") from error


def _predicted(recipe: Recipe, steps: int) -> Predicted:
    """The cost model's word on the steps that were run; nothing where the objective declares no cost."""
    recipe.trainer.steps = steps
    try:
        cost = predict(recipe)
    except PluginError:
        raise
    except UserError:
        return Predicted(*[float("nan")] * 4)
    return Predicted(cost.forwards, cost.reward_calls, cost.teacher_calls, cost.responses)


def _curve(history: dict[str, list[tuple[int, float]]]) -> list[dict[str, float]]:
    """Points at which the student was judged during training; of a language student with the entropy of its tokens."""
    series = {
        name.removeprefix("health/judged/"): dict(v) for name, v in history.items() if name.startswith("health/judged/")
    }
    spent = {name: dict(history[f"perf/spent/{name}"]) for name in FIELDS if name != "peak_memory_mib"}
    if "objective/entropy/mean" in history:
        series["training/entropy"] = dict(history["objective/entropy/mean"])
    steps = sorted({step for name, points in series.items() if name != "training/entropy" for step in points})
    return [
        {"step": step, **{name: points[step] for name, points in spent.items()}}
        | {name: points[step] for name, points in series.items() if step in points}
        for step in steps
    ]


def run(protocol: Protocol, row: str, seed: int) -> None:
    """Whatever a row is: an objective, a reference, or the examination of the judges."""
    if row == "health":
        source = open_source(protocol.prompts.source, 0)
        metrics = build_metrics(protocol.metrics, protocol.frame_rate)
        examination = source.examine(protocol.held_out, metrics, protocol.health)
        health = sealed_health(examination)
        write_json(protocol.folder / "health.json", {"protocol": protocol.conditions, "health": health})
    elif row in protocol.objectives:
        run_row(protocol, row, seed)
    else:
        run_reference(protocol, row)


def main() -> None:
    """Run one cell. A mistake of the user ends with its own exit code and is reported on the last lines of stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("protocol")
    parser.add_argument("--row", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--plugin", type=Path, action="append", default=[])
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        for file in arguments.plugin:
            registry.load_plugin_file(file)
        protocol = load_protocol(arguments.protocol, arguments.overrides, small=arguments.small)
        with owned(protocol.folder, f".{arguments.row}-{arguments.seed}{LOCK}"):
            run(protocol, arguments.row, arguments.seed)
    except UserError as error:
        _tell(str(error), error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _tell(f"{where}{error.strerror or error}", 3)
    except Exception as error:
        traceback.print_exc()
        _tell(f"{type(error).__name__}: {error}", 1)


MARK = "cell failed: "
"""Begins what the runner takes as the reason of a failure."""


def _tell(why: str, code: int) -> None:
    print(MARK + why.replace("\n", "; "), file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
