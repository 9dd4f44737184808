"""Rewards that judge frames, against the formulas written out on tiny checkpoints of the published formats."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from vidalign import registry
from vidalign.errors import UserError
from vidalign.rewards.aesthetic import Aesthetic, predictor
from vidalign.rewards.clip_score import ClipScoreReward
from vidalign.rewards.framewise import pooled
from vidalign.rewards.pick_score import PickScore
from vidalign.testing import check_metric, check_reward

PROMPTS = ["a red ball", "a blue box falls"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_clip.save_clip(tmp_path_factory.mktemp("clip"))
    torch.manual_seed(3)
    layers = {f"layers.{name}": torch.randn_like(p) / 3 for name, p in predictor(8).state_dict().items()}
    torch.save(layers, folder / "head.pth")
    save_file(layers, folder / "head.safetensors")
    return folder


@pytest.fixture
def clips() -> Tensor:
    """``[2, 9, 3, 16, 16]`` on the 8-bit grid, so that rounding changes nothing and no resizing happens."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, (2, 9, 3, 16, 16), generator=generator)
    return (noise * torch.rand(2, 9, 3, 1, 1, generator=generator)).round() / 255


def embeddings(folder: Path, clips: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Unit embeddings ``[B, F, 8]`` and ``[B, 8]``, from the towers and projections, tokens spelt out."""
    model = CLIPModel.from_pretrained(folder)
    letters, texts = tiny_clip.LETTERS, []
    with torch.no_grad():
        for prompt in prompts:
            words = [[*map(letters.index, w[:-1]), 26 + letters.index(w[-1])] for w in prompt.split()]
            ids = torch.tensor([[52, *sum(words, []), 53]])
            texts.append(model.text_projection(model.text_model(input_ids=ids).last_hidden_state[0, -1]))
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tiny_clip.MEAN, tiny_clip.STD))
        hidden = model.vision_model((clips.flatten(0, 1) - mean) / std).last_hidden_state[:, 0]
        images = model.visual_projection(model.vision_model.post_layernorm(hidden)).view(*clips.shape[:2], -1)
    unit = [x.double() / x.double().norm(dim=-1, keepdim=True) for x in (images, torch.stack(texts))]
    return unit[0], unit[1]


def test_pick_score_is_the_scaled_cosine(folder: Path, clips: Tensor) -> None:
    images, texts = embeddings(folder, clips, PROMPTS)
    scale = math.exp(float(CLIPModel.from_pretrained(folder).logit_scale.detach()))
    expected = scale * (images * texts[:, None]).sum(-1)
    found = PickScore(PickScore.Config(model=str(folder), processor="", frames=0)).score(clips, PROMPTS)
    assert float(expected.std()) > 0.5 and expected.min() < 0, "negative cosines are not cut off"
    torch.testing.assert_close(found["pick_score"].double(), expected.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["min"].double(), expected.amin(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["head.pth", "head.safetensors"])
def test_aesthetic_is_five_linear_layers_on_the_unit_embedding(folder: Path, clips: Tensor, head: str) -> None:
    x, _ = embeddings(folder, clips, PROMPTS)
    layers = torch.load(folder / "head.pth")
    for place in (0, 2, 4, 6, 7):
        x = x @ layers[f"layers.{place}.weight"].double().T + layers[f"layers.{place}.bias"].double()
    reward = Aesthetic(Aesthetic.Config(model=str(folder), head=str(folder / head), frames=0))
    found = reward.score(clips, PROMPTS)
    assert float(x.std()) > 1e-3
    torch.testing.assert_close(found["aesthetic"].double(), x[..., 0].mean(1), rtol=1e-4, atol=1e-4)
    assert torch.equal(found["aesthetic"], reward.score(clips, ["anything", "else"])["aesthetic"])


def test_poolings() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0, 3.0, 2.0, 0.0, 7.0]])
    found = {name: float(value) for name, value in pooled(scores, 0.3).items()}
    assert found == pytest.approx({"mean": 22 / 7, "min": 0, "top_share": (7 + 5 + 4) / 3, "last_quarter": 3.5})


@pytest.mark.parametrize("pooling", ["mean", "min", "top_share", "last_quarter"])
def test_the_chosen_pooling_is_the_score(folder: Path, clips: Tensor, pooling: Any) -> None:
    whole = ClipScoreReward(ClipScoreReward.Config(model=str(folder))).score(clips, PROMPTS)
    one = ClipScoreReward(ClipScoreReward.Config(model=str(folder), pooling=pooling)).score(clips, PROMPTS)
    every = {"mean": whole.pop("clip_score"), **whole}
    assert torch.equal(one.pop("clip_score"), every.pop(pooling)) and one.keys() == every.keys()


@pytest.mark.parametrize("name", ["clip_score", "pick_score", "aesthetic"])
def test_they_keep_the_promises_of_rewards_and_metrics(name: str, folder: Path, clips: Tensor) -> None:
    settings = {"model": str(folder)}
    settings |= {"pick_score": {"processor": ""}, "aesthetic": {"head": str(folder / "head.pth")}}.get(name, {})
    check_metric(name, settings, items=(clips, PROMPTS))
    check_reward(name, [f"rewards.{name}.{key}={value!r}" for key, value in settings.items()], items=(clips, PROMPTS))


def test_weights_that_rest_give_the_same_bits(folder: Path, clips: Tensor) -> None:
    settings = {"model": str(folder), "head": str(folder / "head.pth")}
    stays, rests = (Aesthetic(Aesthetic.Config(**settings, offload=where)) for where in ("none", "cpu"))
    assert torch.equal(stays.score(clips, PROMPTS)["aesthetic"], rests.score(clips, PROMPTS)["aesthetic"])
    assert (stays.judging.weights.moves, rests.judging.weights.moves) == (0, 1)
    half = Aesthetic(Aesthetic.Config(**settings, dtype="bfloat16"))
    assert half.judging.network.dtype == torch.bfloat16
    torch.testing.assert_close(
        half.score(clips, PROMPTS)["aesthetic"], stays.score(clips, PROMPTS)["aesthetic"], rtol=0.1, atol=0.05
    )


def test_a_device_that_is_not_there(folder: Path, clips: Tensor) -> None:
    for device, message in (("cuda:99", "no device 'cuda:99'"), ("gpu", "'gpu' is no device")):
        with pytest.raises(UserError, match=message):
            ClipScoreReward(ClipScoreReward.Config(model=str(folder), device=device)).score(clips, PROMPTS)


def test_heads_that_do_not_fit(folder: Path, clips: Tensor, tmp_path: Path) -> None:
    good = torch.load(folder / "head.pth")
    broken = {
        "2 tensors are missing, first 'layers.4.bias'": {k: v for k, v in good.items() if "layers.4" not in k},
        "1 tensors are of another network, first 'extra'": {**good, "extra": torch.ones(1)},
        r"layers.7.weight is \[1, 15\], not \[1, 16\]": {**good, "layers.7.weight": torch.ones(1, 15)},
    }
    for message, tensors in broken.items():
        torch.save(tensors, tmp_path / "head.pth")
        with pytest.raises(UserError, match=message):
            Aesthetic(Aesthetic.Config(model=str(folder), head=str(tmp_path / "head.pth"))).score(clips, PROMPTS)
    torch.save({"layers": Path("code")}, tmp_path / "code.pth")
    for file in ("code.pth", "nowhere.pth"):
        with pytest.raises(UserError, match="the layers cannot be read"):
            Aesthetic(Aesthetic.Config(model=str(folder), head=str(tmp_path / file))).score(clips, PROMPTS)


Shapes = dict[str, list[int]]


def published(layers: int, width: int, vision_layers: int, vision_width: int, patch: int, out: int) -> Shapes:
    """Names and shapes of the tensors of a published CLIP checkpoint: towers of blocks of ``[width, 4 width]``."""

    def blocks(prefix: str, count: int, size: int) -> Shapes:
        found: Shapes = {}
        for n in range(count):
            at = f"{prefix}.encoder.layers.{n}"
            for part in ("k", "q", "v", "out"):
                found |= {
                    f"{at}.self_attn.{part}_proj.weight": [size, size],
                    f"{at}.self_attn.{part}_proj.bias": [size],
                }
            found |= {f"{at}.self_attn.out_proj.weight": [size, size], f"{at}.self_attn.out_proj.bias": [size]}
            for norm in ("layer_norm1", "layer_norm2"):
                found |= {f"{at}.{norm}.weight": [size], f"{at}.{norm}.bias": [size]}
            found |= {f"{at}.mlp.fc1.weight": [4 * size, size], f"{at}.mlp.fc1.bias": [4 * size]}
            found |= {f"{at}.mlp.fc2.weight": [size, 4 * size], f"{at}.mlp.fc2.bias": [size]}
        return found

    def norm(name: str, size: int) -> Shapes:
        return {f"{name}.weight": [size], f"{name}.bias": [size]}

    places = (224 // patch) ** 2 + 1
    return {
        "logit_scale": [],
        "text_model.embeddings.token_embedding.weight": [49408, width],
        "text_model.embeddings.position_embedding.weight": [77, width],
        **blocks("text_model", layers, width),
        **norm("text_model.final_layer_norm", width),
        "vision_model.embeddings.class_embedding": [vision_width],
        "vision_model.embeddings.patch_embedding.weight": [vision_width, 3, patch, patch],
        "vision_model.embeddings.position_embedding.weight": [places, vision_width],
        **norm("vision_model.pre_layrnorm", vision_width),  # published so
        **blocks("vision_model", vision_layers, vision_width),
        **norm("vision_model.post_layernorm", vision_width),
        "visual_projection.weight": [out, vision_width],
        "text_projection.weight": [out, width],
    }


@pytest.mark.parametrize(
    ("text", "vision", "out", "parameters"),
    [((24, 1024, 16), (32, 1280, 16, 14), 1024, 986), ((12, 768, 12), (24, 1024, 16, 14), 768, 428)],
    ids=["pick_score-vit-h", "aesthetic-vit-l"],
)
def test_real_sizes_have_the_published_tensors(
    text: tuple[int, ...], vision: tuple[int, ...], out: int, parameters: int
) -> None:
    """986 and 428 million parameters, as published."""
    towers = [
        {"num_hidden_layers": n, "hidden_size": w, "intermediate_size": 4 * w, "num_attention_heads": heads}
        for n, w, heads in (text[:3], vision[:3])
    ]
    config = CLIPConfig(text_config=towers[0], vision_config={**towers[1], "patch_size": vision[3]}, projection_dim=out)
    with torch.device("meta"):
        model = CLIPModel(config)
    found = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert found == published(text[0], text[1], vision[0], vision[1], vision[3], out)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == parameters
    with torch.device("meta"):
        sizes = {name: list(value.shape) for name, value in predictor(768).state_dict().items()}
    assert sizes["0.weight"] == [1024, 768] and sizes["7.weight"] == [1, 16] and len(sizes) == 10


def test_all_are_registered_twice() -> None:
    for name in ("clip_score", "pick_score", "aesthetic", "vlm_judge"):
        reward, metric = registry.get("rewards", name), registry.get("metrics", name)
        assert metric.Config is reward.Config and metric.name == reward.name == name
