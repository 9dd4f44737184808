"""What a merge is judged by (AR-CoPO, 2603.17461): an in-domain and an out-of-domain score of every prompt.

In-domain: the weighted mean of the rewards that the run was trained on, on its training prompts. Out-of-domain: a
metric that no run is trained on, on prompts of another kind. For the embedded world it is the held-out auditor on
combinations that training never shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from vidalign import registry
from vidalign.build import build_rewards
from vidalign.data.source import Chosen, find_source, open_source
from vidalign.errors import DataError, UserError, nearest
from vidalign.evaluation.judging import Generate, batches, scored
from vidalign.guest import guest
from vidalign.rewards.base import TrainableReward

if TYPE_CHECKING:
    from vidalign.recipe import Recipe
    from vidalign.tracking.stages import Done

Score = Callable[[torch.Tensor, list[str]], torch.Tensor]
"""Clips ``[B, F, 3, H, W]`` in [0, 1] and their prompts to a number each, ``[B]``; NaN where one cannot be judged."""


class MergeScores:
    """Scores of students on the same prompts and noise.

    prompts: source of the out-of-domain prompts; '' for those that the source of the training prompts names. judge: a
    metric, ``NAME`` or ``NAME/VALUE``; '' for the first that this source offers.
    """

    def __init__(self, recipe: Recipe, prompts: str = "", judge: str = "") -> None:
        self.seeds = recipe.evaluation.seeds
        self.inside = _take(recipe, recipe.training_prompts), _trained_rewards(recipe)
        trained = recipe.training_prompts
        self.outside = _take(recipe, recipe.prompts_of(prompts or _unseen(trained))), _metric(judge or _judge(trained))

    @property
    def clips(self) -> int:
        """How many clips one call judges."""
        return self.seeds * (len(self.inside[0]) + len(self.outside[0]))

    @torch.no_grad()
    def __call__(self, generate: Generate, done: Done) -> tuple[torch.Tensor, torch.Tensor]:
        """In-domain and out-of-domain score of every prompt, the mean over seeds: ``[P]`` and ``[Q]``.

        done: called with how many clips have been judged since its last call.
        """
        inside, outside = (self._means(generate, *part, done) for part in (self.inside, self.outside))
        if bool(outside.isnan().all()):
            raise DataError(
                "no out-of-domain prompt can be judged",
                where="--judge",
                why=f"the judge has no answer for prompts such as {self.outside[0][0]!r}",
                fix="name a metric that judges any prompt, such as clip_score; `vidalign list metrics` prints all",
            )
        return inside, outside

    def _means(self, generate: Generate, prompts: Sequence[str], score: Score, done: Done) -> torch.Tensor:
        values = []
        for seed in range(self.seeds):
            for part, clips in batches(generate, prompts, seed):
                values.append(score(clips, part).float().cpu())
                done(len(part))
        return torch.cat(values).view(self.seeds, -1).nanmean(0)


def _take(recipe: Recipe, source: Chosen) -> list[str]:
    """As many distinct prompts of a source as the evaluation takes."""
    return open_source(source, 0).first(recipe.evaluation.count)


def _unseen(source: Chosen) -> str:
    """Prompts that are out of the domain of the training prompts, where their source has some."""
    kind, argument = find_source(source)
    unseen = kind.out_of_domain(argument)
    if not unseen:
        raise UserError(
            "there are no out-of-domain prompts",
            where="--out-of-domain",
            why=f"the run was trained on {source}, which has no prompts beyond it",
            fix="name a file of prompts of another kind, and a --judge for them",
        )
    return unseen


def _judge(source: Chosen) -> str:
    """The first metric that has the right answers for the prompts of a source."""
    judges = find_source(source)[0].judges
    if not judges:
        raise UserError(
            "there is no judge of out-of-domain prompts",
            where="--judge",
            why=f"the source of {source} offers none",
            fix="name a metric, such as clip_score",
        )
    return next(iter(judges))


def _trained_rewards(recipe: Recipe) -> Score:
    weights = {name: weight for name, weight in recipe.reward_weights.items() if weight}
    for name in weights:
        kind = registry.get("rewards", recipe.rewards[name].name)
        if isinstance(kind, type) and issubclass(kind, TrainableReward):
            raise UserError(
                f"merges cannot be compared by the reward {name!r}",
                where=f"rewards.{name}",
                why="it learns along the way, and its scores are comparable inside a prompt and a step only",
                fix="give one scale with --scale to merge without judging",
            )
    rewards = build_rewards(recipe, None, None)
    assert rewards is not None and weights, "an objective that scores names rewards"
    trained = rewards.part(weights)
    return lambda clips, prompts: trained.total(trained.score(clips, prompts))


def _metric(judge: str) -> Score:
    """The value ``NAME/VALUE`` of a metric; of ``NAME`` its ``composite``, or the first."""
    name, _, chosen = judge.partition("/")
    kind = registry.get("metrics", name)
    with guest("metric", name, kind):
        metric = kind()
    if metric.judges != "clips":
        raise UserError(
            f"the metric {name!r} judges no single clips",
            where="--judge",
            why=f"it judges {metric.judges}",
            fix="use one that judges clips, such as clip_score",
        )

    def score(clips: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scores = {key.partition("/")[2]: v for key, v in scored(metric, clips.cpu(), prompts, len(prompts)).items()}
        if not scores:  # a metric of the world on prompts that are no captions
            return torch.full((len(prompts),), torch.nan)
        value = chosen or ("composite" if "composite" in scores else next(iter(scores)))
        if value not in scores:
            close = nearest(value, scores)
            raise UserError(
                f"the metric {name!r} has no value {value!r}", where="--judge", fix=f"use {close or ', '.join(scores)}"
            )
        return scores[value]

    return score
