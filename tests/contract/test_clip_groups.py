"""What Astrolabe's groups ask to be judged, and the history that they are judged behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from astrolabe_helpers import astrolabe
from objective_helpers import CHUNK, GROUP, PROMPTS, collect, whole

from vidalign.context import Batch
from vidalign.objectives.parts.clip_groups import _stream
from vidalign.objectives.parts.forward_process import Noised, noise_again


@pytest.mark.parametrize(("score", "first", "chunks"), [("clip", 2 * CHUNK, 1), ("video", 0, 3)])
def test_rewards_know_where_a_clip_begins(score: str, first: int, chunks: int, folder: Path) -> None:
    objective, ctx = astrolabe(folder, f"clip.score={score}", prefix=2)
    ctx.clips_every = 1
    with torch.no_grad():
        data = objective.clips.groups(ctx, Batch(ctx.step, PROMPTS, [0, 1]))
    assert data.request is not None and data.request.first_frame == first
    assert data.request.kept == (0, 2, 4, 6), "those that are logged; the others are freed"
    assert data.request.clips.shape[:2] == (4, chunks * CHUNK)
    assert data["x0"].shape[1] == CHUNK and data.context is not None and data.context.frames == 2 * CHUNK


def test_a_codec_that_remembers_gets_the_latents_of_the_history(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ctx = astrolabe(folder)
    text, kept = ctx.text(PROMPTS), {}
    for remembers in (False, True):
        monkeypatch.setattr(type(ctx.codec), "remembers", remembers)
        with torch.no_grad():
            context, kept[remembers] = _stream(ctx, text, 2, ctx.generators("history", [0, 1]))
        assert context.frames == 2 * CHUNK
    assert kept[False] is None and kept[True].shape == (2, 2 * CHUNK, *ctx.student.chunk_shape[1:])


@pytest.mark.parametrize(("noise", "count"), [("sample", len(PROMPTS) * GROUP), ("group", len(PROMPTS))])
def test_who_shares_the_noise_of_the_loss(
    noise: str, count: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Noised] = []

    def watched(*given: Any, **named: Any) -> Noised:
        seen.append(noise_again(*given, **named))
        return seen[-1]

    monkeypatch.setattr("vidalign.objectives.astrolabe.noise_again", watched)
    objective, ctx = astrolabe(folder, f"loss_noise={noise}")
    whole(objective, ctx, collect(objective, ctx))
    assert len({str(one) for one in seen[0].noise.flatten(1)[:, :4].tolist()}) == count
