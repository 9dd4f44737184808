"""The contract of a metric: judges finished clips or answers, in a benchmark only and never in training.

Registered under the kind ``metrics`` (entry point group ``vidalign.metrics``). The version is part of a protocol's
hash: change it whenever the numbers change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from vidalign.data.examples import Example


class Metric:
    """Base of every metric. Subclasses give ``name``, ``version``, a nested dataclass ``Config`` with a docstring under
    each field, and `score`."""

    name: ClassVar[str] = ""
    version: ClassVar[str] = "1"
    judges: ClassVar[Literal["clips", "seeds", "long", "answers"]] = "clips"
    """What `score` is given. ``clips``: those of one evaluation seed, one a prompt. ``seeds``: the clips of all S
    seeds, seed after seed, with the prompts repeated S times. ``long``: clips of the protocol's long evaluation.
    ``answers``: the responses of a language student, through `grade`."""

    trained: ClassVar[bool] = False
    """Whether its values are rewards that objectives train on: it then says nothing held out."""

    shown: ClassVar[dict[str, str]] = {}
    """Values that the tables of a benchmark give a column, with its heading; a composite has its pass beside it. The
    report shows all values."""

    @dataclass
    class Config:
        pass

    fps: float | None = None
    """Frames a second of the clips, which a `score` with a further argument ``fps: float`` is given; whoever makes the
    metric sets it."""

    def __init__(self, config: Any = None) -> None:
        self.config = config if config is not None else self.Config()

    def sampled(self, prompts: int, seeds: int) -> tuple[int, int]:
        """How many prompts, the first ones, and how many clips of each it is given where it judges ``seeds``.

        By default all prompts and evaluation seeds of a protocol; further seeds are numbered on from the last one.
        """
        return prompts, seeds

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Judge clips ``[B, F, 3, H, W]`` in [0, 1] for B prompts; higher is better, NaN = not judged.

        Returns ``[B]`` by name (``[P]`` of the distinct prompts, in their order, when it judges ``seeds``). What
        judges ``long`` may give ``[B, K]``, a series over the K chunks of the clip: its mean over prompts is drift.
        Raises `UserError` when it cannot judge at all, for example without its weights.
        """
        raise NotImplementedError

    def grade(self, responses: Sequence[str], examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Judge B responses to B examples: ``[B]`` by name, higher is better, NaN = not judged."""
        raise NotImplementedError
