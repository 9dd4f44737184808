"""Names and shapes of the published checkpoints at full size, against networks on the meta device.

The files themselves are not here. Their names follow from the public training code (github.com/KwaiVGI/VideoAlign,
github.com/MizzenAI/HPSv3: Qwen2-VL of transformers 4.45 with `rm_head`, PEFT on every linear layer but those of
`visual`, `lm_head`, `rm_head`), the shapes from the configurations of Qwen2-VL. What they add up to is checked against
the published size of `checkpoint-11352/model.pth`, 5,031,072,529 bytes, all of it in bfloat16.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Qwen2VLConfig

from vidalign.errors import CheckpointError
from vidalign.rewards.reward_models.loading import Lora, expected, unloaded
from vidalign.rewards.reward_models.names import Shape, compare, our_name, renamed
from vidalign.rewards.reward_models.network import linear_head, preference_head
from vidalign.rewards.reward_models.reader import template

VIDEO_REWARD_BYTES = 5_031_072_529
HPS_V3_BYTES = 16.6e9
TEXT: dict[str, dict[str, int]] = {
    "2B": dict(width=1536, inner=8960, heads=12, keys=2, tokens=151_660),
    "7B": dict(width=3584, inner=18944, heads=28, keys=4, tokens=151_658),
}
LAYERS, BLOCKS, EYES = 28, 32, 1280


def config(size: str) -> Qwen2VLConfig:
    """As `config.json` of Qwen2-VL says, with the tokens of the reward model."""
    text = TEXT[size]
    return Qwen2VLConfig(
        hidden_size=text["width"],
        intermediate_size=text["inner"],
        num_hidden_layers=LAYERS,
        num_attention_heads=text["heads"],
        num_key_value_heads=text["keys"],
        vocab_size=text["tokens"],
        rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        rope_theta=1000000.0,
        vision_config=dict(depth=BLOCKS, embed_dim=EYES, mlp_ratio=4, num_heads=16, in_chans=3, patch_size=14)
        | dict(hidden_size=text["width"], spatial_merge_size=2, spatial_patch_size=14, temporal_patch_size=2),
    )


def linears(size: str) -> dict[str, Shape]:
    """Linear layers of a block of the language model, as (out, in)."""
    text = TEXT[size]
    width, inner = text["width"], text["inner"]
    narrow = width // text["heads"] * text["keys"]
    attention = {"q_proj": (width, width), "k_proj": (narrow, width), "v_proj": (narrow, width)}
    attention |= {"o_proj": (width, width)}
    mlp = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    return {f"self_attn.{k}": v for k, v in attention.items()} | {f"mlp.{k}": v for k, v in mlp.items()}


def published(size: str) -> dict[str, Shape]:
    """Weights of Qwen2-VL by the names of transformers 4.45."""
    text = TEXT[size]
    width, wide = text["width"], 4 * EYES
    out: dict[str, Shape] = {"visual.patch_embed.proj.weight": (EYES, 3, 2, 14, 14)}
    for n in range(BLOCKS):
        block = f"visual.blocks.{n}"
        out |= {f"{block}.{norm}.{kind}": (EYES,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        for name, into, to in (
            ("attn.qkv", EYES, 3 * EYES),
            ("attn.proj", EYES, EYES),
            ("mlp.fc1", EYES, wide),
            ("mlp.fc2", wide, EYES),
        ):
            out |= {f"{block}.{name}.weight": (to, into), f"{block}.{name}.bias": (to,)}
    merger = "visual.merger"
    out |= {f"{merger}.ln_q.weight": (EYES,), f"{merger}.ln_q.bias": (EYES,)}
    out |= {f"{merger}.mlp.0.weight": (wide, wide), f"{merger}.mlp.0.bias": (wide,)}
    out |= {f"{merger}.mlp.2.weight": (width, wide), f"{merger}.mlp.2.bias": (width,)}
    out |= {"model.embed_tokens.weight": (text["tokens"], width), "model.norm.weight": (width,)}
    out |= {"lm_head.weight": (text["tokens"], width)}
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        out |= {f"{layer}.input_layernorm.weight": (width,), f"{layer}.post_attention_layernorm.weight": (width,)}
        for name, shape in linears(size).items():
            out[f"{layer}.{name}.weight"] = shape
            if name[-6:] in ("q_proj", "k_proj", "v_proj"):
                out[f"{layer}.{name}.bias"] = shape[:1]
    return out


def video_reward(rank: int = 64, adapter: str = ".default") -> dict[str, Shape]:
    """Of `model.pth`; adapter: how PEFT calls the adapter in the names of its factors."""
    out: dict[str, Shape] = {"base_model.model.rm_head.weight": (1, 1536)}
    layers = {f"model.layers.{n}.{name}" for n in range(LAYERS) for name in linears("2B")}
    for name, shape in published("2B").items():
        layer, _, kind = name.rpartition(".")
        whole = f"{layer}.base_layer.{kind}" if layer in layers else name
        out[f"base_model.model.{whole}"] = shape
        if layer in layers and kind == "weight":
            out[f"base_model.model.{layer}.lora_A{adapter}.weight"] = (rank, shape[1])
            out[f"base_model.model.{layer}.lora_B{adapter}.weight"] = (shape[0], rank)
    return out


def hps_v3() -> dict[str, Shape]:
    """Of `HPSv3.safetensors`."""
    head: dict[str, Shape] = {}
    for place, (out, into) in {0: (1024, 3584), 3: (16, 1024), 5: (2, 16)}.items():
        head |= {f"rm_head.{place}.weight": (out, into), f"rm_head.{place}.bias": (out,)}
    return published("7B") | head


def network(size: str) -> Any:
    reader: Any = SimpleNamespace(visual_token=151_656, reward_tokens=[151_657])
    return unloaded(config(size), reader, linear_head if size == "2B" else preference_head)


def ours(names: dict[str, Shape]) -> dict[str, Shape]:
    return {name: names[key] for name, key in renamed(names, "a file").items()}


def test_video_reward_at_full_size() -> None:
    names, made = video_reward(), network("2B")
    assert all(parameter.is_meta for parameter in made.parameters()), "nothing of 2 billion numbers is in memory"
    assert len(names) == 729 + 2 * 7 * LAYERS + 1 + 1, "Qwen2-VL, factors, head, lm_head"
    compare(ours(names), expected(made, Lora(64, 128.0)), "a file")
    compare(ours(video_reward(adapter="")), expected(made, Lora(64, 128.0)), "a file")
    size = sum(2 * math.prod(shape) for shape in names.values())
    assert 0 < VIDEO_REWARD_BYTES - size < 400 * len(names), "the rest is names and the frame of the archive"


def test_hps_v3_at_full_size() -> None:
    names, made = hps_v3(), network("7B")
    assert all(parameter.is_meta for parameter in made.parameters())
    compare(ours(names), expected(made, None), "a file")
    head = sum(2 * math.prod(shape) for name, shape in names.items() if name.startswith("rm_head"))
    assert sum(2 * math.prod(shape) for shape in names.values()) + head == pytest.approx(HPS_V3_BYTES, rel=2e-3)


def test_names_of_later_transformers_and_of_files_without_peft() -> None:
    new = {"model.visual.patch_embed.proj.weight": "backbone.visual.patch_embed.proj.weight"}
    new |= {"model.language_model.norm.weight": "backbone.language_model.norm.weight"}
    new |= {"model.norm.weight": "backbone.language_model.norm.weight", "rm_head.5.bias": "head.5.bias"}
    assert {name: our_name(name) for name in new} == new
    assert our_name("lm_head.weight") is None and our_name("base_model.model.lm_head.weight") is None


def test_the_questions_keep_their_white_space() -> None:
    """Which editors like to strip, and the models were trained on."""
    video, picture = template("video_reward"), template("hps_v3")
    assert video.startswith("\nYou are tasked") and video.endswith("Text Alignment: <|TA_reward|>\nEND\n")
    for title in ("Visual Quality", "Motion Quality", "Text Alignment"):
        assert f"**{title}:**  \n" in video and (title == "Motion Quality" or f"**{title}:**  \n" in picture)
    assert (
        "adaptation is acceptable.  \n" in video and "lowest possible. \n" in video and "lowest possible. \n" in picture
    )
    assert picture.endswith(
        "prompt - {text_prompt}\n\n\n\nPlease provide the overall ratings of this image: <|Reward|>\n\nEND\n"
    )


def test_the_scale_of_factors() -> None:
    assert Lora(64, 128.0).scale == 2.0 and Lora(64, 128.0, root=True).scale == 16.0


def test_another_model_is_refused_by_its_first_differences() -> None:
    with pytest.raises(CheckpointError, match=r"392 of another shape: backbone\.language_model.*, \.\.\."):
        compare(ours(video_reward(rank=32)), expected(network("2B"), Lora(64, 128.0)), "a file")
    with pytest.raises(CheckpointError, match=r"392 unexpected: "):
        compare(ours(video_reward()), expected(network("2B"), None), "a file")
