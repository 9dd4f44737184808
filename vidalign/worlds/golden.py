"""What the embedded worlds do, in numbers: scores are comparable as long as these stay the same.

`world_hash` covers the file that this module writes, not source text: a comment changes nothing, a scorer that judges
otherwise does. The event world has a file of its own (`events_hash`), so that its results and those of the first worlds
go out of date apart. A test holds the worlds against the files. After a deliberate change of a world, write its anew,

    python -m vidalign.worlds.golden
    python -m vidalign.worlds.golden events

and measure the published results again, or mark them with ``outdated_since``.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("golden.json")
EVENTS = Path(__file__).with_name("golden_events.json")
VERSION = 1
"""Raised by hand when a world changes in a way that the numbers below do not show."""
CLIPS = 11
EXAMPLES = 6
DIGITS = 4


def world_hash() -> str:
    """First 12 hex digits of SHA-256 over the recorded behaviour; torch is not needed."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()[:12]


def events_hash() -> str:
    """The same of the event world."""
    return hashlib.sha256(EVENTS.read_bytes()).hexdigest()[:12]


def events_behaviour() -> dict[str, Any]:
    """Version, pixels and scores of the event world's ground truth and of every corruption."""
    return {"version": VERSION, "events": _video("events", 16)}


def behaviour() -> dict[str, Any]:
    """Version, pixels and scores of ground truth and of every corruption, and problems of the language worlds."""
    from vidalign.worlds.language import pictures, tokens

    texts = {f"tokens:{split}": [_text(tokens, split, n) for n in range(EXAMPLES)] for split in tokens.SPLITS}
    texts |= {f"pictures:{split}": [_text(pictures, split, n) for n in range(EXAMPLES)] for split in pictures.SPLITS}
    return {"version": VERSION, "video": _video("video", CLIPS), "language": texts}


def _video(world: str, count: int) -> dict[str, dict[str, list[float]]]:
    """By row of a world's perturbation table: mean pixel and every score of `count` clips, families in turn."""
    from vidalign.engine.rng import generator

    auditor, perturbations, scorer, captions, constants = (
        importlib.import_module(f"vidalign.worlds.{world}.{name}")
        for name in ("auditor", "perturbations", "scorer", "captions", "constants")
    )
    numbers = generator(0, "golden", 0)
    chosen = captions.balanced("unseen", count, numbers)
    rows = {}
    for row, clips, prompts in perturbations.table(chosen, constants.FRAMES, numbers):
        values = {"pixel": clips.flatten(1).mean(1)}
        values |= {f"scorer/{name}": value for name, value in scorer.score(clips, prompts).items()}
        values |= {f"auditor/{name}": value for name, value in auditor.audit(clips, prompts).items()}
        rows[row] = {name: [round(v, DIGITS) for v in value.tolist()] for name, value in values.items()}
    return rows


def _text(world: Any, split: str, sample: int) -> list[Any]:
    """Prompt, privileged text, answer and the mean pixel of its pictures."""
    import numpy as np

    one = world.example(split, 0, sample, "hints")
    pixels = [round(float(np.asarray(picture).mean()), DIGITS) for picture in one.images]
    return [one.prompt, one.privileged, one.answer, *pixels]


def main() -> None:
    """Record the behaviour of the worlds, or of the one that is named, as they are."""
    file, now = (EVENTS, events_behaviour()) if sys.argv[1:] == ["events"] else (FILE, behaviour())
    file.write_text(json.dumps(now, indent=0, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
