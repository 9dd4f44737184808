"""The configuration of a Wan network, read off the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidalign.errors import CheckpointError

HEAD = 128
"""Channels of an attention head of every released Wan network."""
Shapes = Mapping[str, tuple[int, ...]]


def infer_config(shapes: Shapes, where: str, head: int = HEAD) -> dict[str, Any]:
    """Configuration of `WanTransformer3DModel` for weights under diffusers names.

    head: channels of an attention head, which shapes do not say. Raises `CheckpointError` where a tensor of the
    network is missing, or the width is not whole heads.
    """
    try:
        width, channels, *patch = shapes["patch_embedding.weight"]
        config = {
            "patch_size": list(patch),
            "in_channels": channels,
            "attention_head_dim": head,
            "num_attention_heads": width // head,
            "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
            "out_channels": shapes["proj_out.weight"][0] // (patch[0] * patch[1] * patch[2]),
            "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
            "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
            "ffn_dim": shapes["blocks.0.ffn.net.0.proj.weight"][0],
            "num_layers": len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"not a Wan2.1 checkpoint: {error} is missing",
            where=where,
            why=f"it holds {len(shapes)} tensors, the first are {', '.join(list(shapes)[:3]) or 'none'}",
            fix="name the file with the generator, or its part with --key",
        ) from error
    if "blocks.0.attn2.add_k_proj.weight" in shapes:
        config["added_kv_proj_dim"] = shapes["blocks.0.attn2.add_k_proj.weight"][1]
    if width % head or width < head:
        raise CheckpointError(
            f"a network of width {width} has no whole heads of {head} channels",
            where=where,
            why="the shapes do not say how many heads it has",
            fix="give their number with --heads, or the network's base folder with --base",
        )
    return config


def heads_to_size(shapes: Shapes, heads: int, where: str) -> int:
    """Channels of a head when there are `heads` of them; `CheckpointError` where they do not divide the width."""
    width = shapes.get("patch_embedding.weight", (0,))[0]
    if width and width % heads:
        raise CheckpointError(f"{heads} heads do not divide a width of {width}", where=where, fix="correct --heads")
    return max(width // heads, 1)
