"""`vidalign sample` of a video student: each video is streamed, from the noise of a chunk to the frames of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from PIL import Image, ImageOps

from vidalign.codecs import build_codec
from vidalign.data.pictures import shown
from vidalign.engine.rng import generator
from vidalign.errors import DataError, UsageError, nearest
from vidalign.reading import regular
from vidalign.students.samples import ChunkTimes, SampleRequest, Samples, SampleTimes
from vidalign.students.video.blocks import check_compiler
from vidalign.students.video.kind import Attention
from vidalign.students.video.rollout.clock import Clock, measured
from vidalign.students.video.rollout.plan import RolloutPlan
from vidalign.students.video.spec import no_switch
from vidalign.students.video.stand_in import stand_in
from vidalign.students.video.streaming import Scene, stream
from vidalign.students.video.timeline import Timeline, timeline
from vidalign.text.pretrained import build_features
from vidalign.tracking.clips import ClipWriter

if TYPE_CHECKING:
    from vidalign.codecs.base import Codec
    from vidalign.students.video.evaluation import Sample
    from vidalign.students.video.rollout.noise import Noise
    from vidalign.students.video.spec import VideoStudentSpec
    from vidalign.students.video.student import VideoStudent
    from vidalign.text.features import PromptFeatures


def check(spec: VideoStudentSpec, request: SampleRequest) -> None:
    """Refuse what a video student cannot make of a request, and say what is rounded."""
    if spec.bidirectional:
        why = "a bidirectional network makes the whole video of a prompt at once"
        request.refuse("then", "images", "stats", why=why)
    if request.then and len(request.prompts) > 1:
        request.refuse("then", why="prompts follow one --prompt, and there are several")
    if request.then and spec.cache.sink_decay:
        raise no_switch()
    if request.then and spec.sampler.rolling:
        request.refuse("then", why="chunks are denoised in a window, which would stand under two prompts")
    if len(request.images) > 1:
        request.refuse("images", why="a video begins with one picture")
    if request.images and spec.cache.chunk_frames > 1 and spec.cache.first_chunk == "whole":
        request.refuse("images", why="the first chunk is whole: this student was not trained behind a single frame")
    for path in request.images:
        _picture(spec, path)
    _check_kernels(spec, request)
    for note in timeline(spec, request).notes:
        request.say(note)


def write(student: VideoStudent, request: SampleRequest, features: PromptFeatures | None = None) -> Samples:
    """One file for each prompt, video after video; features: of the student's spec, built here unless given.

    Video n is that of `VideoStudent.sample` with the same seed for prompt n. Codec and network compute in the type of
    the student's weights, on its device.
    """
    speed_up(student.eval(), request)
    line, read = timeline(student.spec, request), features or build_features(student.spec.text)
    codec = build_codec(student.spec.codec).to(student.device, student.weight_dtype).eval()
    if student.spec.bidirectional:
        return _write_whole(student, request, student.sampler(line.latents, "teacher", features=read, codec=codec))
    files, times = [], []
    for number, (prompt, file) in enumerate(zip(request.prompts, request.files, strict=True)):
        prompts = [prompt, *(text for _, text in request.then)]
        scenes = _scenes(student, prompts, read(prompts), line.scenes)
        noise = draw(student, line, request.seed, number)
        given = _given(student, codec, request.images[0]) if request.images else None
        with ClipWriter(file, student.spec.fps) as writer:
            show = _Show(writer, Clock(student.device) if request.stats else None)
            stream(student, scenes, noise, codec.stream(), show, show.clock, given)
        files.append(writer.path)
        if show.clock is not None:
            times.append(show.times())
    return Samples(files, times)


def draw(student: VideoStudent, line: Timeline, seed: int, number: int) -> Noise:
    """The noise of the video of prompt `number`."""
    plan = RolloutPlan(prefix=0, branch=line.chunks)
    return student.draw_noise(plan, [generator(seed, "sample", 0, number)]).last(line.latents)


def is_cut(spec: VideoStudentSpec, prompt: str) -> bool:
    """Whether another shot begins with a prompt, see `CachePolicy.cut_prefix`."""
    return bool(spec.cache.cut_prefix) and prompt.startswith(spec.cache.cut_prefix)


def _check_kernels(spec: VideoStudentSpec, request: SampleRequest) -> None:
    """The kernels are known and installed, which a small network shows."""
    known = get_args(Attention)
    if request.attention not in ("", *known):
        near = nearest(request.attention, known)
        fix = f"did you mean {near!r}?" if near else "use one of them"
        what = f"unknown attention kernels {request.attention!r}"
        raise UsageError(what, where="--attention", why=f"known: {', '.join(known)}", fix=fix)
    if request.attention not in ("", "auto") or request.compile:
        speed_up(stand_in(spec)[0], request)


def speed_up(student: VideoStudent, request: SampleRequest) -> None:
    """Let it compute with the kernels of a request."""
    if request.attention not in ("", "auto"):
        student.use_attention(request.attention, "--attention")
    if request.compile:
        check_compiler("--compile")
        student.compile_blocks()


def _write_whole(student: VideoStudent, request: SampleRequest, sample: Sample) -> Samples:
    """One file for each prompt, of videos that are made at once."""
    files = []
    for number, (prompt, file) in enumerate(zip(request.prompts, request.files, strict=True)):
        clips = sample([prompt], [generator(request.seed, "sample", 0, number)])
        with ClipWriter(file, student.spec.fps) as writer:
            writer.add(clips[0])
        files.append(writer.path)
    return Samples(files)


def _scenes(student: VideoStudent, prompts: Sequence[str], texts: torch.Tensor, chunks: Sequence[int]) -> list[Scene]:
    """The scenes of a video, from their prompts and texts ``[scenes, L, D]``."""
    cuts = [is_cut(student.spec, prompt) for prompt in prompts]
    parts = zip(texts.to(student.device), chunks, cuts, strict=True)
    return [Scene(text[None], count, cut) for text, count, cut in parts]


class _Show:
    """Writes the chunks of one video as they come, and remembers when."""

    def __init__(self, writer: ClipWriter, clock: Clock | None) -> None:
        self.writer, self.clock = writer, clock
        self.began = clock.now() if clock else 0.0
        self.first = 0.0
        self.frames: list[int] = []

    def __call__(self, index: int, clips: torch.Tensor) -> None:
        if self.clock is not None and index == 0:
            self.first = self.clock.now() - self.began
        self.frames.append(clips.shape[1])
        with measured(self.clock, "write"):
            self.writer.add(clips[0])

    def times(self) -> SampleTimes:
        """What the clock measured, chunk by chunk. A rebuilt context counts for the chunk after it, and so do the
        passes of a rolling window before the chunk is finished."""
        assert self.clock is not None, "asked only where there is one"
        chunks: list[dict[str, float]] = [{}]
        for name, seconds in self.clock.parts:
            if name in ("recache", "denoise") and "decode" in chunks[-1]:
                chunks.append({})
            chunks[-1][name] = chunks[-1].get(name, 0.0) + seconds
        return SampleTimes(self.first, [ChunkTimes(*pair) for pair in zip(self.frames, chunks, strict=True)])


def _picture(spec: VideoStudentSpec, path: Path) -> torch.Tensor:
    """A picture as the first frame ``[1, 1, 3, H, W]`` in [0, 1], scaled and cut to the size of the video."""
    try:
        with Image.open(regular(path)) as opened:
            image = shown(opened)
    except OSError as error:
        raise DataError("the picture cannot be read", where="--image", why=str(error)) from error
    fitted = ImageOps.fit(image, (spec.width, spec.height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1)[None, None].float() / 255


@torch.no_grad()
def _given(student: VideoStudent, codec: Codec, path: Path) -> torch.Tensor:
    """The latent ``[1, 1, C, h, w]`` of the first frame."""
    return codec.encode(_picture(student.spec, path).to(student.device, student.latent_dtype))
