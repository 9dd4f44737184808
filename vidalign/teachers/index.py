"""The clips of a folder, a tar file or a table, keyed by prompt; nothing is decoded.

The prompt of a file stands in ``metadata.jsonl`` or ``metadata.csv`` (columns ``file_name`` and ``prompt`` or
``caption``; the layouts of a `datasets` video folder). Else it stands beside the file in ``NAME.txt``, else in the
metadata of a safetensors file, else in its name. In a tar file it stands in ``KEY.txt`` or ``KEY.json``, as
webdataset writes it.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidalign.data.columns import PROMPT
from vidalign.data.paths import inside
from vidalign.data.rows import is_saved, placed_rows
from vidalign.errors import DataError, first_line
from vidalign.reading import regular
from vidalign.teachers.clip_table import table_entries
from vidalign.teachers.clips import EXTENSIONS, Entry
from vidalign.tensor_header import read_header

LISTS = ("metadata.jsonl", "metadata.csv")
"""Files that name the clips of their folder; the first that is there counts."""
PROMPTS = (*PROMPT, "text")
"""Names of the prompt in such a file, and in a JSON file of a tar."""


@dataclass
class Index:
    """What a store holds."""

    entries: list[Entry] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    """Files that are no clip of the store, with the reason."""

    def described(self) -> str:
        """The unused files with their reasons; empty where there are none."""
        return ", ".join(f"{name} ({reason})" for name, reason in self.unused.items())


def index_clips(path: Path) -> Index:
    """Every clip of a folder, tar file or table; `DataError` when there is none or the prompts are missing."""
    saved = is_saved(str(path))
    if path.is_dir() and not saved:
        index = _folder(path)
    elif path.is_file() and path.suffix.lower() == ".tar":
        index = _tar(path, path.name)
    elif saved or (path.suffix == ".parquet" and path.is_file()):
        index = Index(table_entries(path))
    elif not path.exists():
        raise DataError(f"{str(path)!r} holds no clips", why="there is no such path", fix="check teacher.path")
    else:
        known = "a folder of clips, a tar or parquet file, or a folder that Dataset.save_to_disk wrote"
        raise DataError(f"{str(path)!r} holds no clips", why=f"it is not {known}", fix="check teacher.path")
    if not index.entries:
        why = f"not used: {index.described()}; " if index.unused else ""
        raise DataError(f"{str(path)!r} holds no clips", why=f"{why}known kinds: {', '.join(EXTENSIONS)}")
    return index


# --- folders ---


def _folder(path: Path) -> Index:
    files = sorted(file for file in path.rglob("*") if not file.is_dir())
    table = next((path / name for name in LISTS if (path / name).is_file()), None)
    index = Index()
    for file in files:
        if file.suffix.lower() == ".tar":
            shard = _tar(file, str(file.relative_to(path)))
            index.entries += shard.entries
            index.unused |= shard.unused
    single = [file for file in files if file.suffix.lower() != ".tar"]
    clips = [file for file in single if file.suffix.lower() in EXTENSIONS]
    prompts = _prompts(clips) if table is None else _listed(table)
    if table is not None:
        clips = list(prompts)
    index.entries += [_entry(file, prompts[file], str(file.relative_to(path))) for file in clips]
    used = {*clips, *([table] if table is not None else [file.with_suffix(".txt") for file in clips])}
    for file in single:
        if file not in used:
            index.unused[str(file.relative_to(path))] = _why_not(file, table)
    return index


def _why_not(file: Path, table: Path | None) -> str:
    if file.suffix.lower() in EXTENSIONS:
        assert table is not None, "every clip is used where no table names them"
        return f"{table.name} does not name it"
    if table is not None and file.name in LISTS:
        return f"{table.name} names the clips"
    return "there is no clip of its name" if file.suffix == ".txt" else f"{file.suffix or 'it'} is no kind of clip"


def _listed(table: Path) -> dict[Path, str]:
    """The prompt of every file that a table names."""
    prompts = {}
    for place, row in placed_rows(str(table), str(table)):
        name, prompt = row.get("file_name"), next((row[key] for key in PROMPTS if row.get(key)), None)
        try:
            if not isinstance(name, str) or not isinstance(prompt, str) or not prompt.strip():
                raise ValueError(f"it has no file_name or no prompt: {str(row)[:80]}")
            prompts[inside(table.parent, name)] = prompt.strip()
        except ValueError as error:
            raise DataError(
                f"a line of {table.name} cannot be used",
                where=place,
                why=str(error),
                fix="give every clip a file_name and a prompt",
            ) from error
    return prompts


def _prompts(files: list[Path]) -> dict[Path, str]:
    """From the text beside a file, the metadata of a safetensors file, or the name."""
    named = prompts_by_name(file.stem for file in files)
    return {file: _text_beside(file) or _inside_of(file) or named[file.stem] for file in files}


def _text_beside(file: Path) -> str:
    text = file.with_suffix(".txt")
    if not text.is_file():
        return ""
    try:
        caption = " ".join(text.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("a caption cannot be read", where=str(text), why=first_line(error)) from error
    if not caption:
        raise DataError("a caption is empty", where=str(text), fix="write the prompt of the clip, or delete the file")
    return caption


def _inside_of(file: Path) -> str:
    if file.suffix != ".safetensors":
        return ""
    from safetensors import SafetensorError

    try:
        return read_header(file).metadata.get("prompt", "")
    except (OSError, SafetensorError):
        return ""  # reading it will say why


def prompts_by_name(stems: Iterable[str]) -> dict[str, str]:
    """The prompt that each name stands for: the name itself, or what stands before the number of a clip.

    ``PROMPT-N`` counts the clips of a prompt where ``PROMPT-0`` is among the names, or where the numbers are 1 to k and
    either k is above 1 or ``PROMPT`` itself is there. So a lone ``model t-1000`` keeps its number. Numbers with leading
    zeros are none.
    """
    stems = set(stems)
    numbers: dict[str, set[int]] = {}
    parts = {stem: re.fullmatch(r"(.+)-(0|[1-9]\d*)", stem, re.DOTALL) for stem in stems}
    for match in filter(None, parts.values()):
        numbers.setdefault(match[1], set()).add(int(match[2]))
    counted = {
        base
        for base, found in numbers.items()
        if 0 in found or (max(found) == len(found) and (len(found) > 1 or base in stems))
    }
    return {stem: (m[1] if (m := parts[stem]) and m[1] in counted else stem).strip() for stem in stems}


def _entry(file: Path, prompt: str, name: str) -> Entry:
    return Entry(prompt, name, file.suffix.lower(), lambda: file)


# --- tar files ---


def _tar(file: Path, name: str) -> Index:
    """The clips of a tar file as webdataset writes it: members of one key belong together."""
    try:
        with tarfile.open(regular(file), "r:") as opened:
            members = [member for member in opened if member.isfile()]
            keys = {member.name: _key(member.name) for member in members}
            captions = dict(_captions(opened, members, name))
    except (OSError, tarfile.TarError, EOFError) as error:
        raise DataError("a tar file cannot be read", where=str(file), why=first_line(error), fix="repair it") from error
    clips = [member for member in members if Path(member.name).suffix.lower() in EXTENSIONS]
    named = prompts_by_name(keys[member.name].rpartition("/")[2] for member in clips)
    index, used = Index(), {keys[member.name] for member in clips}
    for member in members:
        key, kind = keys[member.name], Path(member.name).suffix.lower()
        if member in clips:
            prompt = captions.get(key) or named[key.rpartition("/")[2]]
            load = _part(file, member.offset_data, member.size)
            index.entries.append(Entry(prompt, f"{name}/{member.name}", kind, load, packed=True))
        elif kind not in (".txt", ".json") or key not in used:
            why = "there is no clip of its name" if kind in (".txt", ".json") else f"{kind or 'it'} is no kind of clip"
            index.unused[f"{name}/{member.name}"] = why
    return index


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _captions(opened: tarfile.TarFile, members: list[tarfile.TarInfo], name: str) -> Iterator[tuple[str, str]]:
    """(key, prompt) of every text of a tar file; a .txt file counts before a .json file."""
    for kind in (".json", ".txt"):
        for member in members:
            if Path(member.name).suffix.lower() == kind:
                file = opened.extractfile(member)
                assert file is not None, "only files are members"
                caption = _caption(file.read(), kind, f"{name}: {member.name}")
                if caption:
                    yield _key(member.name), caption


def _caption(data: bytes, kind: str, where: str) -> str:
    try:
        text = data.decode("utf-8-sig")
        if kind == ".txt":
            return " ".join(text.split())
        row: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError("a caption cannot be read", where=where, why=first_line(error), fix="repair it") from error
    found = next((row[key] for key in PROMPTS if row.get(key)), "") if isinstance(row, dict) else ""
    return str(found).strip()


def _part(file: Path, start: int, size: int) -> Callable[[], bytes]:
    """Reads a member of a tar file."""

    def load() -> bytes:
        with file.open("rb") as opened:
            opened.seek(start)
            return opened.read(size)

    return load
