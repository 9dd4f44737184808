"""One place to log to: it passes everything on to the trackers of the run, with the health monitors watching.

Trackers are plugins: JSON lines always, TensorBoard and the panel as the section `tracking` says, and those of the
section `trackers`.

Run folder: `metrics.jsonl` and `tensorboard/` are written here; recipe, checkpoints, evaluation and report
lie beside them. Make a tracker on rank 0; other ranks use `Tracker.silent()`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vidalign import registry
from vidalign.errors import UserError
from vidalign.tracking import clips as clip_files
from vidalign.tracking.base import RunInfo, TrackerPlugin
from vidalign.tracking.health import Health, HealthMonitors
from vidalign.tracking.panel import Mode
from vidalign.tracking.tokens import ColouredResponse, write_token_page

GROUPS = ("objective", "reward", "health", "perf")


class Tracker:
    """Logs one run.

    `header` goes into the first line (recipe hash, commit, world hash). `start_step` is the number of steps
    already finished when a run is resumed. `others` are further trackers; one of a name that is there already takes
    its place. Raises UserError where the run folder cannot be written.
    """

    def __init__(
        self,
        run_dir: str | Path,
        header: dict[str, Any],
        *,
        total_steps: int,
        tensorboard: bool = True,
        panel: Mode = "auto",
        start_step: int = 0,
        console: Console | None = None,
        others: Mapping[str, TrackerPlugin] | None = None,
    ) -> None:
        run = RunInfo(Path(run_dir), header, total_steps, start_step, console)
        self.warnings: list[Health] = []
        self._step = start_step
        self._folder: Path | None = run.folder
        self._monitors = HealthMonitors()
        self._phases: dict[str, float] = {}
        self._open: list[TrackerPlugin] = []
        try:
            for tracker in (_usual(tensorboard, panel) | dict(others or {})).values():
                tracker.start(run)
                self._open.append(tracker)
        except BaseException:
            self.close()
            raise

    @classmethod
    def silent(cls) -> Tracker:
        """A tracker that accepts everything and writes nothing: for ranks other than 0."""
        tracker = cls.__new__(cls)
        tracker.warnings, tracker._step = [], 0
        tracker._folder, tracker._monitors, tracker._phases = None, HealthMonitors([]), {}
        tracker._open = []
        return tracker

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log scalars named `objective/.. reward/.. health/.. perf/..`; `step` counts finished steps."""
        self._step = step
        values = {_checked(name): float(value) for name, value in metrics.items()}
        values |= {f"perf/{phase}/seconds": seconds for phase, seconds in self._phases.items()}
        self._phases = {}
        for tracker in self._open:
            tracker.metrics(step, values)
        for health in self._monitors.check(values):
            self.warn(health)

    def clips(
        self,
        step: int,
        tag: str,
        clips: torch.Tensor,
        captions: list[str],
        fps: float = clip_files.DEFAULT_FPS,
    ) -> None:
        """Show clips `[B, F, 3, H, W]` in [0, 1] where clips can be shown, captions (prompt, reward) burnt in. What is
        kept of them is bounded, see `vidalign.tracking.clips.logged`."""
        assert len(clips) == len(captions), f"{len(clips)} clips need as many captions, not {len(captions)}"
        shown = [tracker for tracker in self._open if tracker.shows_clips]
        if not shown:
            return
        for index, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
            frames, rate = clip_files.logged(clip_files.to_frames(clip), fps)
            for tracker in shown:
                tracker.animation(step, f"{tag}/{index}", clip_files.burn_text(frames, caption), rate)

    def text(self, step: int, tag: str, text: str) -> None:
        """Show a text where texts can be shown."""
        for tracker in self._open:
            tracker.text(step, tag, text)

    def tokens(self, step: int, responses: Sequence[ColouredResponse]) -> None:
        """Write sampled responses as a page of tokens in the colours of their regimes, below `tokens/`."""
        if self._folder is not None:
            write_token_page(self._folder, step, responses)

    def warn(self, health: Health) -> None:
        """Record a warning and report it on standard error, whatever panel there is; one of a name is enough."""
        if any(known.name == health.name for known in self.warnings):
            return
        self.warnings.append(health)
        if self._folder is not None:
            print(f"warning {health.name}: {health.message}. Fix: {health.fix}", file=sys.stderr, flush=True)
        for tracker in self._open:
            tracker.health(self._step, health)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the step; the next `log` carries it as `perf/<name>/seconds`."""
        for tracker in self._open:
            tracker.phase(name)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - started

    def close(self) -> None:
        for tracker in reversed(self._open):
            tracker.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _usual(tensorboard: bool, panel: Mode) -> dict[str, TrackerPlugin]:
    """The trackers of the section `tracking`."""

    def make(name: str, **settings: Any) -> TrackerPlugin:
        kind = registry.get("trackers", name)
        made: TrackerPlugin = kind(kind.Config(**settings))
        return made

    usual = {"jsonl": make("jsonl")}
    if tensorboard:
        usual["tensorboard"] = make("tensorboard")
    return usual | {"panel": make("panel", mode=panel)}


def _checked(name: str) -> str:
    if name.split("/")[0] in GROUPS and "/" in name:
        return name
    raise UserError(
        f"metric '{name}' is in no known group",
        why=f"metrics are named {'/.. '.join(GROUPS)}/..",
        fix=f"log it as objective/{name}",
    )
