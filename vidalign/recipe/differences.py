"""Where two recipes, protocols or settings differ, to name it when one is refused in the place of the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Missing:
    """Stands for a value that is not there."""

    def __repr__(self) -> str:
        return "nothing"


MISSING = Missing()


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, our value and theirs (`MISSING` where there is none) of all that differs in nested mappings."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            below = f"{path}.{key}" if path else str(key)
            yield from differences(ours.get(key, MISSING), theirs.get(key, MISSING), below)
    elif ours is MISSING or theirs is MISSING or ours != theirs:
        yield path, ours, theirs
