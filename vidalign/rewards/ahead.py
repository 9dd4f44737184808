"""Judging beside other work: slices of clips are scored while the next slice is rolled out, or while a reward learns.

One thread for all rewards that compute here, in the order of the recipe, and one for each that waits for a server
(``waits = True``). On an accelerator a thread has a stream of its own. Each slice goes through each reward in one call,
with threads or without, so scores are equal bit for bit.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from vidalign.rewards.calls import RewardCall

WAITING = 2
"""Slices that wait for a thread; more would fill the memory where scoring is slower than rolling out."""


class ScoringAhead:
    """Scores of slices that are submitted one after the other; call `result` once, after the last."""

    def __init__(self, calls: Mapping[str, RewardCall], *, threads: bool) -> None:
        self._calls, self._sizes = dict(calls), list[int]()
        self._found: dict[str, list[dict[str, torch.Tensor]]] = {name: [] for name in calls}
        self.busy = self.waited = 0.0
        """Seconds that rewards took, and for which somebody waited."""
        self._lock = threading.Lock()
        here = [name for name, call in calls.items() if not getattr(call.reward, "waits", False)]
        groups = [here, *([name] for name in calls if name not in here)]
        self._workers = [_Worker(self, names) for names in groups if names] if threads else []

    def submit(self, clips: torch.Tensor, prompts: Sequence[str]) -> None:
        """Judge clips ``[B, F, 3, H, W]`` in [0, 1]; returns at once unless `WAITING` slices wait already."""
        self._sizes.append(len(clips))
        began = time.perf_counter()
        for worker in self._workers:
            worker.put(clips, prompts)
        if not self._workers:
            self.judge(list(self._calls), clips, prompts)
        self.waited += time.perf_counter() - began

    def judge(self, names: Sequence[str], clips: torch.Tensor, prompts: Sequence[str]) -> None:
        """The next slice by some of the rewards."""
        for name in names:
            began = time.perf_counter()
            with torch.no_grad():
                self._found[name].append(self._calls[name](clips, prompts))
            with self._lock:
                self.busy += time.perf_counter() - began

    def result(self) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Every score ``[N]`` by reward, and what to log. Raises what a reward has raised."""
        began = time.perf_counter()
        for worker in self._workers:
            worker.finish()
        self.waited += time.perf_counter() - began
        scores, metrics = {}, {}
        for name, parts in self._found.items():
            scores[name] = torch.cat([part[name] for part in parts])
            for extra in dict.fromkeys(key for part in parts for key in part if key != name):
                pairs = zip(parts, self._sizes, strict=True)  # a slice that came too late has no further names
                given = [part.get(extra, torch.full((size,), torch.nan)) for part, size in pairs]
                metrics[f"reward/{name}/{extra}/mean"] = self._mean(given)
        if self._calls:
            metrics["perf/score/seconds"] = self.busy
            metrics["perf/score/hidden"] = max(0.0, 1 - self.waited / max(self.busy, 1e-9))
        return scores, metrics

    def _mean(self, parts: list[torch.Tensor]) -> float:
        """Over all clips where there is a value for each, else over the slices by their sizes."""
        if all(part.shape == (size,) for part, size in zip(parts, self._sizes, strict=True)):
            return float(torch.cat(parts).nanmean())
        means, sizes = torch.stack([part.double().nanmean() for part in parts]), torch.tensor(self._sizes)
        known = means.isfinite()
        return float((means * sizes)[known].sum() / sizes[known].sum())


class _Worker:
    """A thread that judges slices in their order by some rewards, until one of them fails."""

    def __init__(self, scoring: ScoringAhead, names: list[str]) -> None:
        self._scoring, self._names, self._error = scoring, names, list[BaseException]()
        self._queue: queue.Queue[tuple[torch.Tensor, Sequence[str], Any] | None] = queue.Queue(WAITING)
        title = f"rewards {', '.join(names)}"
        self._thread = threading.Thread(target=self._run, name=title, daemon=True)  # Ctrl-C does not wait for it
        self._thread.start()

    def put(self, clips: torch.Tensor, prompts: Sequence[str]) -> None:
        ready = None
        if clips.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        self._queue.put((clips, prompts, ready))

    def finish(self) -> None:
        """Wait for all slices; raises what a reward has raised."""
        self._queue.put(None)
        self._thread.join()
        if self._error:
            raise self._error[0]

    def _run(self) -> None:
        stream = None
        while (task := self._queue.get()) is not None:
            clips, prompts, ready = task
            if self._error:
                continue  # what waits is let through
            try:
                if ready is not None and stream is None:
                    stream = torch.cuda.Stream(clips.device)
                with _on(stream, clips, ready):
                    self._scoring.judge(self._names, clips, prompts)
                if stream is not None:
                    stream.synchronize()
            except BaseException as error:  # raised again where the scores are asked for
                self._error.append(error)
            del clips, task


def _on(stream: Any, clips: torch.Tensor, ready: Any) -> AbstractContextManager[Any]:
    """The stream of a thread, once the clips are there."""
    if stream is None:
        return nullcontext()
    stream.wait_event(ready)
    clips.record_stream(stream)
    chosen: AbstractContextManager[Any] = torch.cuda.stream(stream)
    return chosen
