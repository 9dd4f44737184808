"""What rewards and metrics have in common: each item is judged by itself, in its place, and NaN where that failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vidalign.data.examples import Example
from vidalign.data.source import open_source
from vidalign.engine.rng import generator
from vidalign.rewards.calls import as_numbers
from vidalign.testing.plugins import broken, own_numbers

COUNT = 6
"""Items that are judged by default."""
NOISE = 0.3
"""Largest noise on a default clip, so that scores differ from item to item."""
ATOL, RTOL = 1e-4, 1e-4
"""Rounding of other batches that is forgiven."""


@dataclass
class Items:
    """N prompts and S outputs for each, seed after seed: clips ``[F, 3, H, W]`` in [0, 1] or texts."""

    outputs: Sequence[Any]
    prompts: list[Any]
    seeds: int = 1

    def __len__(self) -> int:
        return len(self.prompts)

    def pick(self, chosen: Sequence[int]) -> Items:
        """Those of some of the prompts, in the given order."""
        rows = [seed * len(self) + n for seed in range(self.seeds) for n in chosen]
        return Items([self.outputs[row] for row in rows], [self.prompts[n] for n in chosen], self.seeds)

    def with_failing(self, place: int, output: Any, prompt: Any) -> Items:
        """One more prompt at `place`, whose outputs cannot be judged."""
        rows = list(self.outputs)
        for seed in range(self.seeds):
            rows.insert(seed * (len(self) + 1) + place, output)
        return Items(rows, [*self.prompts[:place], prompt, *self.prompts[place:]], self.seeds)

    def given(self) -> Any:
        """What a judge is given: clips ``[S * N, F, 3, H, W]``, or a list of texts."""
        return torch.stack(list(self.outputs)) if isinstance(self.outputs[0], Tensor) else list(self.outputs)


Judge = Callable[[Any, list[Any]], Any]
"""Outputs and one prompt each to values by name."""


def default_clips(prompts: Sequence[str], truth: Any, frames: int, seeds: int = 1) -> Tensor:
    """Clips ``[S * N, frames, 3, 32, 32]`` with noise: of ground truth, where `truth` (see `PromptSource`) has any."""
    numbers = [generator(0, "testing", seed, n) for seed in range(seeds) for n in range(len(prompts))]
    clips: Tensor | None = truth(list(prompts) * seeds, numbers, frames)
    if clips is None:
        clips = torch.stack([torch.rand(frames, 3, 32, 32, generator=g) for g in numbers])
    noise = torch.stack([torch.rand(clips.shape[1:], generator=g) for g in numbers])
    size = torch.linspace(0, NOISE, len(clips)).view(-1, 1, 1, 1, 1)
    return (clips + size * (noise - 0.5)).clamp(0, 1)


def default_texts(examples: Sequence[Example]) -> list[str]:
    """Responses that are right and wrong in turn."""
    return [one.response if n % 2 else "= nothing" for n, one in enumerate(examples)]


def world_clips(frames: int = 12, seeds: int = 1) -> Items:
    """Captions of the embedded world and clips of them."""
    source = open_source("world:basic/train", 0, COUNT)
    prompts = source.first(COUNT)
    return Items(list(default_clips(prompts, source.truth, frames, seeds)), prompts, seeds)


def world_texts() -> Items:
    """Problems of the embedded token world and responses to them."""
    examples = open_source("tokens:train", 0).first(COUNT)
    return Items(default_texts(examples), examples)


def with_failing(items: Items, failing: tuple[Any, Any] | None) -> tuple[Items, tuple[Any, Any]]:
    """Items, and an output with its prompt that cannot be judged.

    Unless `failing` names one, the last item is corrupted: a clip becomes NaN, an example loses its answer.
    """
    if failing is not None:
        return items, failing
    output, prompt = items.outputs[-1], items.prompts[-1]
    if isinstance(output, Tensor):
        output = torch.full_like(output, torch.nan)
    else:
        prompt = replace(prompt, answer="", response="")
    return items.pick(range(len(items) - 1)), (output, prompt)


def values_of(name: str, scores: Any, count: int) -> dict[str, Tensor]:
    """What a judge returned, as tensors of `count` entries, in fp64 on the CPU."""
    if not isinstance(scores, dict) or not scores:
        broken(name, f"returns {scores!r:.80} where a dict of values by name is promised")
    values = {}
    for key, given in scores.items():
        numbers = as_numbers(given)
        if numbers is None:
            broken(name, f"returns {type(given).__name__} under {key!r} where real numbers are promised")
        if numbers.ndim == 0 or len(numbers) != count:
            broken(name, f"returns shape {tuple(numbers.shape)} under {key!r} for {count} items: one each is promised")
        values[str(key)] = numbers.double().cpu()
    return values


def check_items(name: str, judge: Judge, items: Items, failing: tuple[Any, Any] | None) -> dict[str, Tensor]:
    """Each item is judged by itself; returns the values of all but a failing one, see `with_failing`.

    Raises `AssertionError` where they depend on a repetition, on the order, on the neighbours or on a failing item.
    """

    def judged(some: Items) -> dict[str, Tensor]:
        given, before = some.given(), some.given()
        scores = values_of(name, judge(given, some.prompts * some.seeds), len(some))
        if isinstance(given, Tensor) and not torch.equal(given.nan_to_num(-1), before.nan_to_num(-1)):
            broken(name, "changes the clips that it is given: others judge them too")
        return scores

    items, (output, prompt) = with_failing(items, failing)
    with own_numbers(name):
        values = judged(items)
    _same(name, judged(items), values, "gives other values when it judges the same items again")
    turned = list(range(len(items)))[::-1]
    again = {key: value[turned] for key, value in judged(items.pick(turned)).items()}
    _same(name, again, values, "depends on the order of its items")
    alone = [judged(items.pick([n])) for n in range(len(items))]
    joined = {
        key: torch.cat([one.get(key, torch.full_like(value[:1], torch.nan)) for one in alone])
        for key, value in values.items()
    }
    _same(name, joined, values, "depends on the other items of its batch")
    place = len(items) // 2
    scores = judged(items.with_failing(place, output, prompt))
    others = [n for n in range(len(items) + 1) if n != place]
    _same(name, {key: value[others] for key, value in scores.items()}, values, "lets a failing item change the others")
    for key, value in scores.items():
        if not value[place].isnan().all():
            broken(name, f"gives a failing item {value[place].tolist()} under {key!r} where NaN is promised")
    return values


def _same(name: str, actual: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    """Values agree entry by entry, NaN with NaN; a name that is not there is NaN everywhere."""
    for key, values in expected.items():
        others = actual.get(key, torch.full_like(values, torch.nan))
        differs = ~torch.isclose(others, values, rtol=RTOL, atol=ATOL, equal_nan=True)
        if differs.any():
            n = int(differs.flatten(1).any(1).nonzero()[0]) if differs.ndim > 1 else int(differs.nonzero()[0])
            broken(name, f"{what}: {key} of item {n} is {_short(others[n])}, and {_short(values[n])} at first")


def _short(value: Tensor) -> str:
    return ", ".join(f"{v:.6g}" for v in value.flatten().tolist()[:4])
