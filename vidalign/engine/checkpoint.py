"""Checkpoints that are either whole or not there.

    CHECKPOINTS/step-00000100/manifest.json      sizes and sha256 of every other file, step, score
                              state.pt           small state of rank 0: objective, data cursor
                              <part>/...         one folder for each engine and weight set

A checkpoint is written under a hidden name beside the older ones, flushed to disk, and made visible by one
atomic rename; whatever a killed process leaves behind has a hidden name with its number, and is swept by the next save.
Several nodes need one shared file system. The manifest is checked in full before anything is loaded. Files
are read with torch's safe loader, except the ones that DeepSpeed writes itself.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from vidalign.engine import distributed
from vidalign.errors import CheckpointError, first_line
from vidalign.owner import Process, is_left_over
from vidalign.reading import check_object, content_hash, read_json

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
NAME = re.compile("step-[0-9]{8,}")
"""Folders of checkpoints; others beside them belong to somebody else."""


class Part(Protocol):
    """What can be stored in a checkpoint; all ranks call both methods, in the same order."""

    def save(self, directory: Path) -> None: ...
    def load(self, directory: Path) -> None: ...


class Checkpoints:
    """The checkpoints of one run: the last `keep_last`, the newest sound one, and, if `keep_best`, the one with the
    highest score.
    """

    def __init__(self, root: Path | str, *, keep_last: int = 2, keep_best: bool = True) -> None:
        assert keep_last >= 1, "the newest checkpoint is always kept"
        self.root = Path(root)
        self.keep_last = keep_last
        self.keep_best = keep_best

    def steps(self) -> list[int]:
        """Steps with a visible checkpoint, ascending."""
        return sorted({_number(p) for p in self.root.glob("*step-*") if _is_visible(p)})

    def all_steps(self) -> list[int]:
        """`steps`, and those whose folder has lost its manifest."""
        lost = {_number(p) for p in self.root.glob("step-*") if NAME.fullmatch(p.name) and p.is_dir()}
        return sorted(lost | set(self.steps()))

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of `step`, whether it exists or not."""
        final = self.root / f"step-{step:08d}"
        aside = self._hidden("replaced", step)
        return aside if _is_visible(aside) and not _is_visible(final) else final

    def best(self) -> int | None:
        """Step with the highest score by the judge of the newest one; the later one among equals; None without any
        score."""
        scores = {step: _entry(self.path(step), "score", None) for step in self.steps()}
        finite = {step: score for step, score in scores.items() if score is not None and math.isfinite(score)}
        judges = {step: _entry(self.path(step), "judge", "") for step in finite}
        comparable = [step for step in finite if judges[step] == judges[max(finite)]]
        return max(comparable, key=lambda step: (finite[step], step), default=None)

    def newest_sound(self) -> int | None:
        """Newest step whose weights were called sound when it was saved."""
        return next((step for step in self.steps()[::-1] if _entry(self.path(step), "sound", False)), None)

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        parts: Mapping[str, Part],
        *,
        score: float | None = None,
        judge: str = "",
        sound: bool = True,
    ) -> Path:
        """Write the checkpoint of `step` on all ranks; `CheckpointError` on all ranks if one of them fails.

        judge: what the score is by, since scores of different judges are not compared.
        `state` holds tensors, numbers, strings and containers of them. Older checkpoints stay untouched
        until this one is visible. One that is not `sound` never replaces the newest one that is.
        """
        tag = distributed.broadcast_object(Process.current().tag)
        draft = self.root / f".draft-{tag}-step-{step:08d}"
        self._together(step, draft, lambda: self._sweep(draft))
        for name, part in parts.items():  # one by one: a rank that failed must not miss the next part's collectives
            self._together(step, draft, functools.partial(_save_part, part, draft / name))
        self._together(step, draft, lambda: self._publish(step, draft, dict(state), (score, judge), sound))
        return self.path(step)

    def load(
        self, parts: Mapping[str, Part], step: int | None = None, *, trust: bool = False
    ) -> tuple[int, dict[str, Any]]:
        """Restore all `parts` on all ranks; returns the step and the state of rank 0.

        trust: load DeepSpeed's files, which are code, even where another user wrote them.

        Without `step` the newest intact checkpoint is taken, with a warning for each damaged one.
        """
        problems: list[str] = []
        candidates = self.all_steps()[::-1] if step is None else [step]
        for candidate in distributed.broadcast_object(candidates):
            problem = distributed.broadcast_object(self._problem(candidate))
            if not problem:
                if not trust:
                    refuse_foreign_code(self.path(candidate))
                return candidate, self._restore(candidate, parts)
            problems.append(problem)
            log.warning("checkpoint of step %d is not used: %s", candidate, problem)
        raise CheckpointError(
            "no checkpoint can be loaded",
            where=str(self.root),
            why="; ".join(problems) or "there is none",
            fix="train from the start, or name another run",
        )

    def _restore(self, step: int, parts: Mapping[str, Part]) -> dict[str, Any]:
        path = self.path(step)
        saved = read_manifest(path)["world_size"]
        if saved != distributed.world_size() and any(path.glob("*/deepspeed")):
            raise CheckpointError(
                f"checkpoint of {saved} processes, run of {distributed.world_size()}",
                where=str(path),
                why="ZeRO state is divided by the number of processes",
                fix=f"resume with {saved} processes",
            )
        for name, part in parts.items():
            with reading_state(path / name):
                part.load(path / name)
        with reading_state(path / "state.pt"):
            return dict(read_tensors(path / "state.pt"))

    def _problem(self, step: int) -> str:
        """Why the checkpoint cannot be used, '' when it is intact; looked at by rank 0 alone."""
        return verify(self.path(step)) if distributed.rank() == 0 else ""

    def _hidden(self, kind: str, step: int) -> Path:
        return self.root / f".{kind}-step-{step:08d}"

    def _sweep(self, draft: Path) -> None:
        """Remove what killed processes left, then open the draft folder."""
        if distributed.rank() != 0:
            return
        drafts = [draft for draft in self.root.glob(".draft-*") if is_left_over(draft)]
        for leftover in (*drafts, *self.root.glob(".trash-*")):
            shutil.rmtree(leftover)
        for aside in self.root.glob(".replaced-*"):
            if _is_visible(self.root / aside.name.removeprefix(".replaced-")):
                shutil.rmtree(aside)
        draft.mkdir(parents=True)

    def _publish(
        self, step: int, draft: Path, state: dict[str, Any], judged: tuple[float | None, str], sound: bool
    ) -> None:
        if distributed.rank() != 0:
            return
        write_tensors(draft / "state.pt", state)
        files = {str(p.relative_to(draft)): _seal(p) for p in sorted(draft.rglob("*")) if p.is_file()}
        manifest = {
            "format": 1,
            "step": step,
            "score": judged[0],
            "judge": judged[1],
            "sound": sound,
            "world_size": distributed.world_size(),
            "files": files,
        }
        _write(draft / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode()))
        for folder in (draft, *(p for p in draft.rglob("*") if p.is_dir())):
            _flush_folder(folder)
        final, aside = self.root / f"step-{step:08d}", self._hidden("replaced", step)
        if final.exists():
            if aside.exists():
                shutil.rmtree(aside)
            final.rename(aside)
        draft.rename(final)
        _flush_folder(self.root)
        if aside.exists():
            shutil.rmtree(aside)
        self._prune(step)

    def _prune(self, saved: int) -> None:
        keep = {saved, *self.steps()[-self.keep_last :]}
        if self.keep_best and (best := self.best()) is not None:
            keep.add(best)
        if (sound := self.newest_sound()) is not None:
            keep.add(sound)
        for step in set(self.steps()) - keep:
            trash = self._hidden("trash", step)
            self.path(step).rename(trash)
            shutil.rmtree(trash, ignore_errors=True)  # what stays is hidden and swept by the next save

    def _together(self, step: int, draft: Path, work: Callable[[], Any]) -> None:
        """Run `work` on every rank; when one fails, remove the draft and raise on all of them."""
        failure = ""
        try:
            work()
        except (OSError, RuntimeError, CheckpointError) as error:
            failure = _reason(error)
        failures = [text for text in distributed.all_gather_object(failure) if text]
        if failures:
            if distributed.rank() == 0:
                shutil.rmtree(draft, ignore_errors=True)
            existing = next(p for p in (self.root, *self.root.absolute().parents) if p.exists())
            free = shutil.disk_usage(existing).free
            older = bool(self.steps())
            raise CheckpointError(
                f"checkpoint of step {step} was not saved; "
                + ("the older ones are intact" if older else "there is no older one"),
                where=str(self.root),
                why=f"{failures[0]} ({free / 1e6:.0f} MB free)",
                fix="free space or lower trainer.keep, then resume" if older else "free space, then start again",
            )


