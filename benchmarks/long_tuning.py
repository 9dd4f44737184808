"""Peak memory of one step of long tuning against the length of the video, and against training on all of it.

    python benchmarks/long_tuning.py [--out FILE]

One training step of ``world/astrolabe_long`` (collect, score, backward, optimiser), its window the last one of the
video: 1, 4 and 16 training lengths; then 4 lengths with the whole video as the window, which back-propagates through
every frame. On a CPU the bytes are the running sum of torch's own allocations and releases, on an accelerator its
allocator's peak. Writes benchmarks/results/long_tuning.json, or --out.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vidalign.objectives.base import Experience
from vidalign.provenance import commit, machine
from vidalign.recipe import load_recipe
from vidalign.trainer import Trainer

RESULT = Path(__file__).parent / "results" / "long_tuning.json"
RECIPE = "world/astrolabe_long"
TRAINING = 12
"""Frames of a training clip."""
SETTINGS = [
    "objective.clip.score=clip",
    "objective.group_size=4",
    "trainer.prompts_per_step=2",
    "trainer.micro_batch=4",
    "trainer.eval_every=0",
    "tracking={tensorboard: false, panel: none, clips_every: 0}",
]
Row = dict[str, Any]


@contextmanager
def peak_of(device: torch.device) -> Iterator[list[int]]:
    """Puts the largest number of bytes allocated inside, above those held at entry, into the list."""
    out: list[int] = []
    if device.type != "cpu":
        torch.accelerator.reset_peak_memory_stats(device)
        before = torch.accelerator.memory_allocated(device)
        yield out
        out.append(torch.accelerator.max_memory_allocated(device) - before)
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield out
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None, "the profiler has run"
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    out.append(peak)


def resident(trainer: Trainer) -> int:
    """Bytes of the weights and of the further weight sets."""
    policies = trainer.ctx.policies
    sets = [p for p in policies.network.parameters()] + [w for ws in policies._snapshots.values() for w in ws]
    return sum(w.nbytes for w in sets)


def measure(lengths: int, window: int) -> Row:
    """One step on videos of some training lengths, the last `window` chunks of each trained on."""
    frames = lengths * TRAINING
    recipe = load_recipe(RECIPE, [*SETTINGS, f"data.frames={frames}", f"objective.clip.chunks={window}"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(recipe, Path(folder) / "run")
        ctx, objective, cache = trainer.ctx, trainer.objective, 0
        collect = objective.collect

        def watched(*arguments: Any) -> Experience:
            nonlocal cache
            experience = collect(*arguments)
            cache = experience.context.nbytes if experience.context else 0
            return experience

        objective.collect = watched  # type: ignore[method-assign]
        for step in range(10_000):  # the fork is drawn anew in every step
            ctx.step = trainer.step = step
            if objective.clips.plan(ctx).prefix == ctx.chunks - window:  # type: ignore[attr-defined]
                break
        with peak_of(ctx.device) as peak:
            trainer.train_step()
        row = {
            "lengths": lengths,
            "frames": frames,
            "window_frames": window * ctx.chunk_frames,
            "peak_mib": round(peak[0] / 2**20, 2),
            "cache_mib": round(cache / 2**20, 2),
            "resident_mib": round(resident(trainer) / 2**20, 2),
        }
        trainer.tracker.close()
    print(row)
    return row


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    window = [measure(lengths, 4) for lengths in (1, 4, 16)]
    whole = measure(4, 16)
    total = {name: row["peak_mib"] + row["resident_mib"] for name, row in (("window", window[1]), ("whole", whole))}
    document = {
        "command": shlex.join(["python", "benchmarks/long_tuning.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(),
        "window": window,
        "whole": whole,
        "ratio": round(total["window"] / total["whole"], 3),
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"window against whole video at 4 lengths, weights included: {document['ratio']}")


if __name__ == "__main__":
    main()
