"""What is asked of a kind of student when weights come in from elsewhere, or leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vidalign.errors import UsageError


@dataclass(frozen=True)
class ImportOptions:
    """How a public checkpoint is read."""

    key: str = ""
    """Part of the file that holds the weights; empty = as the preset says."""
    lora: str = ""
    """A LoRA file or PEFT folder, or a hub id."""
    lora_alpha: float | None = None
    """Its alpha, where neither the file nor the preset says it."""
    keep_lora: bool = False
    """Keep it as a trainable adapter beside the weights, instead of merging it."""
    base: str = ""
    """Folder or hub id with VAE, text encoder and tokenizer; empty = that of the preset."""
    heads: int = 0
    """Attention heads; 0 = as the base says, or heads of the usual size."""
    dtype: str = ""
    """Type of the written weights; empty = as they are stored."""
    height: int = 0
    """Pixel height of clips; 0 = the preset's."""
    width: int = 0


@dataclass(frozen=True)
class Imported:
    """What came of an import."""

    folder: Path
    notes: list[str]
    """What was assumed, for the user to read."""


@dataclass(frozen=True)
class Leaving:
    """Weights that are exported."""

    path: Path
    """A saved student: a file, or a folder."""
    made: Mapping[str, str] = field(default_factory=dict)
    """What made it: recipe, step, scores."""
    adapter: Path | None = None
    """Folder of the adapter that was trained, if there is one."""
    start: str = ""
    """The weights that the adapter was trained on, as its recipe names them; empty where they were random."""


def trained_adapter(leaving: Leaving, whole: str) -> Path:
    """The folder of the adapter that was trained. whole: the form that all weights leave in. Raises `UsageError` where
    there is none."""
    adapter = leaving.adapter
    if adapter is None or not (adapter / "adapter_config.json").is_file():
        raise UsageError(
            "there is no LoRA to export",
            where="--to",
            why="all weights were trained, so no low-rank update is the difference"
            if adapter is None
            else str(adapter),
            fix=f"use --to {whole}, or train with student.adapter={{rank: 32}}",
        )
    return adapter


@dataclass(frozen=True)
class Card:
    """What a model card says of weights beside what made them."""

    about: str = "A student of vidalign."
    base: str = ""
    """Hub id of the model that it comes from."""
    licence: str = ""
    """As the hub writes it; empty where it is not known."""
