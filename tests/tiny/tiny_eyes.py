"""Vision-language models of a tiny size, one for each way in which processors lay out pictures, as folders on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
IDEFICS = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<image>", "<video>"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *QWEN, *IDEFICS]
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
TEXT: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=4096,
    eos_token_id=2,
    bos_token_id=None,
    pad_token_id=0,
)
EYES: dict[str, Any] = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
ROPE = dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 1, 1])
SIDES = {"height": 32, "width": 32}


def tokenizer(**named: str) -> PreTrainedTokenizerFast:
    """Byte-level, with the special tokens of all these families; some of them by names of their own."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=[*SPECIALS, *TILES], initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(["what colour is the circle", "how many circles are there in this picture"] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named or [*SPECIALS, *TILES],
    )


def _clip(side: int = 32) -> dict[str, Any]:
    return dict(model_type="clip_vision_model", **EYES, image_size=side, patch_size=8, projection_dim=32)


def _siglip() -> dict[str, Any]:
    return dict(model_type="siglip_vision_model", **EYES, image_size=32, patch_size=8, vision_use_head=False)


def _text(kind: str, size: int, **changes: Any) -> dict[str, Any]:
    return dict(model_type=kind, **TEXT, vocab_size=size, **changes)


def _grid(kind: str) -> dict[str, Any]:
    own: dict[str, Any] = dict(depth=1, num_heads=2, patch_size=8, temporal_patch_size=2, spatial_merge_size=2)
    if kind == "qwen2_vl":
        return own | dict(embed_dim=32, hidden_size=32, mlp_ratio=2)
    more = dict(hidden_size=32, intermediate_size=48, out_hidden_size=32)
    if kind == "qwen2_5_vl":
        return own | more | dict(window_size=32, fullatt_block_indexes=[0])
    return own | more | dict(num_position_embeddings=16, deepstack_visual_indexes=[0])


def config(kind: str, tok: Any) -> dict[str, Any]:
    """The configuration of a family, of a layer or two."""
    image, size = tok.convert_tokens_to_ids("<image>"), len(tok)
    if kind in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        names = dict(vision_start_token_id=0, vision_end_token_id=1, image_token_id=2, video_token_id=3)
        ids = {name: tok.convert_tokens_to_ids(QWEN[place]) for name, place in names.items()}
        rope = ROPE | ({"mrope_interleaved": True} if kind == "qwen3_vl" else {})
        text = {k: v for k, v in TEXT.items() if k != "head_dim" or kind == "qwen3_vl"}
        return dict(
            model_type=kind,
            **ids,
            vision_config=_grid(kind),
            text_config={**text, "vocab_size": size, "rope_parameters": rope},
        )
    if kind in ("idefics3", "smolvlm"):
        eyes = dict(**EYES, image_size=32, patch_size=8)
        own = dict(model_type=kind, image_token_id=image, scale_factor=2, pad_token_id=0)
        return own | dict(vision_config=eyes, text_config=_text("llama", size))
    if kind == "gemma3":
        own = dict(model_type=kind, image_token_id=image, mm_tokens_per_image=4, boi_token_id=3, eoi_token_id=4)
        text = _text("gemma3_text", size, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
        return own | dict(vision_config=_siglip(), text_config=text)
    own = dict(model_type=kind, image_token_index=image, vision_feature_layer=-1)
    if kind == "llava":
        return own | dict(
            vision_config=_clip(), vision_feature_select_strategy="default", text_config=_text("llama", size)
        )
    pinpoints = [[32, 64], [64, 32], [64, 64], [96, 32]]
    if kind == "llava_next":
        own |= dict(vision_config=_clip(), vision_feature_select_strategy="default", text_config=_text("llama", size))
    else:
        own |= dict(vision_config=_siglip(), vision_feature_select_strategy="full", text_config=_text("qwen2", size))
        own |= dict(video_token_index=tok.convert_tokens_to_ids("<video>"))
    return own | dict(image_grid_pinpoints=pinpoints)


GEMMA = dict(boi_token="<|vision_start|>", eoi_token="<|vision_end|>", image_token="<image>")
PICTURES: dict[str, dict[str, Any]] = {
    "llava": dict(image_processor_type="CLIPImageProcessor", size={"shortest_edge": 32}, crop_size=SIDES),
    "llava_next": dict(
        image_processor_type="LlavaNextImageProcessor",
        size={"shortest_edge": 32},
        crop_size=SIDES,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64], [96, 32]],
    ),
    "llava_onevision": dict(
        image_processor_type="LlavaOnevisionImageProcessor",
        size=SIDES,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64], [96, 32]],
    ),
    "idefics3": dict(
        image_processor_type="Idefics3ImageProcessor", size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    ),
    "smolvlm": dict(
        image_processor_type="SmolVLMImageProcessor", size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    ),
    "qwen2_vl": dict(
        image_processor_type="Qwen2VLImageProcessor",
        patch_size=8,
        temporal_patch_size=2,
        merge_size=2,
        size={"shortest_edge": 256, "longest_edge": 4096},
    ),
    "gemma3": dict(image_processor_type="Gemma3ImageProcessor", size=SIDES, image_seq_length=4),
}
OWN: dict[str, dict[str, Any]] = {
    "llava": dict(patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1),
    "llava_next": dict(patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1),
    "llava_onevision": dict(
        num_image_tokens=16, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9"
    ),
    "gemma3": dict(image_seq_length=4),
    "idefics3": dict(image_seq_len=4),
    "smolvlm": dict(image_seq_len=4),
}
CLASSES = dict(
    llava="LlavaProcessor",
    llava_next="LlavaNextProcessor",
    llava_onevision="LlavaOnevisionProcessor",
    idefics3="Idefics3Processor",
    smolvlm="SmolVLMProcessor",
    gemma3="Gemma3Processor",
    qwen2_vl="Qwen2VLProcessor",
    qwen2_5_vl="Qwen2_5_VLProcessor",
    qwen3_vl="Qwen3VLProcessor",
)
VIDEOS = dict(
    qwen2_vl="Qwen2VL", qwen2_5_vl="Qwen2VL", qwen3_vl="Qwen3VL", smolvlm="SmolVLM", llava_onevision="LlavaOnevision"
)


def save(kind: str, folder: Path, seed: int = 0) -> Path:
    """A folder as published ones are: every part of the processor in a file of its own."""
    tok = tokenizer(**(GEMMA if kind == "gemma3" else {}))
    qwen = kind.startswith("qwen")
    mark = "<|vision_start|><|image_pad|><|vision_end|>" if qwen else "<image>"
    tok.chat_template = TEMPLATE.replace("IMAGE", "<|vision_start|>" if kind == "gemma3" else mark)
    tok.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        values = config(kind, tok)
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
            if parameter.ndim == 2 and not parameter.any():  # a projector that begins at zero sees nothing
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    pictures = {"processor_class": CLASSES[kind], **PICTURES["qwen2_vl" if qwen else kind]}
    _write(folder / "preprocessor_config.json", pictures)
    _write(folder / "processor_config.json", {"processor_class": CLASSES[kind], **OWN.get(kind, {})})
    if kind in VIDEOS:
        videos = dict(video_processor_type=f"{VIDEOS[kind]}VideoProcessor", size=pictures["size"], fps=3)
        _write(folder / "video_preprocessor_config.json", videos)
    return folder


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values), encoding="utf-8")
