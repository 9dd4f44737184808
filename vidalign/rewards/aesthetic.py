"""Aesthetic score: how much people like a picture, whatever the prompt.

LAION's improved aesthetic predictor [Schuhmann 2022]: five linear layers without a nonlinearity between them on the
unit embedding of CLIP ViT-L/14, trained on ratings from 1 to 10. It sees neither the prompt nor motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from vidalign.errors import UserError, first_line
from vidalign.rewards.clip_score import ClipConfig, ClipReward
from vidalign.rewards.pretrained import Resting, settings_of

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft

FIX = "give the file sac+logos+ava1-l14-linearMSE.pth of LAION's improved aesthetic predictor"
HIDDEN = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}
"""Outputs of the linear layers by their places in the published network; dropout stands between them."""


class Aesthetic(ClipReward):
    """Mean rating of frames, about 1 to 10."""

    name: ClassVar[str] = "aesthetic"

    @dataclass
    class Config(ClipConfig):
        model: str = "openai/clip-vit-large-patch14"
        """A folder written by `save_pretrained`, or a name on the Hugging Face hub."""
        head: str = "sac+logos+ava1-l14-linearMSE.pth"
        """File with the layers on top, as published or as safetensors."""

    @classmethod
    def check(cls, draft: Draft) -> None:
        """The file with the layers is there."""
        for key, config in settings_of(draft, cls.name):
            if not Path(config.head).is_file():
                draft.refuse("the layers cannot be read", f"{key}.head", f"there is no file {config.head}", FIX)

    def load(self) -> torch.nn.Module:
        key = "aesthetic.head"
        tensors = _tensors(Path(self.config.head), key)
        clip: Any = super().load()
        with torch.device("meta"):  # random weights would draw from the global generator
            head = predictor(int(clip.config.projection_dim))
        if wrong := _differences(head, tensors):
            raise UserError("the layers do not fit", where=f"{key}: {self.config.head}", why=wrong, fix=FIX)
        head.load_state_dict({name.removeprefix("layers."): v.clone() for name, v in tensors.items()}, assign=True)
        self._head = Resting(head, self.config)
        network: torch.nn.Module = clip
        return network

    def judge(self, frames: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """``[B, N]``, see `FrameReward.judge`; the prompts are not read."""
        embeddings = self.images(frames.flatten(0, 1))
        with self._head.resident():
            ratings: torch.Tensor = self._head.network(embeddings.to(next(self._head.network.parameters()).dtype))
        return ratings.view(frames.shape[:2])


def predictor(width: int) -> torch.nn.Sequential:
    """The layers on an embedding of `width`, at their published places."""
    layers: list[torch.nn.Module] = [torch.nn.Identity() for _ in range(max(HIDDEN) + 1)]
    for place, outputs in HIDDEN.items():
        layers[place], width = torch.nn.Linear(width, outputs), outputs
    return torch.nn.Sequential(*layers)


def _tensors(file: Path, key: str) -> dict[str, torch.Tensor]:
    """Tensors of a file, by name; a pickle with code is refused."""
    from safetensors.torch import load_file

    try:
        found = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except Exception as error:
        raise UserError("the layers cannot be read", where=f"{key}: {file}", why=first_line(error), fix=FIX) from error
    return found


def _differences(head: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> str:
    """The first differences to what the layers need; empty where there are none."""
    needed = {f"layers.{name}": tuple(value.shape) for name, value in head.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if missing := sorted(needed.keys() - given.keys()):
        return f"{len(missing)} tensors are missing, first {missing[0]!r}"
    if other := sorted(given.keys() - needed.keys()):
        return f"{len(other)} tensors are of another network, first {other[0]!r}"
    wrong = [
        f"{name} is {list(given[name])}, not {list(needed[name])}" for name in needed if given[name] != needed[name]
    ]
    return wrong[0] if wrong else ""
