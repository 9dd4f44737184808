"""Original Wan names and those of diffusers: one table, read in both directions."""

from __future__ import annotations

import re

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
PREFIXES = ("base_model.model.", "model.", "module.", "transformer.", "diffusion_model.")
TABLE = (
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
    ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
    ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
    ("patch_embedding", "patch_embedding"),
)
"""Outside the blocks."""
BLOCK = (
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("modulation", "scale_shift_table"),
)
"""Inside a block."""
ATTENTION = (
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("o", "to_out.0"),
    ("norm_q", "norm_q"),
    ("norm_k", "norm_k"),
    ("k_img", "add_k_proj"),
    ("v_img", "add_v_proj"),
    ("norm_k_img", "norm_added_k"),
)
"""Inside an attention."""


def stripped(key: str) -> str:
    """A name without wrappers (FSDP, compile, activation checkpoints) and prefixes."""
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), ""):
        key = key.removeprefix(prefix)
    return key


def rename(key: str) -> str:
    """Original name to that of diffusers, which stays as it is; wrappers and prefixes are stripped."""
    return _translated(stripped(key), 0)


def original(key: str) -> str:
    """Name in diffusers to the original one: the inverse of `rename`."""
    return _translated(key, 1)


def _translated(key: str, source: int) -> str:
    """A name of column `source` of the tables, in the other column; any other name as it is."""
    if inside := re.match(r"(blocks\.\d+\.)(.*)", key):
        return inside[1] + _replaced(inside[2], BLOCK, source)
    return _replaced(key, TABLE, source)


def _replaced(key: str, table: tuple[tuple[str, str], ...], source: int) -> str:
    for pair in table:
        if key == pair[source] or key.startswith(pair[source] + "."):
            rest = key.removeprefix(pair[source]).removeprefix(".")
            if pair[1] in ("attn1", "attn2") and table is BLOCK:
                rest = _replaced(rest, ATTENTION, source)
            return f"{pair[1 - source]}.{rest}" if rest else pair[1 - source]
    return key
