"""Gradient ascent on pixels from frozen clips: it must reach the captioned motion, not a loophole."""

from __future__ import annotations

import pytest
import torch
from attack_helpers import attacked

from vidalign.worlds.video import auditor, scorer
from vidalign.worlds.video.captions import balanced
from vidalign.worlds.video.renderer import clips


@pytest.mark.slow
@pytest.mark.parametrize("seed", [101, 102])
def test_gradient_ascent_finds_no_loophole(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    captions = [caption for caption in balanced("train", 33, generator) if "still" not in caption]
    videos = attacked(scorer, clips, captions, seed, steps=150)
    with torch.no_grad():
        scores = scorer.score(videos, captions)
    judged = auditor.audit(videos, captions)
    passed = scores["strict_pass"] > 0.5
    assert passed.float().mean() > 0.2, "the score can be climbed from a frozen clip"
    assert judged["pass"][passed].mean() > 0.9, "what passes the scorer passes an auditor it never saw"
    high = scores["motion_quality"] > 0.8
    assert judged["motion"][high].min() > 0.4 and judged["physics"][high].min() > 0.4
