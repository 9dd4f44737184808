"""Servers of tests: ours in a thread, and one that misbehaves as it is told."""

from __future__ import annotations

import http.client
import io
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vidalign import serving as package
from vidalign.serving import wire
from vidalign.serving.loading import Served
from vidalign.serving.run import Options, Server
from vidalign.serving.service import Limits


class Mean:
    """The mean of a clip; its first pixel is logged."""

    name, version = "mean", "3"

    @dataclass
    class Config:
        scale: float = 1.0
        """Factor of the score."""
        seconds: float = 0.0
        """How long a call takes."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()
        self.calls: list[list[str]] = []
        self.informed: list[tuple[Any, float | None]] = []

    def score(
        self,
        clips: torch.Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] = (),
        fps: float | None = None,
    ) -> dict[str, torch.Tensor]:
        self.calls.append(list(prompts))
        self.informed.append((list(metadata), fps))
        time.sleep(self.config.seconds)
        if "broken" in prompts:
            raise RuntimeError("it cannot be scored")
        scores, first = clips.mean((1, 2, 3, 4)) * self.config.scale, clips[:, 0, 0, 0, 0].clone()
        scores[unknown := [prompt == "unknown" for prompt in prompts]] = torch.nan
        first[unknown] = torch.nan
        return {"mean": scores, "first": first}


@contextmanager
def serving(reward: Any, *, token: str = "", warm_up: bool = False, **limits: Any) -> Iterator[Server]:
    """Our server with a reward, ready; stopped as by SIGTERM."""
    options = Options(port=0, token=token, warm_up=warm_up, limits=Limits(**limits))
    server = Server(lambda: Served(reward, "cpu"), options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [server.listening]})
    thread.start()
    try:
        wait_for(lambda: server.service._served is not None and server.started)
        yield server
    finally:
        server.service.stopping = True
        thread.join(20)
        assert not thread.is_alive()
        server.listening.close()


def wait_for(condition: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


ABOUT = {"name": "mean", "version": "3", "settings": {"scale": 1.0, "seconds": 0.0}, "batch": 4, "max_bytes": 2**20}
IDENTITY = Served(Mean(), "cpu").identity


def means(body: bytes) -> list[float]:
    """The reward `mean`, read from the wire without our code."""
    size = int.from_bytes(body[:8], "little")
    header = json.loads(body[8 : 8 + size])
    clips = np.frombuffer(body[8 + size :], header["dtype"]).reshape(header["shape"])
    return [float(clip.astype(np.float64).mean() / 255) for clip in clips]


class Fake:
    """A server of the reward `mean` that answers request n as ``misbehave(n, scores)`` says: bytes to send, a number
    for an HTTP status, or None for a correct answer."""

    def __init__(self, misbehave: Callable[[int, list[float]], Any] = lambda n, scores: None, **about: Any) -> None:
        self.asked, self.lock = 0, threading.Lock()
        fake, told = self, {**ABOUT, "identity": IDENTITY, **about}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, json.dumps(told).encode())

            def do_POST(self) -> None:
                scores = means(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    number, fake.asked = fake.asked, fake.asked + 1
                sent = misbehave(number, scores)
                if sent == "cut":
                    self.connection.close()
                elif isinstance(sent, int):
                    self.answer(sent, b'{"error": {"type": "reward_failed", "message": "out of order", "fix": ""}}')
                else:
                    correct = json.dumps({"scores": {"mean": scores}, "identity": IDENTITY}).encode()
                    self.answer(200, correct if sent is None else sent)

            def answer(self, status: int, text: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                if status in (429, 503):
                    self.send_header("Retry-After", "1")
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.http.handle_error = lambda *args: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> Fake:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.http.shutdown()
        self.http.server_close()


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
