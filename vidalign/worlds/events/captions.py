"""Captions of the event world: what can be said, how it is read, and which captions a split holds.

The first clause names an object (size, colour, shape) and its motion, the second one a kind of random event: "a large
red circle glides left, then turns", "..., then turns blue", "..., then a small green square enters". The first clause
holds at the beginning of a clip; the events of the second one happen again and again, at random times and with random
outcomes. 4,464 captions over a vocabulary of 23 words. Splits: see `vidalign.worlds.caption_set`. A held-out
combination is a (colour, shape, motion) triple; the part ``basic/`` has large objects that turn or change colour.
"""

from __future__ import annotations

from dataclasses import dataclass

from vidalign.worlds.caption_set import SPLITS as SPLITS
from vidalign.worlds.caption_set import CaptionSet
from vidalign.worlds.events.constants import COLOURS, EVENTS, MOTIONS, SHAPES, SIZES

PHRASES = (*MOTIONS.values(), *EVENTS.values())
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(
        ["a", ",", "then", *SIZES, *COLOURS, *SHAPES, *(w for p in PHRASES for w in p.replace("{}", "").split())]
    )
)


@dataclass(frozen=True)
class CaptionSpec:
    """What a caption says. ``other_colour`` is set for ``colour`` and ``enter``, ``other_shape`` for ``enter``."""

    size: str
    colour: str
    shape: str
    motion: str
    event: str
    other_colour: str | None = None
    other_shape: str | None = None

    def __str__(self) -> str:
        first = f"a {self.size} {self.colour} {self.shape} {MOTIONS[self.motion]}"
        return f"{first}, then {EVENTS[self.event].format(self.other_colour, self.other_shape)}"


def all_specs() -> tuple[CaptionSpec, ...]:
    """Every caption of the world, in a fixed order."""
    specs = []
    for motion in MOTIONS:
        for size in SIZES:
            for colour in COLOURS:
                for shape in SHAPES:
                    first = (size, colour, shape, motion)
                    others = [other for other in COLOURS if other != colour]
                    if motion.startswith("glide"):
                        specs.append(CaptionSpec(*first, "turn"))
                    specs += [CaptionSpec(*first, "colour", other) for other in others]
                    specs += [CaptionSpec(*first, "enter", other, kind) for other in others for kind in SHAPES]
    return tuple(specs)


def _unseen_combination(spec: CaptionSpec) -> bool:
    key = COLOURS.index(spec.colour) + 2 * SHAPES.index(spec.shape) + 3 * tuple(MOTIONS).index(spec.motion)
    return key % 9 == 4


def _is_basic(spec: CaptionSpec) -> bool:
    return spec.size == "large" and spec.event != "enter"


def family(spec: CaptionSpec) -> str:
    """The kind of a caption, such as ``glide left, turn``: figures are reported by it, captions take turns by it."""
    return f"{spec.motion}, {spec.event}"


CAPTIONS = CaptionSet(
    "the event world",
    all_specs,
    family,
    _unseen_combination,
    _is_basic,
    "vidalign.worlds.events.captions.all_captions()",
)
all_captions, parse, is_caption = CAPTIONS.all_captions, CAPTIONS.parse, CAPTIONS.is_caption
prompts, balanced = CAPTIONS.prompts, CAPTIONS.balanced
