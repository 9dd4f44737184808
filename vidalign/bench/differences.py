"""The first difference of two protocols or recipes, to name it when a comparison is refused."""

from __future__ import annotations

from typing import Any

import yaml


def first_difference(ours: str, theirs: str) -> str:
    """`key: ours, not theirs` of the first value in which two YAML texts differ; '' when they are equal."""
    return _first(yaml.safe_load(ours), yaml.safe_load(theirs), "")


def _first(ours: Any, theirs: Any, path: str) -> str:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            below = f"{path}.{key}" if path else str(key)
            if key not in theirs or key not in ours:
                return f"{below}: {_show(ours, key)}, not {_show(theirs, key)}"
            if found := _first(ours[key], theirs[key], below):
                return found
        return ""
    return "" if ours == theirs else f"{path}: {ours!r}, not {theirs!r}"


def _show(mapping: dict[str, Any], key: str) -> str:
    return repr(mapping[key]) if key in mapping else "nothing"
