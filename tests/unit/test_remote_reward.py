"""The reward `remote` against servers that are killed, hang, are slow, or answer nonsense; and a load test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
import torch
from serving_helpers import IDENTITY, Fake, Mean, serving, wait_for
from torch import Tensor

from vidalign.errors import RecipeError, UserError
from vidalign.recipe import load_recipe
from vidalign.recipe.plugins import make
from vidalign.rewards.endpoints import AnswerError, Endpoints
from vidalign.rewards.remote import Remote
from vidalign.serving.wire import encode
from vidalign.testing import check_metric, check_reward
from vidalign.trainer import Trainer

PROMPTS = [f"clip {n}" for n in range(22)]


def clips_of(count: int = len(PROMPTS), seed: int = 0) -> Tensor:
    """``[count, 2, 3, 4, 4]`` on the 8-bit grid, no two of equal mean."""
    pixels = torch.randint(0, 256, (count, 2, 3, 4, 4), generator=torch.Generator().manual_seed(seed))
    assert len(pixels.flatten(1).sum(1).unique()) == count or count > 50
    return pixels / 255


def remote(*urls: str, **settings: Any) -> Remote:
    given = {"reward": "mean", "backoff": 0.02, "request_timeout": 5.0, **settings}
    return Remote(Remote.Config(urls=list(urls), **given))


def scored(reward: Remote, clips: Tensor) -> tuple[Tensor, list[str]]:
    """Scores, and the warnings."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        scores = reward.score(clips, PROMPTS[: len(clips)])["remote"]
    return scores, [str(one.message) for one in told]


def expected(clips: Tensor) -> Tensor:
    return ((clips.double() * 255).round() / 255).mean((1, 2, 3, 4))


# --- nothing is lost, and order is kept ---


def hang(seconds: float) -> Any:
    return lambda n, scores: time.sleep(seconds)


