"""The web side of `vidalign play`: who is let in, what is answered, and what a page that is left leaves behind."""

from __future__ import annotations

import gc
import json
import struct
import threading
import time
import weakref
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from play_helpers import PROMPTS, stage, student
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect
from test_play_session import Seen

from vidalign.play import app as app_module
from vidalign.play.app import create_app
from vidalign.play.device import Device
from vidalign.play.door import Door
from vidalign.play.panes import Stage
from vidalign.play.session import Session
from vidalign.play.wire import pictures
from vidalign.tracking.clips import to_frames

ORIGIN = {"origin": "http://testserver"}
START = {"type": "start", "prompt": PROMPTS[0], "seed": 0, "seconds": 1.5, "scale": 1}


class Page:
    """A browser that came with the token."""

    def __init__(self, stage: Stage, places: int = 2, token: str = "") -> None:
        self.door, self.device = Door(token, 8090), Device(places, 1)
        self.app = create_app(stage, self.device, self.door)
        self.client = self.browser()

    def browser(self) -> TestClient:
        """A browser that has seen nothing yet."""
        return TestClient(self.app, follow_redirects=False)

    def enter(self) -> TestClient:
        assert self.client.get("/", params={"token": self.door.token}).status_code == 303
        return self.client

    def socket(self) -> WebSocketTestSession:
        return self.client.websocket_connect("/stream", headers=ORIGIN)


@pytest.fixture
def page() -> Page:
    made = Page(stage(student(), student(seed=1)))
    made.enter()
    return made


def heard(socket: WebSocketTestSession) -> tuple[dict[str, Any], list[bytes]]:
    """The next message: its header, and the parts of a binary one."""
    message = socket.receive()
    if message.get("text") is not None:
        return json.loads(message["text"]), []
    if message["type"] == "websocket.close":
        raise WebSocketDisconnect(message["code"])
    data = message["bytes"]
    end = 4 + struct.unpack(">I", data[:4])[0]
    header, parts = json.loads(data[4:end]), []
    for size in header["sizes"]:
        parts.append(data[end : end + size])
        end += size
    assert end == len(data)
    return header, parts


def said(socket: WebSocketTestSession, type: str, **fields: Any) -> tuple[dict[str, Any], list[bytes]]:
    """The answer to a message."""
    socket.send_json({"type": type, **fields})
    return heard(socket)


# --- who is let in ---


def test_a_one_time_link_opens_one_browser_once(page: Page) -> None:
    assert page.client.get("/").status_code == 200, "the browser that came with it may come back"
    assert page.client.get("/", params={"token": page.door.token}).status_code == 303, "and reload the link"
    stranger = page.browser()
    refused = stranger.get("/", params={"token": page.door.token})
    assert refused.status_code == 401 and "vidalign play" in refused.text and "set-cookie" not in refused.headers
    assert stranger.get("/play.js").status_code == 401


def test_a_token_of_ones_own_opens_several_browsers() -> None:
    page = Page(stage(student()), token="ours")
    for browser in (page.browser(), page.browser()):
        assert browser.get("/", params={"token": "other"}).status_code == 401
        entered = browser.get("/", params={"token": "ours"})
        assert entered.status_code == 303 and entered.headers["location"] == "/"
        assert "httponly" in entered.headers["set-cookie"].lower() and "ours" not in entered.headers["set-cookie"]
        assert browser.get("/").status_code == 200


def test_a_wrong_token_does_not_use_up_the_link() -> None:
    page = Page(stage(student()))
    assert page.client.get("/", params={"token": "é"}).status_code == 401
    assert page.client.get("/").status_code == 401
    page.enter()


def test_two_servers_on_one_host_have_cookies_of_their_own() -> None:
    assert Door(port=1).cookie != Door(port=2).cookie


