"""`vidalign serve`: a run that is scored by a server of its own makes the same steps as one that scores in process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_helpers import RECIPE, assert_same_student, train

TWO = "{text_alignment: 1.0, visual_quality: 1.0}"
STEPS = ("trainer.steps=3", "evaluation.metrics={}")


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vidalign.cli", "serve", *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)


def address(process: subprocess.Popen[str]) -> str:
    """Waits until the reward is loaded."""
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    assert found, line + process.stderr.read()
    return found[0]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    process = started("--reward", "motion_quality", "--port", "0")
    try:
        yield address(process)
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in errors, errors


def history(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("objective/", "reward/", "health/grad_norm")
    return [{key: line[key] for key in line if key.startswith(kept)} for line in lines if line["kind"] == "metrics"]


def scored_by(reward: str) -> None:
    """The recipe with one reward under the key `motion`."""
    assert TWO in RECIPE
    Path("recipe.yaml").write_text(RECIPE.replace(TWO, f"{{motion: {reward}}}"), encoding="utf-8")


def remote(url: str, **settings: object) -> str:
    given = {"name": "remote", "reward": "motion_quality", "dtype": "float32", "urls": [url], **settings}
    return json.dumps(given)


def test_a_served_reward_makes_the_same_steps(recipe_folder: Path, server: str) -> None:
    scored_by("{name: motion_quality}")
    assert train(*STEPS, run="plain") == 0
    scored_by(remote(server))
    assert train(*STEPS, run="served") == 0
    assert_same_student("served", "plain")
    plain, served = history(Path("plain")), history(Path("served"))
    assert len(plain) == 3 and len({line["reward/motion/mean"] for line in plain}) == 3
    assert served == plain
    values = [json.loads(Path(run, "evaluation.json").read_text())["values"] for run in ("plain", "served")]
    assert values[0] == values[1] and "trained rewards/motion" in values[0]["after"]
