"""What the scorer of the event world makes of a clip: attributes of every frame, laws, events and their frames.

A clip is cut into windows of 12 frames, of which neighbours overlap by half. Each is fitted by itself, so that 192
frames are held to the law as closely as 12, wherever the phase has gone. The first window begins as the caption says;
later ones go on from any state that events lead to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch

from vidalign.worlds.events import laws, paths
from vidalign.worlds.events.captions import parse
from vidalign.worlds.events.constants import COLOURS, EXTENT, FRAMES, GAPS, MOTIONS, PROBABILITY, SHAPES, SIZES
from vidalign.worlds.scoring import Attributes
from vidalign.worlds.video.looks import HARMONIC, Gaze, Objects, gaze

STRIDE = FRAMES // 2
LAWS = tuple(MOTIONS)
GLIDES = sum(law.startswith("glide") for law in LAWS)
SCALE, SHARP = 0.16, 0.01
"""Mean squared deviations, pixels, beyond which a law is unlikely, and beyond which a turn is needed."""
TURN_PRIOR = 0.1
NOTHING = 3.0
"""Mean squared deviation of "no law"."""
MEAN_GAP = sum(GAPS) / len(GAPS)


@dataclass
class Target:
    """What B captions say: colour, shape ``[B, 2]`` indices, radius, extent ``[B, 2]``, law, along ``[B]``, and which
    kind of event, ``[B]`` each."""

    colour: torch.Tensor
    shape: torch.Tensor
    radius: torch.Tensor
    extent: torch.Tensor
    law: torch.Tensor
    along: torch.Tensor
    turns: torch.Tensor
    recolours: torch.Tensor
    enters: torch.Tensor


@dataclass
class Judgement:
    """Everything that scores pool: per-frame values ``[B, F]``, those of W windows ``[B, W]``, of the clip ``[B]``."""

    attributes: Attributes
    visual: torch.Tensor
    motion: torch.Tensor
    law_right: torch.Tensor
    deviation: torch.Tensor  # squared, pixels, [B, W, frames of a window]
    window_error: torch.Tensor  # its mean, of the worse object
    starts: list[int]
    fulfilled: torch.Tensor
    orderly: torch.Tensor
    events: torch.Tensor  # [B, F], frames on which an event of the captioned kind was found

    def windows_in(self, frames: slice) -> list[int]:
        """The windows that begin in a range of frames, at least one."""
        first, last = frames.start or 0, frames.stop or self.visual.shape[1]
        inside = [w for w, start in enumerate(self.starts) if first <= start < last]
        return inside or [min(range(len(self.starts)), key=lambda w: abs(self.starts[w] - first))]


@lru_cache(maxsize=8192)
def _read(prompt: str) -> tuple[tuple[int, int], tuple[int, int], tuple[float, float], int, str]:
    spec = parse(prompt)
    colours = COLOURS.index(spec.colour), COLOURS.index(spec.other_colour or spec.colour)
    shapes = SHAPES.index(spec.shape), SHAPES.index(spec.other_shape or spec.shape)
    return colours, shapes, (SIZES[spec.size], SIZES["small"]), LAWS.index(spec.motion), spec.event


def _targets(prompts: Sequence[str], clips: torch.Tensor) -> Target:
    colour, shape, radius, law, event = zip(*(_read(prompt) for prompt in prompts), strict=True)
    device = clips.device
    shapes, radii = torch.tensor(shape, device=device), torch.tensor(radius, device=device)
    upright = torch.tensor([LAWS[k] in ("glide up", "glide down", "bounce") for k in law], device=device)
    return Target(
        torch.tensor(colour, device=device),
        shapes,
        radii,
        torch.tensor([EXTENT[name] for name in SHAPES], device=device)[shapes] * radii,
        torch.tensor(law, device=device),
        upright.long(),
        *(torch.tensor([e == kind for e in event], device=device) for kind in ("turn", "colour", "enter")),
    )


def judge(clips: torch.Tensor, prompts: Sequence[str]) -> Judgement:
    """Measure clips ``[B, F, 3, H, W]`` in [0, 1] against their captions."""
    target = _targets(prompts, clips)
    seen = gaze(clips, target.colour)
    objects, changed, there = _cast(seen.captioned, target)
    attributes = _attributes(objects, seen, changed, there, target)
    track = objects.centre.double()
    starts = list(range(0, max(clips.shape[1] - FRAMES, 0) + 1, STRIDE))
    first = _First(track[:, : min(FRAMES, track.shape[1]), 0].detach(), target)
    path = paths.decode(track[:, :, 0].detach(), target.extent[:, 0].double(), first.start, target.turns)
    windows, motion = [], []
    for start in starts:
        part = slice(start, min(start + FRAMES, track.shape[1]))
        fitted, weight = (
            (first.fitted, first.motion) if start == 0 else _later(track[:, part, 0].detach(), path, part, target)
        )
        second = _second(track[:, part, 1].detach(), there[:, part], start == 0, target)
        squares = (track[:, part] - torch.stack((fitted, second), 2)).square().sum(-1)
        shown = there[:, part] & target.enters[:, None]
        windows.append(torch.stack((squares[..., 0], squares[..., 1] * shown), -1))
        motion.append(weight)
    deviation = torch.stack(windows, 1)  # [B, W, frames, 2]
    counted = torch.stack([(there[:, s : s + FRAMES] & target.enters[:, None]).sum(1) for s in starts], 1)
    worse = torch.maximum(deviation[..., 0].mean(2), deviation[..., 1].sum(2) / counted.clamp(min=1))
    events = _events(path, changed, there, target)
    return Judgement(
        attributes,
        seen.visual,
        torch.stack(motion, 1).to(clips.dtype),
        first.law_right,
        deviation.flatten(2).to(clips.dtype),
        worse.to(clips.dtype),
        starts,
        _fulfilled(events, path, first.turned, changed, there, target).to(clips.dtype),
        _orderly(events, target).to(clips.dtype),
        events,
    )


def _cast(captioned: Objects, target: Target) -> tuple[Objects, torch.Tensor, torch.Tensor]:
    """The first and the second object in every frame, whether the first one has its other colour, and whether the
    second one is there, ``[B, F]``. Where colours change, the first object is what the heavier of the two shows.
    """
    mass = captioned.mass
    changed = (mass[..., 1] > mass[..., 0]) & target.recolours[:, None]
    parts = {}
    for f in fields(Objects):
        one, other = getattr(captioned, f.name).unbind(2)
        choose = changed[..., None] if one.ndim == 3 else changed
        parts[f.name] = torch.stack((torch.where(choose, other, one), torch.where(choose, one, other)), 2)
    area = math.pi * target.radius[:, None, 1] ** 2
    there = (mass[..., 1] > 0.5 * area) & target.enters[:, None]
    return Objects(**parts), changed, there


def _attributes(objects: Objects, seen: Gaze, changed: torch.Tensor, there: torch.Tensor, target: Target) -> Attributes:
    """Judge the objects that are there; what a second object shows where it is not is judged as a stray."""
    total = seen.total
    area = math.pi * target.radius[:, None] ** 2  # [B, 1, 2]
    presence = (objects.mass / (0.6 * area)).clamp(0, 1)
    seen_mass = objects.mass[..., 0] + objects.mass[..., 1] * there
    stray = (total.sum(-1) - seen_mass).clamp(min=0) / area[..., 0]
    right_colour = torch.where(changed, target.colour[:, 1:], target.colour[:, :1])
    own = total.gather(-1, right_colour[..., None])[..., 0]
    second = total.gather(-1, target.colour[:, None, 1:].expand(-1, total.shape[1], 1))[..., 0]
    wrong = total.sum(-1) - own - second * target.enters[:, None]
    colour = presence * (objects.mass / (objects.mass + wrong[..., None].clamp(min=0) + 1e-4))
    likely, shape = _shapes(objects, target)
    off = (objects.mass.clamp(min=1e-3) / area).log()
    size = (1 + (off / 0.35) ** 2) ** -2
    median = objects.mass.detach().median(1, keepdim=True).values
    usual = torch.cat((median[..., :1], area[..., 1:].expand_as(median[..., 1:])), -1)
    permanence = 1 / (1 + (((objects.mass + 0.5) / (usual + 0.5)).log() / 0.4) ** 2)
    count = _worse(presence, there) / (1 + (stray / 0.3) ** 2)
    right = (colour > 0.7) & (off.abs() < 0.4) & likely & (shape > 0.5) & (presence > 0.9) & (count[..., None] > 0.5)
    begins = torch.arange(total.shape[1], device=total.device) == 0
    fair = _worse(right.to(total), there) > 0.5
    return Attributes(
        colour=_worse(colour, there) * torch.where(begins & changed, 0.0, 1.0),
        count=count * torch.where(begins & there, 0.0, 1.0),
        shape=_worse(shape, there),
        size=_worse(size, there),
        presence=_worse(presence, there),
        permanence=_worse(permanence, there),
        right=fair & ~(begins & (changed | there)),
    )


def _shapes(objects: Objects, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each object's shape is the likeliest, and how far it is the captioned one, ``[B, F, 2]``."""
    targets = objects.harmonic.new_tensor([HARMONIC[name] for name in SHAPES])
    weights = (1 + ((objects.harmonic[..., None] - targets) / 0.05) ** 2) ** -2
    likely = weights.gather(-1, target.shape[:, None, :, None].expand(*weights.shape[:-1], 1))[..., 0]
    spread = 1 + ((objects.spread - 0.515).clamp(min=0) / 0.25) ** 2
    return likely >= weights.amax(-1), likely / (weights.sum(-1) + 0.002) / spread


