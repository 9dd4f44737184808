"""One thread that runs the reward; requests that wait for it are joined into one call.

The first waiting request is scored first. Those of equal shape and frame rate join it, oldest first, as long as the
call has at most `batch` clips; a larger request is scored in several calls. A call that fails is repeated for each of
its requests alone, so that clips of one client do not fail those of another.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from .failure import ServeError
from .loading import Scores, Served
from .wire import ScoreBody


@dataclass(eq=False)
class Job:
    """A request that waits, and what it will be answered."""

    body: ScoreBody
    answer: Future[Scores] = field(default_factory=Future)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for requests that one call can score."""
        return self.body.clips.shape[1:], self.body.clips.dtype, self.body.fps, bool(self.body.metadata)


class Batcher:
    """observe: called with the clips of every call, its seconds and its scores, None where it failed."""

    def __init__(self, batch: int, observe: Callable[[int, float, Scores | None], None]) -> None:
        self.batch, self.observe = batch, observe
        self.seconds = 0.0
        """How long the last call took."""
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._jobs)

    def submit(self, body: ScoreBody) -> Future[Scores]:
        """Put a request in line; its answer raises `ServeError` where the reward fails."""
        job = Job(body)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """End `run` after the requests in line."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def run(self, served: Served) -> None:
        """Score what comes until `close`; the body of the thread."""
        while jobs := self._next():
            self._score(served, [job for job in jobs if job.answer.set_running_or_notify_cancel()])

    def _next(self) -> list[Job]:
        """The requests of the next call; none after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return []
            first, joined, count = self._jobs[0], [], 0
            for job in self._jobs:
                more = len(job.body.prompts)
                if job is first or (job.key == first.key and count + more <= self.batch):
                    joined.append(job)
                    count += more
            self._jobs = [job for job in self._jobs if job not in joined]
            return joined

    def _score(self, served: Served, jobs: list[Job]) -> None:
        if not jobs:  # all were given up
            return
        try:
            scores = self._call(served, [job.body for job in jobs])
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._score(served, [job])
                return
            traceback.print_exc()
            what = f"{type(error).__name__}: {error}".strip(": ")
            jobs[0].answer.set_exception(ServeError(500, "reward_failed", what, "see the log of the server"))
            return
        start = 0
        for job in jobs:
            stop = start + len(job.body.prompts)
            job.answer.set_result({name: values[start:stop] for name, values in scores.items()})
            start = stop

    def _call(self, served: Served, bodies: list[ScoreBody]) -> Scores:
        """Scores of the clips of several requests, at most `batch` in one call."""
        clips = np.concatenate([body.clips for body in bodies])
        prompts = [prompt for body in bodies for prompt in body.prompts]
        metadata = [one for body in bodies for one in body.metadata]
        parts: list[Scores] = []
        for start in range(0, len(prompts), self.batch):
            part = slice(start, start + self.batch)
            began, scores = time.perf_counter(), None
            try:
                scores = served(torch.from_numpy(clips[part]), prompts[part], metadata[part], bodies[0].fps)
            finally:
                self.seconds = time.perf_counter() - began
                self.observe(len(prompts[part]), self.seconds, scores)
            parts.append(scores)
        names = set.intersection(*(set(scores) for scores in parts))
        return {name: [value for scores in parts for value in scores[name]] for name in sorted(names)}
