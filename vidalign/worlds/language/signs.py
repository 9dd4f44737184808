"""The sign world, the second picture world: a detail that is hard to see beside answers that are easy to read.

A picture of 32 x 32 pixels has three or four signs, one in a quadrant (six in the split `crowded`), each in a colour.
A sign is a fixed random pattern of 4 x 4 pixels, one of 16; which letter names which pattern is knowledge that takes
long to learn. Every sign stands in a cell of 4 x 4 pixels, which a tower with such patches sees as one patch. Colour
and place are learned before it. Boxes (`boxes : k 20 4 23 7`) say where the signs in question are. So a student that
has mastered reading but not the signs gains much from boxes, and a teacher that knows most of the signs does not make
them worthless.

Questions: `what colour is k ?`, `where is k ?`, `what colour are k and m ?`. A written answer names place and colour
of every sign in question first. Pre-training may add `what is where ?`, whose answer names all signs from
left to right, row by row: without it models learned to read boxes and no sign. Splits: train, held_out (other
scenes), crowded. Sample n of a split is a pure function of (seed, n).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from vidalign.data.examples import Example
from vidalign.engine.rng import generator
from vidalign.errors import DataError, nearest
from vidalign.worlds.language.pictures import PLACES
from vidalign.worlds.video.constants import BACKGROUND, COLOURS, PALETTE, SIZE

SIGNS = tuple("abcdefghijklmnop")
CELL = 4
"""Height and width of a sign in pixels."""
INK = 8
"""Pixels of a sign that have its colour."""
APART = 6
"""Pixels in which two signs differ at least."""
FAMILIES = ("colour", "place", "colours")
NAMING = "naming"
"""The family of questions for all signs, which pre-training alone asks."""
SPLITS: dict[str, tuple[int, int]] = {"train": (3, 4), "held_out": (3, 4), "crowded": (6, 6)}
"""Fewest and most signs of a picture."""
FORMS = ("hints", "answer", "none")
BUCKETS = 5
"""One in so many scenes is held out."""


@dataclass(frozen=True)
class Sign:
    """One sign of a picture: its letter, its colour, and the row and column of its cell, 0 .. 7."""

    name: str
    colour: str
    row: int
    column: int

    @property
    def where(self) -> str:
        half = SIZE // CELL // 2
        return " ".join(PLACES[2 * (self.row // half) + self.column // half])

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels, 0 .. 31."""
        left, top = self.column * CELL, self.row * CELL
        return left, top, left + CELL - 1, top + CELL - 1


@cache
def patterns() -> dict[str, tuple[bool, ...]]:
    """The pixels of every sign, row by row: random, the same on every machine, any two `APART`."""
    chosen: list[tuple[bool, ...]] = []
    number = 0
    while len(chosen) < len(SIGNS):
        order = [hashlib.blake2b(f"sign world {number} {cell}".encode()).digest() for cell in range(CELL * CELL)]
        inked = sorted(range(CELL * CELL), key=order.__getitem__)[:INK]
        pattern = tuple(cell in inked for cell in range(CELL * CELL))
        if all(sum(a != b for a, b in zip(pattern, other, strict=True)) >= APART for other in chosen):
            chosen.append(pattern)
        number += 1
    return dict(zip(SIGNS, chosen, strict=True))


def scene(split: str, seed: int, sample: int) -> list[Sign]:
    """The signs of a picture from left to right, row by row; drawn until the scene is on the right side."""
    numbers = generator(seed, f"sign world {split}", 0, sample)
    fewest, most = SPLITS[split]
    while True:
        count = fewest + _below(most - fewest + 1, numbers)
        patches = _patches(count, numbers)
        names = torch.randperm(len(SIGNS), generator=numbers).tolist()[:count]
        signs = []
        for name, (row, column) in zip(names, patches, strict=True):
            down, right = _below(2, numbers), _below(2, numbers)
            colour = COLOURS[_below(len(COLOURS), numbers)]
            signs.append(Sign(SIGNS[name], colour, 2 * row + down, 2 * column + right))
        if split == "crowded" or (_bucket(signs) == 0) == (split == "held_out"):
            return signs


