"""Where two recipes, protocols or settings differ, to name it when one is refused in the place of the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Missing:
    """Stands for a value that is not there."""

    def __repr__(self) -> str:
        return "nothing"


MISSING = Missing()


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, the value of both (`MISSING` where there is none) of all that differs in nested mappings."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            below = f"{path}.{key}" if path else str(key)
            yield from differences(one.get(key, MISSING), other.get(key, MISSING), below)
    elif one is MISSING or other is MISSING or one != other:
        yield path, one, other
