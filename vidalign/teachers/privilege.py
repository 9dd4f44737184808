"""Privileged texts for video: what a policy may be told beyond the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from vidalign.deferred import without_gradient
from vidalign.errors import DataError, UserError
from vidalign.reading import read_json
from vidalign.world.captions import CaptionSpec, is_caption, parse
from vidalign.world.constants import COLOURS, MOTIONS, SHAPES, SIZES
from vidalign.world.scorer import score


@lru_cache(maxsize=4)
def _table(path: str) -> dict[str, str]:
    try:
        table = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise DataError(f"the dense prompts {path!r} cannot be read", where="objective.dense_prompts", why=str(error),
                        fix="write a JSON object from prompts to dense prompts") from error  # fmt: skip
    if not isinstance(table, dict):
        raise DataError(f"the dense prompts {path!r} are no table", where="objective.dense_prompts",
                        fix="write a JSON object from prompts to dense prompts")  # fmt: skip
    return table


def dense_prompts(prompts: Sequence[str], path: str) -> list[str]:
    """The denser prompt of every prompt, from a JSON object; `DataError` for a prompt that it does not hold."""
    table = _table(path)
    missing = next((prompt for prompt in prompts if prompt not in table), None)
    if missing is not None:
        raise DataError("a prompt has no dense prompt", where=path, why=f"{missing[:60]!r} is not among its keys",
                        fix="add it to the table")  # fmt: skip
    return [str(table[prompt]) for prompt in prompts]


@without_gradient
def rollout_captions(clips: torch.Tensor, prompts: Sequence[str]) -> list[str]:
    """A caption of what the clips ``[N, F, 3, H, W]`` of the embedded world show, whatever was asked for.

    The prompt, or the caption one attribute away (size, colour, shape or motion) that the world's scorer finds a
    better description. Raises `UserError` for prompts that are no captions of the world.
    """
    strange = next((prompt for prompt in prompts if not is_caption(prompt)), None)
    if strange is not None:
        raise UserError("own rollouts can be captioned in the embedded world only", where="objective.privilege",
                        why=f"{strange[:60]!r} is no caption of it", fix="use dense_prompts or future")  # fmt: skip
    candidates = [[str(spec) for spec in _neighbours(parse(prompt))] for prompt in prompts]
    rows = [n for n, texts in enumerate(candidates) for _ in texts]
    found = score(clips[rows], [text for texts in candidates for text in texts])["text_alignment"]
    parts = found.split([len(texts) for texts in candidates])
    return [texts[int(values.argmax())] for texts, values in zip(candidates, parts, strict=True)]


def _neighbours(spec: CaptionSpec) -> list[CaptionSpec]:
    """The caption itself, first, and those that differ from it in one attribute."""
    found = [spec]
    kinds = {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "motion": MOTIONS}
    for name, values in kinds.items():
        for value in values:
            if name == "motion" and value.startswith("hit") != spec.motion.startswith("hit"):
                continue
            if name == "colour" and value == spec.other_colour:
                continue
            other = replace(spec, **{name: value})
            found += [other] if other != spec else []
    return found