def _worse(values: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """The lower of two objects, ``[B, F, 2]`` -> ``[B, F]``, where the second one is there."""
    return torch.where(there, values.amin(-1), values[..., 0])


def _weight(track: torch.Tensor, fitted: torch.Tensor, scale: float = SCALE) -> torch.Tensor:
    """``(1 + mse / scale)^-3`` of tracks ``[N, F, 2]``."""
    return (1 + (track - fitted).square().sum(-1).mean(1) / scale) ** -3


NONE = (1 + NOTHING / SCALE) ** -3


class _First:
    """The law of the first window, ``[B]`` each: `motion`, how likely it is the captioned one; `law_right`, whether no
    other is likelier; `fitted` ``[B, F, 2]`` under it; `start`, its direction; `turned`, evidence of a turn.

    Which law, and whether there are turns, is decided at the scorer's own precision (`SHARP`), each turn at a price.
    How well the law is kept is judged by `SCALE`.
    """

    def __init__(self, track: torch.Tensor, target: Target) -> None:
        batch, extent = len(track), target.extent[:, 0].double()
        rows = torch.arange(batch, device=track.device)
        glide, sharp, turned = self._glides(track, extent, target.turns)
        others = torch.stack([law(track, extent) for law in (laws.bounce, laws.swing)], 1)
        fitted = torch.cat((glide, others), 1)
        likely = torch.cat((sharp, torch.stack([_weight(track, o, SHARP) for o in others.unbind(1)], 1)), 1)
        chosen = likely[rows, target.law]
        self.fitted = fitted[rows, target.law]
        kept = _weight(track, self.fitted)
        self.motion = chosen / likely.sum(1).clamp(min=1e-300) * kept / (kept + NONE)
        self.law_right = (chosen >= likely.amax(1)) & (kept > NONE)
        self.start = target.law.clamp(max=GLIDES - 1)
        self.turned = turned[rows, self.start]

    @staticmethod
    def _glides(
        track: torch.Tensor, extent: torch.Tensor, turns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every direction to begin with: the better of a straight glide and one with turns ``[B, 4, F, 2]``, its
        weight and the share of the turns ``[B, 4]``."""
        batch, device = len(track), track.device
        starts = torch.arange(4, device=device).repeat(batch)
        tracks, extents = track.repeat_interleave(4, 0), extent.repeat_interleave(4)
        path = paths.decode(tracks, extents, starts, torch.zeros_like(starts, dtype=torch.bool))
        fitted = paths.fit(tracks, extents, path)
        weight, share = _weight(tracks, fitted, SHARP), torch.zeros_like(tracks[:, 0, 0])
        may = turns.repeat_interleave(4).nonzero()[:, 0]
        if len(may):
            path = paths.decode(tracks[may], extents[may], starts[may], torch.ones_like(may, dtype=torch.bool))
            bent = paths.fit(tracks[may], extents[may], path)
            likely = TURN_PRIOR ** path.turn.sum(1) * _weight(tracks[may], bent, SHARP) * path.turn.any(1)
            share[may] = likely / (likely + weight[may]).clamp(min=1e-300)
            better = likely > weight[may]
            fitted[may] = torch.where(better[:, None, None], bent, fitted[may])
            weight[may] = torch.where(better, likely, weight[may])
        return fitted.unflatten(0, (batch, 4)), weight.unflatten(0, (batch, 4)), share.unflatten(0, (batch, 4))


def _later(track: torch.Tensor, path: paths.Path, part: slice, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """The captioned law in a later window, in whatever state: fitted ``[B, F, 2]`` and its weight against none."""
    extent = target.extent[:, 0].double()
    turn = path.turn[:, part.start : part.stop - 1].clone()
    turn[:, 0] = False
    glide = paths.fit(track, extent, paths.Path(path.direction[:, part.start : part.stop - 1], turn))
    kind = target.law[:, None, None]
    fitted = torch.where(kind == LAWS.index("bounce"), laws.bounce(track, extent), glide)
    fitted = torch.where(kind == LAWS.index("swing"), laws.swing(track, extent), fitted)
    weight = _weight(track, fitted)
    return fitted, weight / (weight + NONE)


def _second(track: torch.Tensor, there: torch.Tensor, beginning: bool, target: Target) -> torch.Tensor:
    """The second object's crossings in a window, ``[B, F, 2]``: one that was there before, and one that enters."""
    before = there & (there.long().cumprod(1) > 0)
    entered = there & ~before
    extent = target.extent[:, 1].double()
    yes = torch.ones(len(track), dtype=torch.bool, device=track.device)
    old = laws.crossing(track, before, target.along, extent, ~yes)
    new = laws.crossing(track, entered, target.along, extent, yes)
    return torch.where(before[..., None], old, new)


def _events(path: paths.Path, changed: torch.Tensor, there: torch.Tensor, target: Target) -> torch.Tensor:
    """The frames ``[B, F]`` on which an event of the captioned kind was found."""
    turned = torch.nn.functional.pad(path.turn, (0, 1)) & target.turns[:, None]
    toggled = torch.nn.functional.pad(changed[:, 1:] ^ changed[:, :-1], (1, 0)) & target.recolours[:, None]
    entered = torch.nn.functional.pad(there[:, 1:] & ~there[:, :-1], (1, 0))
    return turned | toggled | entered


def _fulfilled(
    events: torch.Tensor,
    path: paths.Path,
    evidence: torch.Tensor,
    changed: torch.Tensor,
    there: torch.Tensor,
    target: Target,
) -> torch.Tensor:
    """Whether the clip ends as the second clause says, ``[B]`` in [0, 1]: the object goes at a right angle to how it
    began, has its other colour, or the second object is there. Of turns in the first window there is `evidence`."""
    axis = torch.tensor(paths.AXES, device=changed.device)
    across = axis[path.direction[:, -1]] != axis[path.direction[:, 0]]
    known = torch.where(events[:, FRAMES - 1 :].any(1), 1.0, evidence)
    ends = torch.where(target.recolours, changed[:, -1], there[:, -1]).to(known)
    return torch.where(target.turns, known * across, ends)


def _orderly(events: torch.Tensor, target: Target) -> torch.Tensor:
    """1 where events keep their rate and distance, ``[B]``; each event too many, too few or too early counts.

    Too many, or too few: more than two standard deviations from the expected number, of a binomial law.
    """
    frames = events.shape[1]
    moments = frames / MEAN_GAP
    expected, deviation = moments * PROBABILITY, (moments * PROBABILITY * (1 - PROBABILITY)) ** 0.5
    count = events.sum(1).double()
    many = (count - expected - 2 * deviation).clamp(min=0)
    few = torch.where(target.enters, 0.0, (expected - 2 * deviation - count).clamp(min=0))
    near = torch.zeros_like(count)
    for gap in range(1, GAPS[0]):
        near = near + (events[:, gap:] & events[:, :-gap]).sum(1)
    excess: torch.Tensor = many + few + near
    return 1 / (1 + excess.square())
