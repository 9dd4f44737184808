"""What an objective may touch: the student and its policies, roles, rewards, teacher, text, codec, counter RNG, log.

Every random number comes from ``generator(seed, purpose, step, sample)``. It does not depend on the number of
processes, and a resumed run needs only the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic

import torch
from typing_extensions import TypeVar

from vidalign.engine import distributed
from vidalign.engine.rng import generator
from vidalign.losses.advantages import SignalFloor

if TYPE_CHECKING:
    from vidalign.codecs.base import Codec
    from vidalign.data.source import PromptSource
    from vidalign.engine.policies import Policies
    from vidalign.engine.roles import Roles
    from vidalign.rewards.base import CompositeReward, ScoreRequest
    from vidalign.students.base import Generator, Student
    from vidalign.text.features import PromptFeatures
    from vidalign.tracking.tracker import Tracker

S = TypeVar("S", bound="Student[Any]", default=Any)
T = TypeVar("T", default=Any)
DECODE_BYTES = 2**33
"""What the decoding of a slice of clips may hold, about; a single clip is always decoded."""


@dataclass(frozen=True)
class Batch:
    """This process' share of the prompts of a step (captions, or `Example`s of a language task). ids number all samples
    of the run."""

    step: int
    prompts: list[Any]
    ids: list[int]


@dataclass
class TrainContext(Generic[S, T]):
    """Handed to every method of an objective, which says in its annotations what it is written for:
    ``TrainContext[VideoStudent, ClipTeacher]`` (`vidalign.students`, `vidalign.teachers.base`)."""

    seed: int
    frames: int
    """Latent frames of a video."""
    micro_batch: int
    device: torch.device
    roles: Roles
    policies: Policies
    rewards: CompositeReward | None
    teacher: T
    """What the recipe's teacher section names; offers ``clips``, ``velocity``, ``few_step`` or ``logits``."""
    prompts: PromptSource
    """Where the prompts come from."""
    features: PromptFeatures | None
    """Cached prompt features: ``features(prompts) -> [B, L, D]``; None for a student that reads the prompts itself."""
    codec: Codec
    tracker: Tracker
    spread: int = 1
    """Processes that share each group of candidates; 1 = every process has whole groups."""
    decoder: Codec | None = None
    """What decodes in the place of the codec; its latents are those of the codec."""
    signal: SignalFloor = field(default_factory=SignalFloor)
    """Which groups have a spread that is worth learning from."""
    clips_every: int = 0
    score_ahead: bool = False
    """Whether rewards judge in threads of their own, beside the rollout."""
    step: int = 0
    update: int = 0
    """Optimiser steps taken on the current experience."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What rewards log of the current step."""
    generator: Generator | None = None
    """What answers the prompts of language students; None = the student itself."""
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    """`LossOut.sums` of the current step, for `Objective.after_step`."""

    @property
    def student(self) -> S:
        """The student; runs through its engine in its own phase only."""
        student: S = self.roles.module("student")
        return student

    def policy(self, name: str) -> AbstractContextManager[Any]:
        """Use the ``current``, ``old`` or ``reference`` weights of the student within this context."""
        return self.policies.use(name)

    def gathered(self) -> AbstractContextManager[None]:
        """Keep the student whole on this process within this context (ZeRO-3); around rollouts."""
        return self.roles.engines["student"].gathered()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The weights that the run keeps, whole on this process and without gradient: what evaluations judge."""
        with torch.no_grad(), self.policy(self.policies.kept), self.gathered():
            yield

    @property
    def chunks(self) -> int:
        """Chunks of a video."""
        return self.frames // self.chunk_frames

    @property
    def chunk_frames(self) -> int:
        """Latent frames of a chunk."""
        return self.student.chunk_frames

    @property
    def sigmas(self) -> list[float]:
        """Noise levels that the student's sampler visits, descending from 1."""
        return self.student.sigmas

    @property
    def world_size(self) -> int:
        return distributed.world_size()

    def own_candidates(self, group_size: int) -> slice:
        """Which of the candidates of each of its groups this process has."""
        size = group_size // self.spread
        first = distributed.rank() % self.spread * size
        return slice(first, first + size)

    @property
    def reward_weights(self) -> dict[str, float]:
        assert self.rewards is not None, "an objective that scores declares needs.rewards"
        return self.rewards.weights

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Every reward ``[N]`` of clips ``[N, F, 3, H, W]`` in [0, 1], by name; NaN where an item failed. It trains
        nothing: rewards that learn need a request of `collect`, see `Experience.request`."""
        assert self.rewards is not None, "an objective that scores declares needs.rewards"
        scores = self.rewards.score(clips, prompts)
        self.metrics |= self.rewards.logged
        return scores

    def judge(self, request: ScoreRequest) -> dict[str, torch.Tensor]:
        """Every reward ``[N]`` of a request, by name; waits for those that judge already."""
        assert self.rewards is not None, "an objective that scores declares needs.rewards"
        names = list(request.rewards or self.rewards.rewards)
        scores, logged = request.ahead.result() if request.ahead is not None else ({}, {})
        if left := [name for name in names if name not in scores]:
            rest = replace(self, rewards=self.rewards.part(dict.fromkeys(left, 1.0)))
            scores |= rest.score(request.clips, request.prompt_of_clip)
        self.metrics |= logged
        return {name: scores[name] for name in names}

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """``[N, ...]`` of every process, concatenated in rank order."""
        return distributed.all_gather(tensor)

    def text(self, prompts: Sequence[str]) -> torch.Tensor:
        """Features ``[B, L, D]`` of prompts, computed once per prompt."""
        assert self.features is not None, "the student reads its prompts itself"
        return self.features(list(prompts)).to(self.device, self.student.latent_dtype)

    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips ``[B, F, 3, H, W]`` in [0, 1] to latents, a slice at a time."""
        frames, side = clips.shape[1], self.codec.downscale
        frame = (self.codec.channels, clips.shape[-2] // side, clips.shape[-1] // side)
        fits = _fits(self.codec, frame, frames)
        parts = [self.codec.encode(part.to(self.device, self.student.latent_dtype)) for part in clips.split(fits)]
        return torch.cat(parts)

    def decode(self, latents: torch.Tensor, history: torch.Tensor | None = None) -> torch.Tensor:
        """Latents to clips ``[B, F, 3, H, W]`` in [0, 1], a slice at a time; history: see `Codec.decode`."""
        codec = self.decoder or self.codec
        fits, clips, done = _fits(codec, latents.shape[2:], latents.shape[1]), None, 0
        pasts = [None] if history is None else history.split(1)
        for group, past in zip(latents.split(len(latents) // len(pasts)), pasts, strict=True):
            decode = codec.decode if past is None else codec.behind(past)
            for part in group.split(fits):
                decoded = decode(part)
                clips = decoded.new_empty(len(latents), *decoded.shape[1:]) if clips is None else clips
                clips[done : done + len(part)] = decoded
                done += len(part)
        assert clips is not None, "there is something to decode"
        return clips

    def generators(self, purpose: str, samples: Sequence[int]) -> list[torch.Generator]:
        """One generator a sample, on the CPU; its key holds step and update."""
        return [generator(self.seed, f"{purpose}/{self.update}", self.step, sample) for sample in samples]

    def shared_generator(self, purpose: str) -> torch.Generator:
        """A generator for decisions on which all processes agree."""
        return generator(self.seed, purpose, self.step)

    def normal(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Standard normal ``[N, *shape]``, one generator a sample."""
        draws = torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])
        return draws.to(self.device, self.student.latent_dtype)

    def uniform(self, shape: Sequence[int], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """Uniform in [0, 1), fp32 ``[N, *shape]``, one generator a sample."""
        return torch.stack([torch.rand(tuple(shape), generator=g) for g in generators]).to(self.device)

    @property
    def shows(self) -> bool:
        """Whether `show` logs clips in this step."""
        return bool(self.clips_every) and self.step % self.clips_every == 0

    def show(self, clips: torch.Tensor, prompts: Sequence[str], rewards: dict[str, torch.Tensor]) -> None:
        """Log a few clips with prompt and rewards burnt in, every ``tracking.clips_every`` steps."""
        if not self.shows or not len(clips):
            return
        chosen = shown(len(clips))
        captions = [
            "\n".join([prompts[n], *(f"{name.replace('_', ' ')} {float(v[n]):.2f}" for name, v in rewards.items())])
            for n in chosen
        ]
        self.tracker.clips(self.step, "rollout", clips[list(chosen)], captions, self.student.fps)


def shown(count: int) -> range:
    """Which of so many clips are logged."""
    return range(0, count, max(1, count // 4))


def _fits(codec: Codec, frame: Sequence[int], frames: int) -> int:
    """How many clips of so many latent frames ``(C, h, w)`` go through a codec at once."""
    return max(1, DECODE_BYTES // max(1, codec.decode_bytes(frame, frames)))
