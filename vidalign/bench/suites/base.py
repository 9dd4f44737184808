"""What a suite is: how its prompt file is read, how many videos a prompt gets, and what they are called."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vidalign.errors import DataError, UserError, nearest
from vidalign.reading import regular

if TYPE_CHECKING:
    from vidalign.bench.suites.exported import Exported
    from vidalign.bench.suites.scores import Scored

SUITES = {
    "vbench": "vidalign.bench.suites.vbench:VBench",
    "vbench_long": "vidalign.bench.suites.vbench:VBenchLong",
    "videophy2": "vidalign.bench.suites.videophy2:VideoPhy2",
    "phygenbench": "vidalign.bench.suites.phygenbench:PhyGenBench",
}
LONGEST_NAME = 255
"""Bytes in a file name, on every common file system."""
FORBIDDEN = "/\0" if os.sep == "/" else '/\0\\:*?"<>|'
"""Characters that no file name may hold here."""


@dataclass(frozen=True)
class Item:
    """One prompt of a suite."""

    prompt: str
    """How the official scorer identifies the videos."""
    text: str
    """What the student reads: the prompt, or a rewritten one."""
    tags: tuple[str, ...] = ()
    """VBench: dimensions judged on it. VideoPhy-2: ``hard`` for its hard subset. PhyGenBench: the main category."""
    number: int = 0
    """PhyGenBench: its place in the prompt file, from 1."""


class Suite:
    """Base of every suite."""

    name: ClassVar[str]
    seeds: ClassVar[int]
    """Videos of a prompt in the official protocol."""
    forbidden: ClassVar[str] = ""
    """Characters at which the scorer cuts file names."""

    def read(self, file: Path, rewritten: str = "") -> list[Item]:
        """Distinct prompts in the order of the official file; `DataError` naming file and line for an unusable one.

        rewritten: where the texts for the student come from, if they are not the prompts.
        """
        raise NotImplementedError

    def videos(self, item: Item, seeds: int) -> int:
        """Videos that a prompt gets with ``seeds``."""
        return seeds

    def file_name(self, item: Item, index: int) -> str:
        """Name of a video inside OUT/videos."""
        raise NotImplementedError

    def index_file(self, rows: Sequence[tuple[Item, str]]) -> tuple[str, str] | None:
        """Name and content of the file that lists the videos for the scorer, None when it goes by names alone.

        rows: item and path relative to OUT of every video.
        """
        return None

    def check_length(self, frames: int, fps: float) -> None:
        """`UserError` for videos that the scorer misreads. frames: of a video, in pixels; fps: frames a second."""

    def read_scores(self, files: Sequence[Path], export: Exported) -> Scored:
        """Result files of the official scorer; `DataError` when they do not belong to the videos of the export."""
        raise NotImplementedError


def open_suite(name: str) -> Suite:
    """The suite of that name; `UserError` with the nearest one otherwise."""
    if name not in SUITES:
        near = nearest(name, SUITES)
        fix = f"did you mean {near!r}?" if near else f"known: {', '.join(SUITES)}"
        raise UserError(f"{name!r} is not a benchmark suite", fix=fix)
    module, _, attribute = SUITES[name].partition(":")
    suite: Suite = getattr(importlib.import_module(module), attribute)()
    return suite


def read_text(file: Path) -> str:
    """Content of a UTF-8 file, with or without a byte order mark; `DataError` when it cannot be read."""
    try:
        return regular(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise DataError("the prompt file cannot be read", where=str(file), why=why, fix="check --prompts") from error


def lines_of(file: Path) -> list[str]:
    """Stripped lines that are not empty: what the suites' own scripts read. Other Unicode line ends stay inside."""
    return [line for line in map(str.strip, read_text(file).split("\n")) if line]


def distinct(items: Iterable[Item], file: Path) -> list[Item]:
    """One item a prompt, the first of its texts and all of its tags; `DataError` when there is none."""
    by_prompt: dict[str, Item] = {}
    for item in items:
        known = by_prompt.get(item.prompt, item)
        by_prompt[item.prompt] = replace(known, tags=tuple(dict.fromkeys((*known.tags, *item.tags))))
    if not by_prompt:
        raise DataError("the prompt file holds no prompt", where=str(file), fix="download it again")
    return list(by_prompt.values())


def check_names(suite: Suite, items: Sequence[Item], seeds: int) -> None:
    """Every video gets a name of its own that a file can have; `DataError` with the first prompt that does not.

    A name is never repaired here: VBench looks for the prompt itself, so it would find no video under another name.
    """
    owner: dict[str, str] = {}
    for item in items:
        for index in range(suite.videos(item, seeds)):
            name = suite.file_name(item, index)
            why = ""
            if bad := [c for c in FORBIDDEN if c in name]:
                why = f"a file name cannot hold {bad[0]!r}"
            elif bad := [c for c in suite.forbidden if c in name]:
                why = f"the scorer cuts file names at {bad[0]!r}"
            elif len(name.encode()) > LONGEST_NAME:
                why = f"the file name would have {len(name.encode())} bytes, more than {LONGEST_NAME}"
            elif owner.get(name) == item.prompt:
                raise UserError(
                    f"{suite.name} has one video a prompt", where="--seeds", why=f"it is {seeds}", fix="leave it out"
                )
            elif name in owner:
                why = f"{owner[name]!r} has the same file name {name!r}"
            if why:
                raise DataError(
                    "a prompt cannot name its videos",
                    where=repr(item.prompt),
                    why=why,
                    fix="leave it out of the prompt file",
                )
            owner[name] = item.prompt
