"""A run whose updates are not finite, as it is seen on the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from run_helpers import vidalign

from vidalign.tracking.jsonl import read_history, read_records

PLUGIN = """
from vidalign.objectives.baselines.opd import OPD
from vidalign.registry import register


@register("objectives", "nan_opd")
class NaN(OPD):
    name, calls = "nan_opd", 0

    def loss(self, ctx, micro_batch, phase):
        out = super().loss(ctx, micro_batch, phase)
        NaN.calls += 1
        if NaN.calls > 3 and NaN.calls % 3 == 2:  # one of three micro-batches, from the second step on
            out.loss = out.loss * float("nan")
        return out
"""
SMALL = (
    "trainer.prompts_per_step=6",
    "trainer.micro_batch=2",
    "trainer.steps=8",
    "trainer.save_every=1",
    "student.sampling.max_new_tokens=8",
    "tracking.tensorboard=false",
    "tracking.panel=none",
)


def test_one_bad_micro_batch_of_three_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nan_plugin.py").write_text(PLUGIN, encoding="utf-8")
    objective = ("objective={name: nan_opd, group_size: 1}", "--plugin", "nan_plugin.py")
    assert vidalign("train", "tokens/opd", *SMALL, "trainer.max_skipped=2", *objective, "--run", "run") == 3
    told = capsys.readouterr().err
    assert told.count("warning skipped_updates") == 1 and told.count("error:") == 1
    assert "2 updates in a row were skipped at step 3" in told and "failed-step-2.json" in told
    assert "go on with --resume from run/checkpoints/step-00000001" in told and "Traceback" not in told
    batches = json.loads(Path("run/failed-step-2.json").read_text(encoding="utf-8"))["batches"]
    assert [batch["ids"] for batch in batches] == [list(range(6, 12)), list(range(12, 18))]
    history = read_history("run/metrics.jsonl")
    assert history["health/skipped_updates"] == [(1, 0.0), (2, 1.0)]
    assert math.isnan(history["objective/loss/mean"][1][1]), "not the mean of the healthy micro-batches"
    warned = [(r["step"], r["name"]) for r in read_records("run/metrics.jsonl") if r["kind"] == "health"]
    assert warned == [(2, "skipped_updates")]
    assert [p.name for p in Path("run/checkpoints").iterdir()] == ["step-00000001"]
    assert not Path("run/student.safetensors").exists()
