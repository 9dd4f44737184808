"""A CLIP checkpoint of a tiny size with random weights: letters for tokens, one layer each, 8 dimensions."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]


def save_clip(folder: Path, *, agreeing: bool = False) -> Path:
    """16-pixel images in 8-pixel patches, 16 tokens of context.

    agreeing: every text agrees with every image to some degree, so that no score is cut off at 0.
    """
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=16)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPConfig(
        text_config={**tower, **ids, "vocab_size": 54, "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    with torch.no_grad():  # large enough for clips and prompts to make a difference
        for weight in (parameter for parameter in model.parameters() if parameter.ndim >= 2):
            weight.normal_(std=0.5)
        if agreeing:
            model.visual_projection.weight.copy_(model.text_projection.weight)
            model.vision_model.post_layernorm.bias.fill_(2.0)
            model.text_model.final_layer_norm.bias.fill_(2.0)
    model.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    images = CLIPImageProcessor(**sizes, image_mean=list(MEAN), image_std=list(STD))
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder
