"""What a step was planned to hold is what the accelerator's allocator gives out."""

from __future__ import annotations

import json

import pytest

from vidalign.recipe import load_recipe
from vidalign.students.video import CachePolicy, VideoStudentSpec
from vidalign.workflows.plan import measure_step, plan_step

NETWORK = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 12,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 512,
    "freq_dim": 256,
    "ffn_dim": 3072,
    "num_layers": 12,
    "rope_max_seq_len": 1024,
}
INIT = VideoStudentSpec(transformer=NETWORK, cache=CachePolicy(chunk_frames=3), height=256, width=448)
"""Of 130 M parameters: a step takes gigabytes, beside which workspaces of kernels are small."""


@pytest.mark.parametrize("checkpointing", ["true", "false"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_step_holds_what_was_planned(precision: str, checkpointing: str) -> None:
    student = {"init": INIT.to_dict() | {"codec": {"name": "wan"}}, "adapter": {"rank": 64, "alpha": 64.0}}
    changes = [
        "~student.path",
        f"student={json.dumps(student)}",
        f"student.checkpointing={checkpointing}",
        "data.frames=12",
        "evaluation.frames=12",
        "objective.group_size=4",
        "trainer={prompts_per_step: 1, micro_batch: 2}",
        f"engine.precision={precision}",
    ]
    recipe = load_recipe("world/astrolabe", changes)
    plan = plan_step(recipe)
    real, device = measure_step(recipe, plan)
    assert device.type == "cuda" and real.peak == pytest.approx(plan.peak, rel=0.1)
    for name in ("rollout", "loss"):
        assert real.phases[name] == pytest.approx(plan.phases[name], rel=0.1), name
