"""Names in diffusers' `WanTransformer3DModel`, so that a recipe can be checked without importing diffusers."""

from __future__ import annotations

from typing import Any

SETTINGS = (
    "patch_size",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "text_dim",
    "freq_dim",
    "ffn_dim",
    "num_layers",
    "cross_attn_norm",
    "qk_norm",
    "eps",
    "image_dim",
    "added_kv_proj_dim",
    "rope_max_seq_len",
    "pos_embed_seq_len",
)
"""Keys of its configuration."""
LAYERS = 40
"""Its blocks where the configuration does not say."""


def linear_layers(transformer: dict[str, Any]) -> list[str]:
    """Names of its linear layers, in the order of the network; `transformer`: its configuration."""
    embedder, images = "condition_embedder", transformer.get("image_dim") is not None
    ends = [
        "time_embedder.linear_1",
        "time_embedder.linear_2",
        "time_proj",
        "text_embedder.linear_1",
        "text_embedder.linear_2",
    ]
    ends += ["image_embedder.ff.net.0.proj", "image_embedder.ff.net.2"] if images else []
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    block = [f"attn1.{name}" for name in attention] + [f"attn2.{name}" for name in attention]
    if transformer.get("added_kv_proj_dim") is not None:
        block += ["attn2.add_k_proj", "attn2.add_v_proj"]
    block += ["ffn.net.0.proj", "ffn.net.2"]
    blocks = [f"blocks.{n}.{name}" for n in range(int(transformer.get("num_layers", LAYERS))) for name in block]
    return [f"{embedder}.{name}" for name in ends] + blocks + ["proj_out"]
