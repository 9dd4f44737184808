"""The discriminator that begins from VideoReward: the published LoRA and head, trained on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_judges
import torch
from torch import Tensor

from vidalign import registry
from vidalign.errors import UserError
from vidalign.recipe import load_recipe
from vidalign.rewards.discriminators.kinds import VisionLanguageKind
from vidalign.rewards.discriminators.video_reward import VideoRewardDiscriminator
from vidalign.rewards.reward_models import video_reward
from vidalign.rewards.reward_models.loading import Weights
from vidalign.rewards.reward_models.video_reward import VideoReward
from vidalign.rewards.video_align import DIMENSIONS, VideoRewardConfig
from vidalign.students.video import VideoStudentSpec
from vidalign.workflows.plan import trace_step

PROMPTS = ["a red ball falls", "a blue box"]
SIZES = {"min_pixels": 64, "max_pixels": 448 * 448}
pytestmark = pytest.mark.filterwarnings("ignore:.*the checkpoint was trained with")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judges.save_backbone(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def published(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judges.save_video_reward(tmp_path_factory.mktemp("video_reward"), backbone)


def made(published: Path, backbone: Path, fps: float = 4.0, **changes: Any) -> VideoRewardDiscriminator:
    values = {"path": str(published), "head": "rm_head", "backbone": str(backbone), **SIZES, **changes}
    spec = VideoStudentSpec(fps=fps)
    kind = registry.get("discriminators", "vision_language")
    network = kind.from_recipe(VisionLanguageKind.Config(**values), spec, lambda p: torch.empty(0), 0)
    assert isinstance(network, VideoRewardDiscriminator)
    return network


def clips(count: int = 2) -> Tensor:
    noise = torch.randint(0, 256, (count, 9, 3, 16, 24), generator=torch.Generator().manual_seed(0))
    return noise / 255


def colour_scores(published: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """VideoReward's own scores ``[B, 3]``, motion quality in colour too."""
    settings = VideoRewardConfig(path=str(published), backbone=str(backbone), dtype="float32", **SIZES)
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(video_reward, "GREY", ())
        scores = VideoReward(settings).score(clips(), PROMPTS, 4.0, DIMENSIONS)
    return torch.stack([scores[dimension] for dimension in DIMENSIONS], 1)


def test_it_begins_as_video_reward(published: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        found = made(published, backbone)(clips(), PROMPTS)
    expected = colour_scores(published, backbone, monkeypatch).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found[0] - found[1]).abs() > 1e-3


def test_only_the_published_factors_and_the_head_are_trained(published: Path, backbone: Path) -> None:
    network = made(published, backbone)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 7 + 1, "A and B of seven layers in two blocks, and the head"
    assert all(p.dtype == torch.float32 for p in trained.values())
    file = torch.load(published / "checkpoint-11352" / "model.pth")
    layer = "layers.1.mlp.down_proj"
    assert torch.equal(
        trained[f"network.backbone.language_model.{layer}.lora_B.current.weight"],
        file[f"base_model.model.model.{layer}.lora_B.default.weight"],
    )
    assert torch.equal(trained["network.head.weight"], file["base_model.model.rm_head.weight"])
    network(clips(), PROMPTS).diff().sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name


def test_the_factors_are_read_and_scaled(published: Path, backbone: Path, tmp_path: Path) -> None:
    """Without them, and with another alpha, the scores are others."""
    other = tiny_judges.save_video_reward(tmp_path, backbone, peft_lora_config__lora_alpha=16)
    with torch.no_grad():
        network = made(published, backbone)
        usual, scaled = network(clips(), PROMPTS), made(other, backbone)(clips(), PROMPTS)
        for name, parameter in network.named_parameters():
            parameter.mul_(0 if ".lora_B." in name else 1)
        without = network(clips(), PROMPTS)
    for one, two in ((usual, scaled), (usual, without), (scaled, without)):
        assert (one - two).abs().min() > 1e-3


def test_the_frame_rate_chooses_the_frames(published: Path, backbone: Path) -> None:
    slow, fast = made(published, backbone, 2.0), made(published, backbone, 4.0)
    with torch.no_grad():
        assert (slow(clips(), PROMPTS) - fast(clips(), PROMPTS)).abs().min() > 1e-4
        seen = fast(clips()[:, [0, 3, 5, 8]], PROMPTS)
        torch.testing.assert_close(fast(clips(), PROMPTS), seen)
    config = VisionLanguageKind.Config(path=str(published), head="rm_head", backbone=str(backbone))
    with pytest.raises(UserError, match=r"no frame rate to sample by - student\.fps"):
        VideoRewardDiscriminator.from_recipe(config, SimpleNamespace(), lambda p: torch.empty(0), 0)  # type: ignore[arg-type]


def test_scores_do_not_depend_on_the_batch(published: Path, backbone: Path) -> None:
    network, prompts = made(published, backbone), ["a large red circle glides", "a circle"]
    with torch.no_grad():
        together = network(clips(), prompts)
        alone = torch.cat([network(clips()[k : k + 1], prompts[k : k + 1]) for k in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_settings_of_the_other_head_are_refused() -> None:
    for wrong in ({"rank": 8}, {"alpha": 1.0}, {"frames": 4}, {"question": "{prompt}"}):
        with pytest.raises(ValueError, match=rf"^{next(iter(wrong))} must be null: head 'rm_head'"):
            VisionLanguageKind.Config(path="there", head="rm_head", **wrong)  # type: ignore[arg-type]
    for wrong in ({"fps": 2.0}, {"backbone": "there"}, {"max_pixels": 9}):
        with pytest.raises(ValueError, match=rf"^{next(iter(wrong))} must be null: head 'new'"):
            VisionLanguageKind.Config(path="there", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^max_pixels must be at least 100352"):
        VisionLanguageKind.Config(path="there", head="rm_head", max_pixels=9)
    config = VisionLanguageKind.Config(path="there")
    assert (config.rank, config.alpha, config.frames, config.fps) == (64, 128.0, 8, None)
    assert VisionLanguageKind.Config(path="there", head="rm_head").fps == 2.0


def test_its_step_is_planned_without_its_weights(
    published: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = f"path: {published}, head: rm_head, backbone: {backbone}, min_pixels: 64"
    changes = ["trainer.prompts_per_step=2", f"discriminator={{name: vision_language, {settings}}}"]
    with monkeypatch.context() as patch:
        patch.setattr(Weights, "read", lambda *arguments: pytest.fail("weights are read"))
        plan, _ = trace_step(load_recipe("world/afd", changes))
    trained = sum(p.nbytes for p in made(published, backbone).parameters() if p.requires_grad)
    assert plan.gradients["loss of `discriminator`"] == trained