def verify(path: Path) -> str:
    """'' if every file of the checkpoint has the size and hash of the manifest, else what is wrong."""
    try:
        files = read_manifest(path)["files"]
        for name, entry in files.items():
            file = path / name
            if not file.is_file():
                return f"{file} is missing"
            if file.stat().st_size != entry["size"]:
                return f"{file} has {file.stat().st_size} bytes, expected {entry['size']}"
            if content_hash(file) != entry["sha256"]:
                return f"{file} is damaged: its sha256 is not the one of the manifest"
    except (OSError, CheckpointError) as error:
        return str(error)
    return ""


def refuse_foreign_code(path: Path) -> None:
    """Raises `CheckpointError` for files of DeepSpeed, which are pickles and so run code, that another user wrote."""
    for file in sorted(path.glob("*/deepspeed/**/*")):
        owner = file.stat().st_uid
        if owner != os.getuid():
            raise CheckpointError(
                "a ZeRO checkpoint of another user is not loaded",
                where=str(file),
                why=f"loading it runs code that it holds; it belongs to user {owner}, you are user {os.getuid()}",
                fix="add --trust-checkpoint if you trust whoever wrote it",
            )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint folder `path`; `CheckpointError` if it is missing or unreadable."""
    try:
        manifest = check_object(read_json(path / MANIFEST), {"files": dict, "step": int, "world_size": int})
        _check_entries(manifest)
        return manifest
    except (OSError, ValueError) as error:
        raise CheckpointError("no readable manifest", where=str(path / MANIFEST), why=str(error)) from error


def _check_entries(manifest: dict[str, Any]) -> None:
    """Raises `ValueError` for an entry that no save writes."""
    if "state.pt" not in manifest["files"]:
        raise ValueError("its list of files does not name state.pt, which every checkpoint has")
    for name, entry in manifest["files"].items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"the file name {name!r} leads out of the folder")
        check_object(entry, {"size": int, "sha256": str})
    score, sound = manifest.get("score"), manifest.get("sound", True)
    if not (score is None or isinstance(score, int | float)) or not isinstance(sound, bool):
        raise ValueError("'score' must be a number or null, 'sound' true or false")


def write_tensors(path: Path, state: Any) -> None:
    """`state` (tensors, numbers, strings, containers) in torch's format, flushed to disk."""
    _write(path, lambda file: torch.save(state, file))


