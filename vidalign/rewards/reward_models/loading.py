"""Published reward models from their files: found, compared with the network, then read tensor by tensor.

VideoReward is a folder with `model_config.json` and `checkpoint-N/`, which holds either `model.pth`, the whole network,
or `adapter_model.safetensors` and `non_lora_state_dict.pth` over the weights of the backbone. HPSv3 is one file,
`HPSv3.safetensors`. Configuration and processor are those of the backbone, Qwen2-VL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidalign.errors import CheckpointError, UserError, first_line
from vidalign.reading import read_json
from vidalign.rewards.reward_models.names import Shape, compare, renamed, with_factors
from vidalign.rewards.reward_models.network import RewardNetwork
from vidalign.rewards.reward_models.reader import Reader, Shown, template
from vidalign.students.hub import is_hub_id, repository_folder
from vidalign.students.processors import load_processor
from vidalign.students.video.importers.files import Checkpoint, open_checkpoint

SETTINGS = "model_config.json"
WHOLE, ADAPTER, REST = "model.pth", "adapter_model.safetensors", "non_lora_state_dict.pth"
VIDEO_REWARD = [SETTINGS, f"checkpoint-*/{WHOLE}", f"checkpoint-*/{ADAPTER}", f"checkpoint-*/{REST}"]
"""Files of the published folder that are read."""
BACKBONE = ["*.safetensors", "*.index.json"]
"""Files of the backbone that an adapter needs."""
FACTORS = ("lora_A", "lora_B")
AT_ONCE = 64
"""Layers that are read before a file is opened anew."""
HEAD = "head."
LAYERS = "backbone.language_model.layers."


@dataclass(frozen=True)
class Lora:
    """Factors in a file: the update of a layer is ``scale * B A``."""

    rank: int
    alpha: float
    root: bool = False
    """Whether alpha is divided by the root of the rank (rsLoRA)."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.root else self.rank)


class Weights:
    """The tensors of one model in one or several files under our names; later files go before earlier ones."""

    def __init__(self, files: Sequence[Checkpoint]) -> None:
        self.where = files[-1].where
        self._homes: dict[str, tuple[Checkpoint, str]] = {}
        for file in files:
            names = renamed(file.entries, file.where)
            self._homes |= {ours: (file, name) for ours, name in names.items()}

    @property
    def shapes(self) -> dict[str, Shape]:
        """By name."""
        return {name: file.entries[key].shape for name, (file, key) in self._homes.items()}

    def read(self, groups: Sequence[Sequence[str]]) -> Iterator[dict[str, Tensor]]:
        """The tensors of each group of names, as they are stored; files are opened once for `AT_ONCE` groups."""
        for start in range(0, len(groups), AT_ONCE):
            part = groups[start : start + AT_ONCE]
            names = [name for group in part for name in group]
            found: dict[str, Tensor] = {}
            for file in {id(self._homes[name][0]): self._homes[name][0] for name in names}.values():
                keys = {self._homes[name][1]: name for name in names if self._homes[name][0] is file}
                found |= {keys[key]: value for key, value in file.tensors(list(keys))}
            for group in part:
                yield {name: found[name] for name in group}


def folder_of(path: str, patterns: Sequence[str], revision: str = "main") -> Path:
    """A local path as it is, a hub id as the folder into which the files of these patterns are downloaded."""
    return repository_folder(path, list(patterns), revision) if is_hub_id(path) else Path(path)


def open_video_reward(folder: Path, backbone: str) -> Weights:
    """The weights in a published folder of VideoReward, of the latest step; backbone: read for an adapter only.

    Raises `CheckpointError` for a folder that holds none.
    """
    steps = sorted(folder.glob("checkpoint-*"), key=lambda step: (len(step.name), step.name))
    home = steps[-1] if steps else folder
    if (home / WHOLE).is_file():
        return Weights([open_checkpoint(home / WHOLE)])
    if (home / ADAPTER).is_file() and (home / REST).is_file():
        base = open_checkpoint(folder_of(backbone, BACKBONE))
        return Weights([base, open_checkpoint(home / REST), open_checkpoint(home / ADAPTER)])
    raise CheckpointError(
        "no weights of VideoReward",
        where=str(home),
        why=f"it holds neither {WHOLE} nor {ADAPTER} with {REST}",
        fix="download the whole repository: `hf download KlingTeam/VideoReward --local-dir DIR`",
    )


