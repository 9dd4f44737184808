"""The held-out judgement of a student: the same prompts and noise for every student, by rewards and by metrics.

The metrics are those of the recipe (``evaluation.metrics``), by default those that the prompt source offers; the
rewards are the recipe's own. Whoever cannot judge a prompt says NaN, and a judge that said nothing else is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vidalign import registry
from vidalign.asked import asks_for, rate_for
from vidalign.data.source import PromptSource, open_source
from vidalign.evaluation.judging import Generate, batches, scored
from vidalign.evaluation.metrics.base import Metric
from vidalign.recipe.plugins import make
from vidalign.recipe.prompts import same_judge
from vidalign.rewards.base import CompositeReward

if TYPE_CHECKING:
    from vidalign.recipe import Recipe

SHOWN = 6
"""Clips that are always kept: those that trackers show."""
TRAINED = "trained rewards"
"""The judge whose values are the recipe's rewards."""
COMPOSITE = "composite"
Score = tuple[str, str]
"""(judge, name)"""


@dataclass
class Evaluation:
    """Judgement of P prompts; every metric ``[P]`` is the mean over the seeds of a prompt."""

    prompts: list[str]
    metrics: dict[Score, torch.Tensor]
    clips: torch.Tensor
    """The first clips, ``[N, F, 3, H, W]`` in [0, 1] with N >= SHOWN; none of a student that answers with text."""
    output_scores: list[dict[str, float]] = field(default_factory=list)
    """What the report writes beside each of these clips, or of the responses."""
    responses: list[str] = field(default_factory=list)
    """The first response to every example, of a student that answers with text."""
    trained: frozenset[str] = frozenset()
    """Judges that are rewards which the recipe trains on."""
    usual: Score | None = None
    """The headline of earlier judgements: when its judge fails, no other score takes its place."""

    @property
    def headline(self) -> Score | None:
        """The score that stands for all: of the first metric that is no trained reward, else of the rewards."""
        if self.usual is not None:
            return self.usual
        names = [name for name in self.metrics if name[0] not in self.trained | {TRAINED}] or list(self.metrics)
        first = [name for name in names if name[0] == names[0][0]] if names else []
        return next((name for name in first if name[1] == COMPOSITE), first[0] if first else None)

    @staticmethod
    def label(score: Score) -> str:
        """What a score is called beside an output."""
        return "trained" if score[0] == TRAINED else score[0]

    def health(self) -> dict[str, float]:
        """What the monitors and the report's curves read; nothing where nothing could be judged."""
        headlines = {"held_out": self.headline, "held_out_trained": (TRAINED, COMPOSITE)}
        return {
            f"health/{name}/mean": float(self.metrics[score].nanmean())
            for name, score in headlines.items()
            if score in self.metrics
        }


