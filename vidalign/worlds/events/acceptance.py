"""Is the event world fit to compare methods? What rewards find to rank behind a fixed beginning.

    python -m vidalign.worlds.events.acceptance                               # ground truth, before any training
    python -m vidalign.worlds.events.acceptance --student events/student      # and a student
    python -m vidalign.worlds.events.acceptance --student PATH --distilled    # one whose initial noise should decide

For every chunk at which candidates may fork, groups of clips share all chunks before it. Reported: the group spread of
the mean reward (standard deviation inside a group, mean over prompts), of each reward and of the auditor; the share of
groups whose success (the scorer's strict pass) lies in .2 to .8; the rank correlations of rewards and auditor. The
student's groups may differ by their initial noise alone, too.

- ground truth: the spread at every fork is at least a third of that at chunk 0;
- student: the same, and success behind a fixed prefix lies in .2 to .8 for a third of the groups or more;
- distilled student: the median spread from initial noise alone is at least .3 of that of all noise.

Numbers are added to ``benchmarks/results/events_acceptance.json`` under the name of what was judged, with command,
seed, commit and machine. The exit code is 1 where a criterion is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign.engine.rng import generator
from vidalign.evaluation.trust import correlations
from vidalign.provenance import commit, machine
from vidalign.worlds.events import auditor, scorer
from vidalign.worlds.events.captions import balanced, family, parse
from vidalign.worlds.events.constants import FRAMES
from vidalign.worlds.events.renderer import render
from vidalign.worlds.events.scenes import futures, sample, uniforms

if TYPE_CHECKING:
    from vidalign.students.video import VideoStudent

RESULT = Path("benchmarks/results/events_acceptance.json")
CHUNK = 3
FORKS = FRAMES // CHUNK
BAND = (0.2, 0.8)
"""Success of a group that is neither hopeless nor solved."""
LEAST = 1 / 3
"""Least spread at a fork against chunk 0, and least share of the groups in the band."""
LEAST_INITIAL = 0.3
"""Least median spread from initial noise alone against all noise, of a distilled student."""
Futures = Callable[[int], torch.Tensor]
"""Clips ``[prompts * group, F, 3, H, W]`` that share the chunks before a fork, candidates of a prompt adjacent."""


def of_truth(captions: list[str], group: int, seed: int) -> Futures:
    """Futures of ground truth: beginnings are shared by all forks."""
    numbers = uniforms(len(captions), FRAMES, generator(seed, "acceptance", 0))
    repeated = [caption for caption in captions for _ in range(group)]

    def clips(fork: int) -> torch.Tensor:
        own = futures(numbers.repeat_interleave(group, 0), CHUNK * fork, generator(seed, "acceptance futures", fork))
        return render(sample(repeated, own))

    return clips


def of_student(
    student: VideoStudent, captions: list[str], group: int, seed: int, initial_alone: bool = False
) -> Futures:
    """Futures of a student, by all noise of the chunks from the fork on, or by their initial noise alone."""
    from vidalign.codecs import build_codec
    from vidalign.students.video.rollout.plan import RolloutPlan
    from vidalign.text.pretrained import build_features

    text, codec = build_features(student.spec.text)(captions), build_codec(student.spec.codec)

    def clips(fork: int) -> torch.Tensor:
        plan = RolloutPlan(prefix=fork, branch=FORKS - fork, group_size=group)
        generators = [generator(seed, "acceptance", 0, n) for n in range(len(captions))]
        noise = student.draw_noise(plan, generators)
        if initial_alone:
            noise.renoise = noise.renoise[::group].repeat_interleave(group, 0)
        return codec.decode(student.rollout(text, plan, noise).latents).float().clamp(0, 1)

    return clips


def judged(clips: torch.Tensor, captions: list[str], group: int) -> dict[str, torch.Tensor]:
    """Scores ``[prompts, group]``: rewards, their mean ``reward``, ``strict_pass``, ``auditor`` and its ``pass``."""
    repeated = [caption for caption in captions for _ in range(group)]
    with torch.no_grad():
        scores = scorer.score(clips, repeated)
    audited = auditor.audit(clips, repeated)
    scores |= {"reward": torch.stack([scores[name] for name in scorer.REWARDS]).mean(0)}
    scores |= {"auditor": audited["composite"], "pass": audited["pass"]}
    return {name: values.view(-1, group) for name, values in scores.items()}


def measure(clips_of: Futures, captions: list[str], group: int) -> dict[str, Any]:
    """Figures of every fork, ratios to chunk 0, and rank correlations at chunk 0."""
    forks: list[dict[str, Any]] = []
    first: dict[str, torch.Tensor] = {}
    for fork in range(FORKS):
        scores = judged(clips_of(fork), captions, group)
        first = first or scores
        success = scores["strict_pass"].mean(1)
        spread = {name: float(scores[name].std(1).mean()) for name in (*scorer.REWARDS, "reward", "auditor")}
        forks.append(
            {
                "fork": fork,
                "spread": spread,
                "median_spread": float(scores["reward"].std(1).median()),
                "means": {name: float(values.mean()) for name, values in scores.items()},
                "in_band": float(((success >= BAND[0]) & (success <= BAND[1])).float().mean()),
                "success_by_family": _by_family(success, captions),
            }
        )
    ranked = correlations({name: first[name] for name in (*scorer.REWARDS, "auditor")})
    base = forks[0]["spread"]["reward"]
    return {
        "forks": forks,
        "spread_against_first": [fork["spread"]["reward"] / base if base else 0.0 for fork in forks],
        "rank_correlations": {f"{a}, {b}": value for (a, b), value in ranked.items()},
    }


def _by_family(values: torch.Tensor, captions: list[str]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for caption, value in zip(captions, values.tolist(), strict=True):
        groups.setdefault(family(parse(caption)), []).append(value)
    return {name: sum(found) / len(found) for name, found in sorted(groups.items())}


def criteria(figures: dict[str, Any], trained: bool, initial: dict[str, Any] | None = None) -> dict[str, bool]:
    """Which of the world's demands are met. initial: figures of initial noise alone, of a distilled student."""
    found = {"spread at every fork": min(figures["spread_against_first"]) >= LEAST}
    if trained:
        behind = [fork["in_band"] for fork in figures["forks"][1:]]
        found["success in the band behind a prefix"] = sum(behind) / len(behind) >= LEAST
    if initial is not None:
        figures["initial_noise_share"] = initial_share(figures, initial)
        found["initial noise decides"] = figures["initial_noise_share"] >= LEAST_INITIAL
    return found


