"""A black-box teacher as finished clips on disk, keyed by prompt: a folder of files, a tar file, or a table.

Where the prompt of a clip stands: `vidalign.teachers.index`. What is decoded of it: `vidalign.teachers.videos`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vidalign.data.source import listed
from vidalign.engine import distributed
from vidalign.errors import DataError, Problem, UserError, nearest
from vidalign.ranges import require
from vidalign.teachers.clips import ClipShape, Entry, check_clip, normalise, read_clip
from vidalign.teachers.index import index_clips
from vidalign.teachers.videos import Wanted

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.students.video import VideoStudentSpec

REMEMBERED = 64
"""Normalised clips kept in memory."""


class ClipStore:
    """Clips of a folder, tar file or table, normalised to the student's shape. Offers ``clips``.

    The headers of all files are read when it is made, shared out to the processes: `DataError` lists every clip that
    they show to be unusable. A clip is decoded when it is drawn, and no further than it is needed. With `skip_corrupt`
    clips that cannot be used are left out with a warning instead.
    """

    offers = ("clips",)

    @dataclass
    class Config:
        path: str = ""
        """Folder of clips, tar file, parquet file, or folder of `Dataset.save_to_disk`."""
        fps: float = 0.0
        """Frame rate of the student's videos, to which clips are resampled; 0 takes frames as they are."""
        skip_corrupt: bool = False
        """Leave out clips that cannot be used, with a warning, instead of refusing them."""

        def __post_init__(self) -> None:
            require(self, "fps", least=0)

    def __init__(self, path: Path, shape: ClipShape, *, fps: float = 0.0, skip_corrupt: bool = False) -> None:
        self.path, self.shape, self.fps, self.skip_corrupt = path, shape, fps, skip_corrupt
        index = index_clips(path)
        if index.unused and distributed.rank() == 0:
            warnings.warn(f"{path}: {len(index.unused)} files are not used: {index.described()}", stacklevel=2)
        self.broken = self._broken(index.entries)
        """Why a clip cannot be used, by its name."""
        if self.broken and not skip_corrupt:
            raise DataError(
                f"{len(self.broken)} of {len(index.entries)} clips cannot be used: {', '.join(self.broken)}",
                where=str(path),
                why=next(iter(self.broken.values())),
                fix="repair or delete them, or set teacher.skip_corrupt: true",
            )
        if self.broken:
            warnings.warn(f"{path}: {len(self.broken)} clips are skipped: {', '.join(self.broken)}", stacklevel=2)
        self.entries: dict[str, list[Entry]] = {}
        for entry in index.entries:
            if entry.name not in self.broken:
                self.entries.setdefault(entry.prompt, []).append(entry)
        if not self.entries:
            raise DataError("no clip is left", where=str(path))
        if not fps:
            self._warn_of_rate(next(iter(self.entries.values()))[0])
        self._clip = lru_cache(maxsize=REMEMBERED)(self._read)

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The clips can be listed, and every training prompt has one; nothing is decoded."""
        path = draft.settings("teacher", cls.Config).path
        if path:
            _check_prompts(draft, path)
        elif draft.sound("teacher"):
            draft.refuse("the teacher has no path", "teacher", "it names its clips", "give teacher.path")

    @classmethod
    def from_recipe(cls, config: Config, frames: int, spec: VideoStudentSpec) -> ClipStore:
        shape = ClipShape.of(spec, frames)
        return cls(Path(config.path), shape, fps=config.fps, skip_corrupt=config.skip_corrupt)

    @property
    def prompts(self) -> list[str]:
        """Every prompt that has a clip."""
        return list(self.entries)

    def clips(self, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """One of the clips of each prompt, drawn by its generator: ``[B, F, 3, H, W]`` in [0, 1], float32."""
        chosen = []
        for prompt, generator in zip(prompts, generators, strict=True):
            if prompt not in self.entries:
                close = nearest(prompt, self.entries)
                fix = f"did you mean {close!r}?" if close else "train on prompts that have clips"
                raise DataError(f"the teacher has no clip for {prompt!r}", where=str(self.path), fix=fix)
            chosen.append(self._drawn(prompt, generator))
        return torch.stack(chosen).float() / 255

    def _drawn(self, prompt: str, generator: torch.Generator) -> torch.Tensor:
        """One of the clips of a prompt; where that cannot be used and `skip_corrupt` is set, the next one that can."""
        entries = self.entries[prompt]
        first = int(torch.randint(len(entries), (), generator=generator))
        for entry in entries[first:] + entries[:first]:
            if entry.name in self.broken:
                continue
            try:
                return self._clip(entry)
            except DataError as error:
                if not self.skip_corrupt:
                    why, fix = str(error), "repair or delete it, or set teacher.skip_corrupt: true"
                    raise DataError(
                        "a clip cannot be used", where=f"{self.path}: {entry.name}", why=why, fix=fix
                    ) from error
                self.broken[entry.name] = str(error)
                warnings.warn(f"{self.path}: {entry.name} is skipped: {error}", stacklevel=3)
        raise DataError(
            f"no clip of {prompt!r} can be used", where=str(self.path), why=self.broken[entries[first].name]
        )

    def _read(self, entry: Entry) -> torch.Tensor:
        wanted = Wanted(self.shape.frames, self.fps)
        return normalise(read_clip(entry.load(), entry.kind, wanted), self.shape, self.fps)

    def _warn_of_rate(self, entry: Entry) -> None:
        """Frames are taken as they are: a warning if the clips carry a frame rate."""
        try:
            times = read_clip(entry.load(), entry.kind, Wanted(max(2, self.shape.frames))).times
        except DataError:
            return  # drawing it will say why
        if times is not None and len(times) > 1:
            rate = (len(times) - 1) / float(times[-1] - times[0])
            warnings.warn(
                f"{self.path}: clips are not resampled to the student's rate, because teacher.fps is 0; {entry.name} "
                f"has {rate:.3g} frames a second",
                stacklevel=3,
            )

    def _broken(self, entries: list[Entry]) -> dict[str, str]:
        """Names of clips that their headers show to be unusable with the reason, the same on every process."""
        own = {}
        for entry in entries[distributed.rank() :: distributed.world_size()]:
            try:
                source = None if entry.packed else entry.load()
                if isinstance(source, Path):
                    check_clip(source, entry.kind, self.shape, self.fps)
            except DataError as error:
                own[entry.name] = str(error)
        reasons: dict[str, str] = {}
        for part in distributed.all_gather_object(own):
            reasons |= part
        return dict(sorted(reasons.items()))


def _check_prompts(draft: Draft, path: str) -> None:
    try:
        index = index_clips(Path(path))
        prompts = listed(draft.recipe.training_prompts) or []
    except UserError as error:
        draft.refuse_as(error, "teacher.path")
        return
    known = {entry.prompt for entry in index.entries}
    if index.unused:
        what = f"{len(index.unused)} files of the teacher's store are not used"
        warning = Problem(what, draft.tree.locate("teacher.path"), index.described())
        draft.warnings += [warning] if warning not in draft.warnings else []
    missing = [prompt for prompt in prompts if prompt not in known]
    if missing:
        shown = ", ".join(repr(prompt) for prompt in missing[:3]) + (", ..." if len(missing) > 3 else "")
        why = f"{len(missing)} of {len(prompts)} training prompts: {shown}"
        draft.refuse("the teacher's store lacks clips", "teacher.path", why, "train on prompts that have clips")
