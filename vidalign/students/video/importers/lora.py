"""LoRA files of every naming, as updates of the weights of a network under diffusers names.

PEFT folders, diffusers and original names, ``lora_down`` and ``lora_up`` with ``.alpha``, ranks that differ from
layer to layer, and plain differences of weights (``.diff``) and biases (``.diff_b``). An update is alpha / rank * B A.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vidalign.errors import CheckpointError, UsageError
from vidalign.reading import read_json
from vidalign.students.video.importers.files import Checkpoint, open_checkpoint
from vidalign.students.video.importers.names import original, rename
from vidalign.students.video.presets import LoraDefaults

KEYS = ("generator_lora", "lora", "state_dict")
"""Where a `.pt` file may hold them."""
FACTOR = re.compile(r"(?P<layer>.*)\.lora_(?P<part>A|B|down|up)(?:\.(?!weight|bias)\w+)?\.(?P<kind>weight|bias)$")
EXTRA = re.compile(r"(?P<layer>.*)\.(?P<part>alpha|diff|diff_b)$")
PARTS = {"A": "down", "down": "down", "B": "up", "up": "up"}
METADATA = "lora_adapter_metadata"
"""Under which diffusers keeps alpha in the header of a file."""
FLAT = "lora_unet_"
"""Prefix of names whose dots are underscores."""


@dataclass
class Layer:
    """Names in the file of what changes one layer."""

    down: str = ""
    up: str = ""
    alpha: str = ""
    weight: str = ""
    """A difference of its weight."""
    bias: str = ""
    """A difference of its bias."""


@dataclass
class Lora:
    """A LoRA file, read layer by layer."""

    file: Checkpoint
    layers: dict[str, Layer]
    """By their name in diffusers."""
    alphas: dict[str, float] = field(default_factory=dict)
    """Of the layers with factors."""
    root: bool = False
    """Whether alpha is divided by the root of the rank (rsLoRA)."""

    def rank(self, name: str) -> int:
        """Rank of a layer with factors."""
        return self.file.entries[self.layers[name].down].shape[0]

    def scale(self, name: str) -> float:
        """What B A of a layer is multiplied with."""
        rank = self.rank(name)
        return self.alphas[name] / (math.sqrt(rank) if self.root else rank)

    @property
    def uniform(self) -> tuple[int, float] | None:
        """Rank and alpha, where all layers share them and there are no plain differences: what an adapter can be."""
        found = {(self.rank(name), alpha) for name, alpha in self.alphas.items()}
        plain = any(layer.weight or layer.bias for layer in self.layers.values())
        return found.pop() if len(found) == 1 and not plain else None

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A ``[rank, in]`` and B ``[out, rank]`` of a layer, as they are stored."""
        layer = self.layers[name]
        read = dict(self.file.tensors([layer.down, layer.up]))
        return read[layer.down], read[layer.up]

    def merge(self, name: str, value: Tensor) -> Tensor:
        """The tensor `name` of the network with what the file adds to it, computed in fp32, in the type of `value`."""
        owner, _, kind = name.rpartition(".")
        layer = self.layers.get(owner)
        if layer is None:
            return value
        merged = value.float()
        if kind == "weight" and layer.down:
            down, up = (x.float() for x in self.factors(owner))
            merged = merged + self.scale(owner) * (up.flatten(1) @ down.flatten(1)).view(value.shape)
        if stored := {"weight": layer.weight, "bias": layer.bias}.get(kind):
            merged = merged + next(self.file.tensors([stored]))[1].float()
        return merged.to(value.dtype)


def read_lora(path: Path, shapes: Mapping[str, tuple[int, ...]], alpha: float | None, family: LoraDefaults) -> Lora:
    """The LoRA in a file or a PEFT folder, for the network whose tensors have these `shapes`.

    alpha: instead of the file's own; family: what the preset knows of its files. Raises `CheckpointError` for a
    tensor that is none of a LoRA, a layer that the network does not have, and factors of other shapes; `UsageError`
    where alpha stands nowhere.
    """
    file = open_checkpoint(path, KEYS)
    known = set(shapes)
    layers = _layers(file, known)
    matched = {layer for layer in layers if f"{layer}.weight" in known or f"{layer}.bias" in known}
    if strange := sorted(layers.keys() - matched):
        some = f"{len(strange)} layers of the LoRA are not in the network"
        raise CheckpointError(
            some if matched else "the LoRA matches nothing in the network",
            where=str(path),
            why=f"the first of its {len(layers)} layers: {', '.join(strange[:3])}; the network has {min(known)}, ...",
            fix="take the LoRA of this family and size; one of a text encoder is not merged",
        )
    made = Lora(file, layers)
    _check_shapes(made, shapes)
    config = _config(path, file)
    made.root = bool(config.get("use_rslora"))
    for name, layer in layers.items():
        if layer.down:
            made.alphas[name] = _alpha(made, name, alpha, config, family, str(path))
    return made


