"""`vidalign serve`: a run that is scored by a server of its own makes the same steps as one that scores in process."""

from __future__ import annotations

import json
import math
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_helpers import RECIPE, address, assert_same_student, started, train, vidalign

from vidalign.trainer import Trainer

TWO = "{text_alignment: 1.0, visual_quality: 1.0}"
STEPS = ("trainer.steps=3", "evaluation.metrics={}")


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


@pytest.mark.parametrize("on_failure", ["stop", "nan"])
def test_the_server_of_a_run_is_killed(
    on_failure: str,
    recipe_folder: Path,
    server: str,
    unjudged: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run stops and goes on with another server to the same student, or it goes on unscored, as it is asked."""
    process = started("--reward", "motion_quality", "--port", "0")
    scored_by(remote(address(process), on_failure=on_failure, backoff=0.01))
    plain_step = Trainer.train_step

    def step(self: Trainer) -> dict[str, float]:
        if self.step == 1 and process.poll() is None:
            process.kill()
            process.wait()
        return plain_step(self)

    monkeypatch.setattr(Trainer, "train_step", step)
    status = train(*STEPS, run="killed")
    process.communicate()
    told = capsys.readouterr().err
    assert told.count("warning: the reward service") == 1 and "Connection refused" in told
    if on_failure == "nan":
        assert status == 0 and told.count("clips are not scored") == 1
        scores = [line["reward/motion/mean"] for line in history(Path("killed"))]
        assert [math.isnan(float(score)) for score in scores] == [False, True, True]
        return
    assert status == 3 and "could not be scored by 'motion_quality'" in told and "--resume" in told
    scored_by(remote(server, on_failure=on_failure))
    assert train(*STEPS, "--resume", run="killed") == 0
    assert train(*STEPS, run="whole") == 0
    assert_same_student("killed", "whole")


def test_a_run_goes_on_with_another_address(recipe_folder: Path, server: str, unjudged: None) -> None:
    """Where a server is decides no result; what it runs does."""
    scored_by(remote(server))
    assert train(*STEPS, "trainer.steps=1") == 0
    other = server.replace("127.0.0.1", "localhost")
    scored_by(remote(other))
    assert train(*STEPS, "trainer.steps=2", "--resume") == 0
    scored_by(remote(other, dtype="uint8"))
    assert train(*STEPS, "trainer.steps=3", "--resume") != 0


def test_a_run_says_what_the_servers_run_instead(
    recipe_folder: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scored_by(remote(server, reward="visual_quality", version="2"))
    assert train(*STEPS) == 3
    told = capsys.readouterr().err
    assert told.count("error:") == 1 and server in told
    assert "reward is 'motion_quality' there, the recipe pins 'visual_quality'; version is '1' there" in told
    assert not Path("run").exists()


def test_the_token_is_kept_off_the_command_line(recipe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDALIGN_SERVE_TOKEN", "secret")
    process = started("--reward", "visual_quality", "--port", "0", "--host", "0.0.0.0", "--no-warm-up")
    try:
        url = address(process).replace("0.0.0.0", "127.0.0.1")
        for token, answer in (("guess", 401), ("secret", 200)):
            request = urllib.request.Request(f"{url}/v1/reward", headers={"Authorization": f"Bearer {token}"})
            try:
                status = urllib.request.urlopen(request, timeout=10).status
            except urllib.error.HTTPError as error:
                status = error.code
            assert status == answer
    finally:
        process.terminate()
        process.communicate(timeout=30)


MISTAKES = {
    "motion_qualty": "did you mean 'motion_quality'?",
    "discriminator": "it learns from the clips of its own run",
    "exact_match": "it judges texts",
    "motion_quality scale=2": "unknown key 'motion_quality.scale'",
    "clip_score framse=2": "frames",
    "clip_score frames=-1": "frames must be at least 0",
    "motion_quality --host 0.0.0.0": "there is no token",
    "motion_quality --batch 0": "--batch is 0",
    "motion_quality scale": "write key=value",
    "nowhere.py:Own": "there is no file 'nowhere.py'",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_what_cannot_be_served(given: str, recipe_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign("serve", "--port", "0", "--reward", *given.split()) == 2
    told = capsys.readouterr().err
    assert MISTAKES[given] in told and told.count("error:") == 1


def test_serving_needs_an_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert vidalign("serve", "--reward", "motion_quality") == 2
    assert "pip install 'vidalign[serve]'" in capsys.readouterr().err


def test_a_reward_of_a_plugin_file_is_served(brightness: tuple[str, ...]) -> None:
    process = started("--reward", "brightness", "--port", "0", *brightness[1:])
    try:
        assert address(process)
    finally:
        process.terminate()
        process.communicate(timeout=30)
