"""What the metrics of every world share. A world's own metrics name themselves and the world that they judge.

Each has an answer for captions of its world only: other prompts are NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch

from vidalign.engine.rng import generator
from vidalign.evaluation.metrics.base import Metric
from vidalign.ranges import require

BATCH = 16
"""Clips judged at once."""
Judge = Callable[["torch.Tensor", list[str]], dict[str, "torch.Tensor"]]


@dataclass(frozen=True)
class World:
    """What metrics ask of a world. Judges take clips ``[B, F, 3, H, W]`` in [0, 1] and B captions."""

    is_caption: Callable[[str], bool]
    scorer: Judge
    """The trained rewards ``[B]`` by name, their plain mean ``composite``, and ``strict_pass``."""
    auditor: Judge
    """Metrics of the held-out judge ``[B]``, ``composite`` and ``pass``."""
    frames: Judge
    """Looks ``[B, F]`` of every frame: ``visual``, ``colour`` and ``shape``."""
    quarters: Judge
    """The trained rewards ``[B, 4]`` of every quarter."""
    diversity: Callable[[torch.Tensor, list[str]], float]
    """Spread of the clips of one caption, 1 = as diverse as the world."""
    truth: Callable[[list[str], int, torch.Generator], torch.Tensor]
    """Ground-truth clips of captions, with this many frames."""

    def judged(self, judge: Judge, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`judge` of the clips whose prompts are captions of the world, in batches; NaN for the others."""
        rows = [n for n, prompt in enumerate(prompts) if self.is_caption(prompt)]
        out: dict[str, torch.Tensor] = {}
        for part in (rows[k : k + BATCH] for k in range(0, len(rows), BATCH)):
            with torch.no_grad():
                scores = judge(clips[part].float(), [prompts[n] for n in part])
            for name, values in scores.items():
                whole = out.setdefault(name, torch.full((len(prompts), *values.shape[1:]), torch.nan))
                whole[part] = values.float().cpu()
        return out


class OfWorld(Metric):
    """A metric of captions of one world."""

    world: ClassVar[World]


class Scorer(OfWorld):
    """The trained rewards, their plain mean ``composite``, and the scorer's hard ``strict_pass``."""

    trained = True
    shown: ClassVar[dict[str, str]] = {"composite": "trained rewards", "strict_pass": "trained, passed"}

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        return self.world.judged(self.world.scorer, clips, prompts)


class Auditor(OfWorld):
    """The held-out auditor: its metrics, ``composite`` and ``pass``."""

    shown: ClassVar[dict[str, str]] = {"composite": "auditor", "pass": "auditor, passed"}

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        return self.world.judged(self.world.auditor, clips, prompts)


class Motion(OfWorld):
    """Mean absolute change from frame to frame over that of the world for the same caption, at most 1. A frozen clip
    has 0. Captions of objects at rest are not judged."""

    shown: ClassVar[dict[str, str]] = {"amount": "motion"}

    @dataclass
    class Config:
        references: int = 16
        """Ground-truth clips that show how much a caption moves."""
        least: float = 1e-4
        """Change of the world below which nothing moves."""

    config: Config

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        def judge(clips: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
            frames, count = clips.shape[1], self.config.references
            world = torch.tensor([_world_motion(self.world, prompt, frames, count) for prompt in prompts])
            amount = _change(clips).cpu() / world
            return {"amount": amount.clamp(max=1).where(world > self.config.least, torch.nan)}

        return self.world.judged(judge, clips, prompts)


class Diversity(OfWorld):
    """Spread over the seeds of a prompt, 1 = as diverse as the world."""

    judges: ClassVar[Literal["clips", "seeds", "long"]] = "seeds"
    shown: ClassVar[dict[str, str]] = {"seeds": "diversity"}

    @dataclass
    class Config:
        clips: int = 0
        """Clips of a prompt that are compared, at least 2; 0 takes those of the evaluation seeds."""
        prompts: int = 0
        """Prompts, the first ones, that are judged; 0 takes all."""

        def __post_init__(self) -> None:
            require(self, "prompts", least=0)
            if self.clips < 0 or self.clips == 1:
                raise ValueError("clips must be at least 2, or 0")

    config: Config

    def sampled(self, prompts: int, seeds: int) -> tuple[int, int]:
        return min(self.config.prompts or prompts, prompts), self.config.clips or seeds

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        distinct = list(dict.fromkeys(prompts))
        values = torch.full((len(distinct),), torch.nan)
        for n, prompt in enumerate(distinct):
            rows = [k for k, other in enumerate(prompts) if other == prompt]
            if self.world.is_caption(prompt) and len(rows) > 1 and clips[rows].isfinite().all():
                values[n] = self.world.diversity(clips[rows].float(), [prompt] * len(rows))
        return {"seeds": values}


class Drift(OfWorld):
    """Looks of every chunk of a long clip: nearness to what the world can render, colour and shape as captioned."""

    shown: ClassVar[dict[str, str]] = {"visual": "drift, visual"}
    judges: ClassVar[Literal["clips", "seeds", "long"]] = "long"

    @dataclass
    class Config:
        chunk_frames: int = 3
        """Frames of a chunk."""

    config: Config

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        def judge(clips: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
            size = self.config.chunk_frames
            whole = clips.shape[1] // size * size
            looks = self.world.frames(clips, prompts)
            return {name: v[:, :whole].unflatten(1, (-1, size)).mean(2) for name, v in looks.items()}

        return self.world.judged(judge, clips, prompts)


class Quarters(OfWorld):
    """Mean of the three rewards in every quarter of a long clip."""

    shown: ClassVar[dict[str, str]] = {"last": "last quarter, long"}
    judges: ClassVar[Literal["clips", "seeds", "long"]] = "long"

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        def judge(clips: torch.Tensor, prompts: list[str]) -> dict[str, torch.Tensor]:
            mean = torch.stack(list(self.world.quarters(clips, prompts).values())).mean(0)  # [B, 4]
            names = ("first", "second", "third", "last")
            return {"least": mean.amin(1)} | dict(zip(names, mean.unbind(1), strict=True))

        return self.world.judged(judge, clips, prompts)


def _change(clips: torch.Tensor) -> torch.Tensor:
    return (clips[:, 1:] - clips[:, :-1]).abs().flatten(1).mean(1)


@lru_cache(maxsize=4096)
def _world_motion(world: World, prompt: str, frames: int, count: int) -> float:
    """Mean change in ground-truth clips of a caption."""
    return float(_change(world.truth([prompt] * count, frames, generator(0, "world motion", 0))).mean())
