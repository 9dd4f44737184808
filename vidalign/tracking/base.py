"""The contract of a tracker: a place that the metrics of a run are logged to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.console import Console

from vidalign.tracking.health import Health

TRACKER_CALLS = ("start", "metrics", "animation", "text", "health", "phase", "close")


@dataclass(frozen=True)
class RunInfo:
    """The run that is logged."""

    folder: Path
    header: dict[str, Any]
    """Recipe hash, commit and the like."""
    total_steps: int
    start_step: int = 0
    """Steps already finished when a run is resumed; what was logged of later ones is superseded."""
    console: Console | None = None


class TrackerPlugin:
    """Base of every tracker; a subclass overrides `start` and what it shows. Only the first process has trackers."""

    name: ClassVar[str] = ""
    shows_clips: ClassVar[bool] = False
    """Whether `animation` is called."""

    @dataclass
    class Config:
        """No settings."""

    def __init__(self, config: Any = None) -> None:
        self.config = config

    def start(self, run: RunInfo) -> None:
        """Open what is logged to."""
        raise NotImplementedError

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Scalars by name after `step` finished steps."""

    def animation(self, step: int, tag: str, frames: np.ndarray, fps: float) -> None:
        """One clip, uint8 frames ``[F, H, W, 3]`` with its caption in the picture."""

    def text(self, step: int, tag: str, text: str) -> None:
        """A text of several lines, such as the answer of a language student to a prompt."""

    def health(self, step: int, warning: Health) -> None:
        """A warning of the health monitors; once of each name."""

    def phase(self, name: str) -> None:
        """A part of a step begins."""

    def close(self) -> None:
        """The run has ended, with or without error."""