@pytest.mark.parametrize(
    "headers", [{}, {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://testserver.evil.example"}]
)
def test_the_stream_is_closed_to_pages_of_other_sites(page: Page, headers: dict[str, str]) -> None:
    with pytest.raises(WebSocketDisconnect) as left, page.client.websocket_connect("/stream", headers=headers):
        pass
    assert left.value.code == 1008 and page.device.taken == 0


def test_the_stream_is_closed_without_a_cookie(page: Page) -> None:
    with pytest.raises(WebSocketDisconnect) as left, page.browser().websocket_connect("/stream", headers=ORIGIN):
        pass
    assert left.value.code == 1008


def test_the_page_asks_no_other_host(page: Page) -> None:
    for name in app_module.PAGE:
        answer = page.client.get(f"/{name}")
        assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["content-type"].startswith(app_module.PAGE[name][2])
        assert "//" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace("//${", "").replace("// ", "")
        assert "innerHTML" not in answer.text and "insertAdjacentHTML" not in answer.text
    assert page.client.get("/no.js").status_code == 404 and page.client.get("/../cli/play.py").status_code == 404


# --- what is answered ---


def test_a_clip_is_streamed_changed_and_saved(page: Page) -> None:
    made, other = student(), student(seed=1)
    with page.socket() as socket:
        hello, _ = heard(socket)
        assert (hello["panes"], hello["fps"], hello["scale"]) == (["student 0", "student 1"], 8.0, "Adapter scale")
        started, _ = said(socket, **START)
        assert (started["type"], started["frames"], started["chunks"]) == ("started", 12, 4)
        chunk, parts = said(socket, "next")
        assert (chunk["frames"], chunk["media"], len(chunk["milliseconds"])) == (3, "image/png", 2)
        shown = np.stack([np.asarray(Image.open(BytesIO(part))) for part in parts])
        whole = [to_frames(one.sample([PROMPTS[0]], frames=12)[0])[:3] for one in (made, other)]
        assert np.array_equal(shown, np.concatenate(whole))
        hostile = "<script>alert(1)</script> a small blue square"
        assert said(socket, "switch", prompt=hostile)[0] == {"type": "switching", "prompt": hostile}
        chunk, _ = said(socket, "next")
        assert chunk["prompts"] == [[0, PROMPTS[0]], [0.375, hostile]]
        assert "'0.375s <script>alert(1)</script> a small blue square'" in chunk["commands"][1]
        note, _ = heard(socket)
        assert note["type"] == "note" and "script" in note["message"]
        file, (film,) = said(socket, "save", pane=1)
        assert file["name"] == "clip.mp4" and film[4:8] == b"ftyp"
        for _ in range(2):
            assert said(socket, "next")[0]["type"] == "chunk"
        assert said(socket, "next")[0] == {"type": "ended"}


def test_scores_follow_every_chunk() -> None:
    page = Page(stage(student(), metrics=[Seen()]))
    page.enter()
    with page.socket() as socket:
        assert heard(socket)[0]["metrics"] == ["seen"]
        said(socket, **START)
        for index in range(2):
            said(socket, "next")
            values = {"seen/frames": [3.0 * (index + 1)], "seen/nothing": [None]}
            assert heard(socket)[0] == {"type": "scores", "index": index, "values": values}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the message is no JSON"),
        ("[1]", "the message is a list"),
        ('{"type": "strat"}', "did you mean 'start'?"),
        ('{"type": ["start"]}', "unknown message"),
        ('{"type": "__init__"}', "unknown message"),
        ('{"type": "start", "prompt": "x"}', "start needs the field"),
        (json.dumps({**START, "sead": 1}), "start has no field 'sead'"),
        (json.dumps({**START, "seed": 1.5}), "seed is 1.5 - seed - it is a whole number"),
        (json.dumps({**START, "seed": True}), "seed is true"),
        (json.dumps({**START, "prompt": 1}), "prompt is 1 - prompt - it is a text"),
        (json.dumps({**START, "seconds": "6"}), 'seconds is "6" - seconds - it is a number'),
        (json.dumps({**START, "seconds": 1e999}), "the length is inf"),
        (json.dumps({**START, "scale": 5}), "the scale is 5.0 - scale - it is a number in 0..4"),
        (json.dumps({**START, "prompt": "x" * 70000}), "the message is too long"),
        ('{"type": "next"}', "there is no clip"),
        ('{"type": "save", "pane": 0}', "there is nothing to save"),
        ('{"type": "save", "pane": 2}', "pane is 2"),
    ],
)
def test_a_bad_message_gets_one_error_and_the_page_goes_on(page: Page, text: str, message: str) -> None:
    with page.socket() as socket:
        heard(socket)
        socket.send_text(text)
        answer, _ = heard(socket)
        assert answer["type"] == "error" and message in answer["message"] and "\n" not in answer["message"]
        assert said(socket, **START)[0]["type"] == "started"


