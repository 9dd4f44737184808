"""The HTTP side of a served reward: endpoints, the token, limits, and errors in one form.

``openapi.json`` beside this file is the schema; a test compares it with `create_app`.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from .failure import ServeError, invalid
from .loading import Scores
from .service import Service
from .wire import MEDIA_TYPE, ScoreBody, decode, too_large

BEARER = HTTPBearer(auto_error=False, description="The token of the server, if it has one.")
READ = 60.0
"""Seconds in which the body of a request must arrive."""
LOOK = 1.0
"""Seconds between two looks whether the client of a waiting request is still there."""
BODY = {
    "required": True,
    "description": "The length of a JSON header as 8 bytes (little-endian), the header (prompts, encoding, dtype, "
    "shape, sizes, fps, metadata), and the clips: raw uint8, float16 or float32 [B, F, 3, H, W], an npz file, or mp4 "
    "files.",
    "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
}
GONE = ("client_gone", "the client has closed the connection")
ABOUT = {
    401: "The token is missing or wrong.",
    408: "The body did not arrive in time.",
    413: "The request is larger than the server takes.",
    415: "The media type of the body is another, or the server cannot read its encoding.",
    422: "The body does not keep the wire format.",
    429: "Too many requests wait; Retry-After says when to try again.",
    500: "The reward failed.",
    503: "The server is starting or stopping.",
}


class ErrorDetail(BaseModel):
    """What is wrong."""

    type: str
    message: str
    fix: str


class Error(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail


class RewardInfo(BaseModel):
    """What the server runs and takes."""

    name: str
    version: str
    settings: dict[str, Any]
    identity: str
    """Equal for servers of equal name, version and settings."""
    batch: int
    """Most clips in one call of the reward."""
    max_bytes: int
    """Most bytes of a request."""


class ScoreAnswer(BaseModel):
    """Scores by name, one a clip in the order of the request; null for a clip that could not be scored."""

    scores: dict[str, list[float | None]]
    identity: str


class Status(BaseModel):
    """``ok``, ``ready``."""

    status: str


def create_app(service: Service, token: str = "") -> FastAPI:
    """The application around a service, which it starts and closes; token: what clients send as bearer, if any."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        sent = given.credentials if given else ""
        if token and not hmac.compare_digest(sent.encode(), token.encode()):
            raise ServeError(401, "unauthorized", ABOUT[401], "send the header Authorization: Bearer TOKEN")

    app = FastAPI(title="vidalign serve", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_probes(app, service, [Depends(authorised)])
    _add_scoring(app, service, [Depends(authorised)])
    _answer_errors(app)
    return app


def _add_probes(app: FastAPI, service: Service, private: list[Any]) -> None:
    """What a scheduler and Prometheus ask for; private: dependencies of what needs the token."""

    @app.get("/health")
    async def health() -> Status:
        """The process answers."""
        return Status(status="ok")

    @app.get("/ready", responses=_failures(503))
    async def ready() -> Status:
        """The reward is loaded, and new requests are taken."""
        _ = service.served
        if service.stopping:
            raise ServeError(503, "stopping", "the server is stopping", "ask another one", retry_after=1)
        return Status(status="ready")

    @app.get("/metrics", response_class=PlainTextResponse, dependencies=private, responses=_failures(401))
    async def metrics() -> Response:
        """Counters in the text format of Prometheus."""
        return Response(service.measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_scoring(app: FastAPI, service: Service, private: list[Any]) -> None:
    """What clients ask for."""

    @app.get("/v1/reward", dependencies=private, responses=_failures(401, 503))
    async def reward() -> RewardInfo:
        """Name, version and settings of the reward, which clients pin, and the limits of the server."""
        served, limits = service.served, service.limits
        return RewardInfo(
            name=served.name,
            version=served.version,
            settings=served.settings,
            identity=served.identity,
            batch=limits.batch,
            max_bytes=limits.max_bytes,
        )

    @app.post("/v1/score", dependencies=private, responses=_failures(*ABOUT), openapi_extra={"requestBody": BODY})
    async def score(request: Request) -> ScoreAnswer:
        """Score clips for their prompts."""
        try:
            answer = await _score(service, request)
        except ServeError as error:
            service.measures.requests.labels(str(error.status)).inc()
            raise
        service.measures.requests.labels("200").inc()
        return answer


async def _score(service: Service, request: Request) -> ScoreAnswer:
    """One request from its first byte to its scores."""
    body = _Incoming(request, service.limits.max_bytes)
    try:
        with service.accepted() as served:
            media = request.headers.get("content-type", "").partition(";")[0].strip()
            if media != MEDIA_TYPE:
                raise ServeError(415, "unsupported_media_type", f"the body is {media!r}", f"send {MEDIA_TYPE}")
            parsed = await asyncio.to_thread(decode, await body.in_time(), body.limit)
            if served.needs_fps and parsed.fps is None:
                raise invalid(f"{served.name} needs the frame rate of the clips", "send fps in the header")
            return ScoreAnswer(scores=await _answered(service, request, parsed), identity=served.identity)
    except ClientDisconnect as error:
        raise ServeError(499, *GONE) from error
    except ServeError:
        await body.drain()
        raise


class _Incoming:
    """The body of a request, of which at most `limit` bytes are kept."""

    def __init__(self, request: Request, limit: int) -> None:
        self.limit, self._said, self._parts = limit, request.headers.get("content-length", ""), request.stream()

    async def read(self) -> bytearray:
        """The whole body; raises `ServeError` 413 where it is larger."""
        if self._said.isdecimal() and int(self._said) > self.limit:
            raise too_large(int(self._said), self.limit)
        body = bytearray()
        async for part in self._parts:
            body += part
            if len(body) > self.limit:
                raise too_large(len(body), self.limit)
        return body

    async def in_time(self) -> bytearray:
        """As `read`; raises `ServeError` 408 where it takes too long: the request holds a place meanwhile."""
        try:
            return await asyncio.wait_for(self.read(), READ)
        except asyncio.TimeoutError as error:  # noqa: UP041 - another class on Python 3.10
            raise ServeError(408, "too_slow", ABOUT[408], "send fewer clips in a request") from error

    async def drain(self) -> None:
        """Throw away what is still to come, up to the limit: a client that still sends would not read the answer."""
        size = 0
        with suppress(ClientDisconnect):
            async for part in self._parts:
                size += len(part)
                if size > self.limit:
                    return


async def _answered(service: Service, request: Request, body: ScoreBody) -> Scores:
    """The scores; a request whose client has gone gives up its place in line."""
    answer = asyncio.wrap_future(service.submit(body))
    while not (await asyncio.wait({answer}, timeout=LOOK))[0]:
        if await request.is_disconnected():
            answer.cancel()
            raise ServeError(499, *GONE)
    return answer.result()


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the schema says of answers that are no success."""
    return {status: {"model": Error, "description": ABOUT[status]} for status in statuses}


def _answer_errors(app: FastAPI) -> None:
    """Every error in the form of `Error`, those of the framework too."""

    def answer(error: ServeError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(ServeError)
    async def known(request: Request, error: ServeError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        kind = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return answer(ServeError(error.status_code, kind, str(error.detail), "see /openapi.json"))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(invalid(str(error)))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return answer(ServeError(500, "internal_error", type(error).__name__, "see the log of the server"))
