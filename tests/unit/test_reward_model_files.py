"""Files that are not those of the published reward models: one clear error each, with the first differences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_judges
import torch
from reward_model_helpers import PROMPTS, hps_judge, judge, noisy_clips
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig

from vidalign.errors import UserError


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judges.save_backbone(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def video_reward(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judges.save_video_reward(tmp_path_factory.mktemp("video_reward"), backbone)


@pytest.fixture(scope="module")
def hps(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_judges.save_hps_v3(tmp_path_factory.mktemp("hps") / "HPSv3.safetensors", backbone)


@pytest.fixture
def clips() -> Tensor:
    return noisy_clips()


def edit(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    file = folder / "checkpoint-11352" / "model.pth"
    tensors = torch.load(file)
    change(tensors)
    torch.save(tensors, file)


Q = "base_model.model.model.layers.0.self_attn.q_proj"
CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (
        lambda t: [t.pop(f"{Q}.lora_A.default.weight"), t.pop("base_model.model.rm_head.weight")],
        r"2 missing: backbone\.language_model\.layers\.0\.self_attn\.q_proj\.lora_A, head\.weight",
    ),
    "unexpected": (lambda t: t.update({"base_model.model.extra": torch.zeros(1)}), "1 unexpected: extra"),
    "shape": (
        lambda t: t.update({"base_model.model.rm_head.weight": torch.zeros(3, 32)}),
        "1 of another shape: head.weight 3x32, not 1x32",
    ),
    "tokens": (
        lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.zeros(9, 32)}),
        r"1 of another shape: backbone\.language_model\.embed_tokens\.weight 9x32",
    ),
    "twice": (
        lambda t: t.update({f"{Q}.lora_A.weight": t[f"{Q}.lora_A.default.weight"]}),
        "names a weight twice",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_wrong_weights_name_the_first_differences(name: str, backbone: Path, clips: Tensor, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    folder = tiny_judges.save_video_reward(tmp_path, backbone)
    edit(folder, change)
    with pytest.raises(UserError, match=message):
        judge(folder, backbone).score(clips, PROMPTS, 4.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_lora_config__lora_r": 8}, "of another shape.*lora_A 4x32, not 8x32"),
        ({"data_config__prompt_template_type": "simple"}, "prompt_template_type is 'simple'"),
        ({"model_config__output_dim": 3}, "output_dim is 3"),
        ({"inference_config__MQ_std": 0.0}, "not positive"),
        ({"inference_config__MQ_std": None}, "no mean and standard deviation"),
        ({"peft_lora_config__lora_alpha": "much"}, "no rank and alpha"),
    ],
)
def test_wrong_settings_of_a_checkpoint(
    change: dict[str, Any], message: str, backbone: Path, clips: Tensor, tmp_path: Path
) -> None:
    folder = tiny_judges.save_video_reward(tmp_path, backbone, **change)
    with pytest.raises(UserError, match=message):
        judge(folder, backbone).score(clips, PROMPTS, 4.0)


def test_other_sampling_than_the_training_is_a_warning(video_reward: Path, backbone: Path, clips: Tensor) -> None:
    with pytest.warns(UserWarning, match="fps is 4, the checkpoint was trained with 2"):
        judge(video_reward, backbone, fps=4.0, dtype="float16")._loaded()


def test_files_that_are_not_there(video_reward: Path, hps: Path, backbone: Path, clips: Tensor, tmp_path: Path) -> None:
    def refused(reward: Any, *more: float) -> str:
        with pytest.raises(UserError) as error:
            reward.score(clips, PROMPTS, *more)
        return str(error.value)

    assert "model_config.json" in refused(judge(tmp_path, backbone), 4.0)
    (tmp_path / "model_config.json").write_text((video_reward / "model_config.json").read_text(), encoding="utf-8")
    assert "it holds neither model.pth nor adapter_model.safetensors" in refused(judge(tmp_path, backbone), 4.0)
    BertConfig().save_pretrained(tmp_path / "bert")
    assert "'bert', not 'qwen2_vl'" in refused(judge(video_reward, tmp_path / "bert"), 4.0)
    halved = load_file(hps)
    del halved["rm_head.3.bias"], halved["visual.blocks.0.mlp.fc1.bias"]
    save_file(halved, tmp_path / "HPSv3.safetensors")
    assert "2 missing: backbone.visual.blocks.0.mlp.fc1.bias, head.3.bias" in refused(hps_judge(tmp_path, backbone))
    assert "no such checkpoint" in refused(hps_judge(tmp_path / "none.safetensors", backbone))
    (tmp_path / "model_config.json").write_text(json.dumps([1]), encoding="utf-8")
    assert "the settings of VideoReward cannot be read" in refused(judge(tmp_path, backbone), 4.0)
