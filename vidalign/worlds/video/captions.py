"""Captions of the video world: what can be said, how it is read, and which captions a split holds.

A caption names one object (size, colour, shape, motion) or two (the second is hit by the first and has the
same size). 324 single captions and 1,080 collisions of differently coloured objects make 1,404 captions over
a vocabulary of 25 words. Splits of prompts:

- ``held_out_combinations``: (colour, shape, motion) triples of the moving object that training never shows,
- ``held_out``: one caption in ten of the rest, by a hash of its text,
- ``unseen``: both of them, every caption that training never shows,
- ``train``: everything else,
- ``held_out_speeds``: the training captions; their scenes move faster (see ``scenes.sample``).

``basic/SPLIT`` keeps the captions of one large object that stays, glides or falls. Small networks learn that part of
the world in minutes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import torch

from vidalign.errors import DataError, nearest
from vidalign.worlds.video.constants import COLOURS, MOTIONS, SHAPES, SIZES

SPLITS = ("train", "held_out", "held_out_combinations", "unseen", "held_out_speeds")
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(["a", *SIZES, *COLOURS, *SHAPES, *(w for phrase in MOTIONS.values() for w in phrase.split())])
)


@dataclass(frozen=True)
class CaptionSpec:
    """What a caption says. ``other_colour`` and ``other_shape`` are set for the two ``hit`` motions only."""

    size: str
    colour: str
    shape: str
    motion: str
    other_colour: str | None = None
    other_shape: str | None = None

    @property
    def objects(self) -> tuple[tuple[str, str], ...]:
        """(colour, shape) of every object, the moving one first."""
        first = ((self.colour, self.shape),)
        if self.other_colour is None or self.other_shape is None:
            return first
        return (*first, (self.other_colour, self.other_shape))

    def __str__(self) -> str:
        text = f"a {self.size} {self.colour} {self.shape} {MOTIONS[self.motion]}"
        if self.other_colour is not None:
            text += f" a {self.size} {self.other_colour} {self.other_shape}"
        return text


@cache
def all_specs() -> tuple[CaptionSpec, ...]:
    """Every caption of the world, in a fixed order."""
    specs = []
    for motion in MOTIONS:
        for size in SIZES:
            for colour in COLOURS:
                for shape in SHAPES:
                    if not motion.startswith("hit"):
                        specs.append(CaptionSpec(size, colour, shape, motion))
                        continue
                    specs += [
                        CaptionSpec(size, colour, shape, motion, other, other_shape)
                        for other in COLOURS
                        if other != colour
                        for other_shape in SHAPES
                    ]
    return tuple(specs)


@cache
def _by_text() -> dict[str, CaptionSpec]:
    return {str(spec): spec for spec in all_specs()}


def all_captions() -> list[str]:
    """Every caption of the world as text."""
    return list(_by_text())


def parse(caption: str) -> CaptionSpec:
    """Read a caption; raises `DataError` with the nearest caption when it is not one of this world."""
    text = " ".join(caption.lower().replace(".", " ").split())
    spec = _by_text().get(text)
    if spec is None:
        close = nearest(text, list(_by_text()))
        raise DataError(
            f"the prompt {caption!r} is not a caption of the embedded world",
            why="its scorer and auditor judge a clip by the laws that the caption names",
            fix=f"did you mean {close!r}?" if close else "see `vidalign.worlds.video.captions.all_captions()`",
        )
    return spec


def is_caption(text: str) -> bool:
    """Whether `parse` would accept the text."""
    return " ".join(text.lower().replace(".", " ").split()) in _by_text()


def _unseen_combination(spec: CaptionSpec) -> bool:
    key = COLOURS.index(spec.colour) + 2 * SHAPES.index(spec.shape) + 3 * tuple(MOTIONS).index(spec.motion)
    return key % 9 == 4


def _split(spec: CaptionSpec) -> str:
    if _unseen_combination(spec):
        return "held_out_combinations"
    return "held_out" if hashlib.sha256(str(spec).encode()).digest()[0] % 10 == 0 else "train"


def _is_basic(spec: CaptionSpec) -> bool:
    return spec.size == "large" and spec.motion.split(" ")[0] in ("still", "glide", "fall")


@cache
def prompts(split: str) -> tuple[str, ...]:
    """Captions of a split or of its ``basic/`` part, in the order of `all_specs`; `DataError` for an unknown split."""
    basic, name = split.startswith("basic/"), split.removeprefix("basic/")
    if name not in SPLITS:
        close = nearest(name, SPLITS)
        raise DataError(
            f"the embedded world has no split {split!r}",
            why=f"splits: {', '.join(SPLITS)}",
            fix=f"did you mean {close!r}?" if close else "",
        )
    members = {"held_out_speeds": ("train",), "unseen": ("held_out", "held_out_combinations")}.get(name, (name,))
    return tuple(str(s) for s in all_specs() if _split(s) in members and (_is_basic(s) or not basic))


def balanced(split: str, count: int, generator: torch.Generator) -> list[str]:
    """Draw `count` captions of a split, motions equally often (77 % of all captions are collisions)."""
    groups: dict[str, list[str]] = {}
    for caption in prompts(split):
        groups.setdefault(parse(caption).motion, []).append(caption)
    motions = list(groups)
    order = torch.cat([torch.randperm(len(motions), generator=generator) for _ in range(-(-count // len(motions)))])
    picks = torch.rand(count, generator=generator, dtype=torch.float64)
    return [
        groups[motions[m]][int(u * len(groups[motions[m]]))]
        for m, u in zip(order[:count].tolist(), picks.tolist(), strict=True)
    ]
