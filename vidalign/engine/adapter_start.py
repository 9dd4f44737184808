"""An adapter that training goes on from: a PEFT folder, read into the layers of a network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidalign.engine.config import AdapterConfig
from vidalign.errors import CheckpointError, UserError
from vidalign.reading import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def check_start(adapter: AdapterConfig) -> None:
    """Raises `UserError` unless the folder holds an adapter of this rank and alpha; its tensors are not read."""
    folder = Path(adapter.start)
    try:
        found = dict(read_json(folder / SETTINGS))
        rank, alpha = int(found["r"]), float(found["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{adapter.start} holds no adapter",
            where="student.adapter.start",
            why=f"{SETTINGS}: {error}",
            fix="name a folder as PEFT writes it, such as the one of `vidalign import --keep-lora`",
        ) from error
    for name, own, expected in (("rank", adapter.rank, rank), ("alpha", adapter.alpha, alpha)):
        if own != expected:
            raise UserError(
                f"{name} is {own:g}, that of the adapter to start from is {expected:g}",
                where=f"student.adapter.{name}",
                fix=f"use {name}: {expected:g}",
            )
    if found.get("use_rslora") or found.get("rank_pattern") or found.get("alpha_pattern"):
        why = "its update is scaled by something else than one alpha / rank"
        raise UserError("this adapter cannot be gone on from", where="student.adapter.start", why=why, fix="merge it")


def load_start(layers: Mapping[str, Any], folder: Path) -> None:
    """Copy the factors in `folder` into every adapter of the layers. Raises `CheckpointError` unless the layers are
    those of the folder; names in it may leave out the first parts of the network's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError("the adapter to start from cannot be read", where=str(folder), why=str(error)) from error
    names = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in stored}
    homes = {next((n for n in names if f".{key}".endswith(f".{n}")), ""): key for key in layers}
    if homes.keys() != names or len(homes) != len(layers):
        strange = sorted(names - homes.keys()) or sorted(key for key in layers if key not in homes.values())
        raise CheckpointError(
            "the adapter to start from is on other layers",
            where="student.adapter.targets",
            why=f"the first that the two do not share is {(strange or ['none'])[0]}, of {len(names)} and {len(layers)}",
            fix=f"targets: {json.dumps(patterns(names))}",
        )
    for name, key in homes.items():
        _copy(layers[key], *(stored[f"{PREFIX}{name}.lora_{part}.weight"] for part in "AB"))


def patterns(names: set[str]) -> list[str]:
    """Patterns that match these layers, those of all blocks as one."""
    return sorted({re.sub(r"\bblocks\.\d+\.", "blocks.*.", name) for name in names})


def _copy(layer: Any, down: Tensor, up: Tensor) -> None:
    import torch

    with torch.no_grad():
        for values, stored in ((layer.lora_A, down), (layer.lora_B, up)):
            for one in values.values():
                one.weight.copy_(stored)
