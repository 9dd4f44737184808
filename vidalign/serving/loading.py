"""The reward that a server runs: how it is found, its settings, and one guarded call of it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from .failure import LoadError

FIX = "give file.py:Class or module:Class"
Scores = dict[str, list[Any]]
"""Numbers by name, one a clip; None for a failed item."""


class Served:
    """A reward with what a client pins: name, version (its class attribute ``version``, else "1") and settings."""

    def __init__(self, reward: Any, device: str) -> None:
        config = getattr(reward, "config", None)
        given = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else {}  # type: ignore[arg-type]
        self.reward, self.device = reward, device
        self.name, self.version = str(reward.name), str(getattr(reward, "version", "1"))
        self.settings: dict[str, Any] = json.loads(json.dumps(given, default=str))
        known = inspect.signature(reward.score).parameters
        self._further = [name for name in ("metadata", "fps") if name in known]
        self.needs_fps = "fps" in known and known["fps"].default is inspect.Parameter.empty
        """Whether it cannot score clips of which nobody says the frame rate."""

    @property
    def identity(self) -> str:
        """Equal for two servers that give equal scores: a hash of name, version and settings."""
        pinned = {"name": self.name, "version": self.version, "settings": self.settings}
        return hashlib.sha256(json.dumps(pinned, sort_keys=True).encode()).hexdigest()[:16]

    @torch.no_grad()
    def __call__(
        self,
        clips: torch.Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        fps: float | None,
    ) -> Scores:
        """Scores of clips ``[B, F, 3, H, W]``, uint8 in 0..255 or floats in [0, 1], which the reward sees as float32.

        Raises what the reward raises, and `ValueError` where it does not return a number a clip under its name.
        """
        whole = clips.dtype == torch.uint8
        clips = clips.to(self.device).float()
        if whole:
            clips.div_(255)
        known = {"metadata": list(metadata) or [{} for _ in prompts], "fps": fps}
        further = {name: known[name] for name in self._further}
        if fps is None:
            further.pop("fps", None)
        scores = self.reward.score(clips, list(prompts), **further)
        if not isinstance(scores, Mapping):
            raise ValueError(f"the reward returned a {type(scores).__name__}, not a dict with {self.name!r}")
        values = {str(name): torch.as_tensor(value).detach().cpu().double() for name, value in scores.items()}
        if self.name not in values or values[self.name].shape != (len(prompts),):
            shape = tuple(values[self.name].shape) if self.name in values else "nothing"
            raise ValueError(f"the reward returned {shape} under {self.name!r} for {len(prompts)} clips")
        kept = {name: value.tolist() for name, value in values.items() if value.shape == (len(prompts),)}
        return {name: [one if math.isfinite(one) else None for one in value] for name, value in kept.items()}


def load(target: str, settings: Mapping[str, Any], device: str) -> Served:
    """The reward of ``file.py:Class`` or ``module:Class``, made with its nested ``Config``; `LoadError` for others."""
    kind = _class(target)
    missing = [name for name in ("name", "score") if not hasattr(kind, name)]
    if missing:
        raise LoadError(f"{target} has no {' and no '.join(missing)}", "a reward has a name and a method score")
    _check_device(device)
    config = getattr(kind, "Config", None)
    if config is None and settings:
        raise LoadError(f"{target} has no settings, and {', '.join(settings)} was given")
    made = () if config is None else (_configured(config, settings, target),)
    with _guarded(f"{target} cannot be made"):
        return Served(kind(*made), device)


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Settings given as ``key=value``; a value is JSON, or else a text."""
    settings = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise LoadError(f"{pair!r} is no setting", "write key=value")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    return settings


def accelerator() -> str:
    """The device that a reward runs on unless another is named."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LoadError(f"there is no device {device!r} here", str(error).splitlines()[0]) from error


def _class(target: str) -> Any:
    where, colon, attribute = target.rpartition(":")
    if not colon or not where:
        raise LoadError(f"{target!r} names no reward", FIX)
    try:
        module = _file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except ImportError as error:
        raise LoadError(f"{where} cannot be imported: {error}", FIX) from error
    if not hasattr(module, attribute):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        close = get_close_matches(attribute, classes, n=1)
        raise LoadError(f"{where} has no {attribute!r}", f"did you mean {close[0]!r}?" if close else "")
    return getattr(module, attribute)


def _file(path: Path) -> types.ModuleType:
    """A Python file as a module of its stem; what stands beside it can be imported."""
    if not path.is_file():
        raise LoadError(f"there is no file {str(path)!r}", FIX)
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "the name ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    with _guarded(f"{path} cannot be run"):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _guarded(what: str) -> Iterator[None]:
    """What a reward's own code raises, as `LoadError` with the line of that code."""
    try:
        yield
    except LoadError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise LoadError(f"{what}: {type(error).__name__}: {error}", f"see {last.filename}:{last.lineno}") from error


def _configured(config: Any, settings: Mapping[str, Any], target: str) -> Any:
    """The dataclass with checked settings."""
    hints = typing.get_type_hints(config)
    values = {}
    for key, value in settings.items():
        if key not in hints:
            close = get_close_matches(key, hints, n=1)
            known = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(hints) or 'none'}"
            raise LoadError(f"{target} has no setting {key!r}", known)
        if hints[key] is str and not isinstance(value, str):
            value = json.dumps(value)  # digits that are a name, such as a revision
        if not _fits(hints[key], value):
            raise LoadError(f"{key} is {value!r}", f"it is a {getattr(hints[key], '__name__', hints[key])}")
        values[key] = float(value) if hints[key] is float else value
    try:
        return config(**values)
    except (TypeError, ValueError) as error:
        raise LoadError(str(error).replace("__init__() ", "")) from error


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value from the command line may stand for a field of this type; unknown types are left to it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(one, value) for one in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    kind = typing.get_origin(hint) or hint
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (bool, str, list, dict, type(None)) else True
