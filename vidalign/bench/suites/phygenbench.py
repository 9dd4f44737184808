"""PhyGenBench [Meng et al. 2024]: 160 prompts on 27 physical laws of mechanics, optics, thermal physics and materials.

Prompt file: ``PhyGenBench/prompts.json``, a list of ``{"caption", "physical_laws", "sub_category", "main_category"}``.
The scorer reads ``output_video_N.mp4``, N being the place in that list from 1, from a folder of the model. Its last
script writes ``result/MODEL.json``: the entries of the prompt file with the stages ``single``, ``multi_gpt``,
``multi_llava``, ``video_gpt`` and ``video_intern`` (0 to 3), ``MODEL_average`` (0 to 3) and the path ``video``.
A published value is the mean of the average divided by 3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from vidalign.bench.suites.base import Item, Suite, read_text
from vidalign.bench.suites.exported import Exported, check_scored
from vidalign.bench.suites.scores import Dimension, Scored, base_name, means_by_prompt, number, read_result
from vidalign.errors import DataError, nearest

AREAS = {
    "Force": "mechanics",
    "Light": "optics",
    "Heat": "thermal",
    "Physical Properties": "material",
    "Chemical Properties": "material",
}
"""Main category of a prompt -> its column in the published table."""
STAGES = ("single", "multi_gpt", "multi_llava", "video_gpt", "video_intern")
AVERAGE = "_average"
BEST = 3
"""Points of a stage."""


class PhyGenBench(Suite):
    """Videos for the scripts of PhyGenEval, as PhyVideos/MODEL."""

    name: ClassVar[str] = "phygenbench"
    seeds: ClassVar[int] = 1

    def read(self, file: Path, rewritten: str = "") -> list[Item]:
        """rewritten: a key of the entries."""
        try:
            entries: Any = json.loads(read_text(file))
        except json.JSONDecodeError as error:
            raise DataError(
                "the prompt file is not JSON", where=f"{file}:{error.lineno}", why=error.msg, fix="download it again"
            ) from error
        if not isinstance(entries, list) or not entries:
            raise _malformed(file, "it is no list of prompts")
        items = [_item(file, number, entry, rewritten) for number, entry in enumerate(entries, 1)]
        first: dict[str, Item] = {}
        for item in items:
            if first.setdefault(item.prompt, item) is not item:
                raise _malformed(file, f"entry {item.number} repeats the caption of entry {first[item.prompt].number}")
        return items

    def file_name(self, item: Item, index: int) -> str:
        return f"output_video_{item.number}.mp4"

    def read_scores(self, files: Sequence[Path], export: Exported) -> Scored:
        if len(files) != 1:
            raise DataError(
                f"{len(files)} result files",
                where="FILE",
                fix="give result/MODEL.json, which PhyGenEval/overall.py writes",
            )
        file = files[0]
        entries = [_entry(file, place, entry) for place, entry in enumerate(read_result(file, list), 1)]
        check_scored([name for name, _ in entries], [video.name for video in export.videos], str(file))
        captions = export.prompts
        for name, entry in entries:
            if entry.get("caption") != captions[name]:
                raise DataError(
                    f"{name} has another prompt", where=str(file), why=f"the export made it for {captions[name]!r}"
                )
        values = {stage: {name: entry[stage] for name, entry in entries} for stage in (*STAGES, "average")}
        dimensions = {s: Dimension(_mean(values[s].values()), len(entries), len(entries)) for s in STAGES}
        tags = {video.name: video.tags for video in export.videos}
        for area in dict.fromkeys(AREAS.values()):
            chosen = [v for name, v in values["average"].items() if any(AREAS[tag] == area for tag in tags[name])]
            if chosen:
                dimensions[area] = Dimension(_mean(chosen), len(chosen), len(chosen))
        return Scored(dimensions, means_by_prompt(export, values), {"average": _mean(values["average"].values())})


def _item(file: Path, place: int, entry: Any, rewritten: str) -> Item:
    if not isinstance(entry, dict) or not isinstance(entry.get("caption"), str) or not entry["caption"].strip():
        raise _malformed(file, f"entry {place} has no text under 'caption'")
    if entry.get("main_category") not in AREAS:
        raise _malformed(file, f"entry {place} has the main_category {entry.get('main_category')!r}")
    text = entry["caption"]
    if rewritten:
        text = entry.get(rewritten)
        if not isinstance(text, str) or not text.strip():
            near = nearest(rewritten, map(str, entry))
            fix = f"did you mean {near!r}?" if near else f"keys: {', '.join(map(str, entry))}"
            raise DataError(f"there is no text under {rewritten!r}", where=f"{file}, entry {place}", fix=fix)
    return Item(entry["caption"], text, (entry["main_category"],), place)


def _entry(file: Path, place: int, entry: Any) -> tuple[str, dict[str, Any]]:
    """Name of the video, and the entry with its stages and `average` as numbers from 0 to 1 or 3."""
    where = f"{file}, entry {place}"
    if not isinstance(entry, dict) or not isinstance(entry.get("video"), str):
        raise DataError(
            "the result has no path under 'video'", where=where, fix="give result/MODEL.json of PhyGenEval/overall.py"
        )
    averages = [key for key in entry if key.endswith(AVERAGE)]
    if len(averages) != 1:
        raise DataError(f"the result has {len(averages)} keys MODEL{AVERAGE}", where=where, fix="it has one")
    stages = {stage: number(entry.get(stage), f"{where}, {stage}", 0, BEST) for stage in STAGES}
    average = number(entry[averages[0]], f"{where}, {averages[0]}", 0, BEST) / BEST
    return base_name(entry["video"]), entry | stages | {"average": average}


def _mean(values: Any) -> float:
    these = list(values)
    return math.fsum(these) / len(these)


def _malformed(file: Path, why: str) -> DataError:
    return DataError(
        "the prompt file is not one of PhyGenBench",
        where=str(file),
        why=why,
        fix="take PhyGenBench/prompts.json of the PhyGenBench repository as it is",
    )
