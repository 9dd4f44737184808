"""Progress of work in stages, such as an evaluation: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vidalign.tracking.panel import Mode

Done = Callable[[int], None]
"""Called with how many pieces have been finished since the last call."""
Stage = Callable[[str, int], Done]
"""Begins a stage by its name and its number of pieces."""
EVERY = 10.0
"""Seconds between plain lines of one stage; its last one is always printed."""


@contextmanager
def stages(mode: Mode, console: Console | None = None) -> Iterator[Stage]:
    """What begins a stage, for the time of the block; the modes are those of `make_panel`."""
    console = console or Console()
    if mode == "none":
        yield lambda name, total: lambda count: None
    elif mode == "live" or (mode == "auto" and console.is_terminal):
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
            yield lambda name, total: _bar(progress, name, total)
    else:
        yield lambda name, total: _lines(console, name, total)


def counted(generate: Callable[..., Any], done: Done) -> Callable[..., Any]:
    """The generator of clips, which reports how many prompts have been shown."""

    def call(prompts: Any, *arguments: Any) -> Any:
        clips = generate(prompts, *arguments)
        done(len(prompts))
        return clips

    return call


def _bar(progress: Progress, name: str, total: int) -> Done:
    task = progress.add_task(name, total=total)
    return lambda count: progress.advance(task, count)


def _lines(console: Console, name: str, total: int) -> Done:
    finished, reported = 0, time.monotonic()

    def done(count: int) -> None:
        nonlocal finished, reported
        finished += count
        if finished >= total or time.monotonic() - reported >= EVERY:
            reported = time.monotonic()
            console.print(f"{name}: {finished}/{total}", markup=False, highlight=False, soft_wrap=True)

    return done
