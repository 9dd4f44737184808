"""The protocols that come with the package; listed without loading any."""

from __future__ import annotations

from pathlib import Path

from vidalign.errors import UserError, nearest


def protocols_root() -> Path:
    """The folder of the shipped protocols: inside an installed package, in ``benchmarks`` of a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "protocols"
    return inside if inside.is_dir() else package.parent / "benchmarks" / "protocols"


def shipped_protocols() -> dict[str, Path]:
    """Shipped protocols by name."""
    return {path.stem: path for path in sorted(protocols_root().glob("*.yaml"))}


def find_protocol(name: str) -> Path:
    """The file that is meant; `UserError` with the nearest name otherwise."""
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_protocols()
    if name in shipped:
        return shipped[name]
    close = nearest(name, shipped)
    fix = f"did you mean {close!r}?" if close else f"known: {', '.join(shipped)}"
    raise UserError(f"there is no protocol {name!r}", why="neither a file nor a shipped one", fix=fix)