def _patches(count: int, numbers: torch.Generator) -> list[tuple[int, int]]:
    """Rows and columns, 0 .. 3, of patches of two by two cells, in order: up to four lie in quadrants of their own."""
    if count <= len(PLACES):
        quadrants = torch.randperm(len(PLACES), generator=numbers).tolist()[:count]
        found = [(2 * (q // 2) + _below(2, numbers), 2 * (q % 2) + _below(2, numbers)) for q in quadrants]
    else:
        found = [divmod(n, 4) for n in torch.randperm(16, generator=numbers).tolist()[:count]]
    return sorted(found)


def _bucket(signs: list[Sign]) -> int:
    """A number in 0 .. BUCKETS - 1 that depends on the scene alone."""
    text = " ".join(f"{s.name} {s.colour} {s.row} {s.column}" for s in signs)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % BUCKETS


def picture(signs: list[Sign]) -> Any:
    """A PIL picture of 32 x 32 pixels."""
    from PIL import Image

    pixels = torch.tensor(BACKGROUND).repeat(SIZE, SIZE, 1)
    for sign in signs:
        left, top, _, _ = sign.box
        ink = torch.tensor(patterns()[sign.name]).view(CELL, CELL)
        pixels[top : top + CELL, left : left + CELL][ink] = torch.tensor(PALETTE[sign.colour])
    return Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())


def question(family: str, signs: list[Sign], numbers: torch.Generator) -> tuple[str, list[Sign], str]:
    """A question of the family, the signs that it is about, and its answer."""
    one, other = (signs[n] for n in torch.randperm(len(signs), generator=numbers).tolist()[:2])
    if family == "colour":
        return f"what colour is {one.name} ?", [one], one.colour
    if family == "place":
        return f"where is {one.name} ?", [one], one.where
    return f"what colour are {one.name} and {other.name} ?", [one, other], f"{one.colour} {other.colour}"


def example(
    split: str, seed: int, sample: int, form: str, privileged_share: float = 1.0, naming_share: float = 0.0
) -> Example:
    """Question `sample` of a split. form: `hints` boxes, `answer` the answer, `none` nothing; privileged_share: share
    of the questions that have a privileged text; naming_share: of those that ask for all signs, bare."""
    check_split(split)
    assert form in FORMS, f"unknown form of privilege {form!r}"
    signs = scene(split, seed, sample)
    numbers = generator(seed, f"sign world questions {split}", 0, sample)
    shown = float(torch.rand((), generator=numbers, dtype=torch.float64)) < privileged_share
    family = FAMILIES[sample % len(FAMILIES)]
    if float(torch.rand((), generator=numbers, dtype=torch.float64)) < naming_share:
        worked = " | ".join(f"{s.where} {s.name} {s.colour}" for s in signs)
        answer = " ".join(s.name for s in signs)
        return Example("what is where ?", "", (picture(signs),), answer, f"{worked} | = {answer}", NAMING, len(signs))
    text, about, answer = question(family, signs, numbers)
    worked = "".join(f"{s.name} {s.where} {s.colour} | " for s in about)
    boxes = " | ".join(f"{s.name} {' '.join(map(str, s.box))}" for s in about)
    privileged = {"hints": f"boxes : {boxes}", "answer": f"answer : {answer}", "none": ""}[form if shown else "none"]
    return Example(text, privileged, (picture(signs),), answer, f"{worked}= {answer}", family, len(about))


def check_split(split: str) -> None:
    """Raises `DataError` unless there is such a split."""
    if split not in SPLITS:
        near = nearest(split, SPLITS)
        raise DataError(
            f"the sign world has no split {split!r}",
            where=f"signs:{split}",
            fix=f"did you mean {near!r}?" if near else f"known: {', '.join(SPLITS)}",
        )


def _below(limit: int, g: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=g))