def settings_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The sections of ``model_config.json``. Raises `CheckpointError` for a file that cannot be read."""
    file = folder / SETTINGS
    try:
        sections = read_json(file)
        return {str(name): dict(section) for name, section in sections.items() if isinstance(section, Mapping)}
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            "the settings of VideoReward cannot be read",
            where=str(file),
            why=first_line(error),
            fix="name the folder that holds it, beside the folder checkpoint-N",
        ) from error


def open_backbone(backbone: str, shown: Shown, question: str, tokens: Sequence[str]) -> tuple[Any, Reader]:
    """The configuration of Qwen2-VL, as large as the reward model with its special tokens, and the reader."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(backbone)
        if config.model_type != "qwen2_vl":
            raise ValueError(f"it is a model of type {config.model_type!r}, not 'qwen2_vl'")
        reader = Reader(load_processor(backbone, config), shown, template(question), tokens)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            "the backbone of the reward model cannot be read",
            where=backbone,
            why=first_line(error),
            fix="name the folder or hub id of Qwen2-VL that it was trained on, with configuration and processor",
        ) from error
    config.text_config.vocab_size = reader.vocabulary
    return config, reader


def unloaded(config: Any, reader: Reader, head: Callable[[int], nn.Module]) -> RewardNetwork:
    """The network on the meta device; buffers, which no file holds, are where new tensors are made."""
    from transformers import Qwen2VLModel

    with torch.device("meta"):
        backbone = Qwen2VLModel(config)
        made = head(int(config.text_config.hidden_size))
    for name, module in list(backbone.named_modules()):
        if next(module.buffers(recurse=False), None) is not None:  # rotary frequencies
            backbone.set_submodule(name, type(module)(module.config))
    network = RewardNetwork(backbone, made, reader.visual_token, reader.reward_tokens)
    return network.eval().requires_grad_(False)


def expected(network: RewardNetwork, lora: Lora | None) -> dict[str, Shape]:
    """Names and shapes of all weights that the files of this network hold."""
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    return shapes if lora is None else with_factors(shapes, adapted(network), lora.rank)


def adapted(network: RewardNetwork) -> list[str]:
    """The layers that published factors belong to: every linear layer of the language model's blocks."""
    layers = network.named_modules()
    return [name for name, layer in layers if isinstance(layer, nn.Linear) and name.startswith(LAYERS)]


def fill(network: RewardNetwork, weights: Weights, lora: Lora | None, dtype: torch.dtype, device: torch.device) -> None:
    """Put the weights into a network on the meta device; factors are added to their layers in fp32.

    dtype: of the backbone; the head is fp32. Raises `CheckpointError` with the first differences.
    """
    compare(weights.shapes, expected(network, lora), weights.where)
    layers = set(adapted(network)) if lora is not None else set()
    groups = []
    for name in network.state_dict():
        layer, kind = name.rpartition(".")[::2]
        groups.append([name, *(f"{layer}.{f}" for f in FACTORS if kind == "weight" and layer in layers)])
    for (name, *factors), found in zip(groups, weights.read(groups), strict=True):
        value = found[name].to(device)
        if factors and lora is not None:
            down, up = (found[factor].to(device, torch.float32) for factor in factors)
            value = value.float() + lora.scale * (up @ down)
        _put(network, name, value.to(torch.float32 if name.startswith(HEAD) else dtype, copy=True))
    network.to(device)


def fill_with_adapter(network: RewardNetwork, weights: Weights, names: Mapping[str, str]) -> None:
    """Put the weights into a network on the meta device that has an adapter; factors and head are fp32, the rest is as
    it is stored. names: of each of our names, that of the parameter in the network."""
    for (name,), found in zip(((name,) for name in names), weights.read([[name] for name in names]), strict=True):
        single = name.startswith(HEAD) or name.endswith(FACTORS)
        _put(network, names[name], found[name].to(torch.float32 if single else found[name].dtype, copy=True))


def _put(network: RewardNetwork, name: str, value: Tensor) -> None:
    network.load_state_dict({name: value}, strict=False, assign=True)
