"""The files of a run that its page is made of, read without loading a model, a plugin or a judge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vidalign.errors import CheckpointError, UsageError, before_work, nearest
from vidalign.evaluation.comparison import Judgement, read_evaluation
from vidalign.reading import regular
from vidalign.recipe.load import read_header
from vidalign.report import CellWarning, ShownAnswers, ShownPrompt
from vidalign.report.kept import read_answers, read_clips
from vidalign.tracking.jsonl import FILE_NAME, History, read_history, read_records

EVALUATION, CLIPS, RESPONSES = "evaluation.json", "evaluation-clips.json", "evaluation-responses.json"
DEFAULT_FPS = 8.0


@dataclass(frozen=True)
class RunFiles:
    """One run as its files say."""

    folder: Path
    step: int | None
    """Of the student that was judged; None for that of the end."""
    header: dict[str, str]
    """What made it: that of the log, over it that of the judgement."""
    command: str
    """The command that trained it."""
    recipe: dict[str, Any]
    text: str
    """The recipe as it is written."""
    summary: str
    """The first line of the recipe's comment."""
    history: History
    starts: list[float]
    """Seconds of training after each start: a resumed run has several."""
    warnings: list[CellWarning] = field(default_factory=list)
    judgement: Judgement | None = None
    clips: list[ShownPrompt] = field(default_factory=list)
    fps: float = DEFAULT_FPS
    answers: list[ShownAnswers] = field(default_factory=list)

    def setting(self, section: str, key: str) -> Any:
        """A value of the recipe, None where it has none."""
        found = self.recipe.get(section)
        return found.get(key) if isinstance(found, dict) else None

    @property
    def objective(self) -> str:
        return str(self.setting("objective", "name") or "run")

    @property
    def seed(self) -> str:
        return self.header.get("seed", "?")


def file_of(folder: Path, name: str, step: int | None) -> Path:
    """A file of a run about its student at the end, or at a step."""
    path = folder / name
    return path if step is None else path.with_stem(f"{path.stem}-step-{step}")


def read_run(folder: Path, step: int | None = None) -> RunFiles:
    """Read a run; raises `UsageError` for what is none, and `UserError` naming the file that cannot be read.

    step: of the judged student, None for that of the end. A run without a judgement has no scores and no clips.
    """
    check_run(folder)
    log = folder / FILE_NAME
    recipe, text = _recipe(folder / "recipe.yaml")
    records = read_records(log)
    headers = [{str(k): str(v) for k, v in one.items() if k != "kind"} for one in records if one["kind"] == "header"]
    first = headers[0] if headers else {}
    evaluation, clips = file_of(folder, EVALUATION, step), file_of(folder, CLIPS, step)
    judgement = read_evaluation(evaluation) if evaluation.exists() else None
    shown, fps = read_clips(clips) if judgement and clips.exists() else ([], DEFAULT_FPS)
    responses = file_of(folder, RESPONSES, step)
    answers = read_answers(responses) if judgement and responses.exists() else []
    return RunFiles(
        folder,
        step,
        (judgement.header if judgement else {}) | {k: v for k, v in first.items() if k != "step"},
        first.get("command", ""),
        recipe,
        text,
        read_header(folder / "recipe.yaml").split("\n", 1)[0],
        read_history(log),
        _starts(records),
        _warnings(records),
        judgement,
        shown,
        fps,
        answers,
    )


@before_work()
def check_run(folder: Path) -> None:
    """Raises `UsageError` unless the folder holds the recipe and the log of a run."""
    if not folder.is_dir():
        near = nearest(folder.name, _runs_beside(folder))
        raise UsageError(
            f"there is no run {str(folder)!r}",
            where="RUN",
            why="it is not a folder" if folder.exists() else "there is no such folder",
            fix=f"did you mean {str(folder.parent / near)!r}?" if near else "name the folder of a run",
        )
    missing = [name for name in ("recipe.yaml", FILE_NAME) if not (folder / name).is_file()]
    if missing:
        inside = [path.name for path in sorted(folder.iterdir()) if (path / FILE_NAME).is_file()][:3]
        raise UsageError(
            f"{str(folder)!r} is not a run",
            where="RUN",
            why=f"it holds no {' and no '.join(missing)}",
            fix=f"name a run in it, such as {str(folder / inside[0])!r}"
            if inside
            else "name the folder that "
            "`vidalign train` wrote; a benchmark is shown by `vidalign bench report PROTOCOL`",
        )


def _runs_beside(folder: Path) -> list[str]:
    parent = folder.parent
    return [path.name for path in parent.iterdir() if (path / FILE_NAME).is_file()] if parent.is_dir() else []


def _recipe(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = regular(path).read_text(encoding="utf-8")
        recipe = yaml.safe_load(text)
        if not isinstance(recipe, dict):
            raise ValueError("it holds no recipe")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(
            "the recipe of the run cannot be read", where=str(path), why=str(error), fix="name another run"
        ) from error
    return recipe, text


def _starts(records: Sequence[dict[str, Any]]) -> list[float]:
    starts: list[float] = []
    for record in records:
        if record["kind"] == "header":
            starts.append(0.0)
        elif record["kind"] == "metrics" and starts:
            starts[-1] = max(starts[-1], float(record.get("seconds", 0.0)))
    return [seconds for seconds in starts if seconds > 0]


def _warnings(records: Sequence[dict[str, Any]]) -> list[CellWarning]:
    by_name = {record["name"]: record for record in records if record["kind"] == "health"}  # may have warned twice
    return [CellWarning(one["message"], name=one["name"], fix=one["fix"]) for one in by_name.values()]


def judged_steps(folder: Path) -> list[int]:
    """Steps whose students were judged besides that of the end."""
    found = (re.fullmatch(r"evaluation-step-(\d+)\.json", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)
