"""A black-box teacher as finished clips on disk, keyed by prompt: a folder of files, or a table of `datasets`.

Folder: mp4, webm, gif, npz or safetensors files. The prompt of a file stands in ``metadata.jsonl`` (lines with
``file_name`` and ``prompt``, the layout of a `datasets` video folder). Else it stands in the metadata of a safetensors
file, else in its name, ``PROMPT.mp4`` or ``PROMPT-3.mp4``. Table: a parquet file or what ``Dataset.save_to_disk``
wrote, with the columns ``prompt`` and ``video`` (the path of a file, or its bytes).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign.data.paths import inside
from vidalign.data.source import listed
from vidalign.engine import distributed
from vidalign.errors import DataError, UserError, nearest
from vidalign.ranges import require
from vidalign.reading import regular
from vidalign.teachers.clips import EXTENSIONS, ClipShape, normalise, read_clip

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.students.video import VideoStudentSpec

REMEMBERED = 64
"""Normalised clips kept in memory."""


@dataclass(frozen=True)
class Entry:
    """A clip that has not been read yet."""

    prompt: str
    name: str
    kind: str
    """Its extension, ``.mp4`` and the like."""
    load: Callable[[], Path | bytes]


class ClipStore:
    """Clips of a folder or a table, normalised to the student's shape. Offers ``clips``.

    All clips are read once when it is made, shared out to the processes: `DataError` lists every one that cannot be
    used. With `skip_corrupt` they are left out with a warning instead.
    """

    offers = ("clips",)

    @dataclass
    class Config:
        path: str = ""
        """Folder of clips, parquet file, or folder of `Dataset.save_to_disk`."""
        fps: float = 0.0
        """Frame rate of the student's videos, to which clips are resampled; 0 takes frames as they are."""
        skip_corrupt: bool = False
        """Leave out clips that cannot be used, with a warning, instead of refusing to start."""

        def __post_init__(self) -> None:
            require(self, "fps", least=0)

    def __init__(self, path: Path, shape: ClipShape, *, fps: float = 0.0, skip_corrupt: bool = False) -> None:
        self.path, self.shape, self.fps = path, shape, fps
        entries = index_clips(path)
        broken = self._broken(entries)
        if broken and not skip_corrupt:
            raise DataError(
                f"{len(broken)} of {len(entries)} clips cannot be used: {', '.join(broken)}",
                where=str(path),
                why=next(iter(broken.values())),
                fix="repair or delete them, or set teacher.skip_corrupt: true",
            )
        if broken:
            warnings.warn(f"{path}: {len(broken)} clips are skipped: {', '.join(broken)}", stacklevel=2)
        self.entries: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.name not in broken:
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
            entries = self.entries[prompt]
            chosen.append(self._clip(entries[int(torch.randint(len(entries), (), generator=generator))]))
        return torch.stack(chosen).float() / 255

    def _read(self, entry: Entry) -> torch.Tensor:
        return normalise(read_clip(entry.load(), entry.kind), self.shape, self.fps)

    def _warn_of_rate(self, entry: Entry) -> None:
        """Frames are taken as they are: a warning if the clips carry a frame rate."""
        times = read_clip(entry.load(), entry.kind).times
        if times is not None and len(times) > 1:
            rate = (len(times) - 1) / float(times[-1] - times[0])
            warnings.warn(
                f"{self.path}: clips are not resampled to the student's rate, because teacher.fps is 0; {entry.name} "
                f"has {rate:.3g} frames a second",
                stacklevel=3,
            )

    def _broken(self, entries: list[Entry]) -> dict[str, str]:
        """Names of unusable clips with the reason, the same on every process."""
        own = {}
        for entry in entries[distributed.rank() :: distributed.world_size()]:
            try:
                self._read(entry)
            except DataError as error:
                own[entry.name] = str(error)
        reasons: dict[str, str] = {}
        for part in distributed.all_gather_object(own):
            reasons |= part
        return dict(sorted(reasons.items()))


def _check_prompts(draft: Draft, path: str) -> None:
    try:
        known = {entry.prompt for entry in index_clips(Path(path))}
        prompts = listed(draft.recipe.training_prompts) or []
    except UserError as error:
        draft.refuse_as(error, "teacher.path")
        return
    missing = [prompt for prompt in prompts if prompt not in known]
    if missing:
        shown = ", ".join(repr(prompt) for prompt in missing[:3]) + (", ..." if len(missing) > 3 else "")
        why = f"{len(missing)} of {len(prompts)} training prompts: {shown}"
        draft.refuse("the teacher's store lacks clips", "teacher.path", why, "train on prompts that have clips")


