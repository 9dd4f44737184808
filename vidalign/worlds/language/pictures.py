"""The picture world: questions about still scenes of the video world's renderer, with exact answers.

One to three objects (four in the split `crowded`), each in a quadrant of its own, no two of the same colour and shape.
Families: `colour`, `count`, `position`, `relation`. Privilege: boxes and labels of the objects that the question is
about. A worked answer describes the whole scene first. Splits: train, held_out (other scenes), combinations (pairs of
colour and shape never trained on), crowded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vidalign.data.examples import Example
from vidalign.engine.rng import generator
from vidalign.errors import DataError, nearest
from vidalign.worlds.video.constants import COLOURS, EXTENT, SHAPES, SIZE, SIZES
from vidalign.worlds.video.renderer import render
from vidalign.worlds.video.scenes import Scenes

FAMILIES = ("colour", "count", "position", "relation")
SPLITS: dict[str, tuple[int, int]] = {"train": (1, 3), "held_out": (1, 3), "combinations": (1, 3), "crowded": (4, 4)}
"""Fewest and most objects of a scene."""
PLACES = (("top", "left"), ("top", "right"), ("bottom", "left"), ("bottom", "right"))
RADII = (SIZES["large"], 5.5)
"""Radii of objects in pixels: at fewer, circles, squares and diamonds of one area differ in a few pixels only."""
RELATIONS = {"above": (0, "top"), "below": (0, "bottom"), "left": (1, "left"), "right": (1, "right")}
PAIRS = tuple((colour, shape) for colour in range(len(COLOURS)) for shape in range(len(SHAPES)))
UNSEEN = tuple(pair for pair in PAIRS if (pair[0] + 2 * pair[1]) % len(COLOURS) == 0)
"""Colour-shape pairs of the split `combinations` alone: every colour and every shape has others."""


@dataclass(frozen=True)
class Thing:
    """One object: its colour and shape, its quadrant, centre and radius in pixels."""

    colour: int
    shape: int
    place: int
    centre: tuple[float, float]
    radius: float

    @property
    def label(self) -> str:
        return f"{COLOURS[self.colour]} {SHAPES[self.shape]}"

    @property
    def where(self) -> str:
        return " ".join(PLACES[self.place])

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in whole pixels, 0 .. 31."""
        half = self.radius * EXTENT[SHAPES[self.shape]]
        edges = [c + sign * half for sign in (-1, 1) for c in self.centre]
        left, top, right, bottom = (min(SIZE - 1, max(0, int(edge))) for edge in edges)
        return left, top, right, bottom


def draw_things(split: str, g: torch.Generator) -> list[Thing]:
    """Objects of a scene, in the order of their quadrants."""
    fewest, most = SPLITS[split]
    count = fewest + _below(most - fewest + 1, g)
    seen = [pair for pair in PAIRS if pair not in UNSEEN]
    pool = [seen[i] for i in torch.randperm(len(seen), generator=g).tolist()[:count]]
    if split == "combinations":
        pool[0] = UNSEEN[_below(len(UNSEEN), g)]
    places = sorted(torch.randperm(len(PLACES), generator=g).tolist()[:count])
    order = torch.randperm(count, generator=g).tolist()
    return [_thing(pool[k], place, g) for k, place in zip(order, places, strict=True)]


def _thing(pair: tuple[int, int], place: int, g: torch.Generator) -> Thing:
    radius = RADII[_below(len(RADII), g)]
    half = radius * EXTENT[SHAPES[pair[1]]]
    quarter = SIZE / 2
    jitter = (torch.rand(2, generator=g, dtype=torch.float64) * 2 - 1) * (quarter / 2 - half - 0.5)
    row, column = divmod(place, 2)
    centre = (quarter * (column + 0.5) + float(jitter[0]), quarter * (row + 0.5) + float(jitter[1]))
    return Thing(*pair, place, centre, radius)


def picture(things: list[Thing]) -> Any:
    """A PIL picture of 32 x 32 pixels."""
    from PIL import Image

    count = len(things)
    scenes = Scenes(
        position=torch.tensor([t.centre for t in things], dtype=torch.float64).view(1, 1, count, 2),
        radius=torch.tensor([[t.radius for t in things]], dtype=torch.float64),
        colour=torch.tensor([[t.colour for t in things]]),
        shape=torch.tensor([[t.shape for t in things]]),
        present=torch.ones(1, count, dtype=torch.bool),
    )
    pixels = (render(scenes)[0, 0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.numpy())


def question(family: str, one: Thing, things: list[Thing], g: torch.Generator) -> tuple[str, list[Thing], str]:
    """A question of the family about `one` of the things, the objects that it is about, and its answer."""
    if family == "colour":
        return f"what colour is the object at {one.where} ?", [one], COLOURS[one.colour]
    if family == "position":
        return f"where is the {one.label} ?", [one], one.where
    if family == "count":
        word = _counted(one, things, g)
        objects = [t for t in things if word in t.label.split()]
        return f"how many objects are {word} ?", objects, str(len(objects))
    others = [t for t in things if t is not one]
    assert others, "a relation needs two objects"
    other = others[_below(len(others), g)]
    true = [
        word for word, (axis, side) in RELATIONS.items() if PLACES[one.place][axis] == side != PLACES[other.place][axis]
    ]
    holds = _below(2, g) == 0  # as many yes as no: two objects in different quadrants differ in a row or a column
    words = true if holds else [word for word in RELATIONS if word not in true]
    word = words[_below(len(words), g)]
    return f"is the {one.label} {word} of the {other.label} ?", [one, other], "yes" if holds else "no"


def _counted(one: Thing, things: list[Thing], g: torch.Generator) -> str:
    """A colour or shape to count: each number of objects that the scene allows is as likely. It is one of `one`'s own
    where its pair is unseen."""
    if (one.colour, one.shape) in UNSEEN:
        return one.label.split()[_below(2, g)]
    by_count: dict[int, list[str]] = {}
    for word in (*COLOURS, *SHAPES):
        by_count.setdefault(sum(word in t.label.split() for t in things), []).append(word)
    words = by_count[sorted(by_count)[_below(len(by_count), g)]]
    return words[_below(len(words), g)]


def example(split: str, seed: int, sample: int, form: str) -> Example:
    """Question `sample` of a split; `form` none leaves the boxes out, every other form gives them."""
    check_split(split)
    numbers = generator(seed, f"picture world {split}", 0, sample)
    family = FAMILIES[sample % len(FAMILIES)]
    things = draw_things(split, numbers)
    while family == "relation" and len(things) < 2:
        things = draw_things(split, numbers)
    about = [t for t in things if (t.colour, t.shape) in UNSEEN] or things  # unseen pairs are what is asked about
    text, relevant, answer = question(family, about[_below(len(about), numbers)], things, numbers)
    worked = "".join(f"{t.label} {t.where} | " for t in things)
    boxes = " | ".join(f"{t.label} {' '.join(map(str, t.box))}" for t in relevant)
    hint = "" if form == "none" else f"boxes : {boxes}".rstrip()
    return Example(text, hint, (picture(things),), answer, f"{worked}= {answer}", family, len(relevant))


def check_split(split: str) -> None:
    """Raises `DataError` unless there is such a split."""
    if split not in SPLITS:
        near = nearest(split, SPLITS)
        raise DataError(
            f"the picture world has no split {split!r}",
            where=f"pictures:{split}",
            fix=f"did you mean {near!r}?" if near else f"known: {', '.join(SPLITS)}",
        )


def _below(limit: int, g: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=g))
