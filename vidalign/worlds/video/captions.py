"""Captions of the video world: what can be said, how it is read, and which captions a split holds.

A caption names one object (size, colour, shape, motion) or two (the second is hit by the first and has the
same size). 324 single captions and 1,080 collisions of differently coloured objects make 1,404 captions over
a vocabulary of 25 words. Splits: see
`vidalign.worlds.caption_set`. A held-out combination is a (colour, shape, motion) triple of the moving object. The part
``basic/`` has one large object that stays, glides or falls.
"""

from __future__ import annotations

from dataclasses import dataclass

from vidalign.worlds.caption_set import SPLITS as SPLITS
from vidalign.worlds.caption_set import CaptionSet
from vidalign.worlds.video.constants import COLOURS, MOTIONS, SHAPES, SIZES

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


def _unseen_combination(spec: CaptionSpec) -> bool:
    key = COLOURS.index(spec.colour) + 2 * SHAPES.index(spec.shape) + 3 * tuple(MOTIONS).index(spec.motion)
    return key % 9 == 4


def _is_basic(spec: CaptionSpec) -> bool:
    return spec.size == "large" and spec.motion.split(" ")[0] in ("still", "glide", "fall")


CAPTIONS = CaptionSet(
    "the embedded world",
    all_specs,
    lambda spec: spec.motion,
    _unseen_combination,
    _is_basic,
    "vidalign.worlds.video.captions.all_captions()",
)
all_captions, parse, is_caption = CAPTIONS.all_captions, CAPTIONS.parse, CAPTIONS.is_caption
prompts, balanced = CAPTIONS.prompts, CAPTIONS.balanced
