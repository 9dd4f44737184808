"""The captions of the embedded video world as a prompt source: ``world:SPLIT``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from vidalign.data.prompts import GroupedPrompts
from vidalign.worlds.golden import world_hash
from vidalign.worlds.video import captions
from vidalign.worlds.video.renderer import clips as render

UNSEEN = "held_out_combinations"


class Captions(GroupedPrompts):
    """Captions of a split; motions take turns. The world has their ground truth and judges them."""

    argument = "split"
    judges: ClassVar[dict[str, dict[str, Any]]] = {"world_auditor": {}}
    version = world_hash()

    @classmethod
    def listed(cls, argument: str, **settings: Any) -> list[str]:
        return list(captions.prompts(argument))

    @classmethod
    def open(cls, argument: str, seed: int, batch: int = 1) -> Captions:
        return cls(list(captions.CAPTIONS.groups(argument).values()), seed, batch)

    @classmethod
    def family(cls, prompt: Any) -> str:
        """The motion, whatever its direction: `hit` are the collisions."""
        return captions.parse(prompt).motion.split()[0]

    @classmethod
    def out_of_domain(cls, argument: str) -> str:
        part, slash, _ = argument.rpartition("/")
        return f"world:{part}{slash}{UNSEEN}"

    def truth(self, prompts: Sequence[str], generators: Sequence[torch.Generator], frames: int) -> torch.Tensor:
        return torch.cat([render([p], frames, generator=g) for p, g in zip(prompts, generators, strict=True)])

    def describe(self, clips: torch.Tensor, prompts: Sequence[str]) -> list[str]:
        from vidalign.worlds.video.captioner import rollout_captions

        return rollout_captions(clips, prompts)

    def examine(self, prompts: Sequence[str], metrics: Sequence[Any], settings: Any) -> dict[str, Any] | None:
        from vidalign.worlds.health import examine

        return examine("video", prompts, metrics, settings)
