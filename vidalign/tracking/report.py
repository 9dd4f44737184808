"""The HTML report: one file that needs no network, with table, curves, videos in step, recipe and commands.

The page is laid out for any number of runs (a chart is a list of traces, a prompt a list of panes); this
module fills it with one run, before and after. Frames of a clip travel as one sprite sheet and are drawn to a
canvas, which lets all clips play and scrub in step. plotly.js is inlined once (4.8 MB); clips share 2 MB.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vidalign.errors import UserError
from vidalign.tracking import clips as clip_files
from vidalign.tracking.health import Health
from vidalign.tracking.jsonl import History

MAX_POINTS = 500  # a longer curve is thinned to about this many points
CLIP_BYTES = 2_000_000  # all sprite sheets together, before base64
FRAME_SIDES = (256, 192, 128, 96, 64)  # larger frames are shrunk until the clips fit CLIP_BYTES
CHART_ORDER = {"mean reward": 0, "held-out judge": 1, "standard deviation within groups": 2}
GROUP_TITLES = {"reward": "Rewards", "objective": "Objective", "health": "Health", "perf": "Time and memory"}


@dataclass(frozen=True)
class EvaluationRow:
    """One metric on the held-out prompts: means, their paired difference, its 95 % interval."""

    metric: str
    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    group: str = ""
    """Heading in the table, e.g. `held-out auditor` or `trained rewards`; rows of a group stay together."""
    ground_truth: float | None = None
    """The same metric on true clips, where there are some."""
    higher_is_better: bool = True

    @property
    def verdict(self) -> str:
        """`better` or `worse` where the interval excludes zero, `unclear` otherwise."""
        low, high = self.interval
        if not low <= high or low <= 0 <= high:
            return "unclear"
        return "better" if (low > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class ReportClip:
    """The same prompt and noise before and after: clips `[F, 3, H, W]` in [0, 1], rewards by name."""

    prompt: str
    before: torch.Tensor
    after: torch.Tensor
    before_rewards: dict[str, float] = field(default_factory=dict)
    after_rewards: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportData:
    """Everything on the page. Empty parts are left out of it."""

    title: str
    summary: str = ""
    """One or two sentences under the title."""
    facts: dict[str, str] = field(default_factory=dict)
    """Short facts under the title: recipe hash, commit, world hash, steps, training time."""
    evaluation: list[EvaluationRow] = field(default_factory=list)
    evaluation_note: str = ""
    """How the table was measured: prompts, clips per prompt, kind of interval."""
    history: History = field(default_factory=dict)
    clips: list[ReportClip] = field(default_factory=list)
    fps: float = clip_files.DEFAULT_FPS
    warnings: list[Health] = field(default_factory=list)
    recipe: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    """Shell commands that make this run and this page again, one each."""


def write_report(path: str | Path, run: ReportData) -> Path:
    """Write the page for `run` and return its path. Raises UserError where it cannot be written."""
    path = Path(path)
    html = render(run)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(
            "cannot write the report",
            where=str(path),
            why=error.strerror or str(error),
            fix="free some space or choose another path; the run itself is complete",
        ) from error
    return path


def render(run: ReportData) -> str:
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("vidalign.tracking"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, percent=_percent)
    sprites = _sprites([clip for pair in run.clips for clip in (pair.before, pair.after)])
    charts = _charts(run.history)
    return environment.get_template("report.html.j2").render(
        run=run,
        table=_table(run.evaluation),
        reach=_reach(run.evaluation),
        chart_groups=_by_group(charts),
        cards=_cards(run.clips, sprites),
        payload={"charts": charts, "sprites": sprites, "fps": run.fps},
        plotly_js=Markup(get_plotlyjs()) if charts else "",
    )


def format_number(value: float | None, sign: bool = False) -> str:
    """Three decimals near one, four digits elsewhere; `-` for nothing."""
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:+.3f}" if 1e-3 <= abs(value) < 100 or value == 0 else f"{value:+.3g}"
    return text if sign else text.removeprefix("+")


def _percent(value: float, reach: float) -> float:
    """Position of `value` on the axis [-reach, reach], in percent."""
    return round(50 + 50 * max(-1.0, min(1.0, value / reach)), 2) if math.isfinite(value) else 50.0


def _table(rows: Sequence[EvaluationRow]) -> dict[str, list[EvaluationRow]]:
    groups: dict[str, list[EvaluationRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def _reach(rows: Sequence[EvaluationRow]) -> float:
    ends = [abs(end) for row in rows for end in (*row.interval, row.difference) if math.isfinite(end)]
    return max(ends, default=0.0) or 1.0


def _charts(history: History) -> list[dict[str, Any]]:
    """Mean rewards share one chart, their group stds another; every other metric has its own."""
    families: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for name in sorted(history):
        group, _, rest = name.partition("/")
        title, label = rest, rest
        if group == "reward" and "group_std" in name:
            stem = rest.removesuffix("/mean").replace("group_std", "").strip("/")
            title, label = "standard deviation within groups", stem or "total"
        elif group == "reward" and (rest == "mean" or rest.endswith("/mean")):
            title, label = "mean reward", rest.removesuffix("mean").strip("/") or "total"
        elif name.startswith("health/held_out"):
            group, title = "reward", "held-out judge"  # beside the trained reward, to show hacking
        families.setdefault((group, title), []).append((name, label))
    return [
        {"group": group, "title": title, "traces": [_trace(label, history[name]) for name, label in members]}
        for (group, title), members in sorted(
            families.items(), key=lambda family: CHART_ORDER.get(family[0][1], 9)
        )
    ]


def _trace(label: str, points: list[tuple[int, float]]) -> dict[str, Any]:
    stride = max(1, len(points) // MAX_POINTS)
    kept = points[::-stride][::-1]  # from the back, so that the last point stays
    values = [float(f"{value:.6g}") if math.isfinite(value) else None for _, value in kept]
    return {"label": label, "x": [step for step, _ in kept], "y": values}


def _by_group(charts: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Title of a group -> indices of its charts, in the order of GROUP_TITLES."""
    groups: dict[str, list[int]] = {}
    for group, title in GROUP_TITLES.items():
        members = [index for index, chart in enumerate(charts) if chart["group"] == group]
        if members:
            groups[title] = members
    return groups


