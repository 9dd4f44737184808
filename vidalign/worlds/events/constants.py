"""Constants of the event world: the only thing that generator, scorer and auditor share.

Palette, shapes, sizes and picture are those of the first video world. Lengths are pixels, times are frames, velocities
pixels per frame. y points down.
"""

from __future__ import annotations

from vidalign.worlds.video.constants import (
    BACKGROUND,
    COLOURS,
    EXTENT,
    FLOOR,
    GRAVITY,
    MARGIN,
    PALETTE,
    SHAPES,
    SIZE,
    SIZES,
)

__all__ = (
    "BACKGROUND",
    "COLOURS",
    "EXTENT",
    "FLOOR",
    "GRAVITY",
    "MARGIN",
    "PALETTE",
    "SHAPES",
    "SIZE",
    "SIZES",
)
FRAMES = 12
"""Frames of a training clip."""
LENGTHS = (12, 48, 192)
"""Frames of the clips that are judged: one, four and sixteen times a training clip."""
MOTIONS: dict[str, str] = {
    "glide left": "glides left",
    "glide right": "glides right",
    "glide up": "glides up",
    "glide down": "glides down",
    "bounce": "bounces",
    "swing": "swings",
}
"""Law of motion to the words of a caption. All of them go on for ever: glides are reflected by the walls, a bounce
keeps its height, a swing is a sinusoid from left to right."""
EVENTS: dict[str, str] = {"turn": "turns", "colour": "turns {}", "enter": "a small {} {} enters"}
"""Kind of event to the words of a caption. ``turn``: a glide goes on at a right angle, to either side. ``colour``: the
object takes the other one of the two colours that the caption names. ``enter``: a small object appears at a random side
and glides, at constant speed beside the first one, to the other side, where it leaves."""
GAPS = (3, 4, 5)
"""Frames from one moment at which an event may happen to the next, equally likely."""
PROBABILITY = 1 / 3
"""How likely an event happens at such a moment. One that cannot happen (a second entrance) does not."""
SPEEDS: dict[str, tuple[float, float]] = {"train": (0.7, 1.4), "held_out": (1.4, 1.8)}
"""Ranges of the speed of a glide, per split."""
HEIGHT = (5.0, 14.0)
"""Height of a bounce."""
AMPLITUDE = (4.0, 8.0)
PERIOD = (14.0, 22.0)
"""Half the width of a swing, and the frames that it takes there and back."""
CROSSING = (1.6, 2.4)
"""Speed of an object that enters."""
APART = 1.0
"""Least distance between the paths of two objects."""
STRAIGHT = 2.0
"""Frames of a clip in which a glide goes as captioned at least, before a wall reflects it."""
