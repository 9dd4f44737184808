"""Features of prompts, computed once and kept in memory and optionally on disk; the encoder is released
afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vidalign.owner import beside
from vidalign.text.encoder import TextEncoder


class PromptFeatures:
    """Look-up from prompts to features `[B, L, D]` on the CPU.

    build: makes the encoder; called only when a prompt is not cached yet. key: identity of the encoder,
    needed to find features on disk without building it; taken from the encoder when empty. folder: where
    features are kept between runs, one safetensors file per encoder and prompt.
    """

    def __init__(self, build: Callable[[], TextEncoder], key: str = "", folder: str | Path | None = None) -> None:
        self._build = build
        self._encoder: TextEncoder | None = None
        self.key = key
        self.folder = Path(folder) if folder else None
        self._memory: dict[str, Tensor] = {}

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Features of `prompts` `[B, L, D]`, encoding those seen for the first time."""
        self.prepare(prompts)
        return torch.stack([self._memory[p] for p in prompts])

    def prepare(self, prompts: Sequence[str], batch: int = 64) -> None:
        """Make sure that all `prompts` are cached; call once with every prompt of a run, then `release`."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._memory and not self._load(p)]
        for at in range(0, len(missing), batch):
            some = missing[at : at + batch]
            for prompt, features in zip(some, self._ready().encode(some).cpu(), strict=True):
                self._memory[prompt] = features.clone()
                self._store(prompt)

    def release(self) -> None:
        """Drop the encoder; an unseen prompt builds it again."""
        self._encoder = None

    def _ready(self) -> TextEncoder:
        if self._encoder is None:
            self._encoder = self._build()
            self.key = self.key or self._encoder.key
        return self._encoder

    def _file(self, prompt: str) -> Path | None:
        if self.folder is None:
            return None
        key = self.key or self._ready().key
        return self.folder / f"{hashlib.sha256(f'{key}|{prompt}'.encode()).hexdigest()[:32]}.safetensors"

    def _load(self, prompt: str) -> bool:
        from safetensors.torch import load_file

        file = self._file(prompt)
        if file is None or not file.is_file():
            return False
        self._memory[prompt] = load_file(file)["features"]
        return True

    def _store(self, prompt: str) -> None:
        from safetensors.torch import save_file

        file = self._file(prompt)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = beside(file, sweep=False)
            save_file({"features": self._memory[prompt]}, partial)
            partial.replace(file)
