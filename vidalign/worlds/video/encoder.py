"""The world's text encoder, which reports words outside its vocabulary."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from vidalign.text.encoder import TextEncoder
from vidalign.worlds.video.captions import VOCABULARY


class WarnedEncoder(TextEncoder):
    """`TextEncoder` with one warning for every word outside the vocabulary."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._reported: set[str] = set()

    def encode(self, prompts: list[str]) -> Tensor:
        unknown = sorted({w for p in prompts for w in p.lower().split()} - set(VOCABULARY) - self._reported)
        if unknown:
            self._reported.update(unknown)
            what = f"words outside the world's vocabulary are read as [UNK]: {', '.join(unknown)}"
            warnings.warn(what, stacklevel=2)
        return super().encode(prompts)
