"""VBench [Huang et al. 2024] and VBench-Long: 946 entries, 944 distinct prompts, 16 dimensions.

Prompt files: ``VBench_full_info.json``, a list of ``{"prompt_en", "dimension": [...], "auxiliary_info"}``, or a text
file of the repository with one prompt a line (``all_dimension.txt``, ``prompts_per_dimension/DIMENSION.txt``). The
scorer looks for ``{prompt}-{0..4}.mp4`` and reads nothing else about a video. For temporal_flickering it expects 25
videos of a prompt, of which its static filter keeps 5. Rewritten prompts (``all_dimension_longer.txt``) have a line for
each entry; their videos keep the names of the original prompts.

VBench-Long takes the same prompts and names for long videos. It cuts each into clips of 2 seconds (10 for prompts of
human_action, temporal_style and overall_consistency) of whole frames a second, and compares the clips of a video.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from vidalign.bench.suites.base import Item, Suite, distinct, lines_of, read_text
from vidalign.bench.suites.exported import Exported
from vidalign.bench.suites.scores import Scored
from vidalign.bench.suites.vbench_scores import DIMENSIONS, FLICKER, read_scores
from vidalign.errors import DataError, UserError

FLICKER_VIDEOS = 5
"""Times as many videos for that dimension, because most are filtered out."""
SCORED_VIDEOS = 5
"""Videos of a prompt that VBench looks for."""
CLIP_SECONDS = 2
"""Shortest clip of VBench-Long."""


class VBench(Suite):
    """Videos for `vbench evaluate --videos_path OUT/videos`."""

    name: ClassVar[str] = "vbench"
    seeds: ClassVar[int] = 5

    def read(self, file: Path, rewritten: str = "") -> list[Item]:
        if file.suffix == ".json":
            entries = _entries(file)
        else:
            tags = (file.stem,) if file.stem in DIMENSIONS else ()
            entries = [Item(line, line, tags) for line in lines_of(file)]
        if rewritten:
            texts = lines_of(Path(rewritten))
            if len(texts) != len(entries):
                raise DataError(
                    f"{len(texts)} rewritten prompts for {len(entries)} prompts",
                    where=rewritten,
                    why="line n of it is read for entry n of the prompt file",
                    fix="give files that belong together",
                )
            entries = [replace(item, text=text) for item, text in zip(entries, texts, strict=True)]
        return distinct(entries, file)

    def videos(self, item: Item, seeds: int) -> int:
        return seeds * FLICKER_VIDEOS if FLICKER in item.tags else seeds

    def file_name(self, item: Item, index: int) -> str:
        return f"{item.prompt}-{index}.mp4"

    def read_scores(self, files: Sequence[Path], export: Exported) -> Scored:
        return read_scores(files, export, min(export.seeds, SCORED_VIDEOS))


class VBenchLong(VBench):
    """Long videos for `vbench2_beta_long/eval_long.py --mode long_vbench_standard --videos_path OUT/videos`."""

    name: ClassVar[str] = "vbench_long"
    forbidden: ClassVar[str] = "_"

    def check_length(self, frames: int, fps: float) -> None:
        """The scorer cuts at whole frames a second, and gives a video of one clip no similarity between clips."""
        if fps != int(fps):
            raise UserError(
                "VBench-Long rounds the frame rate down", where="--fps", why=f"it is {fps}", fix="give a whole number"
            )
        if frames <= CLIP_SECONDS * fps:
            raise UserError(
                "the videos are too short for VBench-Long",
                where="--frames",
                why=f"it compares clips of {CLIP_SECONDS} seconds, and {frames} frames at {fps:g} a second are one",
                fix="give more latent --frames, or export for vbench",
            )

    def read_scores(self, files: Sequence[Path], export: Exported) -> Scored:
        return read_scores(files, export, export.seeds, by_clip=True)


def _entries(file: Path) -> list[Item]:
    """Items of a VBench_full_info.json, prompts exactly as they stand there: the scorer does not strip them."""
    try:
        content: Any = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise DataError(
            "the prompt file is not JSON", where=f"{file}:{error.lineno}", why=error.msg, fix="download it again"
        ) from error
    if not isinstance(content, list):
        raise _malformed(file, "it is no list")
    for number, entry in enumerate(content):
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt_en"), str) or not entry["prompt_en"].strip():
            raise _malformed(file, f"entry {number} has no text under 'prompt_en'")
        dimensions = entry.get("dimension")
        if not isinstance(dimensions, list) or not set(dimensions) <= set(DIMENSIONS):
            raise _malformed(file, f"entry {number} has no list of VBench's dimensions under 'dimension'")
    return [Item(entry["prompt_en"], entry["prompt_en"], tuple(entry["dimension"])) for entry in content]


def _malformed(file: Path, why: str) -> DataError:
    return DataError(
        "the prompt file is not a VBench_full_info.json",
        where=str(file),
        why=why,
        fix="take vbench/VBench_full_info.json of the VBench repository, or a text file with one prompt a line",
    )