def read_tensors(path: Path) -> Any:
    """What `write_tensors` wrote, on the CPU; `CheckpointError` when it is missing or half-written."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError("cannot read a checkpoint file", where=str(path), why=str(error)) from error


@contextmanager
def reading_state(where: Path) -> Iterator[None]:
    """Whatever an intact file of another form makes go wrong inside is reported with its name."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, AssertionError) as error:
        raise CheckpointError(
            "the state in a checkpoint is not that of this run",
            where=str(where),
            why=f"{type(error).__name__}: {error}",
            fix="use the recipe and version that wrote it, or begin anew",
        ) from error


def check_shapes(where: Path, saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """`CheckpointError` naming the first tensor whose name or shape is not the expected one."""
    for name in sorted(set(saved) | set(expected)):
        got, want = (tuple(m[name].shape) if name in m else "nothing" for m in (saved, expected))
        if got != want:
            raise CheckpointError(
                f"{name}: found {got}, expected {want}",
                where=str(where),
                why="the checkpoint belongs to another network or adapter",
                fix="resume with the recipe of the run",
            )


def _write(path: Path, write: Callable[[Any], Any]) -> None:
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _seal(path: Path) -> dict[str, Any]:
    """Flush a file that others may have written; its size and hash."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": content_hash(path)}


def _entry(path: Path, name: str, otherwise: Any) -> Any:
    try:
        return read_manifest(path).get(name, otherwise)
    except CheckpointError:  # a damaged checkpoint is never the best one, nor sound
        return otherwise


def _reason(error: BaseException) -> str:
    """The system's error under a failed write; torch's own writer says no more than that it stopped early."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return str(cause)
        cause = cause.__context__
    text = first_line(error)
    return "a write stopped early, as on a full disk" if "inline_container" in text else text


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _save_part(part: Part, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    part.save(directory)


def _is_visible(path: Path) -> bool:
    """Published, or published and then moved aside by a replacement that did not finish."""
    return bool(NAME.fullmatch(path.name.removeprefix(".replaced-"))) and (path / MANIFEST).is_file()


def _number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])
