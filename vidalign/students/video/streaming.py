"""A video that comes chunk by chunk: each is decoded and handed out while the next one waits to be denoised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vidalign.students.video.rollout.clock import Clock, measured
from vidalign.students.video.rollout.plan import RolloutPlan

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.students.video.context import Context
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


@torch.no_grad()
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

    Where a scene ends, the context is rebuilt under the next prompt, see `VideoStudent.recache`, or kept, see
    `CachePolicy.on_switch`; one scene gives exactly what `VideoStudent.sample` does.

    noise: of the whole video, B rows; with fewer frames than the chunks have, the first chunk is smaller. decode: see
    `Codec.stream`. clock: measures ``denoise``, ``decode``, ``clean`` and ``recache``. given: clean latents
    `[B, f, C, H, W]`, f at most a chunk, that the video begins with: they are handed out first, and `noise` has none of
    their frames.
    """
    context, done, at = None, 0, 0
    made: list[Tensor] = []
    less = sum(scene.chunks for scene in scenes) * student.chunk_frames - noise.initial.shape[1]

    def shown(index: int, latents: Tensor) -> None:
        with measured(clock, "decode"):
            clips = decode(latents)
        on_chunk(index, clips)

    if given is not None:
        shown(0, given)
        with measured(clock, "clean"):
            context = student.extend(student.begin(scenes[0].text), given, scenes[0].text)
        made, done = [given], 1
    for number, scene in enumerate(scenes):
        if number:
            assert context is not None, "a scene that is followed keeps its context"
            with measured(clock, "recache"):
                context = _switched(student, context, made, scene)

        def finished(index: int, latents: Tensor, before: int = done) -> None:
            shown(before + index, latents)

        plan = RolloutPlan(prefix=0, branch=scene.chunks, keep_final=number + 1 < len(scenes))
        until = at + scene.chunks * student.chunk_frames - (0 if number else less)
        own, at = noise.frames(at, until), until
        out = student.rollout(scene.text, plan, own, context=context, on_chunk=finished, clock=clock)
        context, done = out.final, done + scene.chunks
        made.append(out.latents)


def _switched(student: VideoStudent, context: Context, made: Sequence[Tensor], scene: Scene) -> Context:
    """The context of the latents so far, for a scene that follows."""
    if student.spec.cache.on_switch == "keep":
        return context.cut() if scene.cut else context
    return student.recache(context, torch.cat(list(made), 1), scene.text)
