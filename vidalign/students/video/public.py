"""Import of public causal Wan checkpoints: one rename table, strict loading, LoRA files merged.

The families hold stock Wan2.1 weights under the original names (825 tensors for 1.3B, 1095 for 14B). Nothing causal is
in the state dict. `weights_only=True` is enough for all of them.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidalign.errors import CheckpointError
from vidalign.students.video.presets import Preset, preset
from vidalign.students.video.student import VideoStudent
from vidalign.students.weights import load_strict, read

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
PREFIXES = ("base_model.model.", "model.", "diffusion_model.")
RENAMES = (
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^(blocks\.\d+)\.self_attn\.", r"\1.attn1."),
    (r"^(blocks\.\d+)\.cross_attn\.", r"\1.attn2."),
    (r"\.(attn[12])\.([qkv])\.", r".\1.to_\2."),
    (r"\.(attn[12])\.o\.", r".\1.to_out.0."),
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.ffn\.0\.", r"\1.ffn.net.0.proj."),
    (r"^(blocks\.\d+)\.ffn\.2\.", r"\1.ffn.net.2."),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^head\.head\.", "proj_out."),
)


def rename(key: str) -> str:
    """Original Wan name to diffusers name, wrappers and prefixes stripped."""
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if key.startswith(prefix):
                key, stripped = key[len(prefix) :], True
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def import_student(
    path: str | Path,
    preset_name: str,
    *,
    key: str = "",
    lora: str | Path | None = None,
    transformer: dict[str, Any] | None = None,
    numerics: str = "diffusers",
    height: int = 480,
    width: int = 832,
) -> VideoStudent:
    """A student from a public checkpoint (`.pt` or `.safetensors`), in fp32 on the CPU.

    preset_name: see `presets.PRESETS`. key: take the weights under this key of the file. lora: LoRA file
    merged into the weights, with the preset's alpha. transformer: diffusers config; read off the shapes when
    None (head dim 128). Raises CheckpointError naming keys and shapes that do not fit.
    """
    family = preset(preset_name)
    weights = {rename(k): v for k, v in weights_of(path, family, key).items()}
    if lora is not None:
        merge_lora(weights, weights_of(lora, Preset(keys=("generator_lora",)), ""), family, str(lora))
    spec = family.spec(transformer or infer_config(weights, str(path)), numerics, height, width)
    with torch.device("meta"):
        student = VideoStudent.from_spec(spec)
    student.to_empty(device="cpu")
    load_strict(student.base, {k: v.float() for k, v in weights.items()}, str(path))
    return student


def weights_of(path: str | Path, family: Preset, key: str) -> dict[str, Tensor]:
    """The state dict inside a checkpoint file, under `key` or the first of the family's keys."""
    file = Path(path)
    if not file.is_file():
        raise CheckpointError("no such checkpoint", where=str(file))
    if file.suffix == ".safetensors":
        return read(file)[0]
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise CheckpointError("unreadable checkpoint", where=str(file), why=str(error).splitlines()[0]) from error
    if key and key not in content:
        raise CheckpointError(f"no key {key!r} in the checkpoint", where=str(file), why=f"found {sorted(content)[:8]}")
    for name in (key,) if key else family.keys:
        if isinstance(content.get(name), dict):
            return dict(content[name])
    flat = {k: v for k, v in content.items() if isinstance(v, Tensor)}
    if not flat:
        raise CheckpointError(
            "no weights in the checkpoint",
            where=str(file),
            why=f"expected one of {list(family.keys)}, found {sorted(content)[:8]}",
            fix="pass key=",
        )
    return flat


def merge_lora(weights: dict[str, Tensor], lora: dict[str, Tensor], family: Preset, where: str) -> None:
    """Add alpha / rank * B A to `weights` in place, for a LoRA file with PEFT names over original Wan
    names.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in lora.items():
        match = re.match(r"(.*)\.lora_([AB])(?:\.\w+)?\.weight$", key)
        if not match:
            raise CheckpointError(f"{key!r} is no LoRA weight", where=where)
        pairs.setdefault(rename(match[1] + ".weight"), {})[match[2]] = value.float()
    for key, pair in pairs.items():
        rank = len(pair["A"]) if "A" in pair else 0
        if key not in weights or set(pair) != {"A", "B"} or not family.lora_alpha or rank != family.lora_rank:
            raise CheckpointError(
                f"the LoRA of {key!r} does not fit",
                where=where,
                why=f"rank {rank}, expected {family.lora_rank} on a weight of the network",
            )
        update = family.lora_alpha / rank * pair["B"] @ pair["A"]
        weights[key] = weights[key].float() + update


def infer_config(weights: dict[str, Tensor], where: str) -> dict[str, Any]:
    """Config of the diffusers network from the shapes of its weights, heads of 128 channels as in all
    Wan2.1.
    """
    try:
        width, channels, *patch = weights["patch_embedding.weight"].shape
        return {
            "patch_size": list(patch),
            "in_channels": channels,
            "attention_head_dim": 128,
            "num_attention_heads": width // 128,
            "cross_attn_norm": "blocks.0.norm2.weight" in weights,
            "out_channels": weights["proj_out.weight"].shape[0] // (patch[0] * patch[1] * patch[2]),
            "text_dim": weights["condition_embedder.text_embedder.linear_1.weight"].shape[1],
            "freq_dim": weights["condition_embedder.time_embedder.linear_1.weight"].shape[1],
            "ffn_dim": weights["blocks.0.ffn.net.0.proj.weight"].shape[0],
            "num_layers": len({k.split(".")[1] for k in weights if k.startswith("blocks.")}),
        }
    except KeyError as error:
        raise CheckpointError(f"not a Wan2.1 checkpoint: {error} is missing", where=where) from error
