"""`vidalign play` of a video student: the streams of `vidalign sample`, a chunk whenever one is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vidalign.codecs import build_codec
from vidalign.errors import UsageError
from vidalign.students.live import LiveClip, Streamer
from vidalign.students.samples import SampleRequest
from vidalign.students.video.samples import check, draw, is_cut, speed_up
from vidalign.students.video.spec import MAX_POSITIONS
from vidalign.students.video.streaming import VideoStream
from vidalign.students.video.timeline import timeline

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.students.video.spec import VideoStudentSpec
    from vidalign.students.video.student import VideoStudent
    from vidalign.text.features import PromptFeatures

CLIP = Path("clip.mp4")
"""Stands for the file of a request, of which nothing is written."""


def check_live(spec: VideoStudentSpec) -> None:
    """Raises `UsageError` for a student that makes no chunks."""
    if spec.bidirectional:
        why = "a bidirectional network makes the whole video of a prompt at once"
        raise UsageError("this student cannot be streamed", where="STUDENT_OR_RUN", why=why, fix="use vidalign sample")


class VideoStreamer(Streamer):
    """A loaded video student with the kernels of a request; features: of its prompts."""

    def __init__(self, student: VideoStudent, request: SampleRequest, features: PromptFeatures) -> None:
        self.student, self.read = student.eval(), features
        speed_up(student, request)
        self.codec = build_codec(student.spec.codec).to(student.device, student.weight_dtype).eval()
        self.fps, self.size = student.spec.fps, (student.spec.height, student.spec.width)
        self.noise = (*student.chunk_shape, student.spec.sampler.max_steps)

    def length(self, seconds: float) -> int:
        spec = self.student.spec
        size = spec.cache.chunk_frames
        chunks = max(1, round(spec.latents_in(seconds) / size))
        if spec.cache.rope != "relative":
            chunks = min(chunks, MAX_POSITIONS // size)
        return spec.pixel_frames(chunks * size)

    def open(self, prompt: str, frames: int, seed: int) -> VideoClip:
        return VideoClip(self, SampleRequest((prompt,), CLIP, frames=frames, seed=seed))


class VideoClip(LiveClip):
    """What `samples.write` makes of a request, chunk by chunk."""

    def __init__(self, streamer: VideoStreamer, request: SampleRequest) -> None:
        self.streamer, self.request = streamer, request
        student = streamer.student
        check(student.spec, request)
        line = timeline(student.spec, request)
        self.frames, self.chunks = student.spec.pixel_frames(line.latents), line.chunks
        self.stream = VideoStream(
            student, self._text(request.prompts[0]), draw(student, line, request.seed, 0), streamer.codec.stream()
        )

    def __next__(self) -> Tensor:
        clip = next(self.stream)[0]
        self.made += len(clip)
        return clip

    def check_switch(self, prompt: str) -> None:
        check(self.streamer.student.spec, self._switched(prompt))

    def switch(self, prompt: str) -> None:
        self.stream.switch(self._text(prompt), is_cut(self.streamer.student.spec, prompt))
        self.request = self._switched(prompt)

    def _switched(self, prompt: str) -> SampleRequest:
        """The request with another prompt from here on."""
        return replace(self.request, then=(*self.request.then, (self.made / self.streamer.fps, prompt)))

    def _text(self, prompt: str) -> Tensor:
        """Features ``[1, L, D]`` on the device of the student."""
        return self.streamer.read([prompt]).to(self.streamer.student.device)
