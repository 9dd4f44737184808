"""Reading files that a run or another command wrote, which may since have been damaged or replaced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value; `ValueError` for whatever is wrong, a nesting that no file of vidalign has included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def regular(path: Path) -> Path:
    """The path itself; `OSError` for a pipe, a device or a folder, which are never read or written as a file.

    Opening a pipe waits for its other end, and some devices have no end.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is not a regular file")
    return path


def read_json(path: Path) -> Any:
    """The value in a regular file; `OSError` or `ValueError` when it cannot be read."""
    return parse_json(regular(path).read_bytes())


def check_object(value: Any, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The JSON object with these entries of these types (an int is no bool); `ValueError` naming what is wrong."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")
    for name, kind in kinds.items():
        if name not in value:
            raise ValueError(f"the entry {name!r} is missing")
        allowed = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value[name], kind) or (isinstance(value[name], bool) and bool not in allowed):
            names = " or ".join(one.__name__ for one in allowed)
            raise ValueError(f"{name!r} must be {names}, not {str(value[name])[:40]!r}")
    return value


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the JSON and safetensors files of a folder with their names. Raises `OSError`."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in (".json", ".safetensors") and file.is_file())
        each = "\n".join(f"{file.relative_to(path).as_posix()} {content_hash(file)}" for file in files)
        return hashlib.sha256(each.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
