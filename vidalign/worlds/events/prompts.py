"""The captions of the event world as a prompt source: ``events:SPLIT``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from vidalign.data.prompts import GroupedPrompts
from vidalign.worlds.events import captions
from vidalign.worlds.events.renderer import clips_of
from vidalign.worlds.golden import events_hash

UNSEEN = "held_out_combinations"


class EventCaptions(GroupedPrompts):
    """Captions of a split; motions and kinds of event take turns. The world has their ground truth and judges them."""

    argument = "split"
    judges: ClassVar[dict[str, dict[str, Any]]] = {"event_auditor": {}}
    version = events_hash()

    @classmethod
    def listed(cls, argument: str, **settings: Any) -> list[str]:
        return list(captions.prompts(argument))

    @classmethod
    def open(cls, argument: str, seed: int, batch: int = 1) -> EventCaptions:
        return cls(list(captions.CAPTIONS.groups(argument).values()), seed, batch)

    @classmethod
    def out_of_domain(cls, argument: str) -> str:
        part, slash, _ = argument.rpartition("/")
        return f"events:{part}{slash}{UNSEEN}"

    def truth(self, prompts: Sequence[str], generators: Sequence[torch.Generator], frames: int) -> torch.Tensor:
        return clips_of(prompts, frames, generators)

    def examine(self, prompts: Sequence[str], metrics: Sequence[Any], settings: Any) -> dict[str, Any] | None:
        from vidalign.worlds.health import examine

        return examine("events", prompts, metrics, settings)
