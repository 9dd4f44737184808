"""A LoRA as the folder that PEFT reads, over `WanTransformer3DModel`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vidalign.errors import UsageError
from vidalign.tensor_writing import save_tensors

if TYPE_CHECKING:
    import torch

    from vidalign.students.video.importers.lora import Lora

PREFIX = "base_model.model."


def write_adapter(folder: Path, lora: Lora, dtype: torch.dtype | None = None, base: str = "") -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    dtype: of the tensors, None = as stored; base: the weights that it belongs to. Raises `UsageError` for what an
    adapter of one rank and alpha does not hold: other ranks, differences of weights or biases.
    """
    from peft import LoraConfig

    if lora.uniform is None:
        raise UsageError(
            "this LoRA cannot be kept as an adapter",
            where="--keep-lora",
            why="its layers differ in rank or alpha, or it holds plain differences of weights or biases",
            fix="merge it: leave out --keep-lora",
        )
    (rank, alpha), targets = lora.uniform, sorted(lora.layers)
    settings = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets,
        use_rslora=lora.root,
        base_model_name_or_path=base or None,
    )
    settings.save_pretrained(str(folder))
    tensors = {}
    for name in targets:
        for part, value in zip("AB", lora.factors(name), strict=True):
            tensors[f"{PREFIX}{name}.lora_{part}.weight"] = value.to(dtype or value.dtype).contiguous()
    save_tensors(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
