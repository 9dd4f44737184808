"""The captions of a world as a finite set: how they are read, which split holds them, and how they are drawn.

Splits of every world:

- ``held_out_combinations``: captions with a combination of attributes that training never shows,
- ``held_out``: one caption in ten of the rest, by a hash of its text,
- ``unseen``: both of them, every caption that training never shows,
- ``train``: everything else,
- ``held_out_speeds``: the training captions; their scenes move faster.

``basic/SPLIT`` keeps the captions of a part of the world that small networks learn in minutes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Generic, TypeVar

import torch

from vidalign.errors import DataError, nearest

SPLITS = ("train", "held_out", "held_out_combinations", "unseen", "held_out_speeds")

Spec = TypeVar("Spec")


class CaptionSet(Generic[Spec]):
    """Every caption of a world.

    world: what messages call it; listed: makes the specs, whose `str` is the caption; kind: the group of a spec, groups
    take turns where captions are drawn; unseen: whether a spec has a held-out combination; basic: whether it belongs to
    ``basic/``; source: where all captions are listed, for messages.
    """

    def __init__(
        self,
        world: str,
        listed: Callable[[], Sequence[Spec]],
        kind: Callable[[Spec], str],
        unseen: Callable[[Spec], bool],
        basic: Callable[[Spec], bool],
        source: str,
    ) -> None:
        self.world, self.listed, self.kind = world, listed, kind
        self.unseen, self.basic, self.source = unseen, basic, source
        self.prompts = lru_cache(self._prompts)

    @cached_property
    def _by_text(self) -> dict[str, Spec]:
        return {str(spec): spec for spec in self.listed()}

    def all_captions(self) -> list[str]:
        """Every caption of the world as text."""
        return list(self._by_text)

    def parse(self, caption: str) -> Spec:
        """Read a caption; raises `DataError` with the nearest caption when it is not one of this world."""
        text = _plain(caption)
        spec = self._by_text.get(text)
        if spec is None:
            close = nearest(text, list(self._by_text))
            raise DataError(
                f"the prompt {caption!r} is not a caption of {self.world}",
                why="its scorer and auditor judge a clip by the laws that the caption names",
                fix=f"did you mean {close!r}?" if close else f"see `{self.source}`",
            )
        return spec

    def is_caption(self, text: str) -> bool:
        """Whether `parse` would accept the text."""
        return _plain(text) in self._by_text

    def _split(self, spec: Spec) -> str:
        if self.unseen(spec):
            return "held_out_combinations"
        return "held_out" if hashlib.sha256(str(spec).encode()).digest()[0] % 10 == 0 else "train"

    def _prompts(self, split: str) -> tuple[str, ...]:
        """Captions of a split or of its ``basic/`` part, in the order of the set; `DataError` for an unknown split."""
        basic, name = split.startswith("basic/"), split.removeprefix("basic/")
        if name not in SPLITS:
            close = nearest(name, SPLITS)
            raise DataError(
                f"{self.world} has no split {split!r}",
                why=f"splits: {', '.join(SPLITS)}",
                fix=f"did you mean {close!r}?" if close else "",
            )
        members = {"held_out_speeds": ("train",), "unseen": ("held_out", "held_out_combinations")}.get(name, (name,))
        specs = self._by_text.values()
        return tuple(str(s) for s in specs if self._split(s) in members and (self.basic(s) or not basic))

    def groups(self, split: str) -> dict[str, list[str]]:
        """The captions of a split by their kind."""
        groups: dict[str, list[str]] = {}
        for caption in self.prompts(split):
            groups.setdefault(self.kind(self.parse(caption)), []).append(caption)
        return groups

    def balanced(self, split: str, count: int, generator: torch.Generator) -> list[str]:
        """Draw `count` captions of a split, kinds equally often."""
        groups = list(self.groups(split).values())
        turns = -(-count // len(groups))
        order = torch.cat([torch.randperm(len(groups), generator=generator) for _ in range(turns)])[:count]
        picks = torch.rand(count, generator=generator, dtype=torch.float64)
        return [groups[k][int(u * len(groups[k]))] for k, u in zip(order.tolist(), picks.tolist(), strict=True)]


def _plain(text: str) -> str:
    return " ".join(text.lower().replace(".", " ").split())
