"""Captions and scenes of the event world against independent numbers: time stepping, energy, binomial expectations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vidalign.errors import DataError
from vidalign.worlds.events import renderer, scenes
from vidalign.worlds.events.captions import SPLITS, VOCABULARY, CaptionSpec, all_captions, balanced, parse, prompts
from vidalign.worlds.events.constants import EXTENT, GRAVITY, PERIOD, SIZES

SUBSTEPS = 2000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def captions_of(*, motion: str = "", event: str = "", count: int = 200, seed: int = 1) -> list[str]:
    found = []
    for caption in balanced("train", 40 * count, seeded(seed)):
        spec = parse(caption)
        if spec.motion.startswith(motion) and spec.event.startswith(event):
            found.append(caption)
    return found[:count]


def reach(caption: str, which: int = 0) -> float:
    spec = parse(caption)
    return SIZES["small" if which else spec.size] * EXTENT[spec.other_shape if which else spec.shape]


def test_captions_are_read_as_they_are_written() -> None:
    texts = all_captions()
    glides, objects = 4, 2 * 6 * 3
    assert len(texts) == len(set(texts)) == objects * (glides * 1 + 6 * 5 + 6 * 5 * 3)
    assert all(str(parse(text)) == text for text in texts[::7])
    spec = parse("A large red circle glides right, then a small green square enters.")
    assert spec == CaptionSpec("large", "red", "circle", "glide right", "enter", "green", "square")
    assert {word for text in texts for word in text.replace(",", " ,").split()} == set(VOCABULARY)
    with pytest.raises(DataError, match="did you mean 'a large red circle bounces, then turns blue'"):
        parse("a large red circle bounces, then turns bluee")
    with pytest.raises(DataError, match="not a caption of the event world"):
        parse("a large red circle bounces, then turns")


def test_splits_share_no_caption() -> None:
    train, held_out, far = (set(prompts(split)) for split in ("train", "held_out", "held_out_combinations"))
    assert not train & held_out and not train & far and not held_out & far
    assert train | held_out | far == set(all_captions()) and set(prompts("unseen")) == held_out | far
    seen = {(s.colour, s.shape, s.motion) for s in map(parse, train)}
    assert not seen & {(s.colour, s.shape, s.motion) for s in map(parse, far)}
    with pytest.raises(DataError, match="the event world has no split 'trian'"):
        prompts("trian")
    assert len(SPLITS) == 5 and set(prompts("basic/train")) < train


def stepped(first: np.ndarray, velocity: np.ndarray, low: np.ndarray, high: np.ndarray, frames: int) -> np.ndarray:
    """Glides by tiny time steps, reversed whenever they stand outside the room."""
    place, out = first.copy(), [first.copy()]
    for _ in range(frames - 1):
        for _ in range(SUBSTEPS):
            place = place + velocity / SUBSTEPS
            outside = ((place < low) & (velocity < 0)) | ((place > high) & (velocity > 0))
            velocity = np.where(outside, -velocity, velocity)
        out.append(place.copy())
    return np.stack(out, 1)


def test_glides_follow_brute_force_stepping_through_every_wall() -> None:
    captions = captions_of(motion="glide", event="colour", count=40)
    track = scenes.draw(captions, 48, generator=seeded(2)).position[:, :, 0].numpy()
    extent = np.array([reach(caption) for caption in captions])[:, None]
    low, high = 0.5 + extent * np.ones(2), np.array([31.5, 31.0]) - extent
    error = np.abs(stepped(track[:, 0], track[:, 1] - track[:, 0], low, high, 48) - track)
    assert error.max() < 0.05
    signs = np.sign(np.diff(track, axis=1).sum(-1))
    assert (signs[:, :2] == signs[:, :1]).all(), "a glide goes as captioned at first"
    assert (np.abs(np.diff(signs, axis=1)) > 0).any(1).mean() > 0.8, "nearly every object meets a wall in 48 frames"


def test_bounces_keep_their_energy_for_ever() -> None:
    captions = captions_of(motion="bounce", count=60)
    y = scenes.draw(captions, 192, generator=seeded(3)).position[:, :, 0, 1]
    height = 31.0 - torch.tensor([reach(c) for c in captions], dtype=torch.float64)[:, None] - y
    assert height.min() > -1e-9
    second = height[:, 2:] - 2 * height[:, 1:-1] + height[:, :-2]
    flies = (second + GRAVITY).abs() < 1e-9
    assert 0.6 < flies.double().mean() < 0.95, "impacts lie between the other frames"
    speed = (height[:, 2:] - height[:, :-2]) / 2
    energy = GRAVITY * height[:, 1:-1] + speed.square() / 2
    for row, free in zip(energy, flies, strict=True):
        assert row[free].max() - row[free].min() < 1e-8
        assert 5.0 - 1e-6 <= row[free][0] / GRAVITY <= 14.0 + 1e-6


def test_swings_are_sinusoids_within_the_room() -> None:
    captions = captions_of(motion="swing", count=60)
    track = scenes.draw(captions, 96, generator=seeded(4)).position[:, :, 0].numpy()
    for x, y in track.transpose(0, 2, 1):
        sides = np.stack((x[1:-1], np.ones(94)), 1)
        (twice, _), residual, *_ = np.linalg.lstsq(sides, x[2:] + x[:-2], rcond=None)
        assert residual[0] < 1e-12 and np.ptp(y) == 0
        assert PERIOD[0] <= 2 * math.pi / math.acos(twice / 2) <= PERIOD[1]


def test_objects_stay_in_the_picture_and_apart() -> None:
    captions = balanced("train", 320, seeded(5))
    for frames, speeds in ((12, "train"), (192, "train"), (48, "held_out")):
        s = scenes.draw(captions, frames, generator=seeded(6), speeds=speeds)
        extent = torch.tensor([[reach(c), reach(c, 1) if s.other_shape else 0.0] for c in captions for s in [parse(c)]])
        for k in (0, 1):
            place, there = s.position[:, :, k], s.present[:, :, k]
            low = place - extent[:, None, k, None]
            high = place + extent[:, None, k, None]
            assert (low[there] > 0.5 - 1e-6).all()
            assert (high[there] < torch.tensor([31.5, 31.0]) + 1e-6).all()
        gap = (s.position[:, :, 0] - s.position[:, :, 1]).abs().amax(-1) - extent.sum(1)[:, None]
        assert (gap[s.present[..., 1]] > 1.0 - 1e-6).all(), "two objects never touch"


def test_a_turn_is_a_right_angle_to_either_side() -> None:
    captions = captions_of(event="turn", count=1200)
    s = scenes.draw(captions, 12, generator=seeded(7))
    step = s.position[:, :, 0].diff(dim=1)
    axis = step.abs().argmax(-1)
    clip, frame = s.event[:, 1:-1].nonzero().unbind(1)
    before, after = step[clip, frame], step[clip, frame + 1]
    whole = (before.norm(dim=-1) - after.norm(dim=-1)).abs() < 1e-9  # neither of the two meets a wall
    assert whole.double().mean() > 0.7
    assert ((before * after).sum(-1)[whole].abs() < 1e-9).all()
    assert (axis[clip, frame] != axis[clip, frame + 1])[whole].all()
    left = (before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0] > 0)[whole].double()
    forward = (after.sum(-1) > 0)[whole].double()
    for side in (left, forward):
        assert abs(float(side.mean()) - 0.5) < 4 * 0.5 / math.sqrt(len(side)), "either side is equally likely"
    calm = ~s.event[:, 1:].any(1)
    assert (axis[calm] == axis[calm][:, :1]).all()


@pytest.mark.parametrize("event", ["turn", "colour"])
def test_events_come_at_the_rate_of_a_stationary_process(event: str) -> None:
    """One frame in twelve on average, on every frame alike, and never within two frames of each other."""
    captions = captions_of(event=event, count=250) * 16
    events = scenes.draw(captions, 24, generator=seeded(8)).event[:, 1:].double()
    rate, count = 1 / 12, len(captions)
    sd = math.sqrt(rate * (1 - rate) / count)
    assert ((events.mean(0) - rate).abs() < 4.5 * sd).all(), events.mean(0)
    gaps = [d for row in events for d in torch.diff(row.nonzero()[:, 0]).tolist()]
    assert min(gaps) == 3
    quiet = float((events[:, :11].sum(1) == 0).double().mean())
    assert abs(quiet - chance_of_nothing(11)) < 4.5 * math.sqrt(quiet * (1 - quiet) / count)


def chance_of_nothing(frames: int) -> float:
    """That no event happens in so many frames, by enumerating the moments of the renewal process."""
    first = {k: sum(gap >= k for gap in (3, 4, 5)) / 12 for k in range(1, 6)}

    def onwards(at: int) -> float:
        """From a moment at frame `at` on."""
        return 1.0 if at > frames else 2 / 3 * sum(onwards(at + gap) for gap in (3, 4, 5)) / 3

    return sum(p * onwards(k) for k, p in first.items())


def test_what_enters_crosses_beside_the_first_object() -> None:
    captions = captions_of(event="enter", count=300)
    s = scenes.draw(captions, 96, generator=seeded(9))
    sides, speeds = [], []
    for n, caption in enumerate(captions):
        along = int(parse(caption).motion in ("glide up", "glide down", "bounce"))
        low, high = 0.5 + reach(caption, 1), (31.0 if along else 31.5) - reach(caption, 1)
        there, place = s.present[n, :, 1], s.position[n, :, 1]
        assert not there[0]
        starts = (there[1:] & ~there[:-1]).nonzero()[:, 0] + 1
        assert torch.equal(starts, s.event[n].nonzero()[:, 0]), "an event is an entrance"
        for start in starts.tolist():
            stop = start + int((~there[start:]).long().argmax()) if (~there[start:]).any() else 96
            path = place[start:stop, along]
            assert min(abs(float(path[0]) - low), abs(float(path[0]) - high)) < 1e-9, "it appears at a side"
            sides.append(float(path[0]) < 16)
            if len(path) > 1:
                steps = path.diff()
                assert (steps - steps[0]).abs().max() < 1e-9 and float(place[start:stop, 1 - along].std()) < 1e-9
                speeds.append(float(steps[0].abs()))
                beyond = path[-1] + steps[0]
                assert stop == 96 or beyond < low or beyond > high, "it leaves on the other side"
    assert abs(np.mean(sides) - 0.5) < 4 * 0.5 / math.sqrt(len(sides))
    assert min(speeds) >= 1.6 and max(speeds) <= 2.4


def test_colours_go_to_and_fro() -> None:
    captions = captions_of(event="colour", count=100)
    s = scenes.draw(captions, 48, generator=seeded(10))
    changes = (s.colour[:, 1:, 0] != s.colour[:, :-1, 0]) == s.event[:, 1:]
    assert changes.all() and not s.present[..., 1].any()
    assert all(len(row.unique()) <= 2 for row in s.colour[..., 0])


def test_futures_share_the_past_and_nothing_else() -> None:
    captions = captions_of(event="colour", count=100) + captions_of(event="turn", count=100)
    u = scenes.uniforms(len(captions), 12, seeded(11))
    one = scenes.sample(captions, u)
    for prefix in (3, 6, 9):
        other = scenes.sample(captions, scenes.futures(u, prefix, seeded(12)))
        assert torch.equal(one.position[:, :prefix], other.position[:, :prefix])
        assert torch.equal(one.colour[:, :prefix], other.colour[:, :prefix])
        assert (one.event[:, prefix:] != other.event[:, prefix:]).any()
    assert (scenes.sample(captions, scenes.futures(u, 0, seeded(13))).position[:, 0] != one.position[:, 0]).any()


def test_a_clip_is_a_function_of_its_own_generator() -> None:
    captions = balanced("train", 6, seeded(14))
    together = renderer.clips_of(captions, 12, [seeded(n) for n in range(6)])
    alone = torch.cat([renderer.clips_of([c], 12, [seeded(n)]) for n, c in enumerate(captions)])
    assert torch.equal(together, alone) and together.shape == (6, 12, 3, 32, 32)
    assert together.min() >= 0 and together.max() <= 1


def test_a_long_clip_goes_on_as_it_began() -> None:
    """Speeds of the last quarter of 192 frames are those of the first: nothing slows down or comes to rest."""
    captions = captions_of(motion="glide", event="colour", count=80)
    step = scenes.draw(captions, 192, generator=seeded(15)).position[:, :, 0].diff(dim=1).norm(dim=-1)
    first, last = step[:, :40].median(1).values, step[:, -40:].median(1).values
    assert (first - last).abs().max() < 1e-9
