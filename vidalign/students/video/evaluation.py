"""How a video network makes clips of prompts: the causal few-step sampler, or the bidirectional one of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vidalign.codecs import build_codec
from vidalign.engine.rng import generator
from vidalign.errors import UserError
from vidalign.students.video.bidirectional import sample_bidirectional
from vidalign.students.video.rollout import RolloutPlan
from vidalign.text.pretrained import build_features, build_text_encoder

if TYPE_CHECKING:
    from vidalign.students.video.student import VideoStudent

Sample = Callable[[Sequence[str], Sequence[torch.Generator]], torch.Tensor]
OnChunk = Callable[[int, torch.Tensor], None]


def sample_clips(
    student: VideoStudent, prompts: Sequence[str], frames: int, seed: int, on_chunk: OnChunk | None = None
) -> torch.Tensor:
    """See `VideoStudent.sample`; decoded in one stream, chunk by chunk."""
    check_frames(student, frames)
    codec = build_codec(student.spec.codec).to(student.device, student.latent_dtype).eval()
    text = build_text_encoder(student.spec.text).encode(list(prompts)).to(student.device, student.latent_dtype)
    plan = RolloutPlan(prefix=0, branch=frames // student.spec.cache.chunk_frames)
    noise = student.draw_noise(plan, [generator(seed, "sample", 0, n) for n in range(len(prompts))])
    decode, clips = codec.stream(), []

    def finished(index: int, latents: torch.Tensor) -> None:
        clips.append(decode(latents))
        if on_chunk is not None:
            on_chunk(index, clips[-1])

    student.rollout(text, plan, noise, on_chunk=finished)
    return torch.cat(clips, 1)


def check_frames(student: VideoStudent, frames: int) -> None:
    """Raises `UserError` unless `frames` are whole chunks of the student."""
    size = student.spec.cache.chunk_frames
    if frames < 1 or frames % size:
        raise UserError(
            f"cannot make {frames} frames", why=f"the student makes chunks of {size}", fix=f"use a multiple of {size}"
        )


def clip_sampler(
    student: VideoStudent, frames: int, method: str = "causal", features: Any = None, codec: Any = None, **steps: float
) -> Sample:
    """Prompts and one generator each to clips ``[B, F, 3, H, W]`` in [0, 1].

    method: ``causal`` or ``teacher``; features, codec: of the student's spec, built here unless given; steps: of
    `sample_bidirectional`. Raises `UserError` unless `frames` are whole chunks, where the student makes chunks.
    """
    size = student.spec.cache.chunk_frames
    if method == "causal":
        check_frames(student, frames)
    features = features or build_features(student.spec.text)
    codec = codec or build_codec(student.spec.codec).to(student.device).eval()

    def causal(prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        text, plan = features(prompts).to(student.device), RolloutPlan(prefix=0, branch=frames // size)
        return codec.decode(student.rollout(text, plan, student.draw_noise(plan, list(generators))).latents)

    def bidirectional(prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        text = features(prompts).to(student.device)
        return codec.decode(sample_bidirectional(student, frames, text, generators, **steps))  # type: ignore[arg-type]

    return causal if method == "causal" else bidirectional