def _cards(pairs: Sequence[ReportClip], sprites: list[dict[str, Any]]) -> list[dict[str, Any]]:
    cards = []
    for index, pair in enumerate(pairs):
        panes = [("before", 2 * index, pair.before_rewards), ("after", 2 * index + 1, pair.after_rewards)]
        names = list(dict.fromkeys([*pair.before_rewards, *pair.after_rewards]))
        rows = [(name, [rewards.get(name) for _, _, rewards in panes]) for name in names]
        cards.append(
            {
                "prompt": pair.prompt,
                "panes": [{"label": label, "index": i, "sprite": sprites[i]} for label, i, _ in panes],
                "rewards": rows,
            }
        )
    return cards


def _sprites(clips: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
    """Sprite sheets as data URLs, frames shrunk as far as CLIP_BYTES asks."""
    all_frames = [clip_files.to_frames(clip) for clip in clips]
    for side in FRAME_SIDES:
        small = [_shrink(frames, side) for frames in all_frames]
        sheets = [_encode(frames) for frames in small]
        if sum(len(data) for _, data in sheets) <= CLIP_BYTES:
            break
    else:
        raise UserError(
            "the clips do not fit into the report",
            why=f"{len(clips)} clips exceed {CLIP_BYTES / 1e6:.1f} MB",
            fix="give fewer prompts or shorter clips to the report",
        )
    return [
        {
            "src": f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
            "frames": len(frames),
            "height": frames.shape[1],
            "width": frames.shape[2],
            "columns": math.ceil(math.sqrt(len(frames))),
        }
        for frames, (kind, data) in zip(small, sheets, strict=True)
    ]


def _shrink(frames: np.ndarray, side: int) -> np.ndarray:
    height, width = frames.shape[1:3]
    scale = side / max(height, width)
    if scale >= 1:
        return frames
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    images = [Image.fromarray(frame).resize(size, Image.Resampling.BOX) for frame in frames]
    return np.stack([np.asarray(image) for image in images])


def _encode(frames: np.ndarray) -> tuple[str, bytes]:
    """PNG keeps small frames exact; JPEG keeps large ones small."""
    kind = "png" if max(frames.shape[1:3]) <= 64 else "jpeg"
    buffer = io.BytesIO()
    clip_files.sprite(frames).save(buffer, kind.upper(), optimize=True, quality=85)
    return kind, buffer.getvalue()
