"""`vidalign serve`: the running server keeps its schema, its limits and its promises."""

from __future__ import annotations

import http.client
import io
import json
import re
import signal
import socket
import struct
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import fastapi
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from serving_helpers import Mean, serving, wait_for

from vidalign import serving as package
from vidalign.serving import wire
from vidalign.serving.app import create_app
from vidalign.serving.batching import Batcher
from vidalign.serving.failure import LoadError, ServeError
from vidalign.serving.loading import Served, load, parse_settings
from vidalign.serving.run import Options, Server, serve
from vidalign.serving.service import Limits, Service

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((Path(package.__file__).parent / "openapi.json").read_text(encoding="utf-8"))
CLIPS = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 4, 4), np.uint8)
MEANS = (CLIPS.astype(np.float64) / 255).mean((1, 2, 3, 4)).tolist()
PROMPTS = ["a", "b", "c"]


def ask(
    server: Server, path: str = "/v1/score", body: bytes = b"", method: str = "", **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and answer, as JSON where it is."""
    connection = http.client.HTTPConnection(*server.listening.getsockname()[:2], timeout=10)
    given = {"Content-Type": wire.MEDIA_TYPE} if body else {}
    connection.request(method or ("POST" if body else "GET"), path, body or None, given | headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    is_json = answer.headers.get_content_type() == "application/json"
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(text) if is_json else text.decode()


def packed(header: dict[str, Any], payload: bytes) -> bytes:
    """A body, written by hand."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def raw(clips: NDArray[Any] = CLIPS, prompts: list[str] | None = None, **header: Any) -> bytes:
    usual = {"prompts": prompts or PROMPTS[: len(clips)], "encoding": "raw"}
    return packed({**usual, "dtype": clips.dtype.name, "shape": list(clips.shape), **header}, clips.tobytes())


def npz(clips: NDArray[Any], name: str = "clips", save: Any = np.savez, **header: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **{name: clips})
    return packed({"prompts": PROMPTS[: len(clips)], "encoding": "npz", **header}, buffer.getvalue())


@pytest.fixture(scope="module")
def reward() -> Mean:
    return Mean()


@pytest.fixture(scope="module")
def server(reward: Mean) -> Iterator[Server]:
    with serving(reward, max_mb=1.0, batch=8) as running:
        yield running


# --- the contract ---


def checked(answer: Any, schema: dict[str, Any]) -> None:
    """An answer is what the schema says; the part of JSON schema that ours uses."""
    if "$ref" in schema:
        return checked(answer, SCHEMA["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            try:
                return checked(answer, one)
            except AssertionError:
                pass
        raise AssertionError(f"{answer!r} is none of {schema['anyOf']}")
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    if "type" in schema:
        assert isinstance(answer, kinds[schema["type"]]), (answer, schema)
    for key in schema.get("required", ()):
        assert key in answer
    for key, one in schema.get("properties", {}).items():
        checked(answer[key], one)
    if isinstance(schema.get("additionalProperties"), dict):
        for one in answer.values():
            checked(one, schema["additionalProperties"])
    if "items" in schema:
        for one in answer:
            checked(one, schema["items"])
    return None


def test_the_schema_that_is_checked_in_is_that_of_the_server(server: Server) -> None:
    """Other versions of FastAPI may word it otherwise."""
    status, _, served = ask(server, "/openapi.json")
    assert status == 200 and served == create_app(Service(lambda: Served(Mean(), "cpu"), Limits())).openapi()
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    if f"fastapi=={fastapi.__version__}\n" in constraints:
        assert served == SCHEMA
    assert served["paths"].keys() == SCHEMA["paths"].keys()
    for path, methods in SCHEMA["paths"].items():
        for method, about in methods.items():
            assert served["paths"][path][method]["responses"].keys() == about["responses"].keys()


REQUESTS = {
    "scores": (200, {"body": raw()}),
    "health": (200, {"path": "/health"}),
    "ready": (200, {"path": "/ready"}),
    "reward": (200, {"path": "/v1/reward"}),
    "failed": (500, {"body": raw(prompts=["a", "broken", "c"])}),
    "empty": (415, {"method": "POST"}),
    "a form": (415, {"body": b"x=1", "Content-Type": "application/x-www-form-urlencoded"}),
    "short": (422, {"body": b"x"}),
    "large": (413, {"body": raw(np.zeros((1, 1, 3, 1000, 1000), np.uint8))}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_keep_the_schema(server: Server, name: str) -> None:
    expected, request = REQUESTS[name]
    status, _, answer = ask(server, **request)
    assert status == expected, answer
    path = request.get("path", "/v1/score")
    (about,) = SCHEMA["paths"][path].values()
    checked(answer, about["responses"][str(status)]["content"]["application/json"]["schema"])
    assert status == 200 or answer["error"]["message"]


@pytest.mark.parametrize(("path", "method", "status"), [("/nothing", "GET", 404), ("/v1/score", "GET", 405)])
def test_errors_of_the_framework_have_the_same_form(server: Server, path: str, method: str, status: int) -> None:
    found, _, answer = ask(server, path, method=method)
    assert found == status and answer["error"].keys() == {"type", "message", "fix"}


def test_what_a_client_pins(server: Server) -> None:
    _, _, about = ask(server, "/v1/reward")
    identity = about.pop("identity")
    settings = {"scale": 1.0, "seconds": 0.0}
    assert about == {"name": "mean", "version": "3", "settings": settings, "batch": 8, "max_bytes": 2**20}
    assert ask(server, body=raw())[2]["identity"] == identity
    assert Served(Mean(Mean.Config(scale=2.0)), "cpu").identity != identity == Served(Mean(), "cpu").identity


# --- the wire ---


def video(frames: NDArray[Any], rate: int) -> bytes:
    """An mp4 file of frames ``[F, H, W, 3]``."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def videos(*clips: NDArray[Any], rate: int = 12, **header: Any) -> bytes:
    files = [video(clip, rate) for clip in clips]
    usual = {"prompts": PROMPTS[: len(clips)], "encoding": "mp4", "sizes": [len(file) for file in files]}
    return packed({**usual, **header}, b"".join(files))


@pytest.mark.parametrize(
    "body",
    [
        raw(),
        raw((CLIPS / 255).astype(np.float32)),
        raw((CLIPS / 255).astype(np.float16)),
        npz(CLIPS),
        npz(CLIPS, save=np.savez_compressed),
        npz(np.asfortranarray(CLIPS)),
        npz((CLIPS / 255).astype(">f4")),
        bytes(wire.encode(CLIPS, PROMPTS)),
    ],
    ids=["uint8", "float32", "float16", "npz", "compressed", "fortran", "big-endian", "encode"],
)
def test_encodings_of_clips(server: Server, reward: Mean, body: bytes) -> None:
    status, _, answer = ask(server, body=body)
    assert status == 200, answer
    assert answer["scores"]["mean"] == pytest.approx(MEANS, abs=2e-4 if b"float16" in body else 1e-6)
    assert answer["scores"]["first"] == pytest.approx((CLIPS[:, 0, 0, 0, 0] / 255).tolist(), abs=3e-4)
    assert reward.calls[-1] == PROMPTS and reward.informed[-1] == ([{}, {}, {}], None)


def test_clips_as_mp4(server: Server, reward: Mean) -> None:
    """The frame rate is that of the files unless the header says another."""
    grey = [np.full((5, 32, 48, 3), level, np.uint8) for level in (60, 200)]
    status, _, answer = ask(server, body=videos(*grey))
    assert status == 200, answer
    assert answer["scores"]["mean"] == pytest.approx([60 / 255, 200 / 255], abs=0.02)
    assert reward.informed[-1] == ([{}, {}], 12.0)
    ask(server, body=videos(*grey, fps=24.0, metadata=[{"dimension": "colour"}, {}]))
    assert reward.informed[-1] == ([{"dimension": "colour"}, {}], 24.0)


def test_a_reward_may_need_the_frame_rate() -> None:
    class Timed(Mean):
        def score(self, clips: torch.Tensor, prompts: list[str], fps: float) -> dict[str, torch.Tensor]:
            return super().score(clips, prompts, fps=fps)

    with serving(Timed(), warm_up=True) as server:
        status, _, answer = ask(server, body=raw())
        assert status == 422 and "mean needs the frame rate" in answer["error"]["message"]
        assert ask(server, body=raw(fps=8.0))[0] == 200


def test_failed_items_are_null(server: Server) -> None:
    _, _, answer = ask(server, body=raw(prompts=["a", "unknown", "c"]))
    assert [score is None for score in answer["scores"]["mean"]] == [False, True, False]


class Trap:
    """What unpickling would run."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a body was unpickled",))


def cut(body: bytes) -> bytes:
    return body[:-7]


def bomb() -> bytes:
    """An npz file of some kilobytes with 100 MB of zeros."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("clips.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (1, 100, 3, 600, 600)}
        )
        file.write(bytes(2**20))
    return packed({"prompts": ["a"], "encoding": "npz"}, buffer.getvalue())


PLAIN = {"prompts": PROMPTS, "encoding": "raw", "dtype": "uint8", "shape": list(CLIPS.shape)}
MISTAKES = {
    "no header": (b"", 415, ""),
    "a long header": (struct.pack("<Q", 2**60) + b"{}", 422, "shorter than its header says"),
    "no JSON": (struct.pack("<Q", 2) + b"{]", 422, "no JSON"),
    "a list": (struct.pack("<Q", 2) + b"[]", 422, "no JSON object"),
    "deep": (struct.pack("<Q", 200_000) + b"[" * 200_000, 422, "no JSON"),
    "a misspelt key": (raw(promts=[]), 422, "unknown key 'promts' in the header"),
    "no prompts": (packed({**PLAIN, "prompts": []}, CLIPS.tobytes()), 422, "prompts must be a list"),
    "numbers": (packed({**PLAIN, "prompts": [1, 2, 3]}, CLIPS.tobytes()), 422, "prompts must be a list"),
    "few prompts": (raw(prompts=["a"]), 422, "3 clips and 1 prompts"),
    "an encoding": (raw(encoding="pickle"), 422, "encoding is 'pickle'"),
    "a type": (raw(dtype="object"), 422, "dtype is 'object'"),
    "a shape": (raw(shape=[3, 2, 3, 4, -4]), 422, "shape is"),
    "no colours": (raw(CLIPS.reshape(3, 3, 2, 4, 4)), 422, "the clips have the shape"),
    "cut": (cut(raw()), 422, "the payload has"),
    "a rate": (raw(fps=0), 422, "fps is 0"),
    "a truth as rate": (raw(fps=True), 422, "fps is True"),
    "metadata": (raw(metadata=[{}]), 422, "one object a clip"),
    "0..255 as floats": (raw(CLIPS.astype(np.float32)), 422, "far outside 0..1"),
    "npz of objects": (npz(np.array([Trap()], object)), 422, "holds object"),
    "npz of another name": (npz(CLIPS, "videos"), 422, "no npz file"),
    "npz that is cut": (cut(npz(CLIPS)), 422, "no npz file"),
    "npz of wide numbers": (npz(CLIPS.astype(np.float64)), 422, "holds float64"),
    "a bomb": (bomb(), 413, "limit is 1"),
    "no mp4": (packed({"prompts": ["a"], "encoding": "mp4", "sizes": [4]}, b"abcd"), 422, "is no video"),
    "mp4 sizes": (packed({"prompts": ["a"], "encoding": "mp4", "sizes": [3]}, b"abcd"), 422, "sizes say 3"),
    "several lengths": (videos(*(np.zeros((f, 32, 32, 3), np.uint8) for f in (2, 3))), 422, "several lengths"),
    "a long mp4": (videos(np.zeros((30, 160, 160, 3), np.uint8)), 413, "limit is 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bodies_that_are_refused(server: Server, name: str) -> None:
    body, expected, says = MISTAKES[name]
    status, _, answer = ask(server, body=body, method="POST")
    assert status == expected and says in answer["error"]["message"], answer
    assert ask(server, body=raw())[0] == 200, "the server goes on"


def test_random_bodies_are_refused(server: Server) -> None:
    """Random bytes, and bodies with random changes: an answer of 200, 413 or 422, and never a fault of the server."""
    random = np.random.default_rng(0)
    for n in range(120):
        body = bytearray((raw(), npz(CLIPS), videos(np.zeros((2, 32, 32, 3), np.uint8)))[n % 3])
        for place in random.integers(0, len(body), random.integers(1, 12)):
            body[place] = random.integers(0, 256)
        status, _, answer = ask(server, body=bytes(body))
        assert status in (200, 413, 422), (status, answer)


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


# --- the reward ---


OWN = """
from dataclasses import dataclass
from typing import Literal

class Bright:
    name, version = "bright", "7"

    @dataclass
    class Config:
        factor: float = 1.0
        pool: Literal["mean", "max"] = "mean"
        frames: int | None = None
        revision: str = "main"

        def __post_init__(self):
            if self.factor <= 0:
                raise ValueError("factor must be positive")

    def __init__(self, config):
        self.config = config

    def score(self, clips, prompts):
        return {"bright": clips.mean((1, 2, 3, 4)) * self.config.factor}


class Plain:
    name = "plain"

    def score(self, clips, prompts):
        return {"plain": [0.5] * len(prompts), "whole": 1.0}
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own_reward.py").write_text(OWN)
    return str(tmp_path / "own_reward.py")


def test_a_reward_of_a_file(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = load(f"{own}:Bright", parse_settings(["factor=2", "pool=max", "revision=1234567"]), "cpu")
    assert (served.name, served.version) == ("bright", "7")
    assert served.settings == {"factor": 2.0, "pool": "max", "frames": None, "revision": "1234567"}
    clips = torch.full((2, 1, 3, 4, 4), 0.25)
    assert served(clips, ["a", "b"], [], None) == {"bright": [0.5, 0.5]}
    plain = load(f"{own}:Plain", {}, "cpu")
    assert plain.version == "1" and plain(clips, ["a", "b"], [], 8.0) == {"plain": [0.5, 0.5]}
    monkeypatch.syspath_prepend(tmp_path)
    assert load("own_reward:Plain", {}, "cpu").name == "plain"


MISTAKEN = {
    ":Bright factr=1": "no setting 'factr' - did you mean 'factor'?",
    ":Bright factor=high": "factor is 'high' - it is a float",
    ":Bright pool=min": "pool is 'min'",
    ":Bright frames=1.5": "frames is 1.5",
    ":Bright factor=-1": "factor must be positive",
    ":Bright factor": "'factor' is no setting - write key=value",
    ":Brigth": "has no 'Brigth' - did you mean 'Bright'?",
    ":Plain a=1": "has no settings",
    ":dataclass": "has no name and no score",
    "": "names no reward - give file.py:Class",
}


@pytest.mark.parametrize("given", MISTAKEN)
def test_rewards_and_settings_that_do_not_exist(own: str, given: str) -> None:
    target, *pairs = (own + given).split(" ")
    with pytest.raises(LoadError, match=re.escape(MISTAKEN[given])):
        load(target, parse_settings(pairs), "cpu")


def test_files_and_modules_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is no file"):
        load(f"{tmp_path}/none.py:A", {}, "cpu")
    with pytest.raises(LoadError, match="no_such_module cannot be imported"):
        load("no_such_module:A", {}, "cpu")


@pytest.mark.parametrize(
    ("returned", "says"),
    [([1.0], "returned a list"), ({}, "returned nothing under 'mean'"), ({"mean": [1.0]}, "for 3 clips")],
)
def test_a_reward_that_breaks_its_contract_is_a_failure(returned: Any, says: str) -> None:
    class Broken(Mean):
        def score(self, *args: Any, **known: Any) -> Any:
            return returned

    with serving(Broken()) as server:
        status, _, answer = ask(server, body=raw())
    assert status == 500 and says in answer["error"]["message"]


def test_decoding_is_that_of_encoding() -> None:
    body = wire.encode(CLIPS, PROMPTS, fps=8.0, metadata=[{"n": n} for n in range(3)])
    found = wire.decode(body, 2**20)
    assert np.array_equal(found.clips, CLIPS) and found.prompts == PROMPTS
    assert found.fps == 8.0 and found.metadata == [{"n": n} for n in range(3)]
    with pytest.raises(ServeError):
        wire.decode(body[:-1], 2**20)
