"""From seconds and pixel frames to chunks: how long a video is, and where its prompt changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidalign.errors import UsageError

if TYPE_CHECKING:
    from vidalign.students.samples import SampleRequest
    from vidalign.students.video.spec import VideoStudentSpec


@dataclass(frozen=True)
class Timeline:
    """A video in chunks."""

    latents: int
    """Latent frames that are generated."""
    scenes: tuple[int, ...]
    """Chunks under each prompt."""
    notes: tuple[str, ...] = ()
    """What differs from what was asked."""

    @property
    def chunks(self) -> int:
        return sum(self.scenes)


def timeline(spec: VideoStudentSpec, request: SampleRequest) -> Timeline:
    """The chunks of a request. Raises `UsageError` for a length that the student does not make, and for prompt changes
    that are out of order, outside the video or closer than a chunk."""
    given = len(request.images)
    latents, notes = _latents(spec, request, given)
    chunks = -(-(latents - given) // (spec.cache.chunk_frames or latents))
    starts = [0]
    for second, _ in request.then:
        start, note = _switch(spec, second, latents, chunks)
        if start <= starts[-1]:
            raise UsageError(
                f"no chunk begins between the prompt changes before {second:g} s",
                where="--then",
                why=f"a prompt holds for whole chunks of {_seconds(spec, spec.cache.chunk_frames)}; times ascend",
                fix="put the changes further apart",
            )
        starts.append(start)
        notes += note
    ends = [*starts[1:], chunks]
    scenes = tuple(end - start for start, end in zip(starts, ends, strict=True))
    return Timeline(latents - given, scenes, tuple(notes))


def _latents(spec: VideoStudentSpec, request: SampleRequest, given: int) -> tuple[int, list[str]]:
    """Length in latent frames, and a note where it was rounded."""
    if request.frames is not None and request.seconds is not None:
        raise UsageError("the length is given twice", where="--seconds", fix="give --frames or --seconds")
    if request.frames is not None:
        asked, where = float(request.frames), "--frames"
    elif request.seconds is not None:
        asked, where = request.seconds * spec.fps, "--seconds"
        if not 0 < request.seconds < 1e6:
            raise UsageError(f"a video cannot last {request.seconds} s", where=where, fix="use a number above 0")
    elif request.latents:
        asked, where = float(spec.pixel_frames(request.latents)), "--frames"
    else:
        why, fix = "weights alone name no length", "give --seconds or --frames"
        raise UsageError("how long is the video?", where="--seconds", why=why, fix=fix)
    latents = spec.latents_in(asked / spec.fps)
    _check(spec, latents, given, where)
    pixels = spec.pixel_frames(latents)
    if abs(asked - pixels) < 1e-6:
        return latents, []
    step = spec.pixel_frames(2) - 1
    why = f": its codec makes 1 frame, then {step} at a time" if step > 1 else ""
    return latents, [f"the video has {pixels} frames ({_seconds(spec, latents)} at {spec.fps:g} fps){why}"]


def _check(spec: VideoStudentSpec, latents: int, given: int, where: str) -> None:
    """The length is whole chunks, behind the given frame or the remainder; a bidirectional network makes any."""
    if spec.bidirectional:
        return
    size, rest = spec.cache.chunk_frames, latents - given
    remainder = spec.cache.first_chunk == "remainder" and not given
    if rest < 1 or (rest % size and not remainder):
        near = [given + n for n in (rest // size * size, -(-rest // size) * size) if n > 0] or [given + size]
        lengths = " or ".join(f"{spec.pixel_frames(n)} frames ({_seconds(spec, n)})" for n in near)
        behind = " behind the given frame" if given else ""
        raise UsageError(
            f"a video of {spec.pixel_frames(latents)} frames is not whole chunks{behind}",
            where=where,
            why=f"they are {latents} latent frames, and the student makes chunks of {size}",
            fix=f"use {lengths}",
        )
    spec.chunks_in(rest, where)


def _switch(spec: VideoStudentSpec, second: float, latents: int, chunks: int) -> tuple[int, list[str]]:
    """The chunk that begins nearest to a second, and a note where it does not begin just then."""
    size = spec.cache.chunk_frames
    begins = [spec.pixel_frames(latents - (chunks - n) * size) for n in range(1, chunks)]
    end = spec.pixel_frames(latents) / spec.fps
    if not 0 < second < end or not begins:
        raise UsageError(
            f"the prompt cannot change at {second:g} s",
            where="--then",
            why=f"the video lasts {end:.2f} s in {chunks} chunks",
            fix="name a time inside it, or make it longer",
        )
    frame = min(begins, key=lambda frame: (abs(frame - second * spec.fps), frame))
    note = f"the prompt changes at {frame / spec.fps:.2f} s, where a chunk begins, not at {second:g} s"
    return begins.index(frame) + 1, [] if abs(frame - second * spec.fps) < 1e-6 else [note]


def _seconds(spec: VideoStudentSpec, latents: int) -> str:
    return f"{spec.pixel_frames(latents) / spec.fps:.2f} s"