class Evaluator:
    """Judges students on the first `count` prompts of a source, `seeds` outputs each; frames: of the ground truth."""

    def __init__(
        self,
        source: PromptSource,
        metrics: Sequence[Metric],
        rewards: CompositeReward | None = None,
        *,
        count: int = 64,
        seeds: int = 1,
        frames: int = 12,
    ) -> None:
        self.source, self.metrics, self.rewards = source, list(metrics), rewards
        self.prompts, self.seeds, self.frames = source.first(count), seeds, frames
        self.usual: Score | None = None
        """The headline of the judgements up to now, see `Evaluation.usual`."""

    @classmethod
    def from_recipe(cls, recipe: Recipe, rewards: CompositeReward | None) -> Evaluator:
        """On the held-out prompts of a recipe, the same for every seed of it."""
        settings = recipe.evaluation
        source = open_source(recipe.judged_prompts, 0)
        metrics = build_metrics(
            source.judges if settings.metrics is None else settings.metrics, lambda: frame_rate(recipe)
        )
        return cls(source, metrics, rewards, count=settings.count, seeds=settings.seeds, frames=settings.frames)

    def __call__(
        self, generate: Generate, count: int | None = None, seeds: int | None = None, memory: int = 0
    ) -> Evaluation:
        """Judge what `generate` makes of the prompts, by default of all of them with all seeds.

        memory: bytes up to which clips beyond the first SHOWN are kept.
        """
        prompts, seeds = self.prompts[:count], seeds or self.seeds
        judged: list[tuple[int, dict[Score, torch.Tensor]]] = []
        first: list[Any] = []
        with torch.no_grad():
            for seed in range(seeds):
                for part, outputs in batches(generate, prompts, seed):
                    judged.append((len(part), self._judge(outputs, part)))
                    if seed == 0:
                        first.append(outputs if isinstance(outputs, list) else _kept(outputs, first, memory))
        values = _by_name(judged)
        means = {name: torch.cat(parts).view(seeds, -1).nanmean(0) for name, parts in values.items()}
        judges = {judge for (judge, _), scores in means.items() if bool(scores.isfinite().any())}
        means = {name: scores for name, scores in means.items() if name[0] in judges}
        texts = [str(getattr(prompt, "prompt", prompt)) for prompt in prompts]
        if isinstance(first[0], list):
            said, none = [text for part in first for text in part], torch.empty(0, 0, 3, 0, 0)
            result = Evaluation(texts, means, none, [], said, self._trained(), self.usual)
        else:
            result = Evaluation(texts, means, torch.cat(first), trained=self._trained(), usual=self.usual)
        self.usual = result.headline
        result.output_scores = _beside_outputs(result, values)
        return result

    def _trained(self) -> frozenset[str]:
        """The metrics that are trained rewards."""
        rewards = self.rewards.trained if self.rewards is not None else set()
        return frozenset(metric.name for metric in self.metrics if same_judge(metric.name, rewards))

    def truth(self, memory: int = 0) -> Evaluation | None:
        """The ground truth of the prompts, judged like a student's clips; None where the source has none."""
        one = self.source.truth(self.prompts[:1], [torch.Generator()], self.frames)
        if one is None:
            return None
        return self(lambda prompts, generators: self.source.truth(prompts, generators, self.frames), memory=memory)

    def _judge(self, outputs: Any, prompts: Sequence[Any]) -> dict[Score, torch.Tensor]:
        """Every score ``[B]`` of clips or texts."""
        out: dict[Score, torch.Tensor] = {}
        if self.rewards is not None:
            scores = self.rewards.score(outputs, prompts)
            out |= {(TRAINED, name): values.float().cpu() for name, values in scores.items()}
            if any(self.rewards.weights.values()):
                out[TRAINED, COMPOSITE] = self.rewards.total(scores).float().cpu()
        for metric in self.metrics:
            for name, values in scored(metric, outputs, prompts, len(prompts)).items():
                out[metric.name, name.removeprefix(f"{metric.name}/")] = values
        return out


def _by_name(judged: Sequence[tuple[int, Mapping[Score, torch.Tensor]]]) -> dict[Score, list[torch.Tensor]]:
    """Scores of batches of so many prompts by name; NaN where a judge gave no such score for a batch, or one that is
    not finite, as in training."""
    names = dict.fromkeys(name for _, scores in judged for name in scores)
    found = {name: [s.get(name, torch.full((count,), torch.nan)) for count, s in judged] for name in names}
    return {name: [part.where(part.isfinite(), torch.nan) for part in parts] for name, parts in found.items()}


def frame_rate(recipe: Recipe) -> float | None:
    """Frames a second of the clips of a recipe's student; None where it has no such number."""
    kind: Any = registry.get("students", recipe.student.name)
    rate: float | None = getattr(kind.spec(recipe.student), "fps", None)
    return rate


def build_metrics(
    metrics: Mapping[str, Mapping[str, Any] | None], rate: Callable[[], float | None] = lambda: None
) -> list[Metric]:
    """Metrics by their names in the registry, with their settings.

    rate: gives the frame rate of the clips, called only where a metric asks for it. Raises `RecipeError` for settings
    that a metric does not have, and `UserError` where one asks for a frame rate and there is none.
    """
    made: list[Metric] = [make("metrics", name, settings, f"metrics.{name}") for name, settings in metrics.items()]
    for metric in made:
        if asks_for(metric, "fps"):
            metric.fps = rate_for(metric, "metric", metric.name, rate()).get("fps")
    return made


def _kept(clips: torch.Tensor, before: Sequence[torch.Tensor], memory: int) -> torch.Tensor:
    """The first of these clips, a copy on the CPU, that are kept after those of earlier batches."""
    most = max(SHOWN, memory // (clips[0].numel() * clips.element_size()))
    return clips[: max(0, most - sum(map(len, before)))].to("cpu", copy=True)


def _beside_outputs(result: Evaluation, values: dict[Score, list[torch.Tensor]]) -> list[dict[str, float]]:
    """The headline and the rewards' composite of every kept clip, or of the first response to every example."""
    chosen = dict.fromkeys(score for score in (result.headline, (TRAINED, COMPOSITE)) if score in result.metrics)
    scores = {result.label(score): torch.cat(values[score]).tolist() for score in chosen if score is not None}
    count = len(result.responses) or len(result.clips)
    return [{label: of_all[n] for label, of_all in scores.items()} for n in range(count)]
