"""What the scorer and the auditor of the embedded world make of corrupted ground truth.

    python benchmarks/perturbations.py --count 264 --seed 0

prints the table and writes it with the command, seed and machine to
``benchmarks/results/perturbations.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from vidalign.worlds.video import auditor, scorer
from vidalign.worlds.video.captions import balanced
from vidalign.worlds.video.constants import FRAMES
from vidalign.worlds.video.diversity import diversity
from vidalign.worlds.video.perturbations import noisy_track, table
from vidalign.worlds.video.renderer import render
from vidalign.worlds.video.scenes import sample

RESULT = Path(__file__).parent / "results" / "perturbations.json"
TRACK_NOISE = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)


def judged(clips: torch.Tensor, captions: list[str]) -> dict[str, float]:
    """Mean of every score of the scorer and, prefixed with ``audit/``, of the auditor."""
    with torch.no_grad():
        scores = scorer.score(clips, captions)
    scores |= {f"audit/{name}": value for name, value in auditor.audit(clips, captions).items()}
    return {name: round(float(value.mean()), 4) for name, value in scores.items()}


def speeds(clips: torch.Tensor, captions: list[str]) -> dict[str, float]:
    """Clips per second of the scorer and the auditor on one thread, batches of 64."""
    out = {}
    with torch.no_grad():
        for name, judge in (("scorer", scorer.score), ("auditor", auditor.audit)):
            judge(clips[:64], captions[:64])
            start = time.perf_counter()
            for k in range(0, len(clips), 64):
                judge(clips[k : k + 64], captions[k : k + 64])
            out[name] = round(len(clips) / (time.perf_counter() - start), 1)
    return out


def measure(count: int, seed: int) -> dict[str, object]:
    """Every row of the table, motion quality against noise on the track, diversity, and speeds."""
    generator = torch.Generator().manual_seed(seed)
    captions = balanced("train", count, generator)
    rows, clips = {}, torch.empty(0)
    for name, corrupted, prompts in table(captions, FRAMES, generator):
        rows[name] = judged(corrupted, prompts)
        clips = corrupted if name == "ground truth" else clips
    scenes = sample(captions, FRAMES, generator=generator)
    noise = {}
    for sd in TRACK_NOISE:
        with torch.no_grad():
            scores = scorer.score(render(noisy_track(scenes, sd, generator)), captions)
        noise[str(sd)] = round(float(scores["motion_quality"].mean()), 4)
    one = {caption: clips[index] for index, caption in reversed(list(enumerate(captions)))}
    groups = list(one)[:16] * 8
    same = torch.stack([one[caption] for caption in groups])
    fresh = render(sample(groups, FRAMES, generator=generator))
    return {
        "rows": rows,
        "motion_quality_against_track_noise_px": noise,
        "diversity": {
            "ground truth": round(diversity(fresh, groups)["diversity"], 4),
            "one clip per caption": round(diversity(same, groups)["diversity"], 4),
        },
        "clips_per_second": speeds(clips, captions),
    }


def show(result: dict[str, object]) -> None:
    """Print the table."""
    columns = (
        "text_alignment",
        "motion_quality",
        "visual_quality",
        "strict_pass",
        "audit/composite",
        "audit/pass",
    )
    print(" " * 20 + "".join(f"{name:>17}" for name in columns))
    rows = result["rows"]
    assert isinstance(rows, dict), "the table has named rows"
    for name, scores in rows.items():
        print(f"{name:<20}" + "".join(f"{scores[column]:17.3f}" for column in columns))
    for name in ("motion_quality_against_track_noise_px", "diversity", "clips_per_second"):
        print(f"{name}: {result[name]}")


def main() -> None:
    """Score every row of the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=264, help="clips in each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments.count, arguments.seed)
    show(result)
    header = {
        "command": f"python benchmarks/perturbations.py --count {arguments.count} --seed {arguments.seed}",
        "seed": arguments.seed,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(header | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
