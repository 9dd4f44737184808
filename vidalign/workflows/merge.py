"""Merging the adapters of two runs: ``W0 + dW_semi + s dW_on`` (AR-CoPO, 2603.17461), with the paper's choice of s.

PEFT adds the adapters up exactly (``cat``: the ranks add up too), in fp32. Where both go on from an adapter, that one
is part of W0 and of both adapters, so it is taken off s times. Every scale is judged with the same noise. In-domain
it is judged by the rewards and the prompts of the on-policy recipe. Out-of-domain it is judged by a metric that no run
is trained on, on prompts of another kind (`merge_scores.py`). The rule: the largest s whose in-domain score beats that
of W0 while the out-of-domain score does not fall below W0's.
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from vidalign.build import build_student, sampler_of, student_kind
from vidalign.errors import CheckpointError, UserError
from vidalign.evaluation.intervals import estimate
from vidalign.plugins import keep_plugins
from vidalign.provenance import describe_run, weights_hash
from vidalign.tracking.jsonl import FILE_NAME, JsonlLog
from vidalign.tracking.stages import Stage, stages
from vidalign.workflows.merge_scores import MergeScores
from vidalign.workflows.opened import FinishedRun, open_run, student_file
from vidalign.workflows.start import started_student

if TYPE_CHECKING:
    from vidalign.recipe import Recipe
    from vidalign.students.base import Student

ADAPTER = "adapter"
SAMPLING = ("sampler", "cache", "prediction", "numerics")
"""What of a student's specification says how it samples, where its kind has it."""
START = "start"
"""The adapter that both runs went on from, if there is one."""
SCALES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)


@dataclass(frozen=True)
class Judged:
    """One merge: means over prompts, and their paired differences to W0 with 95 % intervals."""

    scale: float
    in_domain: float
    out_of_domain: float
    in_domain_gain: float
    out_of_domain_gain: float
    in_domain_interval: tuple[float, float]
    out_of_domain_interval: tuple[float, float]


@dataclass
class Merge:
    """What `merge_runs` wrote."""

    folder: Path
    scale: float
    judged: list[Judged]
    """Every scale that was tried; empty when it was given."""


def choose_scale(judged: Iterable[Judged]) -> float | None:
    """The largest scale with an in-domain gain and no out-of-domain loss, by the means; None when there is none."""
    kept = [one.scale for one in judged if one.in_domain_gain > 0 and one.out_of_domain_gain >= 0]
    return max(kept, default=None)


@torch.no_grad()
def merge_runs(
    semi: str | Path,
    on_policy: str | Path,
    out: str | Path,
    scales: Sequence[float] = SCALES,
    *,
    out_of_domain: str = "",
    judge: str = "",
    console: Console | None = None,
) -> Merge:
    """Merge the adapters of two runs into the run folder `out`, ready for ``sample``, ``evaluate`` and ``export``.

    A single scale is taken as it is. Of several, the rule chooses, after a table of all of them, with the scores of
    `MergeScores`. `out_of_domain` (a source of prompts) and `judge` (a metric) are passed to that. Raises
    `CheckpointError` for a run without an adapter, `UserError` for runs that began with different weights and when no
    scale keeps the rule.
    """
    console, out = console or Console(), Path(out)
    scales = sorted(set(scales), reverse=True)
    if not scales or not all(math.isfinite(s) and s >= 0 for s in scales):
        raise UserError(f"cannot merge at the scales {list(scales)}", where="--scale", fix="use numbers from 0 on")
    if student_file(out).exists():
        raise UserError(f"{out} already holds a student", where="--out", fix="name another folder")
    runs = {"semi": open_run(semi), "on_policy": open_run(on_policy)}
    recipe = runs["on_policy"].recipe
    start = same_start(runs)
    student, network = _with_adapters(runs)
    judged = []
    if len(scales) > 1:
        with stages("auto", console) as stage:
            judged = _sweep(student, network, recipe, scales, MergeScores(recipe, out_of_domain, judge), stage)
        console.print(_table(judged))
    scale = choose_scale(judged) if judged else scales[0]
    if scale is None:
        raise UserError(
            "no scale raises the trained rewards without lowering the out-of-domain score",
            where="--scale",
            why="the table shows what each of them does",
            fix="choose one with --scale",
        )
    _add(network, scale)
    _put(student, network.merge_and_unload(adapter_names=["merged"]))
    origin = {name: {"run": run.folder.name, "recipe_hash": run.recipe.hash} for name, run in runs.items()}
    document = {"scale": scale, "start": start, **origin, "judged": [asdict(one) for one in judged]}
    _write(out, runs["on_policy"], student, document)
    console.print(f"{out}: merged at s = {scale:g}", markup=False, emoji=False, soft_wrap=True)
    return Merge(out, scale, judged)


