"""Constants of the embedded video world: the only thing that generator, scorer and auditor share.

Lengths are pixels, times are frames, velocities pixels per frame. y points down, the origin is the top-left corner of
the picture, pixel centres lie at half-integers.
"""

from __future__ import annotations

import math

SIZE = 32
"""Height and width of a picture."""
FRAMES = 12
"""Frames of a training clip; a long clip has four times as many."""
BACKGROUND = (0.1, 0.1, 0.1)
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.95, 0.15, 0.15),
    "green": (0.15, 0.85, 0.2),
    "blue": (0.2, 0.3, 1.0),
    "yellow": (0.95, 0.9, 0.15),
    "purple": (0.85, 0.2, 0.9),
    "cyan": (0.15, 0.9, 0.95),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "diamond")
SIZES: dict[str, float] = {"small": 3.0, "large": 4.5}
"""Radius of the circle; the other shapes of a size have the same area."""
EXTENT: dict[str, float] = {
    "circle": 1.0,
    "square": math.sqrt(math.pi) / 2,
    "diamond": math.sqrt(math.pi / 2),
}
"""Half width (and half height) of a shape in units of its size's radius."""
GRAVITY = 0.5
RESTITUTION = 0.8
FLOOR = float(SIZE) - 1.0
"""Height of the floor: an object rests with its lowest point here."""
MARGIN = 0.5
"""Smallest distance that an object keeps to the left, right and upper edge."""
MOTIONS: dict[str, str] = {
    "still": "stays still",
    "glide left": "glides left",
    "glide right": "glides right",
    "glide up": "glides up",
    "glide down": "glides down",
    "fall": "falls",
    "bounce": "bounces",
    "throw left": "is thrown left",
    "throw right": "is thrown right",
    "hit left": "glides left and hits",
    "hit right": "glides right and hits",
}
"""Law of motion to the words of a caption."""
SPEEDS: dict[str, tuple[float, float]] = {"train": (0.7, 1.5), "held_out": (1.5, 1.85), "long": (0.22, 0.42)}
"""Ranges of the speed of gliding objects, per split."""