def initial_share(figures: dict[str, Any], initial: dict[str, Any]) -> float:
    """Median spread from initial noise alone over that from all noise, at chunk 0."""
    whole = figures["forks"][0]["median_spread"]
    return float(initial["forks"][0]["median_spread"] / whole) if whole else 0.0


def _round(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _round(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_round(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def show(name: str, figures: dict[str, Any]) -> None:
    """Print the figures of one row of forks."""
    columns = (*scorer.REWARDS, "reward", "auditor")
    print(f"{name}\nfork  success  in band " + "".join(f"{column:>17}" for column in columns))
    for fork in figures["forks"]:
        spreads = "".join(f"{fork['spread'][column]:17.4f}" for column in columns)
        print(f"{fork['fork']:4}{fork['means']['strict_pass']:9.3f}{fork['in_band']:9.3f} {spreads}")
    print("spread against chunk 0:", [round(value, 3) for value in figures["spread_against_first"]])
    print("rank correlations:", {pair: round(value, 3) for pair, value in figures["rank_correlations"].items()})


def parsed() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="", help="weights of a student; without them ground truth alone")
    parser.add_argument("--distilled", action="store_true", help="its initial noise alone should decide, too")
    parser.add_argument("--name", default="", help="what the result calls the student; its weights by default")
    parser.add_argument("--split", default="unseen", help="captions")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group", type=int, default=8, help="candidates of a prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args()


def main() -> int:
    """Judge ground truth or a student, add the numbers to the result file; 1 where a criterion is missed."""
    args = parsed()
    captions = balanced(args.split, args.prompts, generator(args.seed, "acceptance prompts", 0))
    name, initial = "ground truth", None
    if args.student:
        from vidalign.students.video import VideoStudent

        name, student = args.name or args.student, VideoStudent.load(args.student).eval()
        figures = measure(of_student(student, captions, args.group, args.seed), captions, args.group)
        initial = measure(of_student(student, captions, args.group, args.seed, True), captions, args.group)
    else:
        figures = measure(of_truth(captions, args.group, args.seed), captions, args.group)
    show(name, figures)
    if initial is not None:
        show(f"{name}, initial noise alone", initial)
        figures["initial_noise_alone"] = initial
        figures["initial_noise_share"] = initial_share(figures, initial)
    figures["criteria"] = criteria(figures, bool(args.student), initial if args.distilled else None)
    print("criteria:", figures["criteria"])
    given = " ".join(sys.argv[1:])
    header = {
        "command": f"python -m vidalign.worlds.events.acceptance {given}".strip(),
        "seed": args.seed,
        "commit": commit(),
        "machine": machine(),
    }
    whole = json.loads(args.out.read_text()) if args.out.is_file() else {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(whole | {name: _round(header | figures)}, indent=1) + "\n")
    return 0 if all(figures["criteria"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
