"""The contract of a prompt source, and how a recipe's text such as ``world:train`` finds one.

A source is a plugin (kind ``prompts``) that is chosen by ``NAME:ARGUMENT``; a path without a name chooses by its
suffix: a table (`vidalign.data.tables`) or a text file (`vidalign.data.prompts`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vidalign import registry
from vidalign.errors import DataError

if TYPE_CHECKING:
    import torch

TABLES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
"""Formats of table files, as `datasets` calls them, by suffix."""


class PromptSource(ABC):
    """What sample n of a run is asked: a caption (video students), or an `Example` (language students).

    Sample n is a pure function of the seed and n: the same on any number of processes and after a resume.
    """

    students: ClassVar[tuple[str, ...]] = ("video",)
    """Kinds of student that it has prompts for."""
    judges: ClassVar[dict[str, dict[str, Any]]] = {}
    """Metrics, with their settings, that know what is right for its prompts; none where nobody does."""
    version: ClassVar[str] = ""
    """Changes when its prompts or what its judges say of them change; part of what results are comparable by."""

    @classmethod
    def listed(cls, argument: str) -> list[str] | None:
        """Every prompt, where these can be listed without cost; else None.

        Raises `DataError` when the argument names nothing that can be used.
        """
        return None

    @classmethod
    def placed(cls, argument: str) -> Iterator[tuple[str, Any]]:
        """(place, prompt or example) of all that can be read without cost, for messages."""
        return ((f"{argument}:{n}", prompt) for n, prompt in enumerate(cls.listed(argument) or (), start=1))

    @classmethod
    @abstractmethod
    def open(cls, argument: str, seed: int, batch: int = 1, privilege: str = "none") -> PromptSource:
        """The source as a run sees it.

        batch: neighbouring samples that are distinct where the source has enough; privilege: which privileged text
        its examples carry, where it can choose. Raises `DataError` as `listed` does.
        """

    @classmethod
    def out_of_domain(cls, argument: str) -> str:
        """The source text of prompts that training on `argument` never shows; '' where none is known."""
        return ""

    @abstractmethod
    def __getitem__(self, sample: int) -> Any: ...

    def __len__(self) -> int:
        """Number of distinct samples. Raises `TypeError` where there is no end."""
        raise TypeError(f"{type(self).__name__} has no end")

    def questions(self) -> Iterator[tuple[str, Any]]:
        """(place, prompt) of every sample, where these can be read only once the source is open."""
        return iter(())

    def first(self, count: int) -> list[Any]:
        """The first `count` samples, for evaluation; each once where the source has an end."""
        return [self[n] for n in range(count)]

    def truth(self, prompts: Sequence[str], generators: Sequence[torch.Generator], frames: int) -> torch.Tensor | None:
        """Ground-truth clips ``[B, F, 3, H, W]`` in [0, 1] of its prompts; None where the source has none."""
        return None

    def describe(self, clips: torch.Tensor, prompts: Sequence[str]) -> list[str] | None:
        """A prompt for what every clip ``[B, F, 3, H, W]`` shows, whatever was asked; None where it cannot say."""
        return None

    def examine(self, prompts: Sequence[str], metrics: Sequence[Any], settings: Any) -> dict[str, Any] | None:
        """Are its judges fit to judge? For benchmarks; see `vidalign.worlds.video.health`. None without an answer."""
        return None


def find_source(text: str) -> tuple[type[PromptSource], str]:
    """The source that a recipe means, and its argument."""
    name, colon, argument = text.partition(":")
    if colon and name in registry.names("prompts"):
        return registry.get("prompts", name), argument
    return registry.get("prompts", "table" if Path(text).suffix in TABLES else "text"), text


def open_source(text: str, seed: int, batch: int = 1, privilege: str = "none") -> PromptSource:
    """The prompts of a recipe's text; raises `DataError` for what cannot be used."""
    kind, argument = find_source(text)
    return kind.open(argument, seed, batch, privilege)


def listed(text: str) -> list[str] | None:
    """See `PromptSource.listed`."""
    kind, argument = find_source(text)
    return kind.listed(argument)


def check_kind(text: str, student: str) -> None:
    """Raises `DataError` when a source has no prompts for a kind of student."""
    kind, _ = find_source(text)
    if student not in kind.students:
        raise DataError(
            f"a {student} student cannot use {text!r}",
            why=f"its prompts are for students of kind {', '.join(kind.students)}",
            fix="use world:SPLIT or a text file with one prompt a line" if student == "video" else
            "use tokens:SPLIT, pictures:SPLIT or a table",
        )  # fmt: skip
