"""Several servers of one reward: requests go to the least busy one, failures are retried, a dead server is left out.

A server that fails rests for a time that doubles with every failure in a row, with jitter; meanwhile the others take
its requests. After `DEAD` failures in a row it is dead. A request that finds only dead servers fails at once. When a
dead server has rested, one request tries it while others wait for the outcome. A busy server (429, or 503 with
Retry-After) rests as long as it says, which is no failure.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from vidalign.serving.wire import MEDIA_TYPE

DEAD = 3
"""Failures in a row after which a server is dead."""
LONGEST_REST = 60.0
"""Most seconds between two trials of a dead server."""
LARGEST_ANSWER = 2**26
"""Bytes beyond which an answer is none."""
BUSY = (429, 503)


class AnswerError(Exception):
    """A server gave no usable answer.

    final: another server would say the same; wait: seconds after which a busy one asks to be tried again.
    """

    def __init__(self, why: str, *, final: bool = False, wait: float | None = None) -> None:
        super().__init__(why)
        self.final, self.wait = final, wait


@dataclass(eq=False)
class Endpoint:
    """One server."""

    url: str
    outstanding: int = 0
    """Requests under way."""
    sent: int = 0
    """Requests so far."""
    failures: int = 0
    """Failures since its last answer."""
    rests_until: float = 0.0
    reported: str = ""
    """The failure that was warned about."""

    @property
    def dead(self) -> bool:
        """Whether it failed too often in a row."""
        return self.failures >= DEAD


class Endpoints:
    """token: sent as bearer, if any; timeout: seconds of one attempt; retries: attempts after the first that failed;
    backoff: seconds of the first rest. Warnings for the user gather in `notes`."""

    def __init__(self, urls: Sequence[str], *, token: str, timeout: float, retries: int, backoff: float) -> None:
        self.endpoints = [Endpoint(url.rstrip("/")) for url in urls]
        random.shuffle(self.endpoints)  # else every client begins with the first one
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._notes: list[str] = []
        self._changed = threading.Condition()

    def about(self, url: str) -> Any:
        """What one server says of itself; raises `AnswerError`."""
        return self._ask(url.rstrip("/"), "GET", "/v1/reward", b"", time.monotonic() + self.timeout)

    def score(self, body: bytes, count: int) -> tuple[str, Mapping[str, list[float | None]], str]:
        """(server, scores by name, identity) for a request of `count` clips.

        Raises `AnswerError` after the last attempt, or when so much time has passed as all attempts may take.
        """
        deadline, failed, why = time.monotonic() + (self.retries + 1) * self.timeout, 0, "no server is free"
        while failed <= self.retries:
            endpoint = self._take(deadline, first=not failed, last=0 < failed == self.retries)
            if endpoint is None:
                break
            try:
                answer = self._ask(endpoint.url, "POST", "/v1/score", body, time.monotonic() + self.timeout)
                scores, identity = _checked(answer, count)
            except AnswerError as error:
                self._give_back(endpoint, error)
                if error.final:
                    raise
                failed += error.wait is None
                why = f"{endpoint.url}: {error}"
                continue
            self._give_back(endpoint, None)
            return endpoint.url, scores, identity
        raise AnswerError(why)

    def notes(self) -> list[str]:
        """Warnings since the last call."""
        with self._changed:
            notes, self._notes = self._notes, []
            return notes

    def _take(self, deadline: float, *, first: bool, last: bool) -> Endpoint | None:
        """The server for an attempt, when it is its turn; None after the deadline.

        first: raise `AnswerError` at once where all are dead; last: take no dead one where another is free, or else the
        dead ones that have rested are tried first.
        """
        with self._changed:
            while True:
                now = time.monotonic()
                if now >= deadline:
                    return None
                free = [one for one in self.endpoints if one.rests_until <= now and not (one.dead and one.outstanding)]
                if free:
                    chosen = min(free, key=lambda one: (one.dead == last, one.outstanding, one.failures, one.sent))
                    chosen.outstanding += 1
                    chosen.sent += 1
                    return chosen
                if first and all(one.dead and one.rests_until > now for one in self.endpoints):
                    raise AnswerError("no server answers")
                wakes = [one.rests_until for one in self.endpoints if one.rests_until > now]
                self._changed.wait(min([*wakes, deadline]) - now)

    def _give_back(self, endpoint: Endpoint, error: AnswerError | None) -> None:
        """Note how an attempt ended."""
        with self._changed:
            endpoint.outstanding -= 1
            now = time.monotonic()
            if error is None or error.final:
                if endpoint.dead:
                    self._notes.append(f"the reward service {endpoint.url} answers again")
                    endpoint.reported = ""
                endpoint.failures = 0
            elif error.wait is not None:
                endpoint.rests_until = max(endpoint.rests_until, now + error.wait)
            elif endpoint.rests_until <= now:  # else it began before the failure that is known: the same one
                self._rest(endpoint, error, now)
            self._changed.notify_all()

    def _rest(self, endpoint: Endpoint, error: AnswerError, now: float) -> None:
        endpoint.failures += 1
        pause = min(self.backoff * 2 ** (endpoint.failures - 1), LONGEST_REST)
        endpoint.rests_until = now + pause * random.uniform(0.5, 1.0)
        if not endpoint.reported:
            endpoint.reported = str(error)
            others = "others take its clips meanwhile" if len(self.endpoints) > 1 else "there is no other"
            what = f"the reward service {endpoint.url} failed: {error}"
            self._notes.append(f"{what} - it is tried again after growing pauses, {others}")

    def _ask(self, url: str, method: str, path: str, body: bytes, deadline: float) -> Any:
        """The JSON that a server answers; raises `AnswerError`."""
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=max(deadline - time.monotonic(), 0.01))
        headers = self._headers | ({"Content-Type": MEDIA_TYPE} if body else {})
        try:
            connection.connect()
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it read everything
                connection.request(method, parts.path + path, body or None, headers)
            answer = connection.getresponse()
            text = _read(connection, answer, deadline)
        except TimeoutError as error:
            raise AnswerError(f"no answer in {self.timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise AnswerError(str(error) or type(error).__name__) from error
        finally:
            connection.close()
        if answer.status != 200:
            raise _refusal(answer, text)
        try:
            return json.loads(text)
        except ValueError as error:
            raise AnswerError(f"its answer is no JSON: {text[:40]!r}") from error


def _read(connection: http.client.HTTPConnection, answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole answer; `TimeoutError` after the deadline, however slowly it comes."""
    parts, size = [], 0
    while part := answer.read1(2**16):
        parts.append(part)
        size += len(part)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if size > LARGEST_ANSWER:
            raise http.client.HTTPException("its answer has no end")
        if connection.sock is not None:
            connection.sock.settimeout(left)
    if answer.length:
        raise http.client.IncompleteRead(b"", answer.length)
    return b"".join(parts)


