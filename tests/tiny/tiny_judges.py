"""Tiny reward models in the formats of the published ones: VideoReward (whole, and as an adapter) and HPSv3.

Weights are random; names, settings and processor files are those of the real folders, as transformers 4.45 wrote them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLModel

from vidalign.rewards.reward_models.reader import template

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
PADS = ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
REWARDS = ["<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"]
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are a helpful "
    "assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' or 'image' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] == 'video' or 'video' in part %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WIDTH, RANK, ALPHA = 32, 4, 8
PATCH = 4
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
NORMS = {"VQ": (3.6757, 2.2476), "MQ": (1.1646, 1.3811), "TA": (2.8105, 2.5121)}
FLAT: dict[str, Any] = dict(
    model_type="qwen2_vl",
    architectures=["Qwen2VLForConditionalGeneration"],
    hidden_size=WIDTH,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    rope_scaling={"type": "mrope", "mrope_section": [2, 1, 1]},
    tie_word_embeddings=True,
    vision_config=dict(
        depth=2,
        embed_dim=32,
        hidden_size=WIDTH,
        mlp_ratio=2,
        num_heads=2,
        in_chans=3,
        patch_size=PATCH,
        spatial_merge_size=2,
        spatial_patch_size=PATCH,
        temporal_patch_size=2,
    ),
)
"""The configuration as the published folder of Qwen2-VL writes it, not divided into text and vision."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with the special tokens of Qwen2-VL and most words of the questions, which are long otherwise."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=[*SPECIALS, *PADS], initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator([template("video_reward"), template("hps_v3"), "a red ball falls"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=[*SPECIALS, *PADS]
    )


def save_backbone(folder: Path) -> Path:
    """Configuration and processor of a tiny Qwen2-VL, and its weights, whose embedding has rows to spare."""
    folder.mkdir(parents=True, exist_ok=True)
    tok = tokenizer()
    tok.chat_template = TEMPLATE
    tok.save_pretrained(folder)
    named = {f"{name}_token_id": tok.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    named |= {f"{name}_token_id": tok.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")}
    config = FLAT | named | {"vocab_size": len(tok) + 16}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    pictures = dict(
        image_processor_type="Qwen2VLImageProcessor",
        processor_class="Qwen2VLProcessor",
        min_pixels=3136,
        max_pixels=12845056,
        patch_size=PATCH,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=MEAN,
        image_std=STD,
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures), encoding="utf-8")
    return folder


def backbone(tokens: int, seed: int = 0) -> Qwen2VLModel:
    """A random network whose embedding has so many rows."""
    values = {k: v for k, v in FLAT.items() if k != "architectures"} | {"vocab_size": tokens}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLModel(Qwen2VLConfig(**values)).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # larger than transformers draws them, so that scores differ
                parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.ndim > 1 else 0.1))
                parameter.add_(1.0 if parameter.ndim == 1 else 0.0)
    return model


def old_names(model: Qwen2VLModel) -> dict[str, torch.Tensor]:
    """The weights under the names of transformers 4.45."""
    names = {"language_model.": "model.", "visual.": "visual."}
    out = {}
    for key, value in model.state_dict().items():
        before = next(name for name in names if key.startswith(name))
        out[names[before] + key.removeprefix(before)] = value.clone()
    return out | {"lm_head.weight": out["model.embed_tokens.weight"].clone()}


def factors(model: Qwen2VLModel, seed: int = 1) -> dict[str, torch.Tensor]:
    """LoRA factors of every linear layer of the language model, as ``model.layers.0.self_attn.q_proj.lora_A``."""
    numbers = torch.Generator().manual_seed(seed)
    out = {}
    for name, layer in model.language_model.layers.named_modules():
        if isinstance(layer, nn.Linear):
            out[f"model.layers.{name}.lora_A"] = torch.randn(RANK, layer.in_features, generator=numbers) * 0.2
            out[f"model.layers.{name}.lora_B"] = torch.randn(layer.out_features, RANK, generator=numbers) * 0.2
    return out


def save_video_reward(folder: Path, backbone_folder: Path, form: str = "whole", **changes: Any) -> Path:
    """A folder like KlingTeam/VideoReward. form: `whole` (model.pth), `adapter`, or `plain` names without PEFT."""
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(backbone_folder)
    rows = len(tok) + len(REWARDS)
    model = backbone(rows)
    base, lora = old_names(model), factors(model)
    numbers = torch.Generator().manual_seed(2)
    head = torch.randn(1, WIDTH, generator=numbers)
    step = folder / "checkpoint-11352"
    step.mkdir(parents=True)
    layers = {name.rpartition(".")[0] for name in lora}
    if form == "adapter":
        save_file(base, backbone_folder / "model.safetensors")
        save_file(
            {f"base_model.model.{name}.weight": value for name, value in lora.items()},
            step / "adapter_model.safetensors",
        )
        trained = {"base_model.model.rm_head.weight": head}
        trained["base_model.model.model.embed_tokens.weight"] = base["model.embed_tokens.weight"]
        torch.save(trained, step / "non_lora_state_dict.pth")
    else:
        wrapped = {}
        for name, value in base.items():
            layer, _, kind = name.rpartition(".")
            wrapped[f"{layer}.base_layer.{kind}" if layer in layers else name] = value
        wrapped |= {f"{name}.default.weight": value for name, value in lora.items()} | {"rm_head.weight": head}
        prefix = "base_model.model." if form == "whole" else ""
        torch.save({f"{prefix}{name}": value for name, value in wrapped.items()}, step / "model.pth")
    norms = {f"{n}_{what}": v for n, pair in NORMS.items() for what, v in zip(("mean", "std"), pair, strict=True)}
    settings: dict[str, Any] = {
        "data_config": {
            "max_frame_pixels": 448 * 448,
            "num_frames": None,
            "fps": 2.0,
            "eval_dim": ["VQ", "MQ", "TA"],
            "prompt_template_type": "detailed_special",
            "sample_type": "uniform",
        },
        "training_args": {"bf16": True},
        "model_config": {"output_dim": 1, "use_special_tokens": True, "reward_token": "special"},
        "peft_lora_config": {"lora_enable": True, "lora_r": RANK, "lora_alpha": ALPHA, "use_rslora": False},
        "inference_config": norms,
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        settings[section][name] = value
    (folder / "model_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def save_hps_v3(file: Path, backbone_folder: Path) -> Path:
    """A file like HPSv3.safetensors."""
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(backbone_folder)
    model = backbone(len(tok) + 1, seed=3)
    numbers = torch.Generator().manual_seed(4)
    head = {}
    for place, (out, into) in {0: (1024, WIDTH), 3: (16, 1024), 5: (2, 16)}.items():
        head[f"rm_head.{place}.weight"] = torch.randn(out, into, generator=numbers) / into**0.5
        head[f"rm_head.{place}.bias"] = torch.randn(out, generator=numbers) * 0.1
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in (old_names(model) | head).items()}, file)
    return file
