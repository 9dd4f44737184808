"""Gradient ascent on pixels from frozen clips of the event world: it must reach the law, not a loophole."""

from __future__ import annotations

import pytest
import torch
from attack_helpers import attacked

from vidalign.worlds.events import auditor, scorer
from vidalign.worlds.events.captions import balanced
from vidalign.worlds.events.renderer import clips


@pytest.mark.slow
@pytest.mark.parametrize("seed", [101, 102])
def test_gradient_ascent_finds_no_loophole(seed: int) -> None:
    captions = balanced("train", 32, torch.Generator().manual_seed(seed))
    videos = attacked(scorer, clips, captions, seed, steps=150)
    with torch.no_grad():
        scores = scorer.score(videos, captions)
    judged = auditor.audit(videos, captions)
    lawful = scores["lawful"] > 0.5
    assert lawful.float().mean() > 0.1, "the score can be climbed from a frozen clip"
    assert judged["lawful"][lawful].mean() > 0.9, "what passes the scorer passes an auditor it never saw"
    high = scores["event_motion"] > 0.8
    assert judged["motion"][high].min() > 0.4 and judged["physics"][high].min() > 0.4
