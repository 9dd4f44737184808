"""One place to log to: JSONL, TensorBoard and the panel, with the health monitors watching.

Run folder: `metrics.jsonl` and `tensorboard/` are written here; recipe, checkpoints, evaluation and report
lie beside them. Make a tracker on rank 0; other ranks use `Tracker.silent()`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vidalign.errors import UserError
from vidalign.tracking import clips as clip_files
from vidalign.tracking.health import Health, HealthMonitors
from vidalign.tracking.jsonl import FILE_NAME, JsonlLog
from vidalign.tracking.panel import Mode, Panel, make_panel
from vidalign.tracking.tensorboard import TensorBoardLog
from vidalign.tracking.tokens import ColouredResponse, write_token_page

GROUPS = ("objective", "reward", "health", "perf")


class Tracker:
    """Logs one run.

    `header` goes into the first line (recipe hash, commit, world hash). `start_step` is the number of steps
    already finished when a run is resumed. Raises UserError where the run folder cannot be written.
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
    ) -> None:
        folder = Path(run_dir)
        self.warnings: list[Health] = []
        self._step = start_step
        self._folder: Path | None = folder
        self._monitors = HealthMonitors()
        self._phases: dict[str, float] = {}
        self._jsonl: JsonlLog | None = JsonlLog(folder / FILE_NAME, header, start_step)
        self._events = TensorBoardLog(folder / "tensorboard", start_step) if tensorboard else None
        self._panel: Panel | None = make_panel(panel, total_steps, start_step, console)

    @classmethod
    def silent(cls) -> Tracker:
        """A tracker that accepts everything and writes nothing: for ranks other than 0."""
        tracker = cls.__new__(cls)
        tracker.warnings, tracker._step = [], 0
        tracker._folder, tracker._monitors, tracker._phases = None, HealthMonitors([]), {}
        tracker._jsonl = tracker._events = tracker._panel = None
        return tracker

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Log scalars named `objective/.. reward/.. health/.. perf/..`; `step` counts finished steps."""
        self._step = step
        values = {_checked(name): float(value) for name, value in metrics.items()}
        values |= {f"perf/{phase}/seconds": seconds for phase, seconds in self._phases.items()}
        self._phases = {}
        if self._jsonl:
            self._jsonl.metrics(step, values)
        if self._events:
            self._events.scalars(step, values)
        if self._panel:
            self._panel.update(step, values)
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
        """Show clips `[B, F, 3, H, W]` in [0, 1] in TensorBoard, captions (prompt, reward) burnt in."""
        assert len(clips) == len(captions), f"{len(clips)} clips need as many captions, not {len(captions)}"
        if self._events is None:
            return
        for index, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
            frames = clip_files.burn_text(clip_files.upscale(clip_files.to_frames(clip)), caption)
            self._events.animation(step, f"{tag}/{index}", frames, fps)

    def tokens(self, step: int, responses: Sequence[ColouredResponse]) -> None:
        """Write sampled responses as a page of tokens in the colours of their regimes, below `tokens/`."""
        if self._folder is not None:
            write_token_page(self._folder, step, responses)

    def warn(self, health: Health) -> None:
        """Record a warning and tell it on standard error, whatever panel there is; one of a name is enough."""
        if any(known.name == health.name for known in self.warnings):
            return
        self.warnings.append(health)
        if self._jsonl:
            self._jsonl.health(self._step, health.name, health.message, health.fix)
            print(f"warning {health.name}: {health.message}. Fix: {health.fix}", file=sys.stderr, flush=True)
        if self._panel:
            self._panel.warn(health)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a part of the step; the next `log` carries it as `perf/<name>/seconds`."""
        if self._panel:
            self._panel.phase(name)
        started = time.perf_counter()
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - started

    def close(self) -> None:
        for sink in (self._panel, self._events, self._jsonl):
            if sink:
                sink.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked(name: str) -> str:
    if name.split("/")[0] in GROUPS and "/" in name:
        return name
    raise UserError(
        f"metric '{name}' is in no known group",
        why=f"metrics are named {'/.. '.join(GROUPS)}/..",
        fix=f"log it as objective/{name}",
    )
