"""The contract of a text encoder as a plugin: light until it is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from vidalign.text.encoder import TextEncoder


class TextPlugin(ABC):
    """A text encoder by its settings (kind ``text_encoders``); made with its ``Config``."""

    name: ClassVar[str]
    on_device: ClassVar[bool] = True
    """Whether it runs on the accelerator where there is one; a tiny one that runs on the CPU gives the same bits on
    machines with and without."""

    @dataclass
    class Config:
        """No settings."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def unknown_words(cls, prompts: Sequence[str]) -> list[str]:
        """Words of the prompts that it cannot read, each once; answered without its weights."""
        return []

    @abstractmethod
    def identity(self) -> str:
        """All that the features of a prompt depend on: weights, tokenizer, type, length. Encoders with one identity
        share their features on disk. Answered without its weights; raises `UserError` where it cannot be."""

    @abstractmethod
    def build(self) -> TextEncoder:
        """The network with its tokenizer. Raises `UserError` when it cannot be loaded."""