def index_clips(path: Path) -> list[Entry]:
    """Every clip of a folder or table, nothing decoded; `DataError` when there is none or the prompts are missing."""
    if path.is_dir() and not (path / "state.json").is_file() and not (path / "dataset_dict.json").is_file():
        entries = _folder(path)
    elif (path.suffix == ".parquet" and path.is_file()) or path.is_dir():
        entries = _table(path)
    elif not path.exists():
        raise DataError(f"{str(path)!r} holds no clips", why="there is no such path", fix="check teacher.path")
    else:
        known = "a folder of clips, a parquet file, or a folder that Dataset.save_to_disk wrote"
        raise DataError(f"{str(path)!r} holds no clips", why=f"it is not {known}", fix="check teacher.path")
    if not entries:
        raise DataError(f"{str(path)!r} holds no clips", why=f"known kinds: {', '.join(EXTENSIONS)}")
    return entries


def _folder(path: Path) -> list[Entry]:
    table = path / "metadata.jsonl"
    if table.is_file():
        pairs = _listed(table)
    else:
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS)
        pairs = [(file, _prompt_of(file)) for file in files]
    return [_entry(file, prompt, str(file.relative_to(path))) for file, prompt in pairs]


def _listed(table: Path) -> list[tuple[Path, str]]:
    pairs = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            pairs.append((inside(table.parent, row["file_name"]), str(row["prompt"]).strip()))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                "a line of metadata.jsonl cannot be used",
                where=f"{table}:{number}",
                why=f"{type(error).__name__}: {error}",
                fix='write {"file_name": "a.mp4", "prompt": "..."}',
            ) from error
    return pairs


def _prompt_of(file: Path) -> str:
    """From the metadata of a safetensors file, else from the name without a trailing ``-N``."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(regular(file), "pt") as opened:
                prompt = (opened.metadata() or {}).get("prompt", "")
        except (OSError, SafetensorError):
            prompt = ""  # reading it will say why
        if prompt:
            return str(prompt)
    return re.sub(r"-\d+$", "", file.stem).strip()


def _entry(file: Path, prompt: str, name: str) -> Entry:
    return Entry(prompt, name, file.suffix.lower(), lambda: file)


def _table(path: Path) -> list[Entry]:
    import datasets

    table: Any
    if path.is_file():
        table = datasets.Dataset.from_parquet(str(path))
    else:
        table = datasets.load_from_disk(str(path))
    columns = getattr(table, "column_names", None)
    if not isinstance(columns, list) or not {"prompt", "video"} <= set(columns):
        raise DataError(
            "the table has no columns prompt and video",
            where=str(path),
            why=f"it has {columns}",
            fix="save one split with these two columns",
        )
    if isinstance(table.features["video"], datasets.Video):
        table = table.cast_column("video", datasets.Video(decode=False))
    base = path.parent if path.is_file() else path
    names = _file_names(table.data.column("video"))
    pairs = zip(table["prompt"], names, strict=True)
    return [_row(table, number, str(prompt).strip(), name, base) for number, (prompt, name) in enumerate(pairs)]


def _file_names(column: Any) -> list[str]:
    """The path in each row of an Arrow column of strings, bytes or ``{bytes, path}``; no bytes are read."""
    import pyarrow.compute as compute
    import pyarrow.types as kinds

    if kinds.is_struct(column.type):
        column = compute.struct_field(column, "path")
    elif kinds.is_binary(column.type) or kinds.is_large_binary(column.type):
        return [""] * len(column)
    return [name or "" for name in column.to_pylist()]


def _row(table: Any, number: int, prompt: str, name: str, base: Path) -> Entry:
    """A row of a table; its kind is that of its path, mp4 for bare bytes."""

    def load() -> Path | bytes:
        video = table[number]["video"]
        if isinstance(video, dict):
            video = video.get("bytes") or video.get("path")
        if isinstance(video, bytes):
            return video
        try:
            return inside(base, str(video))
        except ValueError as error:
            raise DataError(
                "a row of the table cannot be used",
                where=f"{base}, row {number}",
                why=str(error),
                fix="give paths below the table's folder, or the bytes",
            ) from error

    kind = Path(name).suffix.lower() or ".mp4"
    return Entry(prompt, f"row {number}" + (f" ({name})" if name else ""), kind, load)
