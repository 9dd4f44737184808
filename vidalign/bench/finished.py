"""Reading what finished cells wrote, and whether it belongs to the protocol and the recipe of a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidalign.bench.protocol import Protocol
from vidalign.bench.results import Cell, read_cell
from vidalign.errors import DataError, UserError
from vidalign.reading import read_json


def read_finished(file: Path, protocol: Protocol) -> Cell:
    """A finished cell; `DataError` when it was changed by hand or belongs to another protocol."""
    plain = read_document(file, protocol, "cell")
    try:
        return read_cell(plain, str(file))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError("cannot read a finished cell", where=str(file), why=repr(error), fix="remove it") from error


def read_document(file: Path, protocol: Protocol, content: str) -> Any:
    """The content of a file that a cell wrote last."""
    try:
        document: dict[str, Any] = read_json(file)
        made_by, value = document["protocol"], document[content]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("cannot read a finished cell", where=str(file), why=str(error), fix="remove it") from error
    if made_by != protocol.conditions:
        raise DataError(
            "a cell belongs to another protocol",
            where=str(file),
            why=f"{made_by}, not {protocol.conditions}",
            fix="remove it to measure again",
        )
    return value


def check_same_hash(file: Path, recipe_hash: str) -> None:
    """A cell that was taken over has no run folder to compare with. Raises `UserError` for another recipe's."""
    try:
        digest = read_json(file)["cell"]["recipe_hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # reported when the cell is read
    if digest != recipe_hash:
        raise UserError(
            "the cell was measured with another recipe",
            where=str(file),
            why=f"its hash is {digest}, the row's is {recipe_hash}",
            fix="remove the file to measure anew",
        )
