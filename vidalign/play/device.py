"""One thread that makes chunks, one at a time in the order in which they were asked for, and the places at it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Full(Exception):  # noqa: N818 - a state, not a fault
    """All places are taken."""


class Device:
    """places: most sessions at once. Each has a cache on the device, and one request in line at most. threads: of torch
    on the CPU.

    The thread ends with the process, whatever it is doing.
    """

    def __init__(self, places: int, threads: int) -> None:
        self.places, self.threads, self.taken = places, threads, 0
        """How many sessions there are."""
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="device", daemon=True).start()

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place meanwhile; raises `Full`. Asked by one thread."""
        if self.taken >= self.places:
            raise Full
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Put a job in line; its result, or what it raises."""
        answer: Future[T] = Future()

        def run() -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(job())
                except BaseException as error:
                    answer.set_exception(error)

        self._jobs.put(run)
        return answer

    def _run(self) -> None:
        torch.set_num_threads(self.threads)  # the setting is one of each thread
        while True:
            self._jobs.get()()
