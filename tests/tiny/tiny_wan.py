"""Checkpoints of the public formats at a tiny size: a random `WanTransformer3DModel` under original names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from vidalign.students.exchange import ImportOptions
from vidalign.students.video.importers.convert import import_checkpoint
from vidalign.students.video.importers.names import original

HEADS = 2
CONFIG: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": HEADS,
    "attention_head_dim": 16,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 48,
    "freq_dim": 16,
    "ffn_dim": 40,
    "num_layers": 2,
}
OPTIONS = {"heads": HEADS, "height": 48, "width": 64}


def network(seed: int = 0, **changes: Any) -> WanTransformer3DModel:
    """A network whose biases and norms are random too, so that a mix-up of two of them shows."""
    torch.manual_seed(seed)
    made = WanTransformer3DModel(**CONFIG | changes)
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return made


def weights(made: WanTransformer3DModel, prefix: str = "") -> dict[str, Tensor]:
    """Its weights under original names."""
    return {prefix + original(name): value.clone() for name, value in made.state_dict().items()}


def save(path: Path, content: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


def imported(path: Path, out: Path, preset: str = "self_forcing", **options: Any) -> Path:
    """The folder of a checkpoint; options: of `ImportOptions`, beside those of the tiny network."""
    return import_checkpoint(preset, str(path), out, ImportOptions(**OPTIONS | options)).folder


def stored(folder: Path) -> dict[str, Tensor]:
    """The tensors in a student's folder, by any number of files."""
    from safetensors.torch import load_file

    return {k: v for file in sorted((folder / "transformer").glob("*.safetensors")) for k, v in load_file(file).items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, types and bits."""
    assert found.keys() == expected.keys()
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in expected.items()}
    assert all(torch.equal(found[name], value) for name, value in expected.items())
