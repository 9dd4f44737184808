"""How a video network makes clips of prompts: the causal few-step sampler, or the bidirectional one of a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vidalign.codecs import build_codec
from vidalign.errors import UserError
from vidalign.students.video.bidirectional import sample_bidirectional
from vidalign.students.video.rollout import RolloutPlan
from vidalign.text.features import PromptFeatures
from vidalign.text.pretrained import build_text_encoder

if TYPE_CHECKING:
    from vidalign.students.video.student import VideoStudent

Sample = Callable[[Sequence[str], Sequence[torch.Generator]], torch.Tensor]


def clip_sampler(
    student: VideoStudent, frames: int, method: str = "causal", features: Any = None, codec: Any = None, **steps: float
) -> Sample:
    """Prompts and one generator each to clips ``[B, F, 3, H, W]`` in [0, 1].

    method: ``causal`` or ``teacher``; features, codec: of the student's spec, built here unless given; steps: of
    `sample_bidirectional`. Raises `UserError` unless `frames` are whole chunks, where the student makes chunks.
    """
    size = student.spec.cache.chunk_frames
    if method == "causal" and (frames < 1 or frames % size):
        raise UserError(
            f"cannot make {frames} frames", why=f"the student makes chunks of {size}", fix=f"use a multiple of {size}"
        )
    features = features or PromptFeatures(lambda: build_text_encoder(student.spec.text))
    codec = codec or build_codec(student.spec.codec).to(student.device).eval()

    def causal(prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        text, plan = features(prompts).to(student.device), RolloutPlan(prefix=0, branch=frames // size)
        return codec.decode(student.rollout(text, plan, student.draw_noise(plan, list(generators))).latents)

    def bidirectional(prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        text = features(prompts).to(student.device)
        return codec.decode(sample_bidirectional(student, frames, text, generators, **steps))  # type: ignore[arg-type]

    return causal if method == "causal" else bidirectional
