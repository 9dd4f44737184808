"""What the scorer and the auditor of a video world make of corrupted ground truth.

    python benchmarks/perturbations.py --count 264 --seed 0
    python benchmarks/perturbations.py --world events --count 256 --seed 0

prints the table and writes it with the command, seed and machine to ``benchmarks/results/perturbations.json``, or
``perturbations_events.json``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
TRACK_NOISE = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
FRAMES = 12


class World:
    """The modules of a video world."""

    def __init__(self, name: str) -> None:
        self.name, self.package = name, {"world": "video"}.get(name, name)
        self.scorer, self.auditor, self.captions, self.perturbations, self.scenes, self.renderer, self.spread = (
            importlib.import_module(f"vidalign.worlds.{self.package}.{part}")
            for part in ("scorer", "auditor", "captions", "perturbations", "scenes", "renderer", "diversity")
        )

    def drawn(self, captions: list[str], generator: torch.Generator) -> Any:
        """Scenes of captions."""
        draw = self.scenes.sample if self.name == "world" else self.scenes.draw
        return draw(captions, FRAMES, generator=generator)

    @property
    def motion(self) -> str:
        """What the scorer calls its judgement of the track."""
        return "motion_quality" if self.name == "world" else "event_motion"


def judged(world: World, clips: torch.Tensor, captions: list[str]) -> dict[str, float]:
    """Mean of every score of the scorer and, prefixed with ``audit/``, of the auditor."""
    with torch.no_grad():
        scores = world.scorer.score(clips, captions)
    scores |= {f"audit/{name}": value for name, value in world.auditor.audit(clips, captions).items()}
    return {name: round(float(value.mean()), 4) for name, value in scores.items()}


def speeds(world: World, clips: torch.Tensor, captions: list[str]) -> dict[str, float]:
    """Clips per second of the scorer and the auditor on one thread, batches of 64."""
    out = {}
    with torch.no_grad():
        for name, judge in (("scorer", world.scorer.score), ("auditor", world.auditor.audit)):
            judge(clips[:64], captions[:64])
            start = time.perf_counter()
            for k in range(0, len(clips), 64):
                judge(clips[k : k + 64], captions[k : k + 64])
            out[name] = round(len(clips) / (time.perf_counter() - start), 1)
    return out


def measure(world: World, count: int, seed: int) -> dict[str, object]:
    """Every row of the table, motion quality against noise on the track, diversity, and speeds."""
    generator = torch.Generator().manual_seed(seed)
    captions = world.captions.balanced("train", count, generator)
    rows, clips = {}, torch.empty(0)
    for name, corrupted, prompts in world.perturbations.table(captions, FRAMES, generator):
        rows[name] = judged(world, corrupted, prompts)
        clips = corrupted if name == "ground truth" else clips
    scenes = world.drawn(captions, generator)
    noise = {}
    for sd in TRACK_NOISE:
        with torch.no_grad():
            noisy = world.perturbations.noisy_track(scenes, sd, generator)
            scores = world.scorer.score(world.renderer.render(noisy), captions)
        noise[str(sd)] = round(float(scores[world.motion].mean()), 4)
    one = {caption: clips[index] for index, caption in reversed(list(enumerate(captions)))}
    groups = list(one)[:16] * 8
    same = torch.stack([one[caption] for caption in groups])
    fresh = world.renderer.render(world.drawn(groups, generator))
    return {
        "rows": rows,
        "motion_quality_against_track_noise_px": noise,
        "diversity": {
            "ground truth": round(world.spread.diversity(fresh, groups)["diversity"], 4),
            "one clip per caption": round(world.spread.diversity(same, groups)["diversity"], 4),
        },
        "clips_per_second": speeds(world, clips, captions),
    }


def show(result: dict[str, object]) -> None:
    """Print the table."""
    rows = result["rows"]
    assert isinstance(rows, dict), "the table has named rows"
    audited = ("audit/composite", "audit/lawful", "audit/pass")
    columns = [name for name in rows["ground truth"] if not name.startswith("audit/") or name in audited]
    print(" " * 20 + "".join(f"{name:>17}" for name in columns))
    for name, scores in rows.items():
        print(f"{name:<20}" + "".join(f"{scores[column]:17.3f}" for column in columns))
    for name in ("motion_quality_against_track_noise_px", "diversity", "clips_per_second"):
        print(f"{name}: {result[name]}")


def main() -> None:
    """Score every row of the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=("world", "events"), default="world")
    parser.add_argument("--count", type=int, default=264, help="clips in each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = World(arguments.world)
    result = measure(world, arguments.count, arguments.seed)
    show(result)
    chosen = "" if world.name == "world" else f"--world {world.name} "
    header = {
        "command": f"python benchmarks/perturbations.py {chosen}--count {arguments.count} --seed {arguments.seed}",
        "seed": arguments.seed,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
    }
    out = arguments.out or RESULTS / ("perturbations" + ("" if world.name == "world" else f"_{world.name}") + ".json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(header | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
