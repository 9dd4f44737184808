"""The promises of a reward: real numbers under its name, one an item, whatever the batch, the precision, the place."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidalign import registry
from vidalign.asked import rate_for
from vidalign.engine import distributed
from vidalign.testing.judges import COUNT, Items, Judge, check_items, default_clips, default_texts, values_of
from vidalign.testing.plugins import broken, check_config, lent, on_the_cpu
from vidalign.testing.trial import Trial

FRAMES = 9
DRIVEN = {"clips": "diffusion_nft", "texts": "opsd"}
"""An objective whose recipe names the reward, by what it judges."""


def check_reward(
    reward: type[Any] | str,
    overrides: Sequence[str] = (),
    *,
    items: tuple[Any, list[Any]] | None = None,
    failing: tuple[Any, Any] | None = None,
) -> None:
    """Try the promises of a reward; raises `AssertionError` with a sentence for the first that is broken.

    reward: a class, with or without `Config`, or a registered name. overrides: ``key=value``, as on the command line:
    its settings (``rewards.NAME.goal=0.2``), or prompts that it can score. items: clips ``[N, F, 3, H, W]`` in [0, 1]
    (or N texts) and their N prompts, three or more; unless given, the recipe's prompts and clips of the embedded world.
    failing: an output with its prompt that cannot be scored; unless given, the last item as a clip of NaN, or as an
    example without an answer.
    """
    with tempfile.TemporaryDirectory() as folder, lent("rewards", reward) as name:
        kind = registry.get("rewards", name)
        check_config(name, kind, needed=False)
        judges = getattr(kind, "judges", "clips")
        if judges not in DRIVEN:
            broken(name, f"judges {judges!r}: a reward judges 'clips' or 'texts'")
        trial = Trial(DRIVEN[judges], [f"rewards={{{name}: 1.0}}", *overrides], Path(folder))
        with on_the_cpu():
            made, prompts, score = _made(trial, name)
            judged = Items(*items) if items else _default(prompts, judges)
            _check_name(name, made, kind, judged)
            values = check_items(name, score, judged, failing)
            if name not in values:
                broken(name, f"returns {sorted(values)} and nothing under its own name")
            if values[name].ndim != 1:
                broken(name, f"returns {values[name].ndim} dimensions under its name: one number an item is promised")
        if isinstance(judged.outputs[0], Tensor):
            clips, asked = judged.given()[: len(values[name])], judged.prompts[: len(values[name])]
            _check_tensors(name, score, clips.double(), asked, values[name])
            if (place := distributed.device()).type != "cpu":
                _check_tensors(name, _made(trial, name)[2], clips.to(place), asked, values[name])


def _made(trial: Trial, name: str) -> tuple[Any, Any, Judge]:
    """The reward as a run makes it, the prompts of the run, and its `score` with the frame rate, where it asks."""
    _, ctx = trial.start()
    assert ctx.rewards is not None, "the recipe names one"
    made: Any = ctx.rewards.rewards[name]
    return made, ctx.prompts, partial(made.score, **rate_for(made, "reward", name, getattr(ctx.student, "fps", None)))


def _default(prompts: Any, judges: str) -> Items:
    asked = [prompts[n] for n in range(COUNT)]
    outputs = default_texts(asked) if judges == "texts" else list(default_clips(asked, prompts.truth, FRAMES))
    return Items(outputs, asked)


def _check_name(name: str, made: Any, kind: Any, items: Items) -> None:
    """It is called as it is registered, and can score its prompts."""
    if made.name != name:
        broken(name, f"calls itself {made.name!r}: its scores stand under that name")
    able = getattr(kind, "can_score", lambda prompt: True)
    refused = [prompt for prompt in items.prompts if not able(prompt)]
    if refused:
        broken(name, f"cannot score {len(refused)} of {len(items)} prompts, first {refused[0]!r:.60}: give items")


def _check_tensors(name: str, score: Judge, clips: Tensor, prompts: list[Any], expected: Tensor) -> None:
    """Clips of another type, or elsewhere, get the same scores."""
    scores = values_of(name, score(clips, prompts), len(prompts))[name]
    apart = float((scores - expected).abs().nan_to_num(0).max())
    if not torch.equal(scores.isnan(), expected.isnan()) or apart > 1e-3:
        broken(name, f"gives scores that differ by {apart:.2e} for {clips.dtype} clips on {clips.device}")
