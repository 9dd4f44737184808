"""Files of weights: one safetensors file with the student's specification in its header.

The header alone answers most questions, among them what kind of student it is, and it is read once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError, safe_open

from vidalign import registry
from vidalign.errors import CheckpointError, PluginError, UserError, nearest
from vidalign.owner import replacing
from vidalign.reading import check_object, parse_json
from vidalign.tensor_header import read_header
from vidalign.tensor_writing import save_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vidalign.students.kind import StudentKind


@dataclass(frozen=True)
class Header:
    """What stands in a file before its tensors."""

    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    """Of every tensor, by name."""

    @property
    def spec(self) -> dict[str, Any]:
        """The specification, not checked; raises `KeyError`, `ValueError` or `TypeError` where there is none."""
        return dict(parse_json(self.metadata["spec"]))


def header(path: str | Path) -> Header:
    """The header of a file or of shipped weights. Raises `CheckpointError` for neither, and what reading it raises,
    `SafetensorError` or `OSError`."""
    file = resolve(path)
    state = file.stat()
    return _header(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _header(file: Path, *changed: int) -> Header:
    found = read_header(file)
    return Header(found.metadata, {name: entry.shape for name, entry in found.entries.items()})


def spec_in(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """The specification in a file's metadata; `CheckpointError` where there is none."""
    if "spec" not in metadata:
        raise CheckpointError(
            "no student spec in the file",
            where=where,
            why="its metadata has no key 'spec'",
            fix="save it with `vidalign export`, or import a public checkpoint with a preset",
        )
    with reading_spec(where):
        return check_object(parse_json(metadata["spec"]), {})


def spec_of(path: str | Path) -> dict[str, Any]:
    """The specification in a file of weights, by its header alone; `CheckpointError` where it cannot be read."""
    try:
        return spec_in(header(path).metadata, str(path))
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def kinds() -> dict[str, type[StudentKind[Any, Any]]]:
    """The kinds of student by name, those of vidalign first. A plugin that cannot be imported is left out: it is
    reported when its name is used."""
    names, classes = registry.names("students"), {}
    for name in sorted(names, key=lambda name: names[name] != "vidalign"):
        with suppress(PluginError):
            classes[name] = registry.get("students", name)
    return classes


def kind_of(path: str | Path) -> str:
    """The kind of student that weights are of; `CheckpointError` for weights that no kind takes for its own."""
    from vidalign.students.hub import look_up

    known = kinds()
    look_up(str(path))
    if match := next((name for name, kind in known.items() if kind.recognises(str(path), {})), None):
        return match  # the name of a model elsewhere
    spec = spec_of(path)
    if match := next((name for name, kind in known.items() if kind.recognises(str(path), spec)), None):
        return match
    raise CheckpointError(
        "the weights are of no known kind of student",
        where=str(path),
        why=f"their specification has the keys {', '.join(sorted(spec)) or 'of nothing'}",
        fix=f"load the plugin of that kind; known: {', '.join(known)}",
    )


def unreadable(path: str | Path, error: Exception) -> CheckpointError:
    """The error of a damaged file."""
    return CheckpointError(
        "unreadable weights",
        where=str(path),
        why=f"{error}: half-written or not safetensors",
        fix="write or download the file again",
    )


def write(tensors: dict[str, Tensor], spec: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    """Write beside and rename, so that a half-written file never has the final name."""
    written = {**{k: str(v) for k, v in metadata.items()}, "format": "pt", "spec": json.dumps(spec)}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as partial:
            save_tensors(tensors, partial, metadata=written)
    except (OSError, RuntimeError) as error:
        raise CheckpointError("the student could not be saved", where=str(path), why=str(error)) from error


def resolve(path: str | Path) -> Path:
    """A file, or the shipped weights of that name; CheckpointError naming the shipped names otherwise."""
    if Path(path).is_file():
        return Path(path)
    folder = Path(str(resources.files("vidalign"))) / "weights"
    shipped = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.safetensors"))
    if str(path) in shipped:
        return folder / f"{path}.safetensors"
    near = nearest(str(path), shipped)
    raise CheckpointError(
        "no such weights",
        where=str(path),
        why=f"neither a file nor a shipped name ({shipped})",
        fix=f"did you mean {near!r}?" if near else "",
    )


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; CheckpointError when it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


@contextmanager
def reading_spec(where: str) -> Iterator[None]:
    """Whatever a spec of other types makes go wrong inside is reported with the file's name."""
    try:
        yield
    except (UserError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        raise CheckpointError(
            "the student's spec cannot be read",
            where=where,
            why=f"metadata 'spec': {error}",
            fix="write the file again with `vidalign export`, or take another one",
        ) from error


def load_strict(module: torch.nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy `tensors` into `module`; CheckpointError naming the first key that is missing, unknown or
    misshapen.
    """
    check_tensors(module.state_dict(), tensors, where)
    module.load_state_dict(tensors)


class Shaped(Protocol):
    """A tensor, or what is known of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""


def check_tensors(expected: Mapping[str, Shaped], tensors: Mapping[str, Shaped], where: str) -> None:
    """CheckpointError naming the first key that is missing, unknown or misshapen."""
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        key = (missing or unknown)[0]
        what = f"{len(missing)} keys are missing and {len(unknown)} are unknown, the first is {key!r}"
        raise CheckpointError(what, where=where, fix="the file must be of the same architecture")
    for key, value in tensors.items():
        if value.shape != expected[key].shape:
            shapes = f"found {list(value.shape)}, expected {list(expected[key].shape)}"
            raise CheckpointError(f"wrong shape of {key!r}", where=where, why=shapes)
