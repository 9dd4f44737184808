"""Does a discriminator that separates student and teacher also rank the student's videos of one prompt?

    python benchmarks/discriminator.py

The warm-up of ``world/afd`` at three learning rates. Every 20 steps: the pair accuracy on prompts that it is never
trained on, and how its scores of 8 videos of one prompt go with those of the held-out auditor, over 32 held-out
prompts: Pearson correlation of the scores and of their ranks inside the groups. Writes
benchmarks/results/discriminator.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from vidalign.bench.judging import scored
from vidalign.data.source import open_source
from vidalign.engine.rng import generator
from vidalign.provenance import commit, machine
from vidalign.recipe import load_recipe
from vidalign.registry import get
from vidalign.rewards.discriminator import DiscriminatorReward
from vidalign.students.video.rollout import RolloutPlan
from vidalign.trainer import Trainer

RESULT = Path(__file__).parent / "results" / "discriminator.json"
GROUPS, SIZE, EVERY, STEPS = 32, 8, 20, 120
Row = dict[str, Any]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson's, of ``[groups, size]`` each, about the means of the groups."""
    a, b = (x.double() - x.double().mean(1, keepdim=True) for x in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()))


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Place of every value in its row, from 0."""
    return values.argsort(1).argsort(1)


@torch.no_grad()
def groups_of(trainer: Trainer) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Clips of the initial student ``[groups * size, F, 3, H, W]``, their prompts, the auditor ``[groups, size]``."""
    ctx, source = trainer.ctx, open_source(trainer.recipe.data.eval_prompts, 0)
    prompts = [source[k // SIZE] for k in range(GROUPS * SIZE)]
    plan, clips = RolloutPlan(prefix=0, branch=ctx.chunks), []
    for start in range(0, len(prompts), 64):
        noise = ctx.student.draw_noise(plan, [generator(0, "groups", 0, start + k) for k in range(64)])
        clips.append(ctx.decode(ctx.student.rollout(ctx.text(prompts[start : start + 64]), plan, noise).latents))
    videos = torch.cat(clips)
    found = scored(get("metrics", "world_auditor")(), videos.float().cpu(), prompts, len(prompts))
    return videos, prompts, found["world_auditor/composite"].view(GROUPS, SIZE)


def measure(rate: float) -> list[Row]:
    """A warm-up at one learning rate, examined every few steps."""
    changes = [
        f"discriminator.learning_rate={rate}",
        "discriminator.warm_up.accuracy=null",
        f"discriminator.warm_up.max_steps={STEPS}",
        "trainer.eval_every=0",
        "tracking={tensorboard: false, panel: none, clips_every: 0}",
    ]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(load_recipe("world/afd", changes), Path(folder) / "run")
        assert trainer.ctx.rewards is not None
        reward = trainer.ctx.rewards.rewards["discriminator"]
        assert isinstance(reward, DiscriminatorReward)
        videos, prompts, auditor = groups_of(trainer)
        update = reward._update

        def watched(clips: torch.Tensor, chosen: list[str], step: int, purpose: str) -> dict[str, float]:
            found = update(clips, chosen, step, purpose)
            if (step + 1) % EVERY == 0:
                score = reward.score(videos, prompts)["discriminator"].cpu().view(GROUPS, SIZE)
                row = {
                    "learning_rate": rate,
                    "steps": step + 1,
                    "held_out_accuracy": round(reward.held_out_accuracy, 3),
                    "group_std": round(float(score.std(1).mean()), 3),
                    "correlation": round(correlation(score, auditor), 3),
                    "rank_correlation": round(correlation(ranks(score), ranks(auditor)), 3),
                }
                print(row)
                rows.append(row)
            return found

        reward._update = watched  # type: ignore[method-assign, assignment]
        reward.warm_up(trainer.prompts)
        trainer.tracker.close()
    return rows


def main() -> None:
    """Measure and write the result."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    document = {
        "command": "python benchmarks/discriminator.py",
        "commit": commit(),
        "machine": machine(),
        "seed": 0,
        "rows": [row for rate in (1e-4, 3e-4, 1e-3) for row in measure(rate)],
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
