"""Rewards that are pretrained networks: where their weights lie, in which type they compute, and strict loading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from vidalign.engine import distributed
from vidalign.engine.host_weights import HostWeights
from vidalign.errors import UserError, first_line
from vidalign.quiet import no_bars

if TYPE_CHECKING:
    from torch import nn

    from vidalign.recipe.draft import Draft


LOCAL = ("device", "offload")
"""Settings on which no result depends."""


@dataclass
class PretrainedConfig:
    """Where a pretrained judge lies."""

    device: str = ""
    """`cpu`, `cuda` or `cuda:N`; empty: the accelerator of the process, or the CPU."""
    offload: Literal["none", "cpu"] = "none"
    """cpu: weights rest in host memory and are on the device while they score."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights and of the computation."""

    def place(self) -> torch.device:
        """The device. Raises `UserError` for one that this process does not have."""
        if not self.device:
            return distributed.device()
        try:
            chosen = torch.device(self.device)
        except RuntimeError as error:
            raise UserError(f"{self.device!r} is no device", fix="use cpu, cuda or cuda:N, or leave it out") from error
        there = torch.cuda.device_count() if chosen.type == "cuda" else 1
        if (chosen.index or 0) >= there:
            why = f"there are {there} accelerators here" if there else "there is no accelerator here"
            raise UserError(f"there is no device {self.device!r}", why=why, fix="use cpu, or leave it out")
        return chosen


@dataclass
class Checkpoint(PretrainedConfig):
    """A model of transformers, and where it lies."""

    model: str = ""
    """A folder written by `save_pretrained`, or a name on the Hugging Face hub."""
    revision: str = "main"
    """Commit or branch on the hub; a commit pins the numbers. A folder has none."""


def settings_of(draft: Draft, name: str) -> Iterator[tuple[str, Any]]:
    """Key and settings of every reward of a recipe that is the plugin `name`."""
    for key, choice in draft.recipe.rewards.items():
        if choice.name == name and choice.config is not None:
            yield f"rewards.{key}", choice.config


class Resting:
    """A frozen network on the device of its settings, or brought there for as long as it is used."""

    def __init__(self, network: nn.Module, config: PretrainedConfig) -> None:
        network.eval().requires_grad_(False).to(getattr(torch, config.dtype))
        self.network: Any = network
        self.weights = HostWeights(network, config.place(), rests=config.offload == "cpu")

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.weights.device

    def resident(self) -> AbstractContextManager[None]:
        """The weights are on the device meanwhile."""
        return self.weights.resident()


def finite(clips: torch.Tensor) -> torch.Tensor:
    """``[B]`` on the CPU: which clips ``[B, F, 3, H, W]`` have finite values only."""
    return clips.isfinite().flatten(1).all(1).cpu()


def load_checked(kind: Any, name: str, settings: Checkpoint, key: str, model_type: str = "") -> Any:
    """A model of the transformers class `kind` in the type of the settings, every weight from its checkpoint.

    key: of the recipe, for errors. Raises `UserError` for a checkpoint of another type of model, where one is asked
    for, or one that lacks a weight or has it in another shape, naming the first.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, revision=settings.revision)
        if model_type and config.model_type != model_type:
            raise ValueError(f"it holds a model of type {config.model_type!r}, not {model_type!r}")
        with no_bars("transformers"):
            dtype = getattr(torch, settings.dtype)
            model, report = kind.from_pretrained(
                name, revision=settings.revision, dtype=dtype, output_loading_info=True
            )
        absent = sorted(report["missing_keys"]) or sorted(str(key) for key in report["mismatched_keys"])
        if absent:  # transformers fills them with random numbers
            raise ValueError(f"{len(absent)} weights are missing or of another shape, first {absent[0]!r}")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise unloadable(name, key, error) from error
    return model


def load_processor(kind: Any, name: str, revision: str, key: str) -> Any:
    """A processor of the transformers class `kind`. Raises `UserError`."""
    try:
        return kind.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise unloadable(name, key, error) from error


def unloadable(name: str, key: str, error: Exception) -> UserError:
    """What is said of a checkpoint that cannot be read."""
    return UserError(
        "the checkpoint cannot be loaded",
        where=f"{key}: {name}",
        why=first_line(error),
        fix="give a folder written by save_pretrained, or a name on the hub that this machine can reach or has cached",
    )
