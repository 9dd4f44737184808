"""The students of a page: one, or two side by side on the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign import registry
from vidalign.build import student_kind
from vidalign.data.source import find_source, open_source
from vidalign.engine import distributed
from vidalign.errors import UsageError, UserError, before_work
from vidalign.evaluation.evaluator import build_metrics
from vidalign.evaluation.metrics.base import Metric
from vidalign.students.hub import report_idle_adapter
from vidalign.students.samples import SampleRequest
from vidalign.students.weights import kind_of, kinds
from vidalign.workflows.opened import load_student, load_student_of, open_recipe, student_file
from vidalign.workflows.sample import report_rounding
from vidalign.workflows.scaled import scaled

if TYPE_CHECKING:
    from vidalign.recipe import Recipe
    from vidalign.students.live import Streamer

REQUEST = SampleRequest(("",), Path("clip.mp4"))
"""Stands for the settings of `vidalign sample` that nobody gave."""


@dataclass
class Pane:
    """A student on the page."""

    label: str
    streamer: Streamer
    words: tuple[str, ...]
    """How `vidalign sample` names it."""
    scale: str = ""
    """What its scale is called; empty where it has none."""
    put: Callable[[float], None] | None = None
    """Gives it the weights of a scale, where it has one."""
    _scale: float = 1.0

    def at(self, scale: float) -> Streamer:
        """The student at a scale of its run's change; one without scales is as it is."""
        if self.put is not None and scale != self._scale:
            self.put(scale)
            self._scale = scale
        return self.streamer

    def named(self, scale: float) -> list[str]:
        """How `vidalign sample` names it at a scale."""
        moved = self.put is not None and scale != 1
        return [*self.words, *(["--scale", f"{scale:g}"] if moved else [])]


@dataclass
class Stage:
    """What a page shows."""

    panes: list[Pane]
    """Those that are compared from left to right; the last one has the scale."""
    metrics: list[Metric] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    """Prompts that are proposed, the first of which stands on the page."""
    seconds: float = 6.0
    """Length of a clip on the page at first."""
    environment: tuple[str, ...] = ()
    """What a command begins with, so that it gives the same numbers."""

    @property
    def fps(self) -> float:
        """Frames a second of the clips."""
        return self.panes[-1].streamer.fps


def open_stage(
    target: str,
    compare: str = "",
    semi: Path | None = None,
    metrics: Sequence[str] = (),
    plugins: Sequence[Path] = (),
    prompt: str = "",
    seconds: float = Stage.seconds,
) -> Stage:
    """Load what a page shows: a run beside the student that it started from, or weights alone.

    compare: a run or weights instead of the start. semi: the run's change is added to this one's student. metrics:
    names; by default those that the source of the run's prompts offers. plugins: files that the commands on the page
    name. Raises `UserError` for what cannot be streamed or compared, before weights are loaded where that is possible.
    """
    words = [word for file in plugins for word in ("--plugin", str(file))]
    recipe = None
    if is_run(target):
        recipe, panes = _of_run(Path(target), words, semi, before=not compare)
    elif semi is not None:
        why = "its change is added to the student of --semi"
        raise UsageError("--semi needs a run", where="STUDENT_OR_RUN", why=why, fix="name the folder of a run")
    else:
        panes = [_of_weights(target, words)]
    if compare and is_run(compare):
        panes = [*_of_run(Path(compare), words, None, before=False)[1], *panes]
    elif compare:
        panes = [_of_weights(compare, words), *panes]
    _check_same_noise(panes)
    judges: dict[str, Any] = {name: {} for name in metrics} or _offered(recipe)
    judging = [one for one in build_metrics(judges, lambda: panes[-1].streamer.fps) if _judges_clips(one, metrics)]
    threads = (f"OMP_NUM_THREADS={torch.get_num_threads()}",) if distributed.device().type == "cpu" else ()
    return Stage(panes, judging, [prompt] if prompt else _prompts(recipe), seconds, threads)


def is_run(name: str) -> bool:
    """Whether it names the folder of a run, not weights."""
    return (Path(name) / "recipe.yaml").is_file()


def _of_run(folder: Path, words: Sequence[str], semi: Path | None, *, before: bool) -> tuple[Recipe, list[Pane]]:
    """The student of a run; before: behind the one that it changed."""
    recipe = open_recipe(folder, student_only=True)
    kind = student_kind(recipe)
    with before_work():
        spec = kind.read_spec(student_file(folder))
        kind.check_live(spec)
    request = kind.sampled_as(recipe.student, REQUEST)
    dtype = kind.sampling_dtype(distributed.resolve_precision(recipe.engine.precision))
    report_rounding(dtype)
    features, scales = kind.features(spec), scaled(folder, semi)
    words = ["--run", str(folder), *(["--semi", str(semi)] if semi else []), *words]

    def pane(label: str, scale: float, more: Sequence[str] = ()) -> tuple[Pane, Callable[[float], None]]:
        student = load_student_of(folder, recipe, dtype=dtype)
        scales.put(student, scale)
        streamer = kind.streamer(student, request, features)
        return Pane(label, streamer, (*words, *more)), lambda value: scales.put(student, value)

    after, put = pane(f"after: {folder.name}" if before else folder.name, 1.0)
    after.put, after.scale = put, "Scale of the change" if recipe.student.adapter is None else "Adapter scale"
    start = f"before: {semi.name}" if semi else "before"
    return recipe, [pane(start, 0.0, ("--scale", "0"))[0], after] if before else [after]


def _of_weights(path: str, words: Sequence[str]) -> Pane:
    """A student by its path or shipped name."""
    with before_work():
        kind = kinds()[kind_of(path)]
        spec = kind.read_spec(path)
        kind.check_live(spec)
    report_idle_adapter(path)
    student = load_student(kind, path, kind.sampling_dtype(distributed.resolve_precision("auto")))
    return Pane(path, kind.streamer(student, REQUEST, kind.features(spec)), (path, *words))


def _check_same_noise(panes: Sequence[Pane]) -> None:
    """Two students begin with the same noise and run at one rate."""
    first, last = panes[0].streamer, panes[-1].streamer
    for what, one, other in (
        ("chunks of noise", first.noise, last.noise),
        ("size", first.size, last.size),
        ("frame rate", first.fps, last.fps),
    ):
        if one != other:
            raise UsageError(
                f"the two students have another {what}",
                where="--compare",
                why=f"{panes[0].label}: {one}, {panes[-1].label}: {other}",
                fix="compare students of one family, or open two pages",
            )


def _offered(recipe: Recipe | None) -> dict[str, Any]:
    """The metrics that the source of a run's held-out prompts offers; none where it is a plugin that is not loaded."""
    try:
        return {} if recipe is None else dict(find_source(recipe.judged_prompts)[0].judges)
    except UsageError:
        return {}


def _prompts(recipe: Recipe | None) -> list[str]:
    """Some held-out prompts of a run; none where they are not on this machine."""
    try:
        return [] if recipe is None else [str(prompt) for prompt in open_source(recipe.judged_prompts, 0).first(8)]
    except UserError:
        return []


def _judges_clips(metric: Metric, chosen: Sequence[str]) -> bool:
    """Whether a metric judges one clip; `UsageError` for a chosen one that does not."""
    fits = metric.judges in ("clips", "long")
    if not fits and metric.name in chosen:
        clips = [name for name in registry.names("metrics") if registry.get("metrics", name).judges == "clips"]
        why = f"it judges {metric.judges}, and a page shows one clip"
        raise UsageError(f"the metric {metric.name!r} does not fit", where="--metric", why=why, fix=", ".join(clips))
    return fits
