"""How a video network makes clips of prompts: the causal few-step sampler, or the bidirectional one of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vidalign.codecs import Codec, build_codec
from vidalign.students.video.bidirectional import sample_bidirectional
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

    method: ``causal`` or ``teacher``; features, codec: of the student's spec, built here unless given; on_chunk: of the
    causal sampler, is given the number and the clips of each chunk, which are then decoded one by one; steps: of
    `sample_bidirectional`. Raises `UserError` unless `frames` are whole chunks, where the student makes chunks.
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
        text = read(prompts).to(student.device)
        return decoder.decode(sample_bidirectional(student, frames, text, generators, **steps))

    return causal if method == "causal" else bidirectional