def test_a_fault_while_a_chunk_is_made_is_an_error_too(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    with page.socket() as socket:
        heard(socket)
        said(socket, **START)
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_next", lambda self: 1 // 0)
            answer, _ = said(socket, "next")
        assert answer["type"] == "error" and answer["message"].startswith("ZeroDivisionError")
        assert said(socket, **START)[0]["type"] == "started"


def test_large_frames_are_sent_as_jpeg() -> None:
    media, (picture,) = pictures(np.full((1, 480, 832, 3), 90, np.uint8))
    assert media == "image/jpeg" and Image.open(BytesIO(picture)).size == (832, 480)


# --- several pages ---


def test_two_pages_take_turns(page: Page) -> None:
    with page.socket() as one, page.socket() as other:
        heard(one), heard(other)
        said(one, **START)
        said(other, **{**START, "prompt": PROMPTS[1], "scale": 0.5})
        parts: list[list[bytes]] = [[], []]
        for _ in range(4):
            for socket in (one, other):
                socket.send_json({"type": "next"})
            for socket, own in zip((one, other), parts, strict=True):
                own += heard(socket)[1][:3]
    made = student()
    for own, prompt in zip(parts, PROMPTS, strict=True):
        frames = np.stack([np.asarray(Image.open(BytesIO(part))) for part in own])
        assert np.array_equal(frames, to_frames(made.sample([prompt], frames=12)[0]))


def test_one_page_too_many_is_asked_to_wait(page: Page) -> None:
    with page.socket() as one, page.socket() as other:
        heard(one), heard(other)
        with page.socket() as third:
            answer, _ = heard(third)
            assert answer["type"] == "full" and answer["message"].startswith("2 pages are open")
            with pytest.raises(WebSocketDisconnect) as left:
                heard(third)
            assert left.value.code == 1013
        assert said(one, **START)[0]["type"] == "started", "the others go on"
    with page.socket() as third:
        assert heard(third)[0]["type"] == "hello"


def until(condition: Any) -> None:
    for _ in range(100):
        gc.collect()
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never became true")


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The sessions that pages open."""
    made: list[Session] = []
    plain = Session.__init__

    def kept(self: Session, stage: Stage) -> None:
        plain(self, stage)
        made.append(self)

    monkeypatch.setattr(Session, "__init__", kept)
    return made


@pytest.mark.parametrize("when", ["between two chunks", "while a chunk is made"])
def test_a_page_that_leaves_in_mid_stream_frees_its_cache(
    page: Page, sessions: list[Session], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, go_on = threading.Event(), threading.Event()
    with page.socket() as socket:
        heard(socket)
        said(socket, **START)
        said(socket, "next")
        said(socket, "next")
        streams = [own.clip.stream for own in sessions[0]._own]  # type: ignore[attr-defined]
        caches = [weakref.ref(stream.context.pieces[0].keys[0]) for stream in streams]
        del streams
        if when == "while a chunk is made":
            plain = Session._next

            def slow(self: Session) -> Any:
                making.set()
                assert go_on.wait(20)
                return plain(self)

            monkeypatch.setattr(Session, "_next", slow)
            socket.send_json({"type": "next"})
            assert making.wait(20)
            socket.close()
            go_on.set()
    until(lambda: page.device.taken == 0 and not any(cache() is not None for cache in caches))
    assert not sessions[0].open