def _layers(file: Checkpoint, known: set[str]) -> dict[str, Layer]:
    """The tensors of the file by layer."""
    flat = {original(name).removesuffix(".weight").replace(".", "_"): name.removesuffix(".weight") for name in known}
    layers: dict[str, Layer] = {}
    for key in file.entries:
        found = FACTOR.match(key) or EXTRA.match(key)
        part = found["part"] if found else ""
        if found is None or (part in PARTS and found["kind"] == "bias" and PARTS[part] == "down"):
            raise CheckpointError(
                f"{key!r} is no tensor of a LoRA",
                where=file.where,
                why="expected lora_A and lora_B, lora_down and lora_up, alpha, diff or diff_b",
                fix="DoRA and other adapters are not read: merge them with the tool that made them",
            )
        name = found["layer"]
        name = flat.get(name.removeprefix(FLAT), name) if name.startswith(FLAT) else _renamed(name)
        layer = layers.setdefault(name, Layer())
        if part in PARTS and found["kind"] == "weight":
            setattr(layer, PARTS[part], key)
        elif part in PARTS or part == "diff_b":
            layer.bias = key
        else:
            setattr(layer, {"diff": "weight"}.get(part, part), key)
    for name, layer in layers.items():
        _check_factors(file, name, layer)
    return layers


def _renamed(layer: str) -> str:
    return rename(f"{layer}.weight").removesuffix(".weight")


def _check_factors(file: Checkpoint, name: str, layer: Layer) -> None:
    """A layer has both factors, of one rank."""
    shapes = [file.entries[key].shape if key else () for key in (layer.down, layer.up)]
    if bool(layer.down) != bool(layer.up) or (layer.down and shapes[0][0] != shapes[1][1]):
        raise CheckpointError(
            f"the LoRA of {name!r} does not fit together",
            where=file.where,
            why=f"A is {list(shapes[0]) or 'missing'}, B is {list(shapes[1]) or 'missing'}",
            fix="download the file again",
        )


def _check_shapes(lora: Lora, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """B A is as large as the weight that it is added to, and so is a plain difference."""
    for name, layer in lora.layers.items():
        found = {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
        sizes = {key: lora.file.entries[stored].shape for key, stored in found.items() if stored}
        if layer.down:
            down, up = (lora.file.entries[key].shape for key in (layer.down, layer.up))
            expected = shapes[f"{name}.weight"]
            sizes[f"{name}.weight"] = (up[0], *(down[1:] if len(down) == len(expected) else (math.prod(down[1:]),)))
        for key, size in sizes.items():
            own = shapes.get(key, ())
            if size != own and (len(own) <= 2 or math.prod(size) != math.prod(own)):
                raise CheckpointError(
                    f"the LoRA of {key!r} is of another size",
                    where=lora.file.where,
                    why=f"its update is {list(size)}, the weight is {list(own)}",
                    fix="take the LoRA of this size of the family",
                )


def _config(path: Path, file: Checkpoint) -> dict[str, Any]:
    """Settings of PEFT: those beside the file, or those in its header as diffusers writes them."""
    beside = (path if path.is_dir() else path.parent) / "adapter_config.json"
    try:
        if beside.is_file() and (path.is_dir() or path.stem == "adapter_model"):
            return dict(read_json(beside))
        written = json.loads(file.metadata.get(METADATA, "{}"))
        return {key.removeprefix("transformer."): value for key, value in written.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError("the settings of the LoRA cannot be read", where=str(beside), why=str(error)) from error


def _alpha(
    made: Lora, name: str, asked: float | None, config: dict[str, Any], family: LoraDefaults, where: str
) -> float:
    """Alpha of a layer."""
    if asked is not None:
        return asked
    if stored := made.layers[name].alpha:
        return float(next(made.file.tensors([stored]))[1].item())
    if "lora_alpha" in config:
        patterns = config.get("alpha_pattern") or {}
        own = next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", name)), config["lora_alpha"])
        return float(own)
    if family.alpha and made.rank(name) == (family.rank or made.rank(name)):
        return family.alpha
    expected = f", and the preset's alpha is for rank {family.rank}" if family.alpha else ""
    raise UsageError(
        "the alpha of the LoRA is not known",
        where=where,
        why=f"neither its tensors nor its settings say it; the rank of {name} is {made.rank(name)}{expected}",
        fix="give it with --lora-alpha, as the training configuration of the LoRA has it",
    )
