"""Finished cells of other protocols under the same conditions are taken over instead of being run again.

A protocol's conditions are everything that cells depend on but their recipe and training seed. So two cells with the
same conditions, recipe hash and seed are the same measurement, whatever their protocols and rows are called, and
whatever other seeds there are. They are sought in the folders beside the protocol's own, and in result files. One of
those is the file that a bench is about to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vidalign.bench.cell import cell_recipe
from vidalign.bench.differences import SEEDS, first_difference
from vidalign.bench.protocol import Protocol, weights_hash
from vidalign.bench.results import Cell, Results, read_cell, read_health, read_results, sealed_health, write_json
from vidalign.errors import DataError, UserError
from vidalign.reading import read_json


class Finished:
    """Every usable finished cell under the conditions of a protocol, and the examination of the judges.

    Raises `UserError` for a result file of another protocol, which would be lost when it is written.
    """

    def __init__(self, protocol: Protocol, result_files: Sequence[Path] = ()) -> None:
        self.protocol = protocol
        self.cells: dict[tuple[str, str, int], Cell] = {}
        self.health: dict[str, Any] | None = None
        for file in result_files:
            if file.is_file():
                self._from_results(read_results(file), file)
        for file in sorted(protocol.folder.parent.glob("*/*.json")):
            if file.parent != protocol.folder:
                self._from_cell(file)

    @property
    def seeds(self) -> list[int]:
        """Training seeds of the cells."""
        return sorted({seed for _, _, seed in self.cells})

    def take(self, row: str, seed: int) -> bool:
        """Write the finished cell of a row into the protocol's folder; False when there is none."""
        if row == "health":
            return self._write(row, {"health": sealed_health(self.health)}) if self.health is not None else False
        cell = self.cells.get(self._key(row, seed))
        if cell is None:
            return False
        return self._write(f"{row}-{seed}", {"cell": asdict(replace(cell, row=row).sealed())})

    def _write(self, name: str, content: dict[str, Any]) -> bool:
        write_json(self.protocol.folder / f"{name}.json", {"protocol": self.protocol.conditions, **content})
        return True

    def _key(self, row: str, seed: int) -> tuple[str, str, int]:
        protocol = self.protocol
        if row in protocol.objectives:
            return "", cell_recipe(protocol, row, seed).hash, seed
        return row, weights_hash(protocol, row), seed

    def _add(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            if cell.error is None:
                name = "" if cell.kind == "objective" else cell.row
                self.cells.setdefault((name, cell.recipe_hash or "", cell.seed), cell)

    def _from_results(self, results: Results, file: Path) -> None:
        if difference := first_difference(self.protocol.text, results.protocol.text, but=SEEDS):
            raise UserError(
                f"{file} holds results of another protocol",
                where=self.protocol.name,
                why=difference,
                fix="name another file, or move this one away",
            )
        self._add(results.cells)
        self.health = self.health or results.health

    def _from_cell(self, file: Path) -> None:
        """A cell's own file; what cannot be read, or was changed, is another protocol's business."""
        try:
            plain = read_json(file)
            if plain["protocol"] != self.protocol.conditions:
                return
            if "health" in plain:
                self.health = self.health or read_health(plain["health"], str(file))
            else:
                self._add([read_cell(plain["cell"], str(file))])
        except (OSError, ValueError, DataError, KeyError, TypeError, AttributeError):
            return
