"""CLIP score on a tiny random checkpoint in the format of the real ones, against the formula written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, CLIPModel

from vidalign import registry
from vidalign.errors import UserError
from vidalign.evaluation.metrics.of_rewards import ClipScore
from vidalign.rewards.framewise import evenly_spaced
from vidalign.testing import check_metric, check_reward

MEAN, STD = torch.tensor(tiny_clip.MEAN), torch.tensor(tiny_clip.STD)
PROMPTS = ["a red ball", "a blue box falls", "a red ball"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def clips() -> Tensor:
    """``[3, 9, 3, 16, 16]`` on the 8-bit grid, so that rounding changes nothing and no resizing happens."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (3, 9, 3, 16, 16), generator=generator)
    return (noise * torch.rand(3, 9, 3, 1, 1, generator=generator)).round() / 255


def metric(checkpoint: Path, **settings: Any) -> ClipScore:
    return ClipScore(ClipScore.Config(model=str(checkpoint), **settings))


def by_hand(checkpoint: Path, clip: Tensor, letters: str) -> Tensor:
    """Score of every frame ``[F]``, from the two towers and projections, tokens spelt out."""
    model = CLIPModel.from_pretrained(checkpoint)
    words = [
        [tiny_clip.LETTERS.index(c) for c in word[:-1]] + [26 + tiny_clip.LETTERS.index(word[-1])]
        for word in letters.split()
    ]
    ids = torch.tensor([[52, *sum(words, []), 53]])
    with torch.no_grad():
        text = model.text_projection(model.text_model(input_ids=ids).last_hidden_state[0, -1])
        pixels = (clip - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
        vision = model.vision_model
        images = model.visual_projection(vision.post_layernorm(vision(pixels).last_hidden_state[:, 0]))
    cosines = (images.double() @ text.double()) / (images.double().norm(dim=1) * text.double().norm())
    return 100 * cosines.clamp(min=0)


def test_scores_are_those_of_the_formula(checkpoint: Path, clips: Tensor) -> None:
    scores = metric(checkpoint, frames=0, batch=4).score(clips, PROMPTS)
    frames = torch.stack([by_hand(checkpoint, clip, prompt) for clip, prompt in zip(clips, PROMPTS, strict=True)])
    assert 3 < float(frames.mean()) < 95 and float(frames.std()) > 1, "the test can separate clips"
    best = frames.sort(1, descending=True).values[:, :3]  # 30 % of nine, rounded up
    expected = {"score": frames.mean(1), "min": frames.min(1).values, "last_quarter": frames[:, -3:].mean(1)}
    expected["top_share"] = best.mean(1)
    assert scores.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(scores[name].double(), values, rtol=1e-4, atol=1e-3)


def test_some_frames_stand_for_all(checkpoint: Path, clips: Tensor) -> None:
    """Every fourth of nine frames: 0, 4, 8."""
    few, whole = metric(checkpoint, frames=3), metric(checkpoint, frames=0)
    found, expected = few.score(clips, PROMPTS), whole.score(clips[:, ::4], PROMPTS)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found["score"], whole.score(clips, PROMPTS)["score"])


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [(9, 3, [0, 4, 8]), (81, 5, [0, 20, 40, 60, 80]), (4, 8, [0, 1, 2, 3]), (3, 0, [0, 1, 2]), (9, 1, [4])],
)
def test_evenly_spaced(length: int, count: int, expected: list[int]) -> None:
    assert evenly_spaced(length, count) == expected


def test_other_sizes_and_long_prompts(checkpoint: Path) -> None:
    """A uniform frame stays uniform when it is resized and cropped; what lies beyond the context is not read."""
    small, large = torch.full((1, 2, 3, 16, 16), 0.2), torch.full((1, 2, 3, 40, 72), 0.2)
    scores = metric(checkpoint)
    torch.testing.assert_close(scores.score(large, ["a box"]), scores.score(small, ["a box"]), rtol=1e-3, atol=1e-2)
    long = "a b c d e f g h i j k l m n"  # fourteen tokens between start and end
    torch.testing.assert_close(scores.score(small, [long + " o p"]), scores.score(small, [long]))


def test_it_keeps_the_promises_of_a_metric(checkpoint: Path, clips: Tensor) -> None:
    """A broken clip is not judged, among others."""
    check_metric("clip_score", {"model": str(checkpoint)}, items=(clips, PROMPTS))


def test_it_keeps_the_promises_of_a_reward(checkpoint: Path, clips: Tensor) -> None:
    check_reward("clip_score", [f"rewards.clip_score.model={checkpoint}"], items=(clips, PROMPTS))


def test_the_reward_is_the_mean_of_the_metric(checkpoint: Path, clips: Tensor) -> None:
    found = registry.get("rewards", "clip_score")(ClipScore.Config(model=str(checkpoint))).score(clips, PROMPTS)
    expected = metric(checkpoint).score(clips, PROMPTS)
    assert torch.equal(found["clip_score"], expected["score"]) and torch.equal(found["min"], expected["min"])


def test_checkpoints_that_cannot_be_used(checkpoint: Path, clips: Tensor, tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(UserError) as error:
            metric(folder).score(clips, PROMPTS)
        return str(error.value)

    assert "cannot be loaded" in refused(tmp_path / "nowhere") and "save_pretrained" in refused(tmp_path / "nowhere")
    BertConfig().save_pretrained(tmp_path / "bert")
    assert "type 'bert', not 'clip'" in refused(tmp_path / "bert")
    halved = tmp_path / "halved"
    halved.mkdir()
    for file in checkpoint.iterdir():
        (halved / file.name).write_bytes(file.read_bytes())
    tensors = load_file(halved / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, halved / "model.safetensors", metadata={"format": "pt"})
    assert "1 weights are missing or of another shape, first 'text_projection.weight'" in refused(halved)
    (halved / "model.safetensors").write_bytes(b"damaged")
    assert "cannot be loaded" in refused(halved)


def test_registered_with_checked_settings(checkpoint: Path) -> None:
    assert registry.get("metrics", "clip_score") is ClipScore and ClipScore.version
    assert json.loads((checkpoint / "config.json").read_text())["model_type"] == "clip"
    with pytest.raises(ValueError, match="^frames must be"):
        ClipScore.Config(frames=-1)
    with pytest.raises(ValueError, match="^batch must be"):
        ClipScore.Config(batch=0)
