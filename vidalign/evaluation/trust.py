"""What rewards see and what they do to each other, from their scores of clips and of corrupted clips.

A reward that likes a corruption can be hacked by it; one that does not see it needs another beside it that does. Where
all rewards rank the candidates of a prompt alike, training on one cannot hurt another, and a held-out one among them
cannot show hacking. Best-of-N is what a policy gains that only selects: the first step of hacking, without training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

ALIKE = 0.5
"""Smallest rank correlation between two rewards above which a set cannot show hacking."""
SIGNIFICANT = 0.05
"""Of the two-sided sign test between clips and their corruptions."""
Verdict = Literal["sees it", "likes it", "blind", "not judged"]
Scores = Mapping[str, torch.Tensor]
"""``[P, G]`` of G candidates of P prompts, by reward; NaN where an item failed."""


@dataclass(frozen=True)
class Seen:
    """How one reward judges one corruption."""

    lower: float
    """Share of the clips that lose by it; ties count a half. NaN where none was judged."""
    change: float
    """Mean change in standard deviations of the clean clips; infinite where these do not differ."""
    verdict: Verdict


def seen(clean: torch.Tensor, corrupted: torch.Tensor) -> Seen:
    """From the scores of the same clips without and with a corruption, of equal shape.

    The verdict is that of a two-sided sign test at 5 %, over the clips that change.
    """
    difference = (corrupted - clean).flatten()
    difference = difference[difference.isfinite()].double()
    if not len(difference):
        return Seen(math.nan, math.nan, "not judged")
    worse, better = int((difference < 0).sum()), int((difference > 0).sum())
    ties = len(difference) - worse - better
    spread = float(clean[clean.isfinite()].double().std(unbiased=False))
    mean = float(difference.mean())
    change = mean / spread if spread > 0 else math.copysign(math.inf, mean) if mean else 0.0
    verdict: Verdict = "blind"
    if sign_test(worse, better) < SIGNIFICANT:
        verdict = "sees it" if worse > better else "likes it"
    return Seen((worse + ties / 2) / len(difference), change, verdict)


def sign_test(first: int, second: int) -> float:
    """Two-sided p value of so many signs of each kind, where both are equally likely; exact."""
    count, least = first + second, min(first, second)
    tail = sum(math.comb(count, k) for k in range(least + 1))
    return min(1.0, float(2 * tail / 2**count))


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Spearman's correlation inside a prompt, mean over the prompts of ``[P, G]`` where both rank; NaN where none does.

    Ranks of equal scores are their mean. Candidates that one of the two did not judge are left out.
    """
    found = []
    for x, y in zip(a, b, strict=True):
        both = x.isfinite() & y.isfinite()
        if int(both.sum()) < 3:
            continue
        ranks = torch.stack([_ranks(x[both]), _ranks(y[both])])
        if (ranks.std(1) > 0).all():
            found.append(float(torch.corrcoef(ranks)[0, 1]))
    return sum(found) / len(found) if found else math.nan


def _ranks(values: torch.Tensor) -> torch.Tensor:
    below = (values[None, :] < values[:, None]).sum(1)
    equal = (values[None, :] == values[:, None]).sum(1)
    return (below + (equal - 1) / 2).double()


def correlations(scores: Scores) -> dict[tuple[str, str], float]:
    """`rank_correlation` of every pair of rewards."""
    names = list(scores)
    pairs = [(a, b) for n, a in enumerate(names) for b in names[n + 1 :]]
    return {(a, b): rank_correlation(scores[a], scores[b]) for a, b in pairs}


def best_of(scores: Scores) -> dict[tuple[str, str], float]:
    """What choosing the best candidate of each prompt by one reward does to another: (chooser, judge) to the mean gain
    over a random candidate, in standard deviations of the judge inside a prompt; NaN where it has none."""
    found = {}
    for chooser, by in scores.items():
        for judge, values in scores.items():
            judged = by.isfinite() & values.isfinite()
            rows = judged.sum(1) > 1
            chosen = by.where(judged, -math.inf).argmax(1)
            kept = values.where(judged, math.nan).double()
            gain = kept.gather(1, chosen[:, None])[:, 0] - kept.nanmean(1)
            count = judged.sum(1)
            spread = ((kept - kept.nanmean(1, keepdim=True)) ** 2).nansum(1) / count.clamp(min=1)
            sd = float(spread[rows].mean().sqrt()) if rows.any() else 0.0
            found[chooser, judge] = float(gain[rows].mean()) / sd if sd > 0 else math.nan
    return found
