"""Weights & Biases, an optional tracker: `pip install 'vidalign[wandb]'`, then ``trackers: {wandb: {project: NAME}}``.

A resumed run goes on in the same W&B run: its id is kept in `wandb.id` in the run folder. The x axis is the metric
``step``. W&B drops values whose own step is behind, as those of a resumed run are.
"""

from __future__ import annotations

import importlib
import io
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import numpy as np

from vidalign.errors import UserError
from vidalign.tracking import clips
from vidalign.tracking.base import RunInfo, TrackerPlugin
from vidalign.tracking.health import Health

ID_FILE = "wandb.id"


class WandbTracker(TrackerPlugin):
    name = "wandb"
    shows_clips = True

    @dataclass
    class Config:
        project: str = "vidalign"
        """Project that the run belongs to."""
        entity: str | None = None
        """User or team; null = the default of your account."""
        run_name: str | None = None
        """Name that is shown; null = that of the run folder."""
        mode: Literal["online", "offline", "disabled"] = "online"
        """Offline runs are written to the run folder, for `wandb sync`."""
        tags: list[str] = field(default_factory=list)
        """Tags of the run."""

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config or self.Config())
        self._run: Any = None

    def start(self, run: RunInfo) -> None:
        self._wandb, config = _wandb(), self.config
        file = run.folder / ID_FILE
        known = file.read_text(encoding="utf-8").strip() if run.start_step and file.is_file() else None
        self._run = self._wandb.init(
            project=config.project,
            entity=config.entity,
            name=config.run_name or run.folder.name,
            mode=config.mode,
            tags=config.tags,
            dir=str(run.folder),
            config=run.header,
            id=known,
            resume="allow" if known else None,
        )
        self._run.define_metric("*", step_metric="step")
        file.write_text(f"{self._run.id}\n", encoding="utf-8")

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def animation(self, step: int, tag: str, frames: np.ndarray, fps: float) -> None:
        picture = self._wandb.Video(io.BytesIO(clips.gif_bytes(frames, fps)), format="gif")
        self._run.log({"step": step, tag: picture})

    def health(self, step: int, warning: Health) -> None:
        self._run.alert(title=warning.name, text=f"step {step}: {warning.message}. Fix: {warning.fix}")

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _wandb() -> ModuleType:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            "the tracker wandb needs the package wandb",
            where="trackers.wandb",
            why=str(error),
            fix="pip install 'vidalign[wandb]', or delete it from the recipe",
        ) from error
