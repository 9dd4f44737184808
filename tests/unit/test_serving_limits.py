"""`vidalign serve`: limits, tokens, start and stop."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from serving_helpers import MEANS, PROMPTS, Mean, ask, raw, serving, wait_for

from vidalign.serving import wire
from vidalign.serving.batching import Batcher
from vidalign.serving.failure import LoadError
from vidalign.serving.loading import Served
from vidalign.serving.run import Options, Server, serve
from vidalign.serving.service import Limits


@pytest.fixture(scope="module")
def reward() -> Mean:
    return Mean()


@pytest.fixture(scope="module")
def server(reward: Mean) -> Iterator[Server]:
    with serving(reward, max_mb=1.0, batch=8) as running:
        yield running


# --- limits ---


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(server: Server) -> None:
    connection = http.client.HTTPConnection(*server.listening.getsockname()[:2], timeout=10)
    parts = iter([bytes(2**18)] * 6)
    connection.request("POST", "/v1/score", parts, {"Content-Type": wire.MEDIA_TYPE}, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413 and json.loads(answer.read())["error"]["type"] == "too_large"
    connection.close()


def test_a_body_that_does_not_come_gives_up_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidalign.serving.app.READ", 0.1)
    with serving(Mean(), queue=1) as server, socket.create_connection(server.listening.getsockname()[:2]) as slow:
        head = f"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Type: {wire.MEDIA_TYPE}\r\nContent-Length: 99\r\n\r\n"
        slow.sendall(head.encode() + b"x")
        assert slow.recv(2**16).startswith(b"HTTP/1.1 408")
        wait_for(lambda: ask(server, body=raw())[0] == 200)


def test_a_full_queue_sends_clients_away() -> None:
    reward = Mean(Mean.Config(seconds=0.3))
    with serving(reward, queue=2, batch=3) as server, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: ask(server, body=raw()), range(6)))
        statuses = sorted(status for status, _, _ in answers)
        assert statuses[:2] == [200, 200] and statuses[2:] == [429] * 4
        refused = next(one for one in answers if one[0] == 429)
        assert refused[1]["retry-after"] == "1" and refused[2]["error"]["type"] == "queue_full"
        assert ask(server, body=raw())[0] == 200, "there is room again"


def test_waiting_requests_of_one_kind_share_a_call() -> None:
    """Oldest first; a request that is larger than a call is scored in several; every score goes to its request."""
    reward, random = Mean(), np.random.default_rng(1)
    sizes = {"a": 3, "short": 2, "b": 3, "c": 3, "8 fps": 2, "large": 11, "d": 1, "floats": 1, "said": 1}
    bodies = {}
    for name, count in sizes.items():
        clips = random.integers(0, 256, (count, 1 if name == "short" else 2, 3, 4, 4), np.uint8)
        bodies[name] = wire.ScoreBody(clips, [name] * count, 8.0 if name == "8 fps" else None)
    bodies["floats"].clips = (bodies["floats"].clips / 255).astype(np.float32)
    bodies["said"].metadata = [{"dimension": "colour"}]
    observed: list[int] = []
    batcher = Batcher(8, lambda count, seconds, scores: observed.append(count))
    answers = {name: batcher.submit(body) for name, body in bodies.items()}
    batcher.close()
    batcher.run(Served(reward, "cpu"))
    calls = [["a"] * 3 + ["b"] * 3 + ["d"], ["short"] * 2, ["c"] * 3, ["8 fps"] * 2, ["large"] * 8, ["large"] * 3]
    assert reward.calls == [*calls, ["floats"], ["said"]] and observed == [len(call) for call in reward.calls]
    assert [metadata[0] for metadata, _ in reward.informed] == [{}] * 7 + [{"dimension": "colour"}]
    assert [fps for _, fps in reward.informed] == [None, None, None, 8.0, None, None, None, None]
    for name, answer in answers.items():
        scale = 255 if bodies[name].clips.dtype == np.uint8 else 1
        expected = (bodies[name].clips.astype(np.float64) / scale).mean((1, 2, 3, 4))
        assert answer.result(0)["mean"] == pytest.approx(expected.tolist(), abs=1e-6), name


def test_requests_that_come_while_the_reward_works_share_a_call() -> None:
    reward = Mean(Mean.Config(seconds=0.1))
    with serving(reward, batch=8) as server, ThreadPoolExecutor(8) as pool:
        pool.submit(ask, server, body=raw(prompts=["first"] * 3))
        wait_for(lambda: reward.calls)
        answers = list(pool.map(lambda n: ask(server, body=raw(prompts=[str(n)] * 3)), range(2)))
    for _, _, answer in answers:
        assert answer["scores"]["mean"] == pytest.approx(MEANS, abs=1e-6)
    assert [len(call) for call in reward.calls] == [3, 6]


def test_a_request_that_fails_does_not_fail_those_that_share_its_call() -> None:
    reward = Mean(Mean.Config(seconds=0.1))
    with serving(reward, batch=8) as server, ThreadPoolExecutor(4) as pool:
        pool.submit(ask, server, body=raw())
        wait_for(lambda: reward.calls)
        bodies = [raw(), raw(prompts=["broken"] * 3)]
        answers = list(pool.map(lambda body: ask(server, body=body), bodies))
    assert [status for status, _, _ in answers] == [200, 500]
    assert answers[1][2]["error"]["message"] == "RuntimeError: it cannot be scored"


def test_a_client_that_goes_gives_up_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidalign.serving.app.LOOK", 0.02)
    reward = Mean(Mean.Config(seconds=0.4))
    with serving(reward, batch=3) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, server, body=raw())
        wait_for(lambda: reward.calls)
        gone = http.client.HTTPConnection(*server.listening.getsockname()[:2])
        gone.request("POST", "/v1/score", raw(prompts=["gone"] * 3), {"Content-Type": wire.MEDIA_TYPE})
        wait_for(lambda: server.service.outstanding == 2)
        gone.close()
        assert first.result()[0] == 200
        wait_for(lambda: server.service.outstanding == 0)
    assert reward.calls == [PROMPTS]


def test_metrics_of_a_server() -> None:
    with serving(Mean()) as server:
        ask(server, body=raw(prompts=["a", "unknown", "c"]))
        ask(server, body=raw(prompts=["broken"] * 3))
        ask(server, body=b"x")
        status, headers, text = ask(server, "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    requests = {key: float(values[f'vidalign_requests_total{{status="{key}"}}']) for key in ("200", "500", "422")}
    assert requests == {"200": 1, "500": 1, "422": 1}
    clips = {key: float(values[f'vidalign_clips_total{{outcome="{key}"}}']) for key in ("scored", "nan", "failed")}
    assert clips == {"scored": 2, "nan": 1, "failed": 3}
    assert float(values["vidalign_call_clips_sum"]) == 6 and float(values["vidalign_call_seconds_count"]) == 2
    assert float(values["vidalign_outstanding"]) == 0


# --- who may ask ---


def test_a_token_is_asked_for() -> None:
    with serving(Mean(), token="secret") as server:
        assert ask(server, "/health")[0] == 200 and ask(server, "/ready")[0] == 200
        for path in ("/v1/reward", "/metrics"):
            for wrong in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "secret"}, {"Authorization": "é"}):
                status, headers, answer = ask(server, path, **wrong)
                assert status == 401 and headers["www-authenticate"] == "Bearer" and answer["error"]["fix"]
            assert ask(server, path, Authorization="Bearer secret")[0] == 200
        assert ask(server, body=raw())[0] == 401
        assert ask(server, body=raw(), Authorization="Bearer secret")[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.org"])
def test_other_hosts_than_loopback_need_a_token(host: str) -> None:
    with pytest.raises(LoadError, match="there is no token - set one with --token or VIDALIGN_SERVE_TOKEN"):
        serve(lambda: Served(Mean(), "cpu"), Options(host=host, port=0))


# --- start and stop ---


def test_it_answers_while_the_reward_is_loaded() -> None:
    loaded = threading.Event()

    def slow() -> Served:
        loaded.wait(10)
        return Served(Mean(), "cpu")

    server = Server(slow, Options(port=0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [server.listening]})
    thread.start()
    wait_for(lambda: server.started)
    assert ask(server, "/health")[0] == 200
    for request in ({"path": "/ready"}, {"path": "/v1/reward"}, {"body": raw()}):
        status, headers, answer = ask(server, **request)
        assert (status, answer["error"]["type"], headers["retry-after"]) == (503, "starting", "1")
    loaded.set()
    wait_for(lambda: ask(server, "/ready")[0] == 200)
    assert ask(server, body=raw())[0] == 200
    server.handle_exit(signal.SIGTERM, None)
    thread.join(10)
    server.listening.close()


def test_it_stops_when_what_it_accepted_is_answered() -> None:
    reward = Mean(Mean.Config(seconds=0.3))
    with serving(reward, batch=3) as server, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(ask, server, body=raw()) for _ in range(3)]
        wait_for(lambda: server.service.outstanding == 3)
        server.handle_exit(signal.SIGTERM, None)
        time.sleep(0.25)  # two ticks of the event loop
        for request in ({"path": "/ready"}, {"body": raw()}):
            status, _, answer = ask(server, **request)
            assert (status, answer["error"]["type"]) == (503, "stopping")
        assert [answer.result()[0] for answer in answers] == [200] * 3
    assert len(reward.calls) == 3


def test_a_second_signal_ends_at_once() -> None:
    with serving(Mean(Mean.Config(seconds=2.0))) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, server, body=raw())
        wait_for(lambda: server.service.outstanding)
        began = time.monotonic()
        server.handle_exit(signal.SIGINT, None)
        server.handle_exit(signal.SIGINT, None)
        with suppress(http.client.HTTPException, OSError):
            assert answer.result()[0] == 500, "the client is told, or finds the connection closed"
        assert time.monotonic() - began < 1.5


def test_a_reward_that_cannot_work_fails_at_the_start() -> None:
    class Fails(Mean):
        def score(self, *args: Any, **known: Any) -> dict[str, torch.Tensor]:
            raise OSError("there are no weights")

    with pytest.raises(OSError, match="there are no weights"):
        serve(lambda: Served(Fails(), "cpu"), Options(port=0))
    with serving(Mean(), warm_up=True) as server:
        assert ask(server, "/ready")[0] == 200
    with serving(Fails()) as server:
        assert ask(server, "/ready")[0] == 200, "without the warm-up it is not known"


def test_options_that_cannot_work(server: Server) -> None:
    def refused(**options: Any) -> str:
        with pytest.raises(LoadError) as error:
            serve(lambda: Served(Mean(), "cpu"), Options(**options))
        return str(error.value)

    assert "--batch is 0" in refused(limits=Limits(batch=0))
    assert "--max-mb is nan" in refused(limits=Limits(max_mb=float("nan")))
    assert "--max-mb is inf" in refused(limits=Limits(max_mb=float("inf")))
    assert "--queue is -1" in refused(limits=Limits(queue=-1))
    assert "cannot be used" in refused(port=server.listening.getsockname()[1])
    assert "cannot be used" in refused(port=99999)
