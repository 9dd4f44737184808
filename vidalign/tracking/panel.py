"""Progress for the person who waits: a live panel on a terminal, one plain line a log elsewhere.

Both show step, rewards with their group std, loss, held-out score, phase times and time left. The live one also shows
the last warning, which the tracker reports on standard error in any case. They read `reward/mean`,
`reward/<component>/mean`, `reward/group_std`, `reward/<component>/group_std` (with or without `/mean`),
`objective/loss/mean`, `health/held_out/mean` and `perf/<phase>/seconds`.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel as Box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vidalign.tracking.base import RunInfo, TrackerPlugin
from vidalign.tracking.health import Health, Metrics, find

Mode = Literal["auto", "live", "plain", "none"]
NUMBERS = {"objective/loss/mean": "loss", "health/held_out/mean": "held out"}
"""What is shown beside the rewards: all that a student without rewards has."""
BLOCKS = "▁▂▃▄▅▆▇█"


class Progress:
    """What the panels show. `steps` counts finished steps; the time left comes from the last twenty."""

    def __init__(self, total_steps: int, start_step: int = 0) -> None:
        self.total, self.step = total_steps, start_step
        self.metrics: Metrics = {}
        self.trends: dict[str, deque[float]] = {}
        self.warning: Health | None = None
        self._durations: deque[float] = deque(maxlen=20)
        self._started = self._last = time.monotonic()

    def update(self, step: int, metrics: Metrics) -> None:
        now = time.monotonic()
        if step > self.step:
            self._durations.append((now - self._last) / (step - self.step))
            self._last, self.step = now, step
        self.metrics.update(metrics)
        for name, value in metrics.items():
            if name.startswith("reward/") or name in NUMBERS:
                self.trends.setdefault(name, deque(maxlen=200)).append(value)

    def rows(self) -> list[tuple[str, float, float | None, str]]:
        """(label, mean, group std or None, metric name): the rewards, the total first, then loss and held-out score."""
        means = [n for n in self.metrics if n.startswith("reward/") and n.endswith("/mean")]
        names = [n for n in means if "group_std" not in n]
        rows = []
        for name in sorted(names, key=lambda n: (n != "reward/mean", n)):
            stem = name.removesuffix("/mean")
            label = stem.removeprefix("reward").lstrip("/") or "reward"
            rows.append((label, self.metrics[name], find(self.metrics, f"{stem}/group_std"), name))
        numbers = [(label, name) for name, label in NUMBERS.items() if name in self.metrics]
        return rows + [(label, self.metrics[name], None, name) for label, name in numbers]

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def remaining(self) -> float | None:
        """Seconds left, None before the first step."""
        return median(self._durations) * max(0, self.total - self.step) if self._durations else None


class PlainPanel:
    """One line a log: for files, pipes and CI."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress, self._console = progress, console

    def update(self, step: int, metrics: Metrics) -> None:
        self.progress.update(step, metrics)
        progress = self.progress
        parts = [f"step {step}/{progress.total}"]
        for label, mean, std, name in progress.rows():
            if name in metrics:
                parts.append(f"{label} {mean:.3f}" + ("" if std is None else f" (group std {std:.3f})"))
        parts += [f"{phase} {seconds:.1f}s" for phase, seconds in phase_times(metrics)]
        parts.append(f"left {duration(progress.remaining())}")
        self._print(" | ".join(parts))

    def warn(self, health: Health) -> None:
        """The line on standard error is enough."""

    def phase(self, name: str) -> None:
        """Plain output does not show the phase under way."""

    def close(self) -> None:
        """Nothing to end: every line is already out."""

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LivePanel:
    """Redrawn in place. Starts with the first log, so that messages before it stay in order."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress, self._phase = progress, ""
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=2)

    def update(self, step: int, metrics: Metrics) -> None:
        self.progress.update(step, metrics)
        self._show()

    def warn(self, health: Health) -> None:
        self.progress.warning = health
        self._show()

    def phase(self, name: str) -> None:
        self._phase = name
        self._show()

    def close(self) -> None:
        self._phase = ""
        if self._live.is_started:
            self._live.stop()

    def render(self) -> Box:
        progress = self.progress
        parts: list[RenderableType] = [self._head(), self._numbers(), self._times()]
        if progress.warning is not None:
            warning = progress.warning
            message, fix = escape(warning.message), escape(warning.fix)
            parts.append(Text.from_markup(f"[yellow]warning {warning.name}[/]: {message}\n[dim]fix:[/] {fix}"))
        return Box(Group(*parts), title="vidalign", title_align="left", border_style="dim")

    def _show(self) -> None:
        if not self._live.is_started:
            self._live.start()

    def _head(self) -> Table:
        progress, row = self.progress, Table.grid(padding=(0, 2), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right")
        times = f"{duration(progress.elapsed())} gone, {duration(progress.remaining())} left"
        bar = ProgressBar(total=max(1, progress.total), completed=progress.step)
        row.add_row(f"[bold]step {progress.step}/{progress.total}[/]", bar, times)
        return row

    def _numbers(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", no_wrap=True)
        for title in ("mean", "group std", "since start"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("trend", no_wrap=True)
        for label, mean, std, name in self.progress.rows():
            trend = self.progress.trends[name]
            cells = (f"{mean:.3f}", "" if std is None else f"{std:.3f}", f"{mean - trend[0]:+.3f}")
            table.add_row(label, *cells, sparkline(list(trend)))
        return table

    def _times(self) -> Text:
        phases = [f"{phase} {seconds:.1f}s" for phase, seconds in phase_times(self.progress.metrics)]
        now = [f"now: {self._phase}"] if self._phase else []
        return Text("   ".join(phases + now), style="dim")


Panel = PlainPanel | LivePanel


def make_panel(mode: Mode, total_steps: int, start_step: int = 0, console: Console | None = None) -> Panel | None:
    """`auto` is live on a terminal and plain elsewhere; `none` gives None."""
    assert mode in ("auto", "live", "plain", "none"), f"{mode!r} is not one of auto, live, plain, none"
    if mode == "none":
        return None
    console = console or Console()
    live = mode == "live" or (mode == "auto" and console.is_terminal)
    progress = Progress(total_steps, start_step)
    return LivePanel(progress, console) if live else PlainPanel(progress, console)


class PanelTracker(TrackerPlugin):
    """Shows progress to the person who waits."""

    name = "panel"

    @dataclass
    class Config:
        mode: Mode = "auto"
        """`live` panel in a terminal, `plain` lines elsewhere; `auto` chooses."""

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or self.Config())
        self._panel: Panel | None = None

    def start(self, run: RunInfo) -> None:
        self._panel = make_panel(self.config.mode, run.total_steps, run.start_step, run.console)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        if self._panel:
            self._panel.update(step, values)

    def health(self, step: int, warning: Health) -> None:
        if self._panel:
            self._panel.warn(warning)

    def phase(self, name: str) -> None:
        if self._panel:
            self._panel.phase(name)

    def close(self) -> None:
        if self._panel:
            self._panel.close()


def phase_times(metrics: Metrics) -> list[tuple[str, float]]:
    """(phase, seconds) of every `perf/<phase>/seconds`."""
    return [
        (name.removeprefix("perf/").removesuffix("/seconds"), value)
        for name, value in metrics.items()
        if name.startswith("perf/") and name.endswith("/seconds")
    ]


def duration(seconds: float | None) -> str:
    """Seconds as `42s`, `3m 05s` or `2h 10m`; `?` for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def sparkline(values: list[float], width: int = 24) -> str:
    """Block characters from the smallest to the largest finite value; NaN is a space."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    count = min(width, len(values))
    picked = [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]
    scale = (len(BLOCKS) - 1) / ((high - low) or 1.0)
    return "".join(BLOCKS[round((v - low) * scale)] if low <= v <= high else " " for v in picked)
