"""The web side: the page with its files behind the token, and one websocket for each page that is open."""

from __future__ import annotations

import asyncio
import traceback
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from vidalign.errors import UserError
from vidalign.play.device import Device, Full
from vidalign.play.door import Door
from vidalign.play.panes import Stage
from vidalign.play.session import Chunk, Session
from vidalign.play.wire import LARGEST, packed, pictures, read, started

PAGE = {"": ("play", "page/index.html", "text/html"), "play.css": ("play", "page/play.css", "text/css")} | {
    name: ("play", f"page/{name}", "text/javascript") for name in ("play.js", "screen.js", "scores.js")
}
PAGE |= {"report.css": ("report", "templates/report.css", "text/css")}
"""Room of the package, file in it and media type of what the page is made of, by path."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
CLOSED = "Open the link that `vidalign play` printed. A link without --token opens one browser, once.\n"
FULL, FORBIDDEN = 1013, 1008
"""Codes with which a websocket is closed: all places are taken, not let in."""


def create_app(stage: Stage, device: Device, door: Door) -> FastAPI:
    """The application for loaded students."""
    app = FastAPI(title="vidalign play", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    async def page(request: Request, token: str = "") -> Response:
        if token and (door.knows(request.cookies) or door.opens(token)):
            answer = RedirectResponse("/", 303, headers=HEADERS)
            answer.set_cookie(door.cookie, door.key, httponly=True, samesite="lax")
            return answer
        return await part(request, "")

    @app.get("/{name}")
    async def part(request: Request, name: str) -> Response:
        if not door.knows(request.cookies):
            return PlainTextResponse(CLOSED, 401, headers=HEADERS)
        if name not in PAGE:
            return PlainTextResponse("There is no such page.\n", 404, headers=HEADERS)
        room, file, media = PAGE[name]
        text = (files("vidalign") / room / file).read_text(encoding="utf-8")
        return Response(text, media_type=f"{media}; charset=utf-8", headers=HEADERS)

    @app.websocket("/stream")
    async def stream(socket: WebSocket) -> None:
        if not (door.knows(socket.cookies) and door.same_page(socket.headers)):
            await socket.close(FORBIDDEN)
            return
        await socket.accept()
        try:
            with device.place():
                await _Talk(socket, stage, device).run()
        except Full:
            message = f"{device.places} pages are open, which is as many as there are places. This one tries again."
            await socket.send_json({"type": "full", "message": message})
            await socket.close(FULL)

    return app


class _Talk:
    """One page: its messages one after the other, each answered before the next one is read."""

    def __init__(self, socket: WebSocket, stage: Stage, device: Device) -> None:
        self.socket, self.stage, self.device, self.session = socket, stage, device, Session(stage)

    async def run(self) -> None:
        """Until the page is closed, whose cache is freed then."""
        try:
            await self.socket.send_json(self._hello())
            while True:
                text = await self.socket.receive_text()
                try:
                    await self._answer(text)
                except UserError as error:
                    await self._say("error", message=str(error))
                except WebSocketDisconnect:
                    raise
                except Exception as error:
                    traceback.print_exc()
                    await self._say("error", message=f"{type(error).__name__}: {error}; see the log of vidalign play")
        except (WebSocketDisconnect, RuntimeError, asyncio.CancelledError):
            return  # the page was closed, perhaps while something was sent to it, or the server ends
        finally:
            self.device.submit(self.session.close)

    async def _answer(self, text: str) -> None:
        if len(text) > LARGEST:
            await self._say("error", message=f"the message is too long - message - {LARGEST} characters are allowed")
            return
        kind, fields = read(text)
        await getattr(self, f"_{kind}")(fields)
        for note in self.session.take_notes():
            await self._say("note", message=note)

    async def _start(self, fields: dict[str, Any]) -> None:
        asked = started(fields)
        await self._made(lambda: self.session.start(asked))
        await self._say("started", frames=self.session.frames, chunks=self.session.chunks, **self._state())

    async def _next(self, fields: dict[str, Any]) -> None:
        chunk = await self._made(self.session.next)
        if chunk is None:
            await self._say("ended")
            return
        await self.socket.send_bytes(await asyncio.to_thread(self._pack, chunk))
        if self.stage.metrics:
            await self._say("scores", index=chunk.index, values=await self._made(self.session.scores))

    async def _switch(self, fields: dict[str, Any]) -> None:
        self.session.switch(fields["prompt"])
        await self._say("switching", prompt=fields["prompt"].strip())

    async def _save(self, fields: dict[str, Any]) -> None:
        pane = fields["pane"]
        if not 0 <= pane < len(self.stage.panes):
            await self._say("error", message=f"pane is {pane} - pane - there are {len(self.stage.panes)}, from 0")
            return
        if not self.session.open or not self.session.made:
            await self._say("error", message="there is nothing to save - pane - start a clip")
            return
        name, film = await asyncio.to_thread(self.session.film, pane)
        await self.socket.send_bytes(packed({"type": "file", "name": name}, [film]))

    async def _made(self, job: Any) -> Any:
        """What the device makes of a job; the page waits in line meanwhile."""
        return await asyncio.wrap_future(self.device.submit(job))

    async def _say(self, kind: str, **fields: Any) -> None:
        await self.socket.send_json({"type": kind, **fields})

    def _hello(self) -> dict[str, Any]:
        height, width = self.stage.panes[-1].streamer.size
        return {
            "type": "hello",
            "panes": [pane.label for pane in self.stage.panes],
            "height": height,
            "width": width,
            "fps": self.stage.fps,
            "seconds": self.stage.seconds,
            "prompts": self.stage.prompts,
            "scale": self.stage.panes[-1].scale,
            "metrics": [metric.name for metric in self.stage.metrics],
        }

    def _state(self) -> dict[str, Any]:
        """What the page shows beside the frames."""
        session = self.session
        commands = [session.command(pane) for pane in range(len(self.stage.panes))]
        changes = [[frame / self.stage.fps, prompt] for frame, prompt in session.prompts]
        return {"prompts": changes, "commands": commands}

    def _pack(self, chunk: Chunk) -> bytes:
        """A chunk as one message: the frames of the first pane, then those of the next."""
        packs = [pictures(frames) for frames in chunk.frames]
        header = {
            "type": "chunk",
            "index": chunk.index,
            "frames": len(chunk.frames[0]),
            "milliseconds": chunk.milliseconds,
            "media": packs[0][0],
            **self._state(),
        }
        return packed(header, [file for _, made in packs for file in made])
