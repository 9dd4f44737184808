"""Random access to rows that come one after the other, in an order that the seed decides."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from vidalign.data.rows import Row, unreadable
from vidalign.errors import DataError

WINDOW = 1000
"""Rows among which the next one is drawn."""
KEPT = 1024
"""Rows behind the newest that are still held: the samples of a step may be asked for in any order."""


class Stream:
    """Row n of a `datasets.IterableDataset`, epoch after epoch, each in an order of its own.

    Row n depends on the seed and n only. Asking for a later one reads what lies between; for one that is no longer
    held, it reads again from the beginning, as a run does that is resumed.
    """

    def __init__(self, rows: Any, seed: int, where: str) -> None:
        self.rows, self.where = rows, where
        self.shuffled = rows.shuffle(seed=seed, buffer_size=WINDOW)
        self._begin()

    def first(self, count: int) -> list[Row]:
        """The first rows in their own order; `DataError` when there is none or one cannot be read."""
        rows = [row for _, row in zip(range(count), self._checked(self.rows), strict=False)]
        if count and not rows:
            raise DataError("the data hold no row", where=self.where, fix="write one question a row")
        return rows

    def __getitem__(self, sample: int) -> Row:
        if sample < self.next - len(self.held):
            self._begin()
        while self.next <= sample:
            self.held.append(next(self.iterator))
            self.next += 1
        return self.held[sample - self.next]

    def _begin(self) -> None:
        self.iterator, self.next = self._forever(), 0
        self.held: deque[Row] = deque(maxlen=KEPT)

    def _forever(self) -> Iterator[Row]:
        epoch = 0
        while True:
            self.shuffled.set_epoch(epoch)
            yield from self._checked(self.shuffled)
            epoch += 1

    def _checked(self, rows: Any) -> Iterator[Row]:
        try:
            yield from rows
        except DataError:
            raise
        except Exception as error:  # downloads and decoders raise what they like
            raise unreadable(self.where, error) from error
