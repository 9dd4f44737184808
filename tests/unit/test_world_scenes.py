"""Captions, splits, physics and renderer of the embedded world against independent numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vidalign.errors import DataError
from vidalign.worlds.video.captions import SPLITS, VOCABULARY, all_captions, balanced, parse, prompts
from vidalign.worlds.video.constants import EXTENT, FLOOR, GRAVITY, PALETTE, RESTITUTION, SHAPES, SIZE, SIZES
from vidalign.worlds.video.renderer import clips, coverage
from vidalign.worlds.video.scenes import sample

STEP = 1e-3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def extents(captions: list[str]) -> np.ndarray:
    specs = [parse(caption) for caption in captions]
    return np.array(
        [[EXTENT[spec.objects[k % len(spec.objects)][1]] * SIZES[spec.size] for k in (0, 1)] for spec in specs]
    )


def integrate(captions: list[str], position: np.ndarray) -> np.ndarray:
    """Time stepping at `STEP` from the first frame and the velocity that the first two frames imply."""
    motions = [parse(caption).motion for caption in captions]
    falls = np.array([m in ("fall", "bounce") or m.startswith("throw") for m in motions])
    elastic = np.array([m == "bounce" for m in motions])
    collides = np.array([m.startswith("hit") for m in motions])
    x = position[:, 0].copy()
    v = position[:, 1] - position[:, 0]
    v[falls, 0, 1] -= 0.5 * GRAVITY
    v[[m in ("fall", "bounce") for m in motions]] = 0.0
    reach = extents(captions)
    floor = FLOOR - reach[:, 0]
    frames = [x.copy()]
    per_frame = round(1 / STEP)
    for n in range((position.shape[1] - 1) * per_frame):
        x += v * STEP
        x[falls, 0, 1] += 0.5 * GRAVITY * STEP**2
        v[falls, 0, 1] += GRAVITY * STEP
        landed = falls & (x[:, 0, 1] >= floor) & (v[:, 0, 1] > 0)
        if landed.any():
            x[landed, 0, 1] = floor[landed]
            v[landed & elastic, 0, 1] *= -RESTITUTION
            v[landed & ~elastic, 0] = 0.0
        gap = np.abs(x[:, 1, 0] - x[:, 0, 0]) - reach.sum(1)
        met = collides & (gap <= 0) & (v[:, 0, 0] != 0)
        if met.any():
            v[met] = v[met][:, ::-1]
        if (n + 1) % per_frame == 0:
            frames.append(x.copy())
    return np.stack(frames, 1)


@pytest.mark.parametrize(("speeds", "frames"), [("train", 12), ("held_out", 12), ("long", 24)])
def test_trajectories_follow_brute_force_integration(speeds: str, frames: int) -> None:
    captions = balanced("train", 110, seeded(1))
    scenes = sample(captions, frames, generator=seeded(2), speeds=speeds)
    position = scenes.position.numpy()
    error = np.abs(integrate(captions, position) - position)[scenes.present.numpy()[:, None].repeat(frames, 1)]
    assert error.max() < 0.02, "closed-form events agree with stepping at a thousandth of a frame"


def test_objects_stay_in_the_picture_and_apart() -> None:
    captions = all_captions()
    for speeds, frames in (("train", 12), ("held_out", 12), ("long", 48)):
        some = captions if frames == 12 else captions[::5]
        scenes = sample(some, frames, generator=seeded(3), speeds=speeds)
        reach = torch.from_numpy(extents(some))[:, None, :, None]
        shown = scenes.present[:, None, :, None].expand_as(scenes.position)
        assert ((scenes.position - reach)[shown] > 0.49).all()
        assert ((scenes.position + reach)[..., 0][shown[..., 0]] < SIZE - 0.49).all()
        assert ((scenes.position + reach)[..., 1][shown[..., 1]] < FLOOR + 1e-6).all()
        gap = (scenes.position[:, :, 1, 0] - scenes.position[:, :, 0, 0]).abs() - reach.sum(2)[..., 0]
        assert (gap[scenes.present[:, 1]] > -1e-6).all(), "two objects touch and never overlap"


def test_captions_are_read_back_and_their_words_known() -> None:
    captions = all_captions()
    assert len(captions) == len(set(captions)) == 1404
    assert all(str(parse(caption)) == caption for caption in captions)
    assert {word for caption in captions for word in caption.split()} == set(VOCABULARY)
    with pytest.raises(DataError, match="did you mean 'a small red circle falls'"):
        parse("a small red circle fals")
    with pytest.raises(DataError, match="held_out"):
        prompts("heldout")


def test_splits_are_disjoint_and_complete() -> None:
    parts = [set(prompts(split)) for split in SPLITS[:3]]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1404
    assert prompts("held_out_speeds") == prompts("train")

    def triples(split: str) -> set[tuple[str, str, str]]:
        return {(s.colour, s.shape, s.motion) for s in map(parse, prompts(split))}

    assert not triples("train") & triples("held_out_combinations")
    seen = [parse(caption) for caption in prompts("train")]
    assert {s.colour for s in seen} == set(PALETTE) and {s.shape for s in seen} == set(SHAPES)
    assert len({s.motion for s in seen}) == 11, "every word of a held-out combination is trained elsewhere"


def test_scenes_depend_on_the_seed_alone() -> None:
    captions = balanced("train", 22, seeded(4))
    first, again = (clips(captions, generator=seeded(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, clips(captions, generator=seeded(6)))
    assert captions == balanced("train", 22, seeded(4))
    assert first.shape == (22, 12, 3, SIZE, SIZE) and first.min() >= 0 and first.max() <= 1


def test_coverage_is_the_area_of_the_shape() -> None:
    position = 10 + 10 * torch.rand(64, 1, 2, generator=seeded(7))
    for index in range(len(SHAPES)):
        for radius in SIZES.values():
            area = coverage(position, torch.full((64,), radius), torch.full((64,), index)).sum((-2, -1))
            error = area / (math.pi * radius**2) - 1
            assert error.abs().max() < 0.08 and error.mean().abs() < 0.04, "corners are rounded up a little"


def test_speeds_of_the_splits_do_not_overlap() -> None:
    captions = [caption for caption in prompts("train") if "glides" in caption and "hits" not in caption]
    slow, fast = (
        sample(captions, generator=seeded(8), speeds=split).position[:, :2, 0].diff(dim=1).norm(dim=-1)
        for split in ("train", "held_out")
    )
    assert slow.max() <= 1.5 + 1e-6 <= fast.min() + 2e-6
