"""Videos of a suite's prompts on disk, for its official scorer.

Every video is written beside and renamed, so every file in OUT/videos is whole. The same command goes on with what is
missing. Video ``index`` of a prompt starts from noise that depends on prompt and index only: not on the prompt file,
the batch or an interruption. The manifest holds everything that the videos depend on, and is compared before going on.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vidalign.bench.suites.base import Item, Suite, check_names
from vidalign.bench.suites.folder import VIDEOS, Folder
from vidalign.build import sampler_of
from vidalign.engine.rng import generator, key
from vidalign.errors import UserError
from vidalign.provenance import describe_run
from vidalign.reading import content_hash
from vidalign.tracking.clips import DEFAULT_FPS, mp4_bytes, mp4_encoder, to_frames
from vidalign.version import VERSION

if TYPE_CHECKING:
    from vidalign.recipe import Recipe
    from vidalign.students.base import Student

QUALITY = {"libx264": {"crf": "12"}}
"""Encoder options at which compression cannot be seen; scorers of image quality see more than people."""
OTHER_QUALITY = {"qmin": "1", "qmax": "2"}


@dataclass(frozen=True)
class Video:
    """One video to make."""

    item: Item
    index: int
    name: str

    @property
    def purpose(self) -> str:
        """Key of its noise: the generator of seed `index` and step 0 for this purpose."""
        return f"suite video|{self.item.prompt}"

    def noise(self) -> torch.Generator:
        return generator(self.index, self.purpose, 0)

    def row(self) -> dict[str, Any]:
        """What the manifest says of it; `seed` is that of its torch generator."""
        row: dict[str, Any] = {"file": f"{VIDEOS}/{self.name}", "prompt": self.item.prompt, "index": self.index}
        row["seed"] = key(self.index, self.purpose, 0)
        if self.item.text != self.item.prompt:
            row["text"] = self.item.text
        if self.item.tags:
            row["tags"] = list(self.item.tags)
        return row


@dataclass(frozen=True)
class ExportConfig:
    """How many videos, of what length, and what the student reads."""

    seeds: int | None = None
    """Videos of a prompt; none means as many as the suite's protocol says."""
    rewritten: str = ""
    """Texts that the student reads instead of the prompts, see `Suite.read`."""
    frames: int | None = None
    """Latent frames of a video; none means those of the recipe's evaluation."""
    fps: float = DEFAULT_FPS
    """Frame rate written into the files: the one that the student was trained for."""
    batch: int = 8
    """Videos generated at once; they do not depend on it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and value <= 0:
                raise UserError(f"{field.name} must be positive", where=f"--{field.name}", why=f"it is {value}")


@torch.no_grad()
def export_videos(
    suite: Suite,
    prompts: Path,
    out: Path,
    recipe: Recipe,
    student: Student[Any],
    config: ExportConfig | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
    run: Path | None = None,
) -> Path:
    """Write the videos of every prompt into OUT/videos and return OUT; videos that are there are kept.

    recipe: how its evaluation samples the student. report: called with the number of videos that are there and of all.
    run: folder of the student's run, to which the scores will be copied.
    Raises `UserError` before any video is made when the prompt file cannot be used, no MP4 encoder is there, or OUT
    holds something else. Raises it later when a video cannot be written.
    """
    encoder, config = _encoder(), config or ExportConfig()
    seeds = config.seeds or suite.seeds
    items = suite.read(prompts, config.rewritten)
    check_names(suite, items, seeds)
    recipe = copy.copy(recipe)
    recipe.evaluation = replace(recipe.evaluation, frames=config.frames or recipe.evaluation.frames)
    generate = sampler_of(recipe, student)
    if (length := getattr(student.spec, "pixel_frames", None)) is not None:  # of students that count latent frames
        suite.check_length(length(recipe.evaluation.frames), config.fps)
    videos = [Video(i, n, suite.file_name(i, n)) for i in items for n in range(suite.videos(i, seeds))]
    settings = {
        "suite": suite.name,
        "prompt_file": {"name": prompts.name, "sha256": content_hash(prompts)},
        "rewritten": _source(config.rewritten),
        "seeds": seeds,
        "latent_frames": recipe.evaluation.frames,
        "sampler": recipe.evaluation.sampler,
        "fps": float(config.fps),
        "codec": {"container": "mp4", "encoder": encoder, "options": _quality(encoder), "pixel_format": "yuv420p"},
        "student": {"sha256": student_hash(student)},
    }
    folder = Folder(out, settings, _made_by(recipe, out, run), [video.row() for video in videos])
    folder.open()
    missing = [video for video in videos if not folder.has(video.name)]
    report(len(videos) - len(missing), len(videos))
    for start in range(0, len(missing), config.batch):
        part = missing[start : start + config.batch]
        clips = generate([video.item.text for video in part], [video.noise() for video in part])
        for video, clip in zip(part, clips, strict=True):
            frames = to_frames(clip)
            folder.describe(_size(frames))
            folder.write(video.name, mp4_bytes(frames, encoder, config.fps, _quality(encoder)))
        report(len(videos) - len(missing) + start + len(part), len(videos))
    folder.close(suite.index_file([(video.item, f"{VIDEOS}/{video.name}") for video in videos]))
    return out


def student_hash(student: Student[Any]) -> str:
    """SHA-256 over specification and weights: equal for equal students, whatever file they came from."""
    digest = hashlib.sha256(json.dumps(student.spec.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(student.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _made_by(recipe: Recipe, out: Path, run: Path | None) -> dict[str, str]:
    about = describe_run(recipe)
    place = {} if run is None else {"run": Path(os.path.relpath(run.resolve(), out.resolve())).as_posix()}
    kept = {name: about[name] for name in ("recipe", "recipe_hash", "commit", "machine")}
    return {"vidalign": VERSION} | kept | place


def _source(rewritten: str) -> Any:
    """Name and hash of the file with rewritten prompts, or the column that they stand in."""
    file = Path(rewritten)
    return {"name": file.name, "sha256": content_hash(file)} if rewritten and file.is_file() else rewritten


def _size(frames: np.ndarray) -> dict[str, int]:
    """Of the encoded video: 4:2:0 needs even sides."""
    count, height, width = frames.shape[:3]
    return {"frames": count, "height": height + height % 2, "width": width + width % 2}


def _quality(encoder: str) -> dict[str, str]:
    return QUALITY.get(encoder, OTHER_QUALITY)


def _encoder() -> str:
    encoder = mp4_encoder()
    if not encoder:
        raise UserError(
            "no MP4 encoder is installed",
            why="the official scorers read .mp4 files",
            fix="pip install av, built with an H.264 or MPEG-4 encoder",
        )
    return encoder
