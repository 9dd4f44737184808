"""Names that files hold and that are used as paths: they stay in their folder."""

from __future__ import annotations

from pathlib import Path

LONGEST = 200
"""Bytes of a name; file systems take 255, and endings are added."""


def inside(folder: Path, name: str) -> Path:
    """The file of that name; ValueError when it leads out of the folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name!r} leads out of the folder")
    return folder / name


def is_file_name(name: str) -> bool:
    """Whether a name can be one part of a path, and stays where it is put."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0") and len(name.encode()) <= LONGEST
