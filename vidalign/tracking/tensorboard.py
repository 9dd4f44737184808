"""TensorBoard events: scalars, clips as animated GIFs in image summaries, and texts: recipe, run, answers.

`torch.utils.tensorboard` writes no video without moviepy. The image dashboard shows whatever picture bytes a
summary holds, an animated GIF among them, so the protocol buffer is built here.
"""

from __future__ import annotations

import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np

from vidalign.tracking import clips
from vidalign.tracking.base import RunInfo, TrackerPlugin

RECIPE = "recipe.yaml"
"""The recipe in the run folder."""


class TensorBoardLog:
    """Event file writer for one run folder. `start_step` > 0 hides later steps of an interrupted run."""

    def __init__(self, folder: str | Path, start_step: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder), flush_secs=5)
        if start_step > 0:
            self._add(start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, metrics: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(step, summary=Summary(value=values))

    def animation(self, step: int, tag: str, frames: np.ndarray, fps: float = clips.DEFAULT_FPS) -> None:
        """One clip: uint8 frames `[F, H, W, 3]`."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        image = Summary.Image(
            height=frames.shape[1],
            width=frames.shape[2],
            colorspace=3,
            encoded_image_string=clips.gif_bytes(frames, fps),
        )
        self._add(step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def text(self, step: int, tag: str, text: str) -> None:
        """A text as it is written: indented, which is code in Markdown."""
        from torch.utils.tensorboard.summary import text as summary

        self._add(step, summary=summary(tag, textwrap.indent(text, "    ", lambda line: True)))

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(wall_time=time.time(), step=step, **content))


class TensorBoardTracker(TrackerPlugin):
    """Writes `tensorboard/` in the run folder."""

    name = "tensorboard"
    shows_clips = True

    def start(self, run: RunInfo) -> None:
        self._log = TensorBoardLog(run.folder / "tensorboard", run.start_step)
        self._log.text(run.start_step, "run", "\n".join(f"{name}: {value}" for name, value in run.header.items()))
        recipe = run.folder / RECIPE
        if recipe.is_file():
            self._log.text(run.start_step, "recipe", recipe.read_text(encoding="utf-8"))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._log.scalars(step, values)

    def animation(self, step: int, tag: str, frames: np.ndarray, fps: float) -> None:
        self._log.animation(step, tag, frames, fps)

    def text(self, step: int, tag: str, text: str) -> None:
        self._log.text(step, tag, text)

    def close(self) -> None:
        self._log.close()
