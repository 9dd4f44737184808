"""The contract of a reward, and the weighted set of rewards that a recipe names.

A reward scores finished clips for their prompts; higher is better. An item that it cannot score is NaN, which
objectives leave out; it is never 0. Weights are applied by the objective, which may whiten each component
first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import torch

from vidalign.deferred import without_gradient
from vidalign.engine.blueprint import Blueprint, TrainedRole
from vidalign.losses.advantages import weighted_mean
from vidalign.rewards.ahead import ScoringAhead
from vidalign.rewards.calls import OnTimeout, RewardCall

if TYPE_CHECKING:
    from torch import nn

    from vidalign.cost import Cost, StepSizes
    from vidalign.data.source import PromptSource
    from vidalign.recipe import Recipe
    from vidalign.rewards.run import Run
    from vidalign.students.video import VideoStudentSpec
    from vidalign.text.features import PromptFeatures


@runtime_checkable
class Reward(Protocol):
    """What a recipe may name under ``rewards``; a class made with its nested ``Config``, or without arguments where it
    declares none.

    Its class may say what it judges, ``judges = "clips"`` or ``"texts"``: a recipe with another student is refused. A
    static method ``can_score(prompt)`` (of an `Example` for texts) may say which prompts it can score. A training
    prompt that no reward of the recipe can score is refused.

    Clips are judged in a thread, a part of the rollout beside the next one (``trainer.score_ahead``). A reward with a
    true attribute ``waits`` computes nothing here, a server does: it has a thread of its own.

    A `score` with a further argument ``metadata: Sequence[Mapping[str, Any]] = ()`` is given one mapping an item: the
    further columns of the table that its prompt comes from, none of other prompts. One with a further argument
    ``fps: float`` is given the frame rate of the clips, that of the student. A student that has none is then refused,
    unless the argument has a default.
    """

    name: str

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Score clips ``[B, F, 3, H, W]`` in [0, 1] for B prompts.

        Returns ``[B]`` under the reward's own name, NaN where an item failed; further names are for logs.
        """
        ...


@dataclass(frozen=True)
class ScoreRequest:
    """Clips or texts that are judged, with the groups that they were rolled out in."""

    clips: Any
    """``[N, F, 3, H, W]`` in [0, 1], or N texts; see `kept`."""
    prompts: list[Any]
    """One of each group."""
    group_index: torch.Tensor
    """``[N]``, the place in `prompts` of the prompt of each clip."""
    first_frame: int = 0
    """Latent frame of the video that the clips begin with."""
    rewards: tuple[str, ...] | None = None
    """Names of the rewards that judge; None = all."""
    ahead: ScoringAhead | None = None
    """What judges already, by the rewards that do not learn."""
    kept: tuple[int, ...] | None = None
    """Which of the candidates `clips` still holds: large videos are freed once they are judged; None = all."""

    @property
    def prompt_of_clip(self) -> list[Any]:
        """The prompt of every clip."""
        return [self.prompts[place] for place in self.group_index.tolist()]

    def judged_by(self, name: str) -> bool:
        """Whether the reward `name` judges the clips."""
        return self.rewards is None or name in self.rewards


