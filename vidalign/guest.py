"""Plugin code is a guest: whatever it raises is reported as its error, with the place in its own file."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vidalign.errors import PluginError, UserError


def is_foreign(plugin: Any) -> bool:
    """Whether a plugin (or its class) is none of the built-ins, whose failures are faults of vidalign."""
    return not _class_of(plugin).__module__.startswith("vidalign.")


@contextmanager
def guest(kind: str, name: str, plugin: Any) -> Iterator[None]:
    """What a foreign plugin raises inside becomes a `PluginError`; mistakes of a user pass unchanged."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if not is_foreign(plugin):
            raise
        raise PluginError(
            f"the {kind} {name!r} failed",
            where=_place(error, _class_of(plugin)),
            why=f"{type(error).__name__}: {error}".rstrip(": "),
            fix="repair the plugin, or report it to its authors",
        ) from error


def guarded(kind: str, name: str, plugin: Any, methods: tuple[str, ...]) -> Any:
    """The plugin, of a foreign one with every call of `methods` inside `guest`."""
    if is_foreign(plugin):
        for method in methods:
            if callable(plain := getattr(plugin, method, None)):
                setattr(plugin, method, _inside(kind, name, plugin, plain))
    return plugin


def _inside(kind: str, name: str, plugin: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with guest(kind, name, plugin):
            result = method(*args, **kwargs)
            return list(result) if inspect.isgenerator(result) else result  # its body runs in here too

    return call


def _class_of(plugin: Any) -> Any:
    return plugin if isinstance(plugin, type) or inspect.isroutine(plugin) else type(plugin)


def _place(error: BaseException, plugin: Any) -> str:
    """The innermost line of the plugin's file on the way to the error; of no such file, the innermost line of all."""
    frames = traceback.extract_tb(error.__traceback__)
    try:
        file = inspect.getfile(plugin)
    except (TypeError, OSError):
        file = ""
    frame = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    return f"{frame.filename}:{frame.lineno}"