def same_start(runs: Mapping[str, FinishedRun]) -> str:
    """Hash of W0, which both runs began with; `UserError` where they did not, or sample otherwise."""
    specs = {name: student_kind(run.recipe).spec(run.recipe.student) for name, run in runs.items()}
    first, second = specs.values()
    if differ := [name for name in SAMPLING if getattr(first, name, None) != getattr(second, name, None)]:
        raise UserError(
            "the two runs sample differently",
            where=" and ".join(str(r.folder) for r in runs.values()),
            why=f"{differ[0]}: {getattr(first, differ[0])} and {getattr(second, differ[0])}",
            fix="train both adapters on the same student, with the same sampler and cache",
        )
    hashes = {name: weights_hash(started_student(run.recipe).state_dict()) for name, run in runs.items()}
    if len(set(hashes.values())) > 1:
        raise UserError(
            "the two runs began with different weights",
            where=" and ".join(str(r.folder) for r in runs.values()),
            why=f"{hashes}",
            fix="train both adapters on the same student",
        )
    return hashes["on_policy"]


def _with_adapters(runs: Mapping[str, FinishedRun]) -> tuple[Student[Any], Any]:
    """W0, and the network inside it under PEFT with the adapter of every run under its name."""
    import peft

    for name, run in runs.items():
        file = run.folder / ADAPTER / "adapter_model.safetensors"
        if not file.is_file():
            why = "it trained all weights" if run.recipe.student.adapter is None else "its last step was never reached"
            raise CheckpointError(
                f"the {name} run has no adapter",
                where=str(file),
                why=why,
                fix="train it with student.adapter={rank: 32}; only adapters are merged",
            )
    student: Student[Any] = build_student(runs["on_policy"].recipe).requires_grad_(False).float()
    folders = {name: str(run.folder / ADAPTER) for name, run in runs.items()}
    begun = runs["on_policy"].recipe.student.adapter
    if begun is not None and begun.start:
        folders[START] = begun.start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, on networks that are no transformers models
        inside: Any = student.get_submodule(student.inside)
        network = peft.PeftModel.from_pretrained(inside, folders["semi"], adapter_name="semi")
        for name in list(folders)[1:]:
            network.load_adapter(folders[name], adapter_name=name)
    _put(student, network)
    return student, network


def _put(student: Student[Any], network: Any) -> None:
    """Let the student compute with a network in the place of the one inside it; one that is all of it changes in
    place."""
    if student.inside:
        student.set_submodule(student.inside, network)


def _add(network: Any, scale: float) -> None:
    """Make ``dW_semi + scale dW_on`` the active adapter, under the name ``merged``, with what both began with once."""
    if "merged" in network.peft_config:
        network.set_adapter("semi")
        network.delete_adapter("merged")
    weights = {"semi": 1.0, "on_policy": scale} | ({START: -scale} if START in network.peft_config else {})
    network.base_model.add_weighted_adapter([*weights], [*weights.values()], "merged", combination_type="cat")
    network.set_adapter("merged")


def _only_start(network: Any) -> AbstractContextManager[Any]:
    """Compute with W0 meanwhile."""
    if START not in network.peft_config:
        disabled: AbstractContextManager[Any] = network.disable_adapter()
        return disabled
    network.set_adapter(START)
    return nullcontext()


def _sweep(
    student: Student[Any], network: Any, recipe: Recipe, scales: Sequence[float], scores: MergeScores, stage: Stage
) -> list[Judged]:
    """Judge W0 and every merge on the same prompts and noise."""
    generate: Callable[..., torch.Tensor] = sampler_of(recipe, student)
    with _only_start(network):
        before = scores(generate, stage("judging W0", scores.clips))
    judged = []
    for scale in scales:
        _add(network, scale)
        after = scores(generate, stage(f"judging s = {scale:g}", scores.clips))
        inside, outside = after[0] - before[0], after[1] - before[1]
        judged.append(
            Judged(
                scale,
                in_domain=float(after[0].nanmean()),
                out_of_domain=float(after[1].nanmean()),
                in_domain_gain=float(inside.nanmean()),
                out_of_domain_gain=float(outside.nanmean()),
                in_domain_interval=estimate(inside).interval,
                out_of_domain_interval=estimate(outside).interval,
            )
        )
    return judged


def _table(judged: Sequence[Judged]) -> Table:
    table = Table(title="W0 + dW_semi + s dW_on against W0 | 95 % intervals over prompts")
    for name in ("s", "trained rewards", "gain", "out of domain", "gain"):
        table.add_column(name, justify="right")
    for one in judged:
        gains = [
            f"{gain:+.4f} [{low:+.4f}, {high:+.4f}]"
            for gain, (low, high) in (
                (one.in_domain_gain, one.in_domain_interval),
                (one.out_of_domain_gain, one.out_of_domain_interval),
            )
        ]
        table.add_row(f"{one.scale:g}", f"{one.in_domain:.4f}", gains[0], f"{one.out_of_domain:.4f}", gains[1])
    return table


def _write(out: Path, run: FinishedRun, student: Any, document: dict[str, Any]) -> None:
    """The folder of a run that trained nothing: recipe, log header, student and how it was merged."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(run.folder / "recipe.yaml", out / "recipe.yaml")
    keep_plugins(out)
    header = describe_run(run.recipe)
    JsonlLog(out / FILE_NAME, header).close()
    (out / "merge.json").write_text(json.dumps({"header": header, **document}, indent=1), encoding="utf-8")
    student.save(out / student_kind(run.recipe).saved, {**header, "merge": json.dumps(document)})