class TrainableReward(ABC):
    """A reward that learns along the way: it brings a network, which gets a role and an engine of its own.

    Objectives are independent of it. The reward first learns from what an objective's `collect` submits for judgement,
    in a phase of its own. Then the trainer judges by it.
    """

    name: ClassVar[str]
    judges: ClassVar[str] = "clips"
    teacher_offers: ClassVar[str] = ""
    """What the teacher must offer; empty where it needs none."""
    role: ClassVar[str]
    """Name of its engine, of its checkpoint and in its metrics."""
    network: nn.Module
    updates: int
    """Optimiser steps in one training step."""

    @classmethod
    @abstractmethod
    def from_recipe(cls, recipe: Recipe, spec: VideoStudentSpec, features: PromptFeatures) -> TrainableReward:
        """Made before the engines; `features` are the prompt features of the student that `spec` describes."""

    def blueprint(self) -> Blueprint:
        """What is built for it: its network under its role, and how the optimiser differs."""
        return Blueprint(roles={self.role: TrainedRole(self.updates, lambda student, teacher: self.network)})

    @abstractmethod
    def attach(self, ctx: Run) -> None:
        """Called once, when the engines stand."""

    def warm_up(self, prompts: PromptSource) -> None:  # noqa: B027
        """Learn from the initial student, before the first training step."""

    @abstractmethod
    def learn(self, request: ScoreRequest) -> None:
        """Train on the student's clips, outside any other role's phase; logs to ``ctx.metrics``. Called once a step."""

    @abstractmethod
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """As every `Reward`."""

    @classmethod
    @abstractmethod
    def cost(cls, recipe: Recipe, sizes: StepSizes) -> Cost:
        """What its learning adds to a step, scores left out (see `Objective.cost`); at most, where data decide."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart beside the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, "a reward that saves state restores it"


class CompositeReward:
    """Several rewards with a weight each, by their keys in the recipe.

    plugins: what each calls itself, where that is not its key; seconds: how long each may take, for ever where it names
    none; on_timeout: see ``trainer.reward_timeout``; fps: frame rate of the clips. Raises `UserError` for a reward that
    asks for a frame rate where there is none.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float],
        *,
        plugins: Mapping[str, str] | None = None,
        seconds: Mapping[str, float] | None = None,
        on_timeout: OnTimeout = "stop",
        fps: float | None = None,
    ) -> None:
        assert rewards and set(rewards) == set(weights), "every reward needs a weight"
        self.rewards = dict(rewards)
        self.weights = dict(weights)
        self.logged: dict[str, float] = {}
        """Metrics of the further names that the last call of `score` returned."""
        limits, names = dict(seconds or {}), plugins or {}
        limits |= dict.fromkeys((key for key, one in self.rewards.items() if isinstance(one, TrainableReward)), 0.0)
        # what learns takes part in collectives: it has no thread of its own
        self._calls = {
            key: RewardCall(key, reward, limits.get(key, 0.0), on_timeout, names.get(key, key), fps)
            for key, reward in self.rewards.items()
        }

    def part(self, weights: Mapping[str, float]) -> CompositeReward:
        """Some of the rewards with weights of their own."""
        chosen = copy(self)
        chosen.rewards, chosen.weights = {name: self.rewards[name] for name in weights}, dict(weights)
        chosen._calls, chosen.logged = {name: self._calls[name] for name in weights}, {}
        return chosen

    def on_call(self, listener: Callable[[int], None]) -> None:
        """Call `listener` with the number of clips whenever one of the rewards scores, in a `part` of them too."""
        for call in self._calls.values():
            call.listeners.append(listener)

    @property
    def trained(self) -> set[str]:
        """What the rewards that count call themselves."""
        return {call.plugin for key, call in self._calls.items() if self.weights[key]}

    @property
    def trainable(self) -> list[TrainableReward]:
        """The rewards that learn along the way."""
        return [reward for reward in self.rewards.values() if isinstance(reward, TrainableReward)]

    def warm_up(self, prompts: PromptSource) -> None:
        """Let the trainable rewards learn from the initial student."""
        for reward in self.trainable:
            reward.warm_up(prompts)

    def state_dict(self) -> dict[str, Any]:
        """State of the trainable rewards, by name."""
        return {reward.name: reward.state_dict() for reward in self.trainable}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for reward in self.trainable:
            reward.load_state_dict(state[reward.name])

    @without_gradient
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The ``[B]`` score of every reward by its key, not weighted.

        clips: ``[B, F, 3, H, W]`` in [0, 1]. Raises `PluginError` when a reward does not keep its contract.
        """
        out, self.logged = {}, {}
        for name, call in self._calls.items():
            scores = call(clips, prompts)
            out[name] = scores.pop(name)
            self.logged |= {f"reward/{name}/{extra}/mean": float(values.nanmean()) for extra, values in scores.items()}
        return out

    def ahead(self, *, threads: bool) -> ScoringAhead:
        """Judges slices by the rewards that do not learn; threads: beside other work."""
        frozen = {key: call for key, call in self._calls.items() if not isinstance(call.reward, TrainableReward)}
        return ScoringAhead(frozen, threads=threads)

    def total(self, scores: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Weighted mean ``[B]`` of scores as `score` returns them; NaN where one that counts is."""
        return weighted_mean({name: scores[name] for name in self.weights}, self.weights)
