"""Proxy rewards of the embedded world: what each sees, what it is blind to, and that it keeps the contract."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from vidalign import registry
from vidalign.evaluation.trust import seen
from vidalign.recipe import load_recipe
from vidalign.testing import check_reward
from vidalign.worlds.video import scorer
from vidalign.worlds.video.captions import balanced, parse
from vidalign.worlds.video.constants import COLOURS, FRAMES, SHAPES
from vidalign.worlds.video.perturbations import table
from vidalign.worlds.video.proxies import CaptionContent, FrameQuality, SmoothMotion
from vidalign.worlds.video.renderer import clips as render

PROXIES = (FrameQuality, SmoothMotion, CaptionContent)
SEES, LIKES, BLIND = "sees it", "likes it", "blind"
EXPECTED = {
    "uniform noise": (SEES, SEES, SEES),
    "frozen first frame": (LIKES, SEES, BLIND),
    "wrong caption": (BLIND, BLIND, SEES),
    "wrong motion only": (BLIND, BLIND, BLIND),
    "shuffled frames": (SEES, SEES, BLIND),
    "blur 2 px": (SEES, BLIND, SEES),
    "time reversed": (BLIND, BLIND, BLIND),
    "half speed": (LIKES, SEES, BLIND),
    "jitter 2 px": (SEES, SEES, BLIND),
    "empty scene": (SEES, SEES, SEES),
}
"""Verdicts of frame_quality, smooth_motion and caption_content on the world's own table."""


def moving(count: int) -> list[str]:
    captions = balanced("train", 2 * count, torch.Generator().manual_seed(0))
    return [caption for caption in captions if parse(caption).motion != "still"][:count]


@pytest.fixture(scope="module")
def rows() -> dict[str, tuple[Tensor, list[str]]]:
    generator = torch.Generator().manual_seed(1)
    return {name: (clips.float(), same) for name, clips, same in table(moving(30), FRAMES, generator)}


@pytest.mark.parametrize("column", range(3), ids=[kind.name for kind in PROXIES])
def test_blind_spots(column: int, rows: dict[str, tuple[Tensor, list[str]]]) -> None:
    reward: Any = PROXIES[column]()
    scores = {name: reward.score(*rows[name])[reward.name] for name in ("ground truth", *EXPECTED)}
    found = {name: seen(scores["ground truth"], scores[name]).verdict for name in EXPECTED}
    assert found == {name: verdicts[column] for name, verdicts in EXPECTED.items()}


def test_frame_quality_of_things_at_rest_is_their_visual_quality() -> None:
    """The scorer's own value, where all frames are equal: an exposure is a frame."""
    prompts = moving(8)
    still = render(prompts, generator=torch.Generator().manual_seed(2))[:, :1].expand(-1, FRAMES, -1, -1, -1)
    found = FrameQuality().score(still, ["anything"] * 8)["frame_quality"]
    torch.testing.assert_close(found, scorer.score(still, prompts)["visual_quality"], rtol=1e-5, atol=1e-6)


def test_frame_quality_knows_neither_order_nor_neighbours_of_exposures() -> None:
    clip = render(moving(1), generator=torch.Generator().manual_seed(3))
    a, b = clip[:, :1], clip[:, 6:7]
    both = float(FrameQuality().score(torch.cat([a, a, b, b], 1), [""])["frame_quality"])
    parts = [torch.cat(pair, 1) for pair in ((a, a), (a, b), (b, b))]
    alone = [float(FrameQuality().score(part, [""])["frame_quality"]) for part in parts]
    assert both == pytest.approx(sum(alone) / 3, abs=1e-6) and alone[1] < min(alone[0], alone[2])


def test_smooth_motion_is_blind_to_colours_and_knows_amounts() -> None:
    """A square of known displacement, in pixels a frame; channels may change places."""
    clips = torch.zeros(3, 6, 3, 32, 32)
    for row, shift in enumerate((0, 1, 2)):
        for frame in range(6):
            clips[row, frame, 0, 8:16, 8 + shift * frame : 16 + shift * frame] = 0.9
    found = SmoothMotion().score(clips, [""] * 3)["smooth_motion"]
    assert found[0] == 0 and found[1] < found[2]
    other = SmoothMotion().score(clips.roll(1, 2), ["a large red circle falls"] * 3)["smooth_motion"]
    assert torch.equal(found, other)
    assert SmoothMotion().score(clips[:, :1], [""] * 3)["smooth_motion"].isnan().all()


def test_caption_content_reads_the_first_frames_alone() -> None:
    prompts = moving(6)
    clips = render(prompts, generator=torch.Generator().manual_seed(4))
    later = clips.clone()
    later[:, 3:] = torch.rand(later[:, 3:].shape, generator=torch.Generator().manual_seed(5))
    judge = CaptionContent()
    found = judge.score(clips, prompts)["caption_content"]
    assert torch.equal(found, judge.score(later, prompts)["caption_content"]) and (found > 0.9).all()
    for n, prompt in enumerate(prompts):
        spec = parse(prompt)
        others = {
            "size": "small" if spec.size == "large" else "large",
            "colour": next(c for c in COLOURS if c not in (spec.colour, spec.other_colour)),
            "shape": next(s for s in SHAPES if s != spec.shape),
        }
        for key, value in others.items():
            wrong = str(dataclasses.replace(spec, **{key: value}))
            assert judge.score(clips[n : n + 1], [wrong])["caption_content"] < 0.8 * found[n], wrong


@pytest.mark.parametrize("name", [kind.name for kind in PROXIES])
def test_it_keeps_the_promises_of_a_reward(name: str) -> None:
    check_reward(name)


def test_a_broken_clip_and_a_foreign_prompt_are_failed_items() -> None:
    prompts = moving(3)
    clips = render(prompts, generator=torch.Generator().manual_seed(6))
    clips[1, 0, 0, 0, 0] = torch.nan
    for kind in PROXIES:
        reward: Any = kind()
        assert reward.score(clips, prompts)[reward.name].isnan().tolist() == [False, True, False]
    with pytest.warns(UserWarning, match="'a dog runs' is no caption"):
        found = CaptionContent().score(clips, ["a dog runs", *prompts[1:]])["caption_content"]
    assert found.isnan().tolist() == [True, True, False]
    assert not registry.get("rewards", "caption_content").can_score("a dog runs")


def test_the_recipe_trains_on_proxies_and_watches_the_clean_rewards() -> None:
    recipe = load_recipe("world/astrolabe_proxy")
    weights = recipe.reward_weights
    assert {name for name, weight in weights.items() if weight} == {kind.name for kind in PROXIES}
    assert {name for name, weight in weights.items() if not weight} == set(scorer.SCORES[:3])
    one = load_recipe("world/astrolabe_proxy", ["rewards.smooth_motion=0", "rewards.caption_content=0"])
    assert {name for name, weight in one.reward_weights.items() if weight} == {"frame_quality"}
