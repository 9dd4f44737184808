"""Features of prompts: each prompt is encoded once, by an encoder that is in memory only meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vidalign.engine import distributed
from vidalign.text.base import TextPlugin
from vidalign.text.cache import MEMORY, Encoded, FeatureFiles, FeatureMemory, default_folder
from vidalign.text.encoder import padded

TOKENS = 512
"""Tokens that the encoder reads at once: one prompt of Wan. More gain nothing, as one fills a GPU already."""


class PromptFeatures:
    """Look-up from prompts to features `[B, L, D]` on the CPU, in the type of the encoder.

    What is neither in memory nor on disk is encoded on this process' device: the encoder is built, and released at
    once. `prepare` does so for all prompts of a run before there is a student. folder: where features are kept between
    runs; None = that of the user (`default_folder`). memory: bytes of features kept in memory.
    """

    def __init__(self, plugin: TextPlugin, folder: str | Path | None = None, memory: int = MEMORY) -> None:
        self.plugin = plugin
        self.folder = Path(folder) if folder else default_folder()
        self.encoded = 0
        """Prompts that this process has encoded."""
        self._memory = FeatureMemory(memory)
        self._files: FeatureFiles | None = None
        self._reported: set[str] = set()

    @property
    def files(self) -> FeatureFiles:
        """The files of this encoder in `folder`."""
        if self._files is None or self._files.folder != self.folder:
            self._files = FeatureFiles(self.folder, self.plugin.identity())
        return self._files

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Features of `prompts` `[B, L, D]`, zero at the padding."""
        self._report(prompts)
        known: dict[str, Encoded] = {}
        for prompt in dict.fromkeys(prompts):
            if (found := self._kept(prompt)) is not None:
                known[prompt] = found
        known |= dict(self._encode([prompt for prompt in dict.fromkeys(prompts) if prompt not in known]))
        return torch.stack([padded(known[prompt].features, known[prompt].length) for prompt in prompts])

    def prepare(self, prompts: Sequence[str]) -> int:
        """Encode the prompts that some rank does not find on its disk, shared out over all ranks, which all call it;
        returns their number.

        Where ranks do not see each other's disk, each encodes then what it still lacks.
        """
        self._report(prompts)
        lacked = distributed.all_gather_object([p for p in dict.fromkeys(prompts) if not self.files.has(p)])
        missing = list(dict.fromkeys(prompt for own in lacked for prompt in own))
        for _ in self._encode(missing[distributed.rank() :: distributed.world_size()]):
            pass
        distributed.barrier()
        for _ in self._encode([p for p in missing if self._memory.get(p) is None and not self.files.has(p)]):
            pass
        return len(missing)

    def _kept(self, prompt: str) -> Encoded | None:
        """From memory or from disk."""
        found = self._memory.get(prompt)
        if found is None and (found := self.files.read(prompt)) is not None:
            self._memory.add(prompt, found)
        return found

    def _encode(self, prompts: Sequence[str]) -> Iterator[tuple[str, Encoded]]:
        """Each prompt with its features, kept in memory and on disk; the encoder is there only meanwhile."""
        if not prompts:
            return
        place = distributed.device() if self.plugin.on_device else torch.device("cpu")
        encoder = self.plugin.build().to(place)
        at_once = max(1, TOKENS // encoder.length)
        for at in range(0, len(prompts), at_once):
            some = list(prompts[at : at + at_once])
            for prompt, features in zip(some, encoder.encode(some), strict=True):
                made = Encoded(features.cpu().clone(), encoder.length)
                self._memory.add(prompt, made)
                self.files.write(prompt, made)
                self.encoded += 1
                yield prompt, made
        del encoder
        distributed.free_memory(place)

    def _report(self, prompts: Sequence[str]) -> None:
        """One warning for every word that the encoder does not know."""
        unknown = sorted(set(self.plugin.unknown_words(list(prompts))) - self._reported)
        if unknown:
            self._reported.update(unknown)
            what = f"words outside the text encoder's vocabulary are read as [UNK]: {', '.join(unknown)}"
            warnings.warn(what, UserWarning, stacklevel=3)
