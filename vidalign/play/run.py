"""Starting and stopping the server of the page."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any
from urllib.parse import quote

import torch
import uvicorn

from vidalign.errors import UsageError
from vidalign.play.app import create_app
from vidalign.play.device import Device
from vidalign.play.door import Door
from vidalign.play.panes import Stage
from vidalign.play.wire import LARGEST
from vidalign.serving.failure import LoadError
from vidalign.serving.run import address, bound


@dataclass(frozen=True)
class Options:
    """Where a page is served, and to how many."""

    host: str = "127.0.0.1"
    port: int = 8090
    """0 takes a free one."""
    token: str = ""
    """Opens the page any number of times; empty = a new one, which opens it once."""
    places: int = 4
    """Most pages at once."""


THREADS = "OMP_NUM_THREADS"
"""Threads of torch on the CPU, where the environment says nothing 1: small networks gain nothing by more, and lose much
where other programs take the cores."""


def serve(load: Callable[[], Stage], options: Options) -> None:
    """Take the address, load the students, print the link, and serve until a signal. Raises `UsageError` for an address
    that cannot be used, and what `load` raises."""
    try:
        listening = bound(options.host, options.port)
    except LoadError as error:
        raise UsageError(str(error)) from error
    with listening:
        threads = int(os.environ.get(THREADS, "1"))
        torch.set_num_threads(threads)
        server = Server(load(), options, listening, Device(options.places, threads))
        print(f"playing at {server.link}", flush=True)
        server.run(sockets=[listening])


class Server(uvicorn.Server):
    """A server behind a socket that listens, not yet running. Ctrl-C and SIGTERM end it at once."""

    def __init__(self, stage: Stage, options: Options, listening: socket.socket, device: Device) -> None:
        port = listening.getsockname()[1]
        door = Door(options.token, port)
        self.link = f"{address(options.host, port)}/?token={quote(door.token, safe='')}"
        limits: dict[str, Any] = {"ws_max_size": 4 * LARGEST, "ws_per_message_deflate": False}
        app = create_app(stage, device, door)
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", **limits))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig in (signal.SIGTERM, signal.SIGINT):
            self.should_exit = self.force_exit = True
