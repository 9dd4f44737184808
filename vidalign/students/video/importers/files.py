"""Checkpoint files of every form, read tensor by tensor: `.pt` (zip and legacy), safetensors, shards, diffusers
folders.

Files are mapped into memory and opened anew after every `WINDOW` bytes, so that pages that were read do not add up: a
file of 28 GB takes no more memory than one of 4. A legacy `.pt` (torch before 1.6) cannot be mapped, see `legacy`.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from vidalign.errors import CheckpointError, first_line
from vidalign.reading import read_json
from vidalign.students.streamed import CODES, INDEX, Entry
from vidalign.students.video.importers.inert import allow_list
from vidalign.students.video.importers.legacy import LegacyFile
from vidalign.tensor_header import read_header

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
WINDOW = 2**28
"""Bytes read before a file is opened anew."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt")
NAMES = {code: name.removeprefix("torch.") for name, code in CODES.items()}
SHOWN = 8
NOT_SAVED = "it is truncated, or not a file of torch.save"


class Checkpoint(ABC):
    """The weights in files: what there is, and the tensors one after the other."""

    def __init__(self, where: str, metadata: Mapping[str, str]) -> None:
        self.where = where
        self.metadata = dict(metadata)
        self.entries: dict[str, Entry] = {}

    @abstractmethod
    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of these names, in this order."""


class Safetensors(Checkpoint):
    """One file, or shards."""

    def __init__(self, files: Sequence[Path], where: str) -> None:
        super().__init__(where, {})
        self._homes: dict[str, Path] = {}
        for file in files:
            _check_start(file)
            try:
                header = read_header(file)
                self.metadata |= header.metadata
                for name, entry in header.entries.items():
                    self.entries[name] = Entry(entry.shape, getattr(torch, NAMES[entry.dtype]))
                    self._homes[name] = file
            except (SafetensorError, OSError, KeyError) as error:
                raise _unreadable(file, str(error)) from error

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        for group in _windows(names, self.entries):
            for file in dict.fromkeys(self._homes[name] for name in group):
                with safe_open(file, "pt") as opened:
                    for name in group:
                        if self._homes[name] == file:
                            yield name, opened.get_tensor(name)


class Pickled(Checkpoint):
    """A file of `torch.save`; of the dictionaries in it, the one with the weights."""

    def __init__(self, file: Path, keys: Sequence[str], key: str) -> None:
        super().__init__(str(file), {})
        self.file, self.keys, self.key = file, keys, key
        _check_start(file)
        self.mapped = zipfile.is_zipfile(file)
        self._legacy = None if self.mapped else self._safely(lambda: LegacyFile(file))
        self.entries = {name: Entry(tuple(x.shape), x.dtype) for name, x in self._weights().items()}

    def tensors(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        for group in _windows(names, self.entries):
            weights = self._weights()
            for name in group:
                value = weights.pop(name)
                yield name, self._legacy.read(value) if self._legacy else value
            del weights

    def _weights(self) -> dict[str, Tensor]:
        content = self._legacy.content if self._legacy else self._safely(self._mapped)
        return _chosen(content, self.keys, self.key, self.where)

    def _mapped(self) -> Any:
        return torch.load(self.file, map_location="cpu", weights_only=True, mmap=True)

    def _safely(self, read: Callable[[], T]) -> T:
        """What `read` gives, with the allow-list; its errors are ours."""
        try:
            with torch.serialization.safe_globals(allow_list()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about the types of old storages
                return read()
        except pickle.UnpicklingError as error:
            raise _refused(self.file, str(error)) from error
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            raise _unreadable(self.file, first_line(error) if self.mapped else NOT_SAVED) from error


def open_checkpoint(path: Path, keys: Sequence[str] = (), key: str = "") -> Checkpoint:
    """The weights in a file or folder.

    keys: where a `.pt` file may hold them, in order of preference; key: where it does. A folder is one of diffusers
    (its `transformer` is taken), or holds one checkpoint file, or shards with their index. Raises `CheckpointError`.
    """
    if path.is_dir():
        return open_checkpoint(_file_in(path), keys, key)
    if not path.is_file():
        fix = "name a file, a folder, or a hub id OWNER/NAME"
        raise CheckpointError("no such checkpoint", where=str(path), fix=fix)
    if path.name.endswith(".index.json"):
        return _shards(path)
    if path.suffix == ".safetensors":
        if key:
            why = "a safetensors file has none"
            raise CheckpointError(f"no key {key!r} in the checkpoint", where=str(path), why=why)
        return Safetensors([path], str(path))
    if path.suffix in PICKLES:
        return Pickled(path, keys, key)
    raise CheckpointError(
        f"a checkpoint is not read from {path.name!r}",
        where=str(path),
        fix=f"one of .safetensors, {', '.join(PICKLES)}",
    )


def _file_in(folder: Path) -> Path:
    """The checkpoint in a folder: its index, or its only file."""
    if (folder / "transformer").is_dir():
        folder = folder / "transformer"
    indices = sorted(folder.glob(f"*{INDEX}"))
    found = indices or sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", *PICKLES))
    if len(found) != 1:
        names = ", ".join(p.name for p in found[:SHOWN]) or "none"
        raise CheckpointError(
            f"{folder} does not hold one checkpoint",
            where=str(folder),
            why=f"checkpoint files there: {names}",
            fix="name the file itself",
        )
    return found[0]


def _shards(index: Path) -> Checkpoint:
    try:
        places = {str(k): str(v) for k, v in read_json(index)["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(index, f"its weight_map: {error}") from error
    files = [index.parent / name for name in dict.fromkeys(places.values())]
    for file in files:
        if not file.is_file():
            raise CheckpointError(
                f"the shard {file.name} is missing", where=str(index), fix="download the whole folder again"
            )
    opened = Safetensors(files, str(index))
    if missing := sorted(places.keys() - opened.entries.keys()):
        raise _unreadable(index, f"{missing[0]!r} is in no shard")
    return opened


def _windows(names: Sequence[str], entries: Mapping[str, Entry]) -> Iterator[list[str]]:
    """Names in groups of about `WINDOW` bytes."""
    group: list[str] = []
    size = 0
    for name in names:
        group.append(name)
        size += entries[name].size
        if size >= WINDOW:
            yield group
            group, size = [], 0
    if group:
        yield group


def _chosen(content: Any, keys: Sequence[str], key: str, where: str) -> dict[str, Tensor]:
    """The state dict inside a checkpoint: under `key`, or under the first of `keys` that is not empty (averages that
    have not begun are), or the checkpoint itself."""
    if not isinstance(content, dict):
        raise CheckpointError(
            f"the checkpoint holds a {type(content).__name__}, not a dictionary of tensors",
            where=where,
            why="weights are looked up by their names",
            fix="save the state dict of the generator with torch.save",
        )
    if key:
        for part in key.split("."):
            if not isinstance(content, dict) or part not in content:
                known = ", ".join(map(str, list(content)[:SHOWN])) if isinstance(content, dict) else "nothing"
                raise CheckpointError(f"no key {key!r} in the checkpoint", where=where, why=f"there are {known}")
            content = content[part]
    while inner := next((x for name in keys if isinstance(x := content.get(name), dict) and x), None):
        content = inner
    flat = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, dict) else {}
    if not flat:
        listed = ", ".join(map(str, list(content)[:SHOWN])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            "no weights in the checkpoint",
            where=where,
            why=f"looked for {', '.join(keys) or 'tensors'}, there are {listed or 'no entries'}",
            fix="name the part that holds them with --key",
        )
    return flat


def _check_start(file: Path) -> None:
    """Raises `CheckpointError` for a file that its first bytes show to be something else."""
    with file.open("rb") as opened:
        start = opened.read(512)
    why, text = "", start.lstrip().lower()
    if not start:
        why = "the file is empty"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        why = "it is an HTML page: the address of a page was downloaded, not that of the file"
    elif start.startswith(b"version https://git-lfs"):
        why = "it is a pointer of Git LFS, not the file itself: run `git lfs pull`, or use `hf download`"
    elif text.startswith(b"{") and file.suffix != ".json":
        why = "it is JSON text"
    elif start.startswith(b"PK") and not zipfile.is_zipfile(file):
        why = "it is truncated: the end of the archive is missing"
    if why:
        raise _unreadable(file, why)


def _unreadable(file: Path, why: str) -> CheckpointError:
    return CheckpointError("unreadable checkpoint", where=str(file), why=why, fix="download or write it again")


def _refused(file: Path, message: str) -> CheckpointError:
    """The error of a pickle that torch's safe loader refuses; torch's own message advises to switch safety off."""
    names = sorted(set(re.findall(r"GLOBAL ([\w.]+)", message))) or sorted(
        set(re.findall(r"(?:function|class) ([\w.]+)", message))
    )
    if not names and "truncated" not in message and re.search(r"Unsupported operand|ran out of|persistent", message):
        return _unreadable(file, NOT_SAVED)
    what = f"it names {', '.join(names)}" if names else "its pickle does more than hold tensors"
    return CheckpointError(
        "the checkpoint holds code and is not read",
        where=str(file),
        why=f"{what}: loading that would run what its author wrote",
        fix="take the safetensors file of the same weights, or ask its author for a file with the state dict alone",
    )
