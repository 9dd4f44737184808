"""Libraries that load a model draw progress bars on standard error; those of vidalign are enough."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_bars(*libraries: str) -> Iterator[None]:
    """Inside, `transformers`, `diffusers` or `datasets` draw none; afterwards they do what they did before."""
    loggers = [importlib.import_module(f"{library}.utils.logging") for library in libraries]
    shown = [logger for logger in loggers if logger.is_progress_bar_enabled()]
    for logger in shown:
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger in shown:
            logger.enable_progress_bar()
