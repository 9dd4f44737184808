"""Which corruptions the rewards of a recipe see, how alike they rank, and what choosing by one does to the others
and to the held-out metrics of its evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from vidalign.build import build_rewards, prompt_features, sampler_of, student_kind
from vidalign.data.source import open_source
from vidalign.errors import UserError
from vidalign.evaluation.corruptions import CORRUPTIONS, WRONG_PROMPT, other_prompts
from vidalign.evaluation.evaluator import Evaluator
from vidalign.evaluation.judging import batches, scored
from vidalign.evaluation.trust import ALIKE, Seen, best_of, correlations, rank_correlation, seen
from vidalign.provenance import describe_run
from vidalign.recipe.prompts import same_judge
from vidalign.tracking.stages import stages
from vidalign.workflows.start import started_student

if TYPE_CHECKING:
    from vidalign.evaluation.metrics.base import Metric
    from vidalign.recipe import Recipe
    from vidalign.rewards.base import CompositeReward


@dataclass
class Trust:
    """What `check_rewards` found; rewards by their names in the recipe."""

    seen: dict[str, dict[str, Seen]]
    """By corruption, then by reward."""
    correlations: dict[tuple[str, str], float]
    """Rank correlation inside a prompt of every pair of rewards."""
    best_of: dict[tuple[str, str], float]
    """(chooser, judge): gain of the best of `candidates` over a random one, in standard deviations of the judge."""
    prompts: int
    candidates: int
    left_out: list[str]
    """Rewards that learn: what they will like is not known before training."""
    held_out: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    """(chooser, METRIC/NAME): the same gain, and the rank correlation, for metrics of the evaluation that are none of
    the rewards."""

    @property
    def remarks(self) -> list[str]:
        """What the numbers say, one line each."""
        out = []
        for corruption, rewards in self.seen.items():
            liking = [name for name, one in rewards.items() if one.verdict == "likes it"]
            out += [f"{name} likes {corruption}: training on it alone will find that" for name in liking]
            if rewards and all(one.verdict != "sees it" for one in rewards.values()):
                out.append(f"no reward sees {corruption}: it can come in unpunished")
        known = {pair: value for pair, value in self.correlations.items() if math.isfinite(value)}
        if known and min(known.values()) > ALIKE:
            pair = min(known, key=lambda one: known[one])
            out.append(
                f"all rewards rank alike (smallest correlation {known[pair]:.2f}, {pair[0]} and {pair[1]}): "
                "one of them held out cannot show hacking"
            )
        return out

    def as_json(self) -> dict[str, Any]:
        """All numbers; NaN is null."""
        table = {
            corruption: {
                name: {"lower": _number(s.lower), "change": _number(s.change), "verdict": s.verdict}
                for name, s in rewards.items()
            }
            for corruption, rewards in self.seen.items()
        }
        pairs = [{"rewards": list(pair), "correlation": _number(value)} for pair, value in self.correlations.items()]
        chosen = [{"by": by, "judge": judge, "gain": _number(v)} for (by, judge), v in self.best_of.items()]
        sizes = {"prompts": self.prompts, "candidates": self.candidates, "left_out": self.left_out}
        held_out = [
            {"by": by, "judge": judge, "gain": _number(gain), "correlation": _number(alike)}
            for (by, judge), (gain, alike) in self.held_out.items()
        ]
        found = {"corruptions": table, "correlations": pairs, "best_of": chosen, "held_out": held_out}
        return {**sizes, **found, "remarks": self.remarks}


def check_rewards(
    recipe: Recipe, prompts: int = 8, candidates: int = 8, *, out: Path | None = None, console: Console | None = None
) -> Trust:
    """Score clips of the student that a recipe begins with, and their corruptions, by every reward of the recipe.

    prompts: of the recipe's evaluation, the first ones. candidates: clips of each. out: a file for all numbers, JSON.
    Raises `UserError` for a recipe without rewards of clips, or whose prompts are all the same.
    """
    console = console or Console()
    student = started_student(recipe)
    rewards = build_rewards(recipe, student.spec, prompt_features(recipe))
    learning = [reward.name for reward in rewards.trainable] if rewards else []
    weights = {name: weight for name, weight in recipe.reward_weights.items() if name not in learning}
    if rewards is None or not weights or student_kind(recipe).makes != "clips":
        why = "its rewards learn along the way" if learning else "it has none, or they judge texts"
        raise UserError("there is no reward to check", where="rewards", why=why, fix="name rewards that judge clips")
    judging = rewards.part(weights)
    texts = open_source(recipe.judged_prompts, 0).first(prompts)
    asked = [text for text in texts for _ in range(candidates)]
    other_prompts(asked)
    with stages(recipe.tracking.panel, console) as stage, torch.no_grad():
        made, clips = stage("sampling the student", len(asked)), []
        for part, outputs in batches(sampler_of(recipe, student), asked, recipe.seed, "rewards check"):
            clips.append(outputs.cpu())
            made(len(part))
        metrics = _held_out(recipe)
        trust = _judge(judging, metrics, torch.cat(clips), asked, (len(texts), candidates), stage)
    trust.left_out = learning
    for table in [*tables(trust), *([held_out_table(trust)] if trust.held_out else [])]:
        console.print(table)
    for remark in trust.remarks:
        console.print(f"! {remark}", markup=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        document = {"header": describe_run(recipe), **trust.as_json()}
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return trust


def _held_out(recipe: Recipe) -> list[Metric]:
    """The metrics of the recipe's evaluation that judge clips and are none of its rewards."""
    metrics = Evaluator.from_recipe(recipe, None).metrics
    rewards = {choice.name for choice in recipe.rewards.values()}
    return [metric for metric in metrics if metric.judges == "clips" and not same_judge(metric.name, rewards)]


