"""How a video network makes clips of prompts: the causal few-step sampler, or one of a bidirectional teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from vidalign.codecs import Codec, build_codec
from vidalign.students.video.bidirectional import sample_bidirectional
from vidalign.students.video.many_steps import sample_many_steps
from vidalign.students.video.rollout import RolloutPlan
from vidalign.students.video.streaming import OnChunk, Scene, stream
from vidalign.text.features import PromptFeatures
from vidalign.text.pretrained import build_features

if TYPE_CHECKING:
    from vidalign.students.video.student import VideoStudent

Sample = Callable[[Sequence[str], Sequence[torch.Generator]], torch.Tensor]


def clip_sampler(
    student: VideoStudent,
    frames: int,
    method: str = "causal",
    features: PromptFeatures | None = None,
    codec: Codec | None = None,
    on_chunk: OnChunk | None = None,
    **steps: Any,
) -> Sample:
    """Prompts and one generator each to clips ``[B, F, 3, H, W]`` in [0, 1].

    method: ``causal`` or ``teacher``; features, codec: of the student's spec, built here unless given; on_chunk: is
    given the number and the clips of each chunk, which are then decoded one by one; steps: settings of the teacher's
    sampler, `sample_bidirectional`, or `ManySteps` where the spec has it. Raises `UserError` unless `frames` are whole
    chunks, where the student makes chunks.
    """
    chunks = student.spec.chunks_in(frames) if method == "causal" else 0
    read = features or build_features(student.spec.text)
    decoder = codec or build_codec(student.spec.codec).to(student.device, student.weight_dtype).eval()

    def causal(prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        text, plan = read(prompts).to(student.device), RolloutPlan(prefix=0, branch=chunks)
        noise = student.draw_noise(plan, list(generators)).last(frames)
        if on_chunk is None:
            return decoder.decode(student.rollout(text, plan, noise).latents)
        parts: list[torch.Tensor] = []

        def finished(index: int, clips: torch.Tensor) -> None:
            parts.append(clips)
            on_chunk(index, clips)

        stream(student, [Scene(text, plan.branch)], noise, decoder.stream(), finished)
        return torch.cat(parts, 1)

    def bidirectional(prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        clips = decoder.decode(_of_teacher(student, frames, prompts, generators, read, steps))
        if on_chunk is not None:
            on_chunk(0, clips)
        return clips

    return causal if method == "causal" else bidirectional


def _of_teacher(
    student: VideoStudent,
    frames: int,
    prompts: Sequence[str],
    generators: Sequence[torch.Generator],
    read: PromptFeatures,
    steps: dict[str, Any],
) -> torch.Tensor:
    """Latents ``[B, F, C, H, W]`` by the sampler of a teacher; steps: changes of its settings."""
    text, many = read(prompts).to(student.device), student.spec.sampler.many_steps
    if many is None:
        return sample_bidirectional(student, frames, text, generators, **steps)
    settings = replace(many, **{key: value for key, value in steps.items() if hasattr(many, key)})
    negative = read(settings.guidance.prompts) if settings.guidance.prompts else None
    return sample_many_steps(student, frames, text, negative, generators, settings)