def _refusal(answer: http.client.HTTPResponse, text: bytes) -> AnswerError:
    """What an answer that is no success means."""
    try:
        error = json.loads(text)["error"]
        why = f"{error['message']} (HTTP {answer.status} {error['type']})"
    except (ValueError, KeyError, TypeError):
        why = f"HTTP {answer.status} {answer.reason}"
    pause = answer.getheader("Retry-After", "")
    if answer.status in BUSY and pause.isdecimal():
        return AnswerError(why, wait=min(float(pause), LONGEST_REST))
    return AnswerError(why, final=400 <= answer.status < 500 and answer.status not in (408, 429))


def _checked(answer: Any, count: int) -> tuple[Mapping[str, list[float | None]], str]:
    """Scores and identity; raises `AnswerError` where they are not one number or null a clip."""
    scores = answer.get("scores") if isinstance(answer, dict) else None
    if not isinstance(scores, dict) or not scores:
        raise AnswerError("its answer holds no scores")
    for name, values in scores.items():
        if not isinstance(values, list) or len(values) != count:
            number = len(values) if isinstance(values, list) else "no list of"
            raise AnswerError(f"it gave {number} scores under {name!r} for {count} clips")
        if any(isinstance(value, bool) or not isinstance(value, int | float | None) for value in values):
            raise AnswerError(f"its scores under {name!r} are no numbers")
    return scores, str(answer.get("identity", ""))
