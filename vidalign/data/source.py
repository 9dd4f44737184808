"""The contract of a prompt source, and how a recipe's text such as ``world:train`` finds one.

A source is a plugin (kind ``prompts``) that is chosen by ``NAME:ARGUMENT``. A path without a name chooses by its
suffix: a table (`vidalign.data.tables`, for captions `vidalign.data.captions`) or a text file
(`vidalign.data.prompts`). The long form is a mapping with
``name``, the argument under the name that the source gives it, and its further settings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vidalign import registry
from vidalign.data.rows import format_of, is_saved
from vidalign.errors import DataError

if TYPE_CHECKING:
    import torch

Chosen = str | dict[str, Any]
"""Prompts as a recipe names them: ``tokens:train``, or ``{name: tokens, split: train, privilege: hints}``."""


class PromptSource(ABC):
    """The prompt of sample n of a run: a caption, or an `Example` (language students).

    Sample n is a pure function of the seed and n: the same on any number of processes and after a resume.
    """

    argument: ClassVar[str] = "path"
    """What the long form calls the argument of the short form. Further settings are those of a nested dataclass
    ``Config``, which has the argument too; they are handed to `open` by name."""
    gives: ClassVar[Literal["captions", "examples"]] = "captions"
    """What a sample is: a text that says what to show, or an `Example`; students take one or the other."""
    as_captions: ClassVar[str] = ""
    """Of a source of examples: the source that gives the same prompts as captions; '' where there is none."""
    brings_pictures: ClassVar[bool] = False
    """Whether every sample brings pictures: only students that see them can take them."""
    judges: ClassVar[dict[str, dict[str, Any]]] = {}
    """Metrics, with their settings, that have the right answers for its prompts; none where there are none."""
    version: ClassVar[str] = ""
    """Changes when its prompts or what its judges say of them change; part of what results are comparable by."""

    @classmethod
    def listed(cls, argument: str, **settings: Any) -> list[str] | None:
        """Every prompt, where these can be listed without cost; else None.

        settings: those of the source that are not the argument. Raises `DataError` when the argument names nothing that
        can be used.
        """
        return None

    @classmethod
    def placed(cls, argument: str, **settings: Any) -> Iterator[tuple[str, Any]]:
        """(place, prompt or example) of all that can be read without cost, for messages; settings as for `listed`."""
        return ((f"{argument}:{n}", prompt) for n, prompt in enumerate(cls.listed(argument, **settings) or (), start=1))

    @classmethod
    @abstractmethod
    def open(cls, argument: str, seed: int, batch: int = 1) -> PromptSource:
        """The source as a run sees it.

        batch: neighbouring samples that are distinct where the source has enough. A source with settings takes them as
        further arguments with defaults. Raises `DataError` as `listed` does.
        """

    @classmethod
    def family(cls, prompt: Any) -> str:
        """The kind of a prompt or example, by which benchmarks give tables of their own; '' where there is none.

        A handful of families at most: each needs some prompts among those of a protocol.
        """
        return str(getattr(prompt, "family", ""))

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
        """A prompt for what every clip ``[B, F, 3, H, W]`` shows, whatever its prompt; None if not describable."""
        return None

    def examine(self, prompts: Sequence[str], metrics: Sequence[Any], settings: Any) -> dict[str, Any] | None:
        """Are its judges fit to judge? For benchmarks; see `vidalign.worlds.health`. None without an answer."""
        return None


def find_source(chosen: Chosen) -> tuple[type[PromptSource], str]:
    """The source that a recipe means, and its argument."""
    name, settings = spelled_out(chosen)
    kind = registry.get("prompts", name)
    return kind, str(settings.get(kind.argument, ""))


def spelled_out(chosen: Chosen) -> tuple[str, dict[str, Any]]:
    """Name of a source and its settings."""
    if not isinstance(chosen, str):
        settings = dict(chosen)
        return str(settings.pop("name", "")), settings
    name, colon, argument = chosen.partition(":")
    if not colon or name not in registry.names("prompts"):
        name, argument = "table" if format_of(chosen) or is_saved(chosen) else "text", chosen
    return name, {getattr(registry.get("prompts", name), "argument", "path"): argument}


def shortened(chosen: Chosen) -> Chosen:
    """The text that means the same, where all settings but the argument have their defaults."""
    if isinstance(chosen, str):
        return chosen
    name, settings = spelled_out(chosen)
    kind = registry.get("prompts", name)
    usual = {f.name: _default(f) for f in fields(kind.Config)} if hasattr(kind, "Config") else {}
    if any(key != kind.argument and (key not in usual or usual[key] != value) for key, value in settings.items()):
        return chosen
    argument = str(settings.get(kind.argument, ""))
    short = argument if name in ("text", "table") else f"{name}:{argument}"
    return short if spelled_out(short) == (name, {kind.argument: argument}) else chosen


def _default(setting: Field[Any]) -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def open_source(chosen: Chosen, seed: int, batch: int = 1) -> PromptSource:
    """The prompts that a recipe names; raises `DataError` for what cannot be used."""
    kind, argument = find_source(chosen)
    opened: Any = kind.open
    source: PromptSource = opened(argument, seed, batch, **_own(chosen, kind))
    return source


def completed(chosen: Chosen, gives: str, **usual: Any) -> Chosen:
    """Prompts as a recipe means them: those of a source that gives ``captions`` or ``examples``, and with the settings
    of all sources, `usual`, where the source has them and the recipe gives it none of its own."""
    name, settings = spelled_out(chosen)
    kind = registry.get("prompts", name)
    if gives == "captions" and kind.as_captions:
        kind, name = registry.get("prompts", kind.as_captions), kind.as_captions
    known = {f.name for f in fields(kind.Config)} if hasattr(kind, "Config") else set()
    added = {key: value for key, value in usual.items() if value and key in known and key not in settings}
    unchanged = name == spelled_out(chosen)[0] and not added
    return chosen if unchanged else {"name": name, **settings, **added}


def _own(chosen: Chosen, kind: type[PromptSource]) -> dict[str, Any]:
    """The settings of a source but its argument."""
    return {key: value for key, value in spelled_out(chosen)[1].items() if key != kind.argument}


def listed(chosen: Chosen) -> list[str] | None:
    """See `PromptSource.listed`."""
    kind, argument = find_source(chosen)
    return kind.listed(argument, **_own(chosen, kind))


def placed(chosen: Chosen) -> Iterator[tuple[str, Any]]:
    """See `PromptSource.placed`."""
    kind, argument = find_source(chosen)
    return kind.placed(argument, **_own(chosen, kind))


SOURCES = {
    "captions": "use world:SPLIT, events:SPLIT, a text file with one prompt a line, or a table",
    "examples": "use tokens:SPLIT, rules:SPLIT, pictures:SPLIT or a table",
}
"""Which sources give what."""


def check_gives(chosen: Chosen, student: str, takes: str) -> None:
    """Raises `DataError` when a source gives other prompts than those that a kind of student takes."""
    kind, argument = find_source(chosen)
    if kind.gives != takes:
        shown = chosen if isinstance(chosen, str) else f"{chosen.get('name')}:{argument}"
        why = f"it gives {kind.gives}, and the student takes {takes}"
        raise DataError(f"a {student} student cannot use {shown!r}", why=why, fix=SOURCES[takes])
