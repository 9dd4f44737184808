"""Prompts in groups that take turns, and the prompts of a text file, one a line."""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vidalign import registry
from vidalign.data.source import PromptSource
from vidalign.engine.rng import generator
from vidalign.errors import DataError, nearest
from vidalign.reading import regular


class GroupedPrompts(PromptSource):
    """Groups of prompts that take turns, each with its own order; `batch` neighbouring samples are distinct."""

    def __init__(self, groups: Sequence[Sequence[str]], seed: int, batch: int = 1) -> None:
        assert groups and all(groups), "a prompt source holds at least one prompt"
        self.groups, self.seed = groups, seed
        self.turns = (batch - 2) // len(groups) + 2  # the most turns that a batch touches
        self._order = lru_cache(maxsize=64)(self._permutation)

    @classmethod
    def open(cls, argument: str, seed: int, batch: int = 1) -> PromptSource:
        return cls([cls.listed(argument) or []], seed, batch)

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def first(self, count: int) -> list[str]:
        """The first `count` prompts without repetitions; all of them where there are fewer."""
        prompts: dict[str, None] = {}
        for n in range(64 * len(self)):
            if len(prompts) == min(count, len(self)):
                break
            prompts.setdefault(self[n])
        return list(prompts)

    def _permutation(self, purpose: str, epoch: int, key: int, length: int) -> list[int]:
        return torch.randperm(length, generator=generator(self.seed, purpose, epoch, key)).tolist()

    def __getitem__(self, sample: int) -> str:
        turn, place = divmod(sample, len(self.groups))
        index = self._order("prompt groups", turn, 0, len(self.groups))[place]
        group = self.groups[index]
        epoch, position = divmod(turn, len(group))
        return group[self._epoch(epoch, index, len(group))[position]]

    def _epoch(self, epoch: int, index: int, length: int) -> list[int]:
        """Order of a group's captions. Blocks of captions keep their places and are shuffled anew inside. So from one
        epoch to the next a caption comes back after at least ``length - block + 1`` turns."""
        block = max(1, length - self.turns + 1)
        fixed, shuffled = self._order("prompt blocks", 0, index, length), self._order("prompts", epoch, index, length)
        return sorted(range(length), key=lambda i: (fixed[i] // block, shuffled[i]))


class TextFile(GroupedPrompts):
    """A text file with one prompt a line."""

    @classmethod
    def listed(cls, argument: str, **settings: Any) -> list[str]:
        return read_prompts(Path(argument))

    @classmethod
    def placed(cls, argument: str, **settings: Any) -> Iterator[tuple[str, str]]:
        lines = enumerate(lines_of(Path(argument)), start=1)
        return ((f"{argument}:{number}", line) for number, line in lines if line)


def read_prompts(path: Path) -> list[str]:
    """Distinct non-empty lines of a text file; raises `DataError` when the file is missing, unreadable or empty."""
    prompts = [line for line in dict.fromkeys(lines_of(path)) if line]
    if not prompts:
        raise DataError(f"the prompt file {path} holds no prompt", fix="write one prompt a line")
    return prompts


def lines_of(path: Path) -> list[str]:
    """The lines that an editor shows, without the space around them; `DataError` when the file cannot be read.

    UTF-8 with or without a byte order mark, or UTF-16 with one. A line ends with LF, CRLF or CR; the other ends of
    Unicode, such as U+2028, stay inside a prompt.
    """
    try:
        data = regular(path).read_bytes()
        text = data.decode("utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        close = nearest(str(path).partition(":")[0], registry.names("prompts")) if ":" in str(path) else ""
        fix = f"did you mean the source {close!r}?" if close else "check the path, see docs/recipes.md"
        raise DataError(f"the prompt file {path} cannot be read", why=str(error), fix=fix) from error
    return [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
