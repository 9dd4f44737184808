"""A LoRA as the folder that PEFT reads, over `WanTransformer3DModel`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vidalign.errors import UsageError
from vidalign.students.streamed import write_file

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.students.video.importers.lora import Lora

PREFIX = "base_model.model."


def write_adapter(folder: Path, lora: Lora) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`. Raises `UsageError` for what an adapter of one
    rank and alpha does not hold: other ranks, differences of weights or biases."""
    from peft import LoraConfig

    ranks, alphas = {lora.rank(name) for name in lora.alphas}, set(lora.alphas.values())
    plain = [name for name, layer in lora.layers.items() if layer.weight or layer.bias]
    if len(ranks) != 1 or len(alphas) != 1 or plain:
        why = f"{plain[0]} has a plain difference" if plain else f"ranks {sorted(ranks)}, alphas {sorted(alphas)}"
        raise UsageError(
            "this LoRA cannot be kept as an adapter",
            where="--keep-lora",
            why=f"a trainable adapter has one rank and one alpha: {why}",
            fix="merge it: leave out --keep-lora",
        )
    rank, alpha = ranks.pop(), alphas.pop()
    targets = sorted(lora.layers)
    settings = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, use_rslora=lora.root)
    settings.save_pretrained(str(folder))
    entries = {}
    for name in targets:
        layer = lora.layers[name]
        entries[f"{PREFIX}{name}.lora_A.weight"] = lora.file.entries[layer.down]
        entries[f"{PREFIX}{name}.lora_B.weight"] = lora.file.entries[layer.up]

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in targets:
            down, up = lora.factors(name)
            yield name, down
            yield name, up

    write_file(folder / "adapter_model.safetensors", entries, tensors(), {})
