"""A video that comes chunk by chunk: each is decoded and handed out before its clean pass and before the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vidalign.students.video.rollout.clock import Clock, measured
from vidalign.students.video.rollout.solvers import denoise, roll

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.students.video.rollout.noise import Noise
    from vidalign.students.video.student import VideoStudent

OnChunk = Callable[[int, "Tensor"], None]
"""Number of a chunk, and its clips ``[B, F, 3, H, W]`` in [0, 1]."""


@dataclass(frozen=True)
class Scene:
    """Chunks of a video under one prompt."""

    text: Tensor
    """`[B, L, D]`."""
    chunks: int
    cut: bool = False
    """Whether another shot begins with it, where the student keeps its past at a new prompt."""


class VideoStream:
    """A video of B rows under one prompt after the other: an iterator over the clips ``[B, F, 3, H, W]`` of its chunks.

    A chunk is made when it is asked for. Its clean pass runs when the next chunk, or a new prompt, needs it. Streams of
    the same student may take turns.

    text: ``[B, L, D]``; noise: of the whole video, B rows; with fewer frames than the chunks have, the first chunk is
    smaller; decode: see `Codec.stream`; clock: measures ``denoise``, ``decode``, ``clean`` and ``recache``.
    """

    def __init__(
        self,
        student: VideoStudent,
        text: Tensor,
        noise: Noise,
        decode: Callable[[Tensor], Tensor],
        clock: Clock | None = None,
    ) -> None:
        self.student, self.text, self.context = student, text, student.begin(text)
        self._decode, self._clock = decode, clock
        self._made: list[Tensor] = []
        self._unread: Tensor | None = None
        self._keys: dict[int, tuple[Tensor, Tensor]] = {}
        size, frames = student.chunk_frames, noise.initial.shape[1]
        ends = [frames - size * n for n in reversed(range(-(-frames // size)))]
        parts = [noise.frames(max(0, end - size), end) for end in ends]
        self._chunks = self._rolled(parts) if student.spec.sampler.rolling else self._denoised(parts)

    def __iter__(self) -> Iterator[Tensor]:
        return self

    @torch.no_grad()
    def __next__(self) -> Tensor:
        with self._own_text():
            self._read_last()
            latents = next(self._chunks)
        return self.show(latents)

    @torch.no_grad()
    def show(self, latents: Tensor) -> Tensor:
        """The clips of clean latents ``[B, f, C, H, W]``, which the next chunk follows."""
        with measured(self._clock, "decode"):
            clips = self._decode(latents)
        self._made.append(latents)
        self._unread = latents
        return clips

    @torch.no_grad()
    def switch(self, text: Tensor, cut: bool = False) -> None:
        """Go on under another prompt: the context is rebuilt, see `VideoStudent.recache`, or kept, see
        `CachePolicy.on_switch`; cut: another shot begins, where it is kept. Something must have been made."""
        assert self._made and not self.student.spec.sampler.rolling, "a prompt changes behind a whole chunk"
        with self._own_text():
            self._read_last()
        self.text, self._keys = text, {}
        with measured(self._clock, "recache"):
            if self.student.spec.cache.on_switch == "keep":
                self.context = self.context.cut() if cut else self.context
            else:
                self.context = self.student.recache(self.context, torch.cat(self._made, 1), text)

    def _read_last(self) -> None:
        """The clean pass of the last chunk, if it has not run yet."""
        if self._unread is not None:
            with measured(self._clock, "clean"):
                self.context = self.student.extend(self.context, self._unread, self.text)
            self._unread = None

    def _denoised(self, parts: Sequence[Noise]) -> Iterator[Tensor]:
        """Clean latents of one chunk after the other."""
        for noise in parts:
            with measured(self._clock, "denoise"):
                states = denoise(self.student, self.text, self.context, noise.to(self.student.device))
            yield states.x0[:, -1]

    def _rolled(self, parts: Sequence[Noise]) -> Iterator[Tensor]:
        """The same of a student that denoises a window of chunks."""
        draws = [noise.to(self.student.device) for noise in parts]
        for _, states in roll(self.student, self.text, lambda: self.context, draws, self._clock):
            yield states.x0[:, -1]

    @contextmanager
    def _own_text(self) -> Iterator[None]:
        """The network reads the prompt of this stream once, whatever other streams it works for meanwhile."""
        self.student.runtime.text = self._keys
        try:
            yield
        finally:
            self.student.runtime.text = None


def stream(
    student: VideoStudent,
    scenes: Sequence[Scene],
    noise: Noise,
    decode: Callable[[Tensor], Tensor],
    on_chunk: OnChunk,
    clock: Clock | None = None,
    given: Tensor | None = None,
) -> None:
    """Roll out scene after scene and call `on_chunk` with the clips of each chunk as soon as they are decoded.

    One scene gives exactly what `VideoStudent.sample` does. noise, decode, clock: see `VideoStream`. given: clean
    latents `[B, f, C, H, W]`, f at most a chunk, that the video begins with: they are handed out first, and `noise` has
    none of their frames.
    """
    video, index = VideoStream(student, scenes[0].text, noise, decode, clock), 0
    if given is not None:
        on_chunk(0, video.show(given))
        index = 1
    for number, scene in enumerate(scenes):
        if number:
            video.switch(scene.text, scene.cut)
        for _ in range(scene.chunks):
            on_chunk(index, next(video))
            index += 1