FAULTS = {
    "hung": (hang(5.0), "no answer in 1.5 s"),
    "500": (lambda n, scores: 500, "out of order (HTTP 500 reward_failed)"),
    "cut": (lambda n, scores: "cut", ""),
    "garbage": (lambda n, scores: b"<html>no</html>", "its answer is no JSON"),
    "another": (lambda n, scores: b'{"scores": 3}', "its answer holds no scores"),
    "list": (lambda n, scores: b"[1, 2]", "its answer holds no scores"),
    "short": (lambda n, scores: json.dumps({"scores": {"mean": scores[:-1]}}).encode(), "3 scores under 'mean' for 4"),
    "texts": (lambda n, scores: json.dumps({"scores": {"mean": ["x"] * len(scores)}}).encode(), "are no numbers"),
    "truths": (lambda n, scores: json.dumps({"scores": {"mean": [True] * len(scores)}}).encode(), "are no numbers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_server_takes_the_clips_of_one_that_fails(fault: str) -> None:
    misbehave, says = FAULTS[fault]
    with Fake(misbehave) as bad, Fake() as good:
        scores, told = scored(remote(bad.url, good.url, request_timeout=1.5), clips_of())
    torch.testing.assert_close(scores, expected(clips_of()), rtol=0, atol=1e-7)
    assert bad.asked and len(told) == 1, told
    assert bad.url in told[0] and says in told[0] and "others take its clips" in told[0]


def test_a_server_that_is_gone() -> None:
    with Fake() as good:
        with Fake() as bad:
            reward = remote(bad.url, good.url)
            assert scored(reward, clips_of(8))[1] == []
        for _ in range(3):
            scores, told = scored(reward, clips_of())
            torch.testing.assert_close(scores, expected(clips_of()), rtol=0, atol=1e-7)
            assert all(bad.url in one for one in told)
            reward_told = told
        assert reward_told == [], "it was reported once"


def test_a_slow_server_gets_fewer_clips() -> None:
    with Fake(hang(0.2)) as slow, Fake(hang(0.01)) as fast:
        reward, clips = remote(slow.url, fast.url), clips_of(80)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scores = reward.score(clips, [str(n) for n in range(80)])["remote"]
    torch.testing.assert_close(scores, expected(clips), rtol=0, atol=1e-7)
    assert slow.asked + fast.asked == 20 and slow.asked <= 4


def test_a_failure_that_passes_is_tried_again() -> None:
    with Fake(lambda n, scores: 500 if n < 2 else None) as server:
        scores, told = scored(remote(server.url), clips_of())
    torch.testing.assert_close(scores, expected(clips_of()), rtol=0, atol=1e-7)
    assert len(told) == 1 and "there is no other" in told[0]


def test_a_busy_server_is_no_failure() -> None:
    with Fake(lambda n, scores: 429 if n < 1 else None) as server:
        began = time.monotonic()
        scores, told = scored(remote(server.url, retries=0), clips_of(4))
    torch.testing.assert_close(scores, expected(clips_of(4)), rtol=0, atol=1e-7)
    assert told == [] and time.monotonic() - began > 0.9, "Retry-After is kept"
    with Fake(lambda n, scores: 429) as server, pytest.raises(UserError, match=r"out of order \(HTTP 429"):
        remote(server.url, retries=0, request_timeout=0.2).score(clips_of(4), PROMPTS[:4])


def test_a_server_that_is_killed_at_work(tmp_path: Path) -> None:
    """Its own process, killed while it holds clips."""
    file = tmp_path / "server.py"
    file.write_text(
        "import sys, time\nfrom serving_helpers import Fake\nfake = Fake(lambda n, scores: time.sleep(30))\n"
        "print(fake.url, flush=True)\nfake.http.serve_forever()\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    with Fake() as good:
        reward = remote(process.stdout.readline().strip(), good.url)
        reward._connected()
        threading.Timer(0.2, process.kill).start()
        scores, told = scored(reward, clips_of())
    process.wait()
    process.stdout.close()
    torch.testing.assert_close(scores, expected(clips_of()), rtol=0, atol=1e-7)
    assert len(told) == 1 and "failed" in told[0], told


def test_a_server_that_comes_back_is_used_again() -> None:
    with Fake(lambda n, scores: 500 if n < 6 else None) as bad, Fake() as good:
        reward, told, end = remote(bad.url, good.url, backoff=0.01), [], time.monotonic() + 10
        while not any("answers again" in one for one in told) and time.monotonic() < end:
            scores, notes = scored(reward, clips_of())
            told += notes
            torch.testing.assert_close(scores, expected(clips_of()), rtol=0, atol=1e-7)
        asked = bad.asked
        assert scored(reward, clips_of())[1] == [] and bad.asked > asked
    assert [("failed" in one, "answers again" in one) for one in told] == [(True, False), (False, True)]


def test_one_request_at_a_time_tries_a_dead_server() -> None:
    """It may hang: the others wait for the outcome, or ask another server."""
    busy, most, lock = 0, 0, threading.Lock()

    def misbehave(n: int, scores: list[float]) -> int:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy if n >= 6 else 0)
        time.sleep(0.03)
        with lock:
            busy -= 1
        return 500

    with Fake(misbehave) as dead, Fake(lambda n, scores: time.sleep(0.02)) as good:
        reward, end = remote(dead.url, good.url, backoff=0.001), time.monotonic() + 20
        while dead.asked < 10 and time.monotonic() < end:
            scores, _ = scored(reward, clips_of())
            torch.testing.assert_close(scores, expected(clips_of()), rtol=0, atol=1e-7)
    assert dead.asked >= 10 and most == 1


def test_failures_at_the_same_time_are_one() -> None:
    """Else a server with many requests under way would be dead at its first hiccup."""
    both = threading.Barrier(2)

    def misbehave(n: int, scores: list[float]) -> int:
        both.wait(5)
        return 500

    body = encode((clips_of(1) * 255).round().to(torch.uint8).numpy(), ["a"])
    with Fake(misbehave) as server:
        endpoints = Endpoints([server.url], token="", timeout=5, retries=0, backoff=5)

        def fail() -> None:
            with pytest.raises(AnswerError, match="out of order"):
                endpoints.score(body, 1)

        threads = [threading.Thread(target=fail) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert server.asked == 2 and endpoints.endpoints[0].failures == 1 and len(endpoints.notes()) == 1


# --- what follows when nobody answers ---


def test_the_run_stops_unless_it_is_asked_to_go_on() -> None:
    with Fake(lambda n, scores: 500) as server:
        with pytest.warns(UserWarning, match="there is no other"), pytest.raises(UserError) as error:
            remote(server.url).score(clips_of(), PROMPTS)
        assert "clips could not be scored by 'mean'" in str(error.value) and "out of order" in str(error.value)
        assert "on_failure: nan" in str(error.value) and server.url in str(error.value)
        going_on = remote(server.url, on_failure="nan")
        scores, told = scored(going_on, clips_of())
        assert scores.isnan().all() and len(told) == 2 and "22 of 22 clips are not scored" in told[1]
        began, asked = time.monotonic(), server.asked
        scores, told = scored(going_on, clips_of())
        assert scores.isnan().all() and told == [], "it was reported"
        assert time.monotonic() - began < 1 and server.asked <= asked + 1, "a dead server is not waited for"


def test_only_the_clips_that_failed_are_not_scored() -> None:
    """One part of four clips fails at every attempt."""
    poison = expected(clips_of())[4]

    def misbehave(n: int, scores: list[float]) -> int | None:
        return 500 if any(abs(score - float(poison)) < 1e-9 for score in scores) else None

    with Fake(misbehave) as server, Fake(misbehave) as other:
        scores, told = scored(remote(server.url, other.url, on_failure="nan"), clips_of())
    assert scores.isnan().nonzero().flatten().tolist() == [4, 5, 6, 7]
    torch.testing.assert_close(scores.nan_to_num(), expected(clips_of()).where(~scores.isnan(), 0), rtol=0, atol=1e-7)
    assert "4 of 22 clips are not scored" in told[-1]


@pytest.mark.parametrize("nothing", [b"null", b"NaN", b"Infinity"])
def test_clips_that_the_reward_cannot_score_are_nan(nothing: bytes) -> None:
    def misbehave(n: int, scores: list[float]) -> bytes:
        rest = ",".join(map(str, scores[1:])).encode()
        return b'{"scores": {"mean": [' + nothing + b"," + rest + b']}, "identity": "' + IDENTITY.encode() + b'"}'

    with Fake(misbehave) as server:
        reward = remote(server.url)
        scores, told = scored(reward, clips_of(20))
        assert scored(reward, clips_of(20))[1] == [], "it was reported"
    assert scores.isnan().nonzero().flatten().tolist() == [0, 4, 8, 12, 16]
    torch.testing.assert_close(scores.nan_to_num(), expected(clips_of(20)).where(~scores.isnan(), 0), rtol=0, atol=1e-7)
    assert len(told) == 1 and "could not score 1 of 4 clips" in told[0]


def test_a_server_that_runs_another_reward_by_now_stops_the_run() -> None:
    changed = json.dumps({"scores": {"mean": [0.0] * 4}, "identity": "another"}).encode()
    with Fake(lambda n, scores: changed) as server, pytest.raises(UserError, match="has been changed during the run"):
        remote(server.url, on_failure="nan").score(clips_of(4), PROMPTS[:4])


# --- before any work ---


def refused(*urls: str, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        Remote.preflight(remote(*urls, **settings).config)
    return str(error.value)


def test_what_the_recipe_pins_is_compared_before_any_work() -> None:
    with Fake() as one, Fake(settings={"scale": 2.0, "seconds": 0.0}) as other:
        Remote.preflight(remote(one.url, version="3", settings={"scale": 1.0}).config)
        assert "reward is 'mean' there, the recipe pins 'hps_v3'" in refused(one.url, reward="hps_v3")
        both = refused(one.url, version="2", settings={"scale": 1.5})
        assert "version is '3' there, the recipe pins '2'; settings.scale is 1.0 there, the recipe pins 1.5" in both
        assert "it has no settings.scales, but settings.scale" in refused(one.url, settings={"scales": 1.0})
        unequal = refused(one.url, other.url)
        assert f"settings.scale is 2.0 there, {one.url} has 1.0" in unequal and "different rewards" in unequal
    assert "remote has no urls - give urls" in refused() and "remote has no reward" in refused("http://a", reward="")
    assert "the reward service cannot be used" in refused(one.url) and one.url in refused(one.url)
    with Fake(settings=None) as odd:
        odd.http.RequestHandlerClass.do_GET = lambda self: self.answer(200, b"[]")  # type: ignore[attr-defined]
        assert "it does not say which reward it runs" in refused(odd.url)


def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    with serving(Mean(), token="secret") as server:
        assert "REWARD_TOKEN is not set" in refused(server.address, token_env="REWARD_TOKEN")
        assert "HTTP 401 unauthorized" in refused(server.address)
        monkeypatch.setenv("REWARD_TOKEN", "guess")
        assert "HTTP 401 unauthorized" in refused(server.address, token_env="REWARD_TOKEN")
        monkeypatch.setenv("REWARD_TOKEN", "secret")
        scores, _ = scored(remote(server.address, token_env="REWARD_TOKEN"), clips_of())
    torch.testing.assert_close(scores, expected(clips_of()), rtol=0, atol=1e-6)


def test_a_recipe_says_what_it_needs() -> None:
    def problems(*overrides: str) -> str:
        with pytest.raises(RecipeError) as error:
            load_recipe("world/astrolabe", list(overrides))
        return str(error.value)

    assert "rewards.hps.urls is missing" in problems("rewards.hps={name: remote, reward: mean}")
    assert "rewards.hps.reward is missing" in problems("rewards.hps={name: remote, urls: ['http://localhost:1']}")
    assert "urls holds 'localhost:8000'" in problems("rewards.hps={name: remote, reward: m, urls: ['localhost:8000']}")
    assert "urls holds 'http://a:b'" in problems("rewards.hps={name: remote, reward: m, urls: ['http://a:b']}")
    assert "did you mean 'stop'?" in problems("rewards.hps={name: remote, on_failure: stopp}")
    remote_reward = "rewards.hps={name: remote, reward: m, timeout: 60, urls: ['http://localhost:%d']}"
    one, other = (load_recipe("world/astrolabe", [remote_reward % port]) for port in (1, 2))
    assert one.hash == other.hash, "where a server is decides no result"
    assert one.hash != load_recipe("world/astrolabe", [remote_reward % 1, "rewards.hps.dtype=float32"]).hash


def test_a_run_that_cannot_be_scored_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidalign.build.build_prompts", lambda recipe: pytest.fail("work was done"))
    for section in ("rewards.hps", "evaluation.metrics.remote"):
        name = "name: remote, " if section.startswith("rewards") else ""
        recipe = load_recipe("world/astrolabe", [f"{section}={{{name}reward: mean, urls: ['http://127.0.0.1:9']}}"])
        with pytest.raises(UserError, match="the reward service cannot be used"):
            Trainer(recipe, tmp_path / "run")


# --- with our server ---


def test_clips_are_split_by_number_and_by_size() -> None:
    reward = Mean()
    with serving(reward, batch=8, max_mb=0.01) as server:
        told = scored(remote(server.address), clips_of())[0]
        assert max(map(len, reward.calls)) == 8 and sum(map(len, reward.calls)) == 22
        large = torch.rand(5, 20, 3, 8, 8, generator=torch.Generator().manual_seed(1))  # 3840 bytes a clip
        reward.calls.clear()
        scores = remote(server.address).score(large, PROMPTS[:5])["remote"]
        assert sorted(len(call) for call in reward.calls) in ([1, 2, 2], [1, 4], [5], [2, 3])
        with pytest.raises(UserError, match="a clip has 0.01 MiB, the reward service takes 0.01"):
            remote(server.address, dtype="float32").score(large, PROMPTS[:5])
    torch.testing.assert_close(told, expected(clips_of()), rtol=0, atol=1e-6)
    torch.testing.assert_close(scores, expected(large), rtol=0, atol=1e-6)


def test_everything_that_is_known_of_a_clip_is_sent() -> None:
    reward, clips = Mean(), clips_of(3)
    clips[1, 0, 0, 0, 0] = torch.nan
    known = [{"dimension": f"d{n}", "path": Path("a")} for n in range(3)]
    with serving(reward) as server:
        scores = remote(server.address).score(clips, ["a", "é", "unknown"], known, fps=12.5)
        assert remote(server.address).score(clips[:0], [])["remote"].shape == (0,)
    assert reward.informed == [([{"dimension": "d0", "path": "a"}, {"dimension": "d2", "path": "a"}], 12.5)]
    assert reward.calls == [["a", "unknown"]], "a broken clip is not sent"
    assert scores["remote"].isnan().tolist() == [False, True, True]
    assert float(scores["first"][0]) == pytest.approx(float(clips[0, 0, 0, 0, 0]), abs=1e-6)


@pytest.mark.parametrize(("dtype", "error"), [("uint8", 0.5 / 255), ("float16", 3e-4), ("float32", 0)])
def test_types_of_pixels(dtype: str, error: float) -> None:
    clips = torch.rand(4, 2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    with serving(Mean()) as server:
        first = remote(server.address, dtype=dtype).score(clips.double(), PROMPTS[:4])["first"]
    torch.testing.assert_close(first, clips[:, 0, 0, 0, 0].double(), rtol=0, atol=error)
    assert error == 0 or not torch.equal(first, clips[:, 0, 0, 0, 0].double())


def test_a_served_clip_score_is_that_in_process(tmp_path: Path) -> None:
    """Bit for bit over 8 bits: it rounds frames to them itself."""
    settings = {"model": str(tiny_clip.save_clip(tmp_path)), "frames": 3}
    clips = torch.rand(5, 4, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    prompts, local = ["a red ball", "a blue box"] * 2 + ["a kite"], make("rewards", "clip_score", settings, "")
    with serving(make("rewards", "clip_score", settings, ""), warm_up=True) as server:
        pinned = {"reward": "clip_score", "settings": {**settings, "batch": 64, "revision": "main"}}
        found = remote(server.address, **pinned).score(clips, prompts)
    expected = local.score(clips, prompts)
    assert expected["clip_score"].std() > 0.1 and found.keys() == {"remote", "min", "last_quarter", "top_share"}
    assert torch.equal(found["remote"].float(), expected["clip_score"]) and torch.equal(
        found["min"].float(), expected["min"]
    )


def test_it_keeps_the_promises_of_a_reward_and_of_a_metric() -> None:
    prompts = [*PROMPTS[:3], "unknown"]
    with serving(Mean()) as server:
        settings = [f"rewards.remote.urls=['{server.address}']", "rewards.remote.reward=mean"]
        check_reward("remote", settings, items=(clips_of(4), PROMPTS[:4]), failing=(clips_of(4)[3], "unknown"))
        given = {"urls": [server.address], "reward": "mean"}
        check_metric("remote", given, items=(clips_of(4), PROMPTS[:4]))
        metric = make("metrics", "remote", given, "metrics.remote")
        values = metric.score(clips_of(4), prompts)
    assert values.keys() == {"mean", "first"} and values["mean"].isnan().tolist() == [False, False, False, True]


def test_a_thousand_clips_of_four_clients_on_two_servers() -> None:
    """Every score comes back to its clip; calls hold clips of several clients; a server that stops loses none."""
    first, second = Mean(Mean.Config(seconds=0.004)), Mean(Mean.Config(seconds=0.004))
    clips = [clips_of(250, seed) for seed in range(4)]
    scores: dict[int, Tensor] = {}
    with serving(first, batch=32) as one, serving(second, batch=32) as other:

        def client(n: int) -> None:
            reward = remote(one.address, other.address)
            parts = [(clips[n][k : k + 10], [f"{n} {k}"] * 10) for k in range(0, 250, 10)]
            scores[n] = torch.cat([reward.score(*part)["remote"] for part in parts])

        threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: sum(map(len, second.calls)) > 100)
        other.service.stopping = True  # as by SIGTERM
        for thread in threads:
            thread.join(60)
    for n in range(4):
        torch.testing.assert_close(scores[n], expected(clips[n]), rtol=0, atol=1e-6)
    calls = [*first.calls, *second.calls]
    assert sum(map(len, calls)) == 1000 and max(map(len, calls)) <= 32
    assert any(len({prompt.split()[0] for prompt in call}) > 1 for call in calls), "clients share a call"
