"""The example plugin keeps what it computes with where the clips are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vidalign.context import Batch
from vidalign.objectives.base import MicroBatch, Phase
from vidalign.students.video.rollout import Noise
from vidalign.students.video.spec import Sampler

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin_objective"


def on_the_meta_device(trained: list[Tensor]) -> Any:
    """A context whose student and rewards answer on the meta device, which cannot be mixed with the CPU."""
    latents = torch.empty(2 * 4, 3, 3, 8, 8, device="meta")

    def velocity(x_t: Tensor, sigma: Tensor, *rest: Any, **clean: Tensor) -> Tensor:
        trained.extend([x_t, sigma])
        return x_t

    student = SimpleNamespace(
        draw_noise=lambda plan, generators: Noise(*[torch.empty(len(generators) * plan.group_size)] * 2),
        rollout=lambda *a, **further: SimpleNamespace(latents=latents),
        velocity=velocity,
        spec=SimpleNamespace(sampler=Sampler([1.0, 0.5])),
    )
    return SimpleNamespace(
        chunks=1,
        own_candidates=lambda size: slice(0, size),
        student=student,
        chunk_frames=3,
        device=torch.device("meta"),
        reward_weights={"a": 1.0, "b": 2.0},
        gathered=torch.no_grad,
        policy=lambda name: torch.no_grad(),
        text=lambda prompts: torch.empty(len(prompts), 5, 6, device="meta"),
        generators=lambda key, ids: [torch.Generator().manual_seed(n) for n in ids],
        decode=lambda latents: latents,
        score=lambda clips, prompts: {name: torch.empty(len(clips), device=clips.device) for name in "ab"},
        normal=lambda shape, generators: torch.empty(len(generators), *shape, device="meta"),
    )


def test_the_example_runs_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    from vidalign_best_of_n import BestOfN

    monkeypatch.setattr(Tensor, "__float__", lambda self: 0.0)  # a meta tensor has no value to log
    trained: list[Tensor] = []
    objective, ctx = BestOfN(BestOfN.Config()), on_the_meta_device(trained)
    data = objective.collect(ctx, Batch(0, ["a", "b"], [0, 1]))
    loss = objective.loss(ctx, MicroBatch(data, 1.0), Phase()).loss
    assert {value.device.type for value in (data["x0"], loss, *trained)} == {"meta"}
