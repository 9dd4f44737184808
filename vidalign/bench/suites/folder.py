"""The folder of an export: whole files only, and a manifest that must agree before anything is added."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from operator import itemgetter
from pathlib import Path
from typing import Any

from vidalign.errors import UserError
from vidalign.reading import read_json
from vidalign.recipe.differences import MISSING, differences

VIDEOS = "videos"
MANIFEST = "manifest.json"
PARTIAL = ".partial"


class Folder:
    """OUT: its manifest and its videos."""

    def __init__(
        self, out: Path, settings: dict[str, Any], made_by: dict[str, str], rows: list[dict[str, Any]]
    ) -> None:
        """settings: what the videos depend on. made_by: for people. rows: every video with its `file`."""
        self.out, self.videos = out, out / VIDEOS
        self.manifest = {"complete": False, "settings": settings, "made_by": made_by, "video": None, "videos": rows}
        self.names = {Path(row["file"]).name for row in rows}

    def open(self) -> None:
        """Take over what is there; `UserError` when it was made otherwise or is no video of these prompts."""
        there = sorted(p.name for p in self.videos.iterdir()) if self.videos.is_dir() else []
        known = self.out / MANIFEST
        if known.is_file():
            self._agree(known)
        elif there:
            raise self._other(str(self.videos), f"it holds {there[0]!r} but no {MANIFEST} that says what made it")
        for name in there:
            if name not in self.names:
                raise self._other(
                    str(self.videos / name), "it is no video of these prompts, and may mislead the scorer"
                )
        try:
            self.videos.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.out, error) from error
        self._save_manifest()
        if (self.out / MANIFEST.upper()).exists():
            self._same_but_for_case()

    def has(self, name: str) -> bool:
        return (self.videos / name).is_file()

    def describe(self, size: dict[str, int]) -> None:
        """Note the size of the videos, before the first one is there."""
        if self.manifest["video"] is None:
            self.manifest["video"] = size
            self._save_manifest()
        assert self.manifest["video"] == size, "one student makes videos of one size"

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all."""
        self._place(self.videos / name, content)

    def close(self, index: tuple[str, str] | None) -> None:
        """Write the scorer's list and mark the manifest as complete."""
        if index:
            self._place(self.out / index[0], index[1].encode())
        self.manifest["complete"] = True
        self._save_manifest()
        shutil.rmtree(self.out / PARTIAL, ignore_errors=True)

    def _agree(self, file: Path) -> None:
        try:
            old = read_json(file)
            same, self.manifest["video"] = old["settings"], old["video"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._other(str(file), f"it cannot be read: {type(error).__name__}: {error}") from error
        if difference := first_difference(same, self.manifest["settings"]):
            raise self._other(str(file), difference)

    def _other(self, where: str, why: str) -> UserError:
        return UserError(
            f"{self.out} holds other videos", where=where, why=why, fix="give another --out, or the same settings"
        )

    def _same_but_for_case(self) -> None:
        for _, same in itertools.groupby(sorted(sorted(self.names), key=str.casefold), key=str.casefold):
            first, *others = same
            if others:
                raise UserError(
                    "two videos would have one name here",
                    where=str(self.videos),
                    why=f"this file system takes {first!r} for {others[0]!r}",
                    fix="give --out on another one",
                )

    def _save_manifest(self) -> None:
        text = json.dumps(self.manifest, indent=1, ensure_ascii=False) + "\n"
        self._place(self.out / MANIFEST, text.encode())

    def _place(self, target: Path, content: bytes) -> None:
        beside = self.out / PARTIAL / f"{os.getpid()}"  # not in the folder of the videos: scorers list it
        try:
            beside.parent.mkdir(exist_ok=True)
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        except OSError as error:
            raise _cannot_write(target, error) from error


def first_difference(old: Any, new: Any) -> str:
    """The first value in which two nested settings differ, as a sentence; '' when they are equal."""
    for name, *values in sorted(differences(old, new), key=itemgetter(0)):
        was, now = (None if value is MISSING else value for value in values)
        if was != now:
            return f"{name} was {was!r} and is now {now!r}"
    return ""


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        "cannot write the videos",
        where=str(path),
        why=error.strerror or str(error),
        fix="free some space there, or choose another --out; the same command goes on with what is missing",
    )
