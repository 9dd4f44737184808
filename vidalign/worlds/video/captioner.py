"""Captions of what clips of the embedded world show, whatever the prompt: privileged text for video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from vidalign.deferred import without_gradient
from vidalign.errors import UserError
from vidalign.worlds.video.captions import CaptionSpec, is_caption, parse
from vidalign.worlds.video.constants import COLOURS, MOTIONS, SHAPES, SIZES
from vidalign.worlds.video.scorer import score


@without_gradient
def rollout_captions(clips: torch.Tensor, prompts: Sequence[str]) -> list[str]:
    """A caption of what the clips ``[N, F, 3, H, W]`` of the embedded world show, whatever the prompt.

    The prompt, or the caption one attribute away (size, colour, shape or motion) that the world's scorer finds a
    better description. Raises `UserError` for prompts that are no captions of the world.
    """
    strange = next((prompt for prompt in prompts if not is_caption(prompt)), None)
    if strange is not None:
        raise UserError(
            "own rollouts can be captioned in the embedded world only",
            where="objective.privilege",
            why=f"{strange[:60]!r} is no caption of it",
            fix="use dense_prompts or future",
        )
    candidates = [[str(spec) for spec in _neighbours(parse(prompt))] for prompt in prompts]
    rows = [n for n, texts in enumerate(candidates) for _ in texts]
    scores = score(clips[rows], [text for texts in candidates for text in texts])["text_alignment"]
    parts = scores.split([len(texts) for texts in candidates])
    return [texts[int(values.argmax())] for texts, values in zip(candidates, parts, strict=True)]


def _neighbours(spec: CaptionSpec) -> list[CaptionSpec]:
    """The caption itself, first, and those that differ from it in one attribute."""
    specs = [spec]
    kinds = {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "motion": MOTIONS}
    for name, values in kinds.items():
        for value in values:
            if name == "motion" and value.startswith("hit") != spec.motion.startswith("hit"):
                continue
            if name == "colour" and value == spec.other_colour:
                continue
            other = replace(spec, **{name: value})
            specs += [other] if other != spec else []
    return specs
