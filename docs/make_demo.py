"""Writes the README's moving picture: clips of a run before and after training, beside the ground truth.

    vidalign train world/astrolabe --run runs/demo
    python docs/make_demo.py runs/demo docs/images/before_after.gif

The three prompts are not chosen by eye: those on which the held-out judge's score rose most, its median, and least.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidalign.build import build_student, sampler_of
from vidalign.evaluation.evaluator import Evaluator
from vidalign.evaluation.judging import Generate
from vidalign.tracking.clips import burn_text, gif_bytes, to_frames, upscale
from vidalign.workflows.opened import open_run

SIDE, GAP, HELD = 128, 6, 8
"""Pixels of a clip and between two, and frames for which the last one stands."""


def judged(evaluator: Evaluator, generate: Generate) -> tuple[torch.Tensor, torch.Tensor]:
    """Headline score `[P]` of every prompt, first seed, and the clips `[P, F, 3, H, W]`."""
    kept: list[torch.Tensor] = []

    def keep(prompts: Sequence[Any], generators: Sequence[torch.Generator]) -> Any:
        clips = generate(prompts, generators)
        kept.append(clips.cpu())
        return clips

    found = evaluator(keep, seeds=1)
    assert found.headline is not None, "the run's prompts have a judge"
    return found.metrics[found.headline], torch.cat(kept)


def pane(clip: torch.Tensor, label: str) -> np.ndarray:
    """One clip with its label below it, uint8 `[F, H, W, 3]`."""
    frames = burn_text(upscale(to_frames(clip), SIDE), label)
    return np.concatenate([frames, *[frames[-1:]] * HELD])


def row(panes: Sequence[np.ndarray], title: str) -> np.ndarray:
    """Clips side by side, the title above them."""
    gap = np.zeros((*panes[0].shape[:2], GAP, 3), np.uint8)
    parts = [part for one in panes for part in (one, gap)][:-1]
    line = np.concatenate(parts, axis=2)
    band = burn_text(np.zeros((len(line), 0, line.shape[2], 3), np.uint8), title)
    return np.concatenate([band, line], axis=1)


def main(run: str, out: str) -> None:
    """Judge the student of a run and the one that it began with, and write the picture."""
    opened = open_run(run)
    evaluator = Evaluator.from_recipe(opened.recipe, None)
    before, old = judged(evaluator, sampler_of(opened.recipe, build_student(opened.recipe)))
    after, new = judged(evaluator, sampler_of(opened.recipe, opened.student))
    order = (after - before).argsort().tolist()
    names = {"largest rise": order[-1], "median": order[len(order) // 2], "largest fall": order[0]}
    rows = []
    for name, n in names.items():
        truth = evaluator.source.truth([evaluator.prompts[n]], [torch.Generator().manual_seed(0)], old.shape[1])
        assert truth is not None, "the world draws its own captions"
        shown = [(old[n], f"before {before[n]:.2f}"), (new[n], f"after {after[n]:.2f}"), (truth[0], "ground truth")]
        rows.append(row([pane(clip, label) for clip, label in shown], f"{name}: {evaluator.prompts[n]}"))
    content = gif_bytes(np.concatenate(rows, axis=1))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_bytes(content)
    header = json.loads((Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    print(f"{out}: {len(content) / 1e3:.0f} kB, seed {header['seed']}, commit {header['commit']}")
    print(f"{len(order)} prompts, score {before.mean():.3f} to {after.mean():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
