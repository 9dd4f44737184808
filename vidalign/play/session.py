"""One clip of one page: made chunk by chunk on every pane, with its prompts, its scores and the command that makes it.

No web code; whoever holds a session calls it from one thread at a time.
"""

from __future__ import annotations

import math
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch

from vidalign.errors import UsageError
from vidalign.evaluation.judging import scored
from vidalign.tracking.clips import ClipWriter, to_frames
from vidalign.workflows.scaled import check_scale

if TYPE_CHECKING:
    from vidalign.play.panes import Stage
    from vidalign.students.live import LiveClip

LONGEST = 60.0
"""Seconds of a clip: its frames stay in memory until the page is closed or begins another one."""
PROMPT = 4000
"""Characters of a prompt."""


@dataclass(frozen=True)
class Start:
    """A clip that somebody wants."""

    prompt: str
    seed: int = 0
    seconds: float = 6.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"the seed is {self.seed}", where="seed", why="it is a whole number from 0 to 2^63 - 1")
        if not (math.isfinite(self.seconds) and 0 < self.seconds <= LONGEST):
            why = f"a clip on the page lasts more than 0 and at most {LONGEST:g} seconds"
            raise UsageError(f"the length is {self.seconds!r}", where="seconds", why=why)
        check_scale(self.scale, "scale")


def check_prompt(prompt: str) -> None:
    """Raises `UsageError` for an empty prompt and for one that is too long."""
    if not prompt.strip():
        raise UsageError("the prompt is empty", where="prompt", fix="say what to show")
    if len(prompt) > PROMPT:
        raise UsageError(f"the prompt has {len(prompt)} characters", where="prompt", why=f"{PROMPT} are allowed")


@dataclass
class Chunk:
    """What every pane made of one chunk."""

    index: int
    frames: list[np.ndarray]
    """uint8 ``[F, H, W, 3]`` of every pane."""
    milliseconds: list[float]
    """From the request for the chunk to its frames in memory, of every pane."""


@dataclass
class _Own:
    """What a session keeps of a pane."""

    clip: LiveClip
    frames: list[np.ndarray] = field(default_factory=list)
    scene: list[torch.Tensor] = field(default_factory=list)
    """Clips ``[F, 3, H, W]`` since the last prompt change, which are judged."""


class Session:
    """The clip that a page shows now; there is none before `start` and after `close`."""

    asked: Start
    """What the last `start` was given."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.prompts: list[tuple[int, str]] = []
        """(pixel frame, prompt) of every prompt so far, the last of which may wait for its chunk."""
        self.notes: list[str] = []
        """What was noticed since `take_notes`, such as words that the text encoder does not know."""
        self._own: list[_Own] = []
        self._index = 0
        self._waiting = ""

    @property
    def open(self) -> bool:
        """Whether there is a clip."""
        return bool(self._own)

    @property
    def frames(self) -> int:
        """Length of the clip in pixel frames."""
        return self._clip.frames

    @property
    def chunks(self) -> int:
        """Chunks of the whole clip."""
        return self._clip.chunks

    @property
    def made(self) -> int:
        """Pixel frames so far."""
        return self._clip.made

    def start(self, asked: Start) -> None:
        """Begin a clip in the place of the last one. Raises `UsageError` for a length that cannot be made."""
        self.close()
        with _noticing(self.notes):
            for pane in self.stage.panes:
                streamer = pane.at(asked.scale)
                self._own.append(_Own(streamer.open(asked.prompt.strip(), streamer.length(asked.seconds), asked.seed)))
        self.asked, self.prompts = asked, [(0, asked.prompt.strip())]

    def switch(self, prompt: str) -> None:
        """Another prompt from the next chunk on. Raises `UsageError` for a student that cannot change its prompt, and
        for a clip of which nothing or everything is made."""
        check_prompt(prompt)
        if self.made >= self.frames:
            raise UsageError("the clip is complete", where="prompt", fix="start another one")
        for own in self._own:
            own.clip.check_switch(prompt.strip())
        self._waiting = prompt.strip()

    def next(self) -> Chunk | None:
        """The next chunk of every pane; None at the end of the clip. What fails ends the clip."""
        if self.made >= self.frames:
            return None
        try:
            return self._next()
        except BaseException:
            self.close()  # the panes would no longer be in step
            raise

    def _next(self) -> Chunk:
        frames, milliseconds = [], []
        with _noticing(self.notes):
            waiting, self._waiting = self._waiting, ""
            for pane, own in zip(self.stage.panes, self._own, strict=True):
                pane.at(self.asked.scale)
                began = time.perf_counter()
                if waiting:
                    self._change(own, waiting)
                clip = next(own.clip).float().cpu()
                frames.append(to_frames(clip))
                milliseconds.append(1000 * (time.perf_counter() - began))
                own.frames.append(frames[-1])
                if self.stage.metrics:
                    own.scene.append(clip)
        if waiting:
            self.prompts.append((self.made - len(frames[0]), waiting))
        self._index += 1
        return Chunk(self._index - 1, frames, milliseconds)

    def scores(self) -> dict[str, list[float | None]]:
        """What every metric says of each pane, from the last prompt change to the newest chunk; None = not judged."""
        clips = torch.stack([torch.cat(own.scene) for own in self._own])
        prompt, found = self.prompts[-1][1], {}
        for metric in self.stage.metrics:
            for name, values in scored(metric, clips, [prompt] * len(clips), len(clips)).items():
                if name.partition("/")[2] in (metric.shown or {name.partition("/")[2]}):
                    newest = values if values.ndim == 1 else values[:, -1]
                    found[name] = [float(value) if math.isfinite(value) else None for value in newest]
        return found

    def command(self, pane: int) -> str:
        """The command line that makes the whole clip of a pane again, with the prompt changes so far."""
        changes = [word for frame, text in self.prompts[1:] for word in ("--then", f"{self._second(frame)}s {text}")]
        words = [*self.stage.environment, "vidalign", "sample", *self.stage.panes[pane].named(self.asked.scale)]
        words += ["--prompt", self.prompts[0][1], *changes, "--frames", str(self.frames)]
        return shlex.join([*words, "--seed", str(self.asked.seed), "--out", "clip.mp4"])

    def film(self, pane: int) -> tuple[str, bytes]:
        """File name and bytes of what a pane has made so far, as `vidalign sample` writes it: MP4, or GIF where there
        is no encoder."""
        with TemporaryDirectory() as folder:
            with ClipWriter(Path(folder) / "clip.mp4", self.stage.fps) as writer:
                for frames in self._own[pane].frames:
                    writer.add(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255)
            return writer.path.name, writer.path.read_bytes()

    def take_notes(self) -> list[str]:
        """The notes since the last call, each once."""
        notes = list(dict.fromkeys(self.notes))
        self.notes.clear()
        return notes

    def close(self) -> None:
        """Free the caches and the frames."""
        self._own, self._index, self._waiting = [], 0, ""

    @property
    def _clip(self) -> LiveClip:
        if not self._own:
            raise UsageError("there is no clip", where="type", fix="start one")
        return self._own[-1].clip

    def _change(self, own: _Own, prompt: str) -> None:
        own.clip.switch(prompt)
        own.scene = []

    def _second(self, frame: int) -> str:
        return f"{frame / self.stage.fps:.4f}".rstrip("0").rstrip(".")


@contextmanager
def _noticing(notes: list[str]) -> Iterator[None]:
    """Inside, warnings for users become notes."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            notes += [str(one.message) for one in seen if one.category is UserWarning]
