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

    @dataclass
    class Config:
        """No settings."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def unknown_words(cls, prompts: Sequence[str]) -> list[str]:
        """Words of the prompts that it cannot read, each once; found without its weights."""
        return []

    @abstractmethod
    def build(self) -> TextEncoder:
        """The network with its tokenizer. Raises `UserError` when it cannot be loaded."""