def _judge(
    judging: CompositeReward,
    metrics: list[Metric],
    clips: torch.Tensor,
    asked: list[str],
    shape: tuple[int, int],
    stage: Any,
) -> Trust:
    done = stage("judging clips and corruptions", len(clips) * (len(CORRUPTIONS) + 2))
    clean = _scores(judging, clips, asked)
    done(len(clips))
    found: dict[str, dict[str, Seen]] = {}
    for name in (*CORRUPTIONS, WRONG_PROMPT):
        if name == WRONG_PROMPT:
            worse = _scores(judging, clips, other_prompts(asked))
        else:
            worse = _scores(judging, CORRUPTIONS[name](clips), asked)
        found[name] = {reward: seen(clean[reward], worse[reward]) for reward in clean}
        done(len(clips))
    grouped = {reward: values.view(shape) for reward, values in clean.items()}
    trust = Trust(found, correlations(grouped), best_of(grouped), *shape, [])
    for metric in metrics:
        for name, values in scored(metric, clips, asked, len(asked)).items():
            for reward, by in grouped.items():
                both = {reward: by, name: values.view(shape)}
                trust.held_out[reward, name] = best_of(both)[reward, name], rank_correlation(*both.values())
    return trust


def _scores(judging: CompositeReward, clips: torch.Tensor, prompts: list[str]) -> Mapping[str, torch.Tensor]:
    return {name: values.float().cpu() for name, values in judging.score(clips, prompts).items()}


def tables(trust: Trust) -> list[Table]:
    """For the terminal."""
    names = list(next(iter(trust.seen.values())))
    clips = trust.prompts * trust.candidates
    first = Table(title=f"Share of {clips} clips that lose by a corruption, and change in standard deviations")
    first.add_column("corruption")
    for name in names:
        first.add_column(name, justify="right")
    for corruption, rewards in trust.seen.items():
        cells = [f"{rewards[n].lower:.2f} {rewards[n].change:+.1f} {rewards[n].verdict}" for n in names]
        first.add_row(corruption, *cells)
    if len(names) < 2:
        return [first]
    pairs = trust.correlations
    second = _square(f"Rank correlation inside a prompt, {trust.candidates} candidates", "", names)
    for a in names:
        values = [1.0 if a == b else pairs.get((a, b), pairs.get((b, a), math.nan)) for b in names]
        second.add_row(a, *(f"{value:.2f}" for value in values))
    third = _square(f"Best of {trust.candidates}: gain in standard deviations of the judge", "chosen by", names)
    for a in names:
        third.add_row(a, *(f"{trust.best_of[a, b]:+.2f}" for b in names))
    return [first, second, third]


def held_out_table(trust: Trust) -> Table:
    """What choosing by each reward does to the held-out metrics, for the terminal."""
    rewards, judges = ({pair[n]: None for pair in trust.held_out} for n in (0, 1))
    table = _square(f"Best of {trust.candidates} by a reward: gain of held-out metrics", "", list(rewards))
    for judge in judges:
        table.add_row(judge, *(f"{trust.held_out[by, judge][0]:+.2f}" for by in rewards))
    return table


def _square(title: str, corner: str, names: list[str]) -> Table:
    table = Table(title=title)
    table.add_column(corner, overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    return table


def _number(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None
