"""Starting and stopping a server."""

from __future__ import annotations

import ipaddress
import math
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType

import uvicorn

from .app import create_app
from .failure import LoadError
from .loading import Served
from .service import Limits, Service


@dataclass(frozen=True)
class Options:
    """How a server runs."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    token: str = ""
    """What clients send; needed for a host that is not loopback."""
    warm_up: bool = True
    """Score a grey clip before the first request."""
    limits: Limits = field(default_factory=Limits)


def serve(load: Callable[[], Served], options: Options) -> None:
    """Serve until SIGTERM or SIGINT; then what was accepted is answered, and new requests are refused with 503.

    A second signal ends at once. Prints the address when the reward is loaded. Raises `LoadError` for options with
    which no server can start, and what `load` raises.
    """
    server = Server(load, options)
    with server.listening:
        server.run(sockets=[server.listening])
    if server.service.failed is not None:
        raise server.service.failed


def check(options: Options) -> None:
    """Raises `LoadError` for a limit that lets nothing through and for a host that needs a token."""
    limits = options.limits
    for name, value in (("batch", limits.batch), ("max-mb", limits.max_mb), ("queue", limits.queue)):
        if not (value > 0 and math.isfinite(value)):
            raise LoadError(f"--{name} is {value}", "give a positive number")
    if not options.token and not _is_loopback(options.host):
        why = f"--host {options.host} can be reached from other machines, and there is no token"
        raise LoadError(why, "set one with --token or VIDALIGN_SERVE_TOKEN")


class Server(uvicorn.Server):
    """A server at an address of its own, not yet running.

    After the first signal it goes on until everything that it accepted is answered.
    """

    def __init__(self, load: Callable[[], Served], options: Options) -> None:
        check(options)
        self.listening = bound(options.host, options.port)
        self.address = address(options.host, self.listening.getsockname()[1])
        self.service = Service(load, options.limits, warm_up=options.warm_up, on_ready=self._tell)
        app = create_app(self.service, options.token)
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on"))

    def _tell(self, served: Served) -> None:
        print(f"serving {served.name}, version {served.version}, at {self.address}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.stopping or sig not in (signal.SIGTERM, signal.SIGINT):
            self.should_exit = self.force_exit = True
        self.service.stopping = True

    async def on_tick(self, counter: int) -> bool:
        idle: bool = self.service.stopping and not self.service.outstanding
        return await super().on_tick(counter) or idle or self.service.failed is not None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything is loaded; raises `LoadError`. port: 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise LoadError(f"{host}:{port} cannot be used: {why}", "choose another --port") from error


def address(host: str, port: int) -> str:
    """The address that a client asks."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
