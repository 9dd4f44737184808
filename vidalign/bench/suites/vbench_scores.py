"""Result files of VBench and VBench-Long, `*_eval_results.json`.

``{DIMENSION: [VALUE, [{"video_path", "video_results", ...}, ...]]}``, several dimensions a file or one. VBench-Long
writes ``[VALUE, CLIPS, VIDEOS]`` for most dimensions. Its release 0.1.5 lists under VIDEOS the clips of a video one by
one, with the name of the video behind the path of the clip: their mean is the video's.

Total [Huang et al. 2024, scripts/cal_final_score.py]: each value is normalised to (value - least) / (best - least).
Quality and Semantic are weighted means of seven and nine dimensions; Total = (4 Quality + Semantic) / 5.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidalign.bench.suites.exported import Exported, check_scored
from vidalign.bench.suites.scores import Dimension, Scored, base_name, means_by_prompt, number, read_result
from vidalign.errors import DataError, nearest


@dataclass(frozen=True)
class Rule:
    """How a dimension goes into the total."""

    quality: bool
    least: float = 0.0
    best: float = 1.0
    weight: float = 1.0


RULES = {
    "subject_consistency": Rule(True, 0.1462),
    "background_consistency": Rule(True, 0.2615),
    "temporal_flickering": Rule(True, 0.6293),
    "motion_smoothness": Rule(True, 0.706, 0.9975),
    "dynamic_degree": Rule(True, weight=0.5),
    "aesthetic_quality": Rule(True),
    "imaging_quality": Rule(True),
    "object_class": Rule(False),
    "multiple_objects": Rule(False),
    "human_action": Rule(False),
    "color": Rule(False),
    "spatial_relationship": Rule(False),
    "scene": Rule(False, best=0.8222),
    "temporal_style": Rule(False, best=0.364),
    "appearance_style": Rule(False, 0.0009, 0.2855),
    "overall_consistency": Rule(False, best=0.364),
}
DIMENSIONS = tuple(RULES)
FLICKER = "temporal_flickering"
PARTIAL = (FLICKER, "color")
"""Dimensions that drop videos: those that move, and those in which the object is not found."""
COUNT_ROW = "long_video_cnt"
"""Key of a row in which VBench-Long counts the videos."""
PERCENT = "imaging_quality"
"""Its values by video are percent; the value of the dimension is not."""
QUALITY_WEIGHT = 4


def read_scores(files: Sequence[Path], export: Exported, seeds: int, by_clip: bool = False) -> Scored:
    """seeds: videos of a prompt that the scorer looks for, numbered from 0. by_clip: see the module's docstring."""
    results: dict[str, tuple[float, dict[str, float]]] = {}
    origin: dict[str, Path] = {}
    for file in files:
        for dimension, entry in read_result(file, dict).items():
            if dimension not in RULES:
                raise _unknown(str(dimension), file)
            if dimension in origin:
                raise DataError(
                    f"{dimension} stands in two files",
                    where=f"{origin[dimension]}, {file}",
                    fix="give the newer one only",
                )
            origin[dimension] = file
            results[dimension] = _result(dimension, entry, f"{file}, {dimension}", export, seeds, by_clip)
    if not results:
        raise DataError("the result files hold no dimension", where=", ".join(map(str, files)))
    ordered = {name: results[name] for name in DIMENSIONS if name in results}
    dimensions = {
        name: Dimension(value, len(videos), _judged(name, export, seeds) or len(videos))
        for name, (value, videos) in ordered.items()
    }
    values = {name: value for name, (value, _) in ordered.items()}
    prompts = means_by_prompt(export, {name: videos for name, (_, videos) in ordered.items()})
    return Scored(dimensions, prompts, totals(values) if len(values) == len(RULES) else {})


def totals(values: Mapping[str, float]) -> dict[str, float]:
    """`total`, `quality` and `semantic` from the values of all 16 dimensions, each 1 at the best value known."""
    parts = {}
    for quality in (True, False):
        rules = {name: rule for name, rule in RULES.items() if rule.quality is quality}
        terms = [r.weight * (values[name] - r.least) / (r.best - r.least) for name, r in rules.items()]
        parts[quality] = math.fsum(terms) / math.fsum(rule.weight for rule in rules.values())
    total = (QUALITY_WEIGHT * parts[True] + parts[False]) / (QUALITY_WEIGHT + 1)
    return {"total": total, "quality": parts[True], "semantic": parts[False]}


def _result(
    dimension: str, entry: Any, where: str, export: Exported, seeds: int, by_clip: bool
) -> tuple[float, dict[str, float]]:
    """Value of a dimension, and of each video by file name."""
    if not isinstance(entry, list) or len(entry) not in (2, 3) or not isinstance(entry[-1], list):
        raise DataError(
            "a dimension is not [value, videos]", where=where, fix="give the *_eval_results.json of the scorer"
        )
    value = number(entry[0], where, -1, 1)
    rows = [row for row in entry[-1] if not (isinstance(row, dict) and row.keys() == {COUNT_ROW})]
    scores: dict[str, list[float]] = defaultdict(list)
    paths: Counter[str] = Counter()
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("video_path"), str):
            raise DataError("a video has no path under 'video_path'", where=where)
        name = base_name(row["video_path"])
        score = number(row.get("video_results"), f"{where}, {name}")
        scores[name].append(score / 100 if dimension == PERCENT else score)
        paths[row["video_path"] if by_clip else name] += 1
    names = [*scores, *(base_name(path) for path, count in paths.items() if count > 1)]
    expected = _expected(dimension, export, seeds) or _complete(names, export, seeds)
    check_scored(names, expected, where, known=export.prompts, some=dimension in PARTIAL)
    return value, {name: math.fsum(these) / len(these) for name, these in scores.items()}


def _expected(dimension: str, export: Exported, seeds: int) -> list[str]:
    """File names that the dimension judges; none where the prompt file did not say which prompts are for which.

    The static filter may keep any five of the videos for temporal flickering, under their own names or new ones.
    """
    videos = [video for video in export.videos if dimension in video.tags]
    return [video.name for video in videos if dimension == FLICKER or video.index < seeds]


def _judged(dimension: str, export: Exported, seeds: int) -> int:
    """Videos that a dimension judges at most: of temporal flickering as many a prompt as of any other."""
    return len({(v.prompt, v.index % seeds) for v in export.videos if dimension in v.tags})


def _complete(names: Sequence[str], export: Exported, seeds: int) -> list[str]:
    """All videos of the prompts that are scored: what can be checked of an export without dimensions."""
    if any(video.tags for video in export.videos):
        return []
    prompts = {export.prompts[name] for name in names if name in export.prompts}
    return [video.name for video in export.videos if video.prompt in prompts and video.index < seeds]


def _unknown(name: str, file: Path) -> DataError:
    near = nearest(name, RULES)
    return DataError(
        f"{name!r} is no dimension of VBench",
        where=str(file),
        fix=f"did you mean {near!r}?" if near else "give the *_eval_results.json of the scorer",
    )
