"""JSON of results: indented by one space, and every array of numbers or texts on one line."""

from __future__ import annotations

import json
from typing import Any


def compact(value: Any, indent: str = "") -> str:
    """Plain data as JSON without a last line break; NaN must have become None.

    An array, and a record inside an array, stands on one line when it holds no array or record itself. So a file of
    some hundred numbers an array stays readable, and a changed number is one changed line.
    """
    inner = indent + " "
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(str(key))}: {compact(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + item for item in items) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        lines = [json.dumps(item, allow_nan=False) if _flat(item) else compact(item, inner) for item in value]
        return "[\n" + ",\n".join(inner + line for line in lines) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)


def _flat(value: Any) -> bool:
    """Whether it holds no array or record."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return not any(isinstance(item, dict | list | tuple) for item in items)
