"""A `WanPipeline` of a tiny size with random weights: the base of the tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = ("red", "blue", "ball", "square", "falls", "moves", "small", "large")
WAN22 = {
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}


def save_base(folder: Path, transformer: WanTransformer3DModel) -> Path:
    """The pipeline around a network: the VAE of Wan2.1 for 16 latent channels, that of Wan2.2 for 48."""
    vocabulary = {word: n for n, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(7)
    width = transformer.config.text_dim
    text = UMT5EncoderModel(
        UMT5Config(vocab_size=len(vocabulary), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    channels = transformer.config.in_channels
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=channels, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **(WAN22 if channels == 48 else {})
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    WanPipeline(tokenizer, text, vae, scheduler, transformer).save_pretrained(folder)
    return folder
