"""The adapter for vision-language backbones, on tiny stock ones built from their configs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_llava import save_llava
from torch import nn
from transformers.models.llava.modeling_llava import LlavaModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from vidalign.errors import UserError
from vidalign.recipe import load_recipe
from vidalign.rewards.discriminators.vision_language import VisionLanguage, _decoder_name
from vidalign.students.video import VideoStudentSpec
from vidalign.workflows.plan import trace_step


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


def adapter(path: Path, **changes: object) -> VisionLanguage:
    settings = {"path": str(path), "rank": 2, "frames": 3, "question": "show {prompt}", **changes}
    config = VisionLanguage.Config(**settings)  # type: ignore[arg-type]
    return VisionLanguage.from_recipe(config, VideoStudentSpec(), lambda p: torch.empty(0), 0)


def clips(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 9, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_only_language_adapters_and_a_head_without_bias_are_trained(llava: Path) -> None:
    network = adapter(llava)
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert "head.weight" in trained and network.head.bias is None
    others = trained - {"head.weight"}
    assert others and all(name.startswith("backbone.language_model.layers.") and ".lora_" in name for name in others)
    linears = [
        m for m in network.backbone.language_model.modules() if type(m).__name__ == "Linear" and hasattr(m, "lora_A")
    ]
    assert len(linears) == 2 * 7, "q, k, v, o, gate, up, down of both layers"


def test_a_fresh_adapter_changes_nothing(llava: Path) -> None:
    network = adapter(llava)
    plain = LlavaModel.from_pretrained(llava).eval()
    inputs = network.inputs(clips(1), ["a large red circle"])
    with torch.no_grad():
        expected = plain(**inputs).last_hidden_state[:, -1] @ network.head.weight.T
        torch.testing.assert_close(network(clips(1), ["a large red circle"]), expected[:, 0], rtol=1e-5, atol=1e-5)


def test_scores_do_not_depend_on_the_batch_or_on_padding(llava: Path) -> None:
    """Prompts of other lengths in one batch: the head reads each one's own last token."""
    network = adapter(llava)
    prompts = ["a large red circle glides", "a circle"]
    for side in ("left", "right"):
        network.processor.tokenizer.padding_side = side
        with torch.no_grad():
            together = network(clips(), prompts)
            alone = torch.cat([network(clips()[k : k + 1], prompts[k : k + 1]) for k in range(2)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
        assert (together[0] - together[1]).abs() > 1e-3


def test_scores_see_prompt_and_chosen_frames(llava: Path) -> None:
    network, prompt, clip = adapter(llava), "a large red circle", clips(1)
    with torch.no_grad():
        base = network(clip, [prompt])
        assert (network(clip, ["a small blue circle"]) - base).abs() > 1e-4
        for frame, seen in ((0, True), (4, True), (8, True), (3, False)):
            changed = clip.clone()
            changed[:, frame] = 1 - changed[:, frame]
            assert bool((network(changed, [prompt]) - base).abs() > 1e-5) == seen


def test_gradient_reaches_every_adapter_and_nothing_else(llava: Path) -> None:
    network = adapter(llava)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.02)
    network(clips(), ["a circle"] * 2).diff().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad, name


def test_the_language_model_of_another_family_is_found() -> None:
    with torch.device("meta"):
        text = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
        vision = dict(depth=1, embed_dim=32, num_heads=2, hidden_size=32)
        assert _decoder_name(Qwen2VLModel(Qwen2VLConfig(text_config=text, vision_config=vision))) == "language_model"
    with pytest.raises(UserError, match="no language model"):
        _decoder_name(nn.Linear(2, 2))


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        adapter(tmp_path)
    for wrong in ({"path": ""}, {"rank": 0}, {"frames": 1}, {"question": "what"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VisionLanguage.Config(**{"path": "there", **wrong})  # type: ignore[arg-type]


def test_its_step_is_planned_without_its_weights(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [
        "trainer.prompts_per_step=2",
        f"discriminator={{name: vision_language, path: {llava}, rank: 2, frames: 3}}",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(LlavaModel, "from_pretrained", lambda *arguments, **options: pytest.fail("weights are read"))
        plan, _ = trace_step(load_recipe("world/afd", changes))
    trained = sum(p.nbytes for p in adapter(llava).parameters() if p.requires_grad)
    assert plan.gradients["loss of `discriminator`"] == trained
