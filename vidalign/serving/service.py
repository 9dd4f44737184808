"""A running reward: its state from start to stop, its limits, and what it has accepted."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .batching import Batcher
from .failure import ServeError
from .loading import Scores, Served
from .measures import Measures
from .wire import ScoreBody

LONGEST_WAIT = 60
"""Most seconds that a client is asked to wait before it tries again."""
WARM_UP = (1, 16, 3, 64, 64)
"""Shape of the grey clip that is scored at the start."""
WARM_UP_PROMPT, WARM_UP_FPS = "a large red circle falls", 16.0


@dataclass(frozen=True)
class Limits:
    """What a server takes."""

    batch: int = 16
    """Most clips in one call of the reward."""
    max_mb: float = 256.0
    """Most MiB of a request, and of its clips after decompression."""
    queue: int = 32
    """Most requests that are read, wait or are scored at once."""

    @property
    def max_bytes(self) -> int:
        """`max_mb` in bytes."""
        return int(self.max_mb * 2**20)


class Service:
    """Loads a reward in a thread of its own and scores there what comes.

    load: makes the reward; warm_up: score one grey clip before the service is ready, so that weights are loaded and a
    reward that cannot work fails at the start; on_ready: called from that thread.
    """

    def __init__(
        self,
        load: Callable[[], Served],
        limits: Limits,
        *,
        warm_up: bool = True,
        on_ready: Callable[[Served], None] = lambda served: None,
    ) -> None:
        self.limits, self.measures = limits, Measures()
        self.outstanding = 0
        """Requests that were accepted and are not yet answered; changed in the thread of the event loop alone."""
        self.stopping = False
        self.failed: BaseException | None = None
        """Why the reward could not be loaded."""
        self._served: Served | None = None
        self._load, self._warm_up, self._on_ready = load, warm_up, on_ready
        self._batcher = Batcher(limits.batch, self._observe)
        self._thread = threading.Thread(target=self._run, name="reward", daemon=True)

    @property
    def served(self) -> Served:
        """The reward; raises `ServeError` 503 before it is loaded."""
        if self._served is None:
            raise ServeError(503, "starting", "the reward is being loaded", "try again", retry_after=1)
        return self._served

    def start(self) -> None:
        """Load the reward beside the event loop."""
        self._thread.start()

    def close(self) -> None:
        """End the thread after what is in line."""
        self._batcher.close()

    @contextmanager
    def accepted(self) -> Iterator[Served]:
        """A place for one request; raises `ServeError` 503 or 429 where there is none."""
        served = self.served
        if self.stopping:
            raise ServeError(503, "stopping", "the server is stopping", "ask another one", retry_after=1)
        if self.outstanding >= self.limits.queue:
            wait = min(max(1, math.ceil(self._batcher.seconds)), LONGEST_WAIT)
            what = f"{self.outstanding} requests are waiting"
            fix = "try again later, start a second server, or this one with a larger --queue"
            raise ServeError(429, "queue_full", what, fix, retry_after=wait)
        self._count(1)
        try:
            yield served
        finally:
            self._count(-1)

    def submit(self, body: ScoreBody) -> Future[Scores]:
        """The scores to come of a request."""
        return self._batcher.submit(body)

    def _count(self, change: int) -> None:
        self.outstanding += change
        self.measures.outstanding.set(self.outstanding)

    def _observe(self, count: int, seconds: float, scores: Scores | None) -> None:
        assert self._served is not None, "only a loaded reward scores"
        self.measures.call(count, seconds, None if scores is None else scores[self._served.name])

    def _run(self) -> None:
        try:
            served = self._load()
            if self._warm_up:
                served(torch.full(WARM_UP, 128, dtype=torch.uint8), [WARM_UP_PROMPT], [], WARM_UP_FPS)
        except BaseException as error:
            self.failed = error
            return
        self._served = served
        self._on_ready(served)
        self._batcher.run(served)
