"""The protocols that come with the package; found without loading any."""

from __future__ import annotations

from pathlib import Path

import vidalign


def protocols_root() -> Path:
    """The folder of the shipped protocols: inside an installed package, in ``benchmarks`` of a checkout."""
    package = Path(vidalign.__file__).parent
    inside = package / "protocols"
    return inside if inside.is_dir() else package.parent / "benchmarks" / "protocols"


def shipped_protocols() -> dict[str, Path]:
    """Shipped protocols by name."""
    return {path.stem: path for path in sorted(protocols_root().glob("*.yaml"))}
