"""What every check begins with: a plugin by class or name, its settings, and the sentence of a broken promise."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, NoReturn

import numpy as np
import torch

from vidalign import registry
from vidalign.engine import distributed
from vidalign.recipe.explain import field_docs


def broken(name: str, what: str) -> NoReturn:
    """Raise the AssertionError of a promise that `name` breaks."""
    raise AssertionError(f"{name} {what}")


@contextmanager
def lent(kind: str, plugin: Any) -> Iterator[str]:
    """The name that `plugin`, a class or a registered name, has in the registry within this context."""
    if isinstance(plugin, str):
        registry.get(kind, plugin)
        yield plugin
        return
    name = str(plugin.name)
    if name in registry.names(kind) and registry.get(kind, name) is plugin:
        yield name
        return
    registry.register(kind, name)(plugin)
    try:
        yield name
    finally:
        registry.unregister(kind, name)


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Runs are on the CPU within this context, whatever the machine has: accelerators add numbers in any order."""
    own = distributed.device
    distributed.device = lambda: torch.device("cpu")
    try:
        yield
    finally:
        distributed.device = own


def check_config(name: str, plugin: Any, needed: bool = True) -> None:
    """The nested `Config` is a dataclass with a docstring under each field, and its defaults pass its own ranges.

    needed: whether there must be one.
    """
    config = getattr(plugin, "Config", None)
    if config is None:
        if needed:
            broken(name, "has no nested class Config")
        return
    if not (isinstance(config, type) and is_dataclass(config)):
        broken(name, f"has a Config that is no dataclass but {config!r}")
    own = [field for field in fields(config) if field.init]
    bare = [field.name for field in own if field.name not in field_docs(config)]
    if bare:
        broken(name, f"has {len(bare)} of {len(own)} settings without a docstring under the field: {', '.join(bare)}")
    if all(field.default is not MISSING or field.default_factory is not MISSING for field in own):
        try:
            config()
        except ValueError as error:
            broken(name, f"has defaults out of its own ranges: {error}")


@contextmanager
def own_numbers(name: str) -> Iterator[None]:
    """Refuse draws from the global generators of torch, numpy and Python within this context."""
    before = _states()
    yield
    for place, state in _states().items():
        if state != before[place]:
            broken(
                name,
                f"draws from the global generator of {place}: its state has changed, so that a run cannot be resumed "
                "exactly",
            )


def _states() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(np.random.get_state(legacy=True)),
        "Python": random.getstate(),
    }
