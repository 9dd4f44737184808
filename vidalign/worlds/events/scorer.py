"""Scorer of the event world: the training rewards, from pixels and the caption alone.

Palette un-mixing -> soft masks -> moments (`vidalign.worlds.video.looks`) -> tracks -> fits of the law between events,
with the frames of the events found (`judgement.py`). Frames and objects are judged one by one, then pooled with a power
mean of order -4, so that the worst frame of the worst object decides.

- ``event_alignment``: geometric mean of colour, count, shape, size, motion and event. Motion is how likely the
  captioned law, begun as captioned, is among all laws and "none of them". Event: the clip ends as the second clause
  says (see `judgement.py`), and events come neither too often nor too close together. A clip that does not end so
  scores about half. So does ground truth, of which half ends in another state: futures can be ranked.
- ``event_motion``: ``1 / (1 + (rms / .02)^2)`` of the track under the captioned law with the events that were found
  (rms in picture widths, of the worse object; the worst window of 12 frames decides), times permanence and presence.
- ``event_visual``: nearness to the manifold of renderable frames. It does not look at the caption.
- ``lawful``: 1 when all attributes are right in every frame, no frame leaves the trajectory, events keep their rate,
  and motion and visual quality exceed .5. ``strict_pass``: lawful, and the clip ends as the second
  clause says.

Works for 3 frames and more. The auditor shares nothing with this file but the world's constants and captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from vidalign.worlds.events.constants import SIZE
from vidalign.worlds.events.judgement import Judgement, judge
from vidalign.worlds.scoring import by_quarter, in_slices
from vidalign.worlds.video.looks import FLOOR_SCORE, pool

REWARDS = ("event_alignment", "event_motion", "event_visual")
SCORES = (*REWARDS, "lawful", "strict_pass")
SLICE = 32
"""Clips judged at a time."""


def _soft_scores(j: Judgement, frames: slice) -> dict[str, torch.Tensor]:
    a = j.attributes
    parts = [pool(v[:, frames]) for v in (a.colour, a.count, a.shape, a.size)]
    kept = j.windows_in(frames)
    parts += [pool(j.motion[:, kept]), j.fulfilled * j.orderly]
    rms2 = j.window_error[:, kept] / SIZE**2
    lasting = pool(a.permanence[:, frames]) * pool(a.presence[:, frames])
    return {
        "event_alignment": torch.stack(parts).clamp(min=FLOOR_SCORE).log().mean(0).exp(),
        "event_motion": lasting * pool(1 / (1 + rms2 / 0.02**2)),
        "event_visual": pool(j.visual[:, frames]),
    }


def _score_slice(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    j = judge(clips, prompts)
    out = _soft_scores(j, slice(None))
    lawful = j.attributes.right.all(1) & j.law_right & (j.deviation.amax((1, 2)) < 0.5) & (j.orderly > 0.5)
    lawful &= (out["event_motion"] > 0.5) & (out["event_visual"] > 0.5)
    out["lawful"] = lawful.to(clips.dtype)
    out["strict_pass"] = (lawful & (j.fulfilled > 0.5)).to(clips.dtype)
    return out


def score(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Scores ``[B]`` in [0, 1] of clips ``[B, F, 3, H, W]`` in [0, 1], named `SCORES`; higher is better.

    A clip with pixels that are not finite scores NaN. Raises `DataError` for a prompt that is no caption.
    """
    return in_slices(_score_slice, clips, prompts, SCORES, SLICE)


def quarter_scores(clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """The three soft scores of every quarter of long clips, ``[B, 4]``; events are judged over all of it.

    Log the minimum and the last quarter: a clip that starts well and drifts shows there first.
    """
    j = judge(clips, prompts)
    return by_quarter(partial(_soft_scores, j), clips.shape[1], REWARDS)
