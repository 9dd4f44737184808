"""Data sets of the hub, of a folder, or saved on disk: ``NAME``, ``NAME:SPLIT`` or ``NAME:CONFIG:SPLIT``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vidalign.data.rows import ListedRows, Row, Rows, format_of, is_saved, saved, unreadable, written_rows
from vidalign.errors import DataError, nearest
from vidalign.quiet import no_bars

WRITTEN = ("csv", "json")
"""Loaders of `datasets` that guess types; their files are read by `vidalign.data.rows`."""


def named(source: str) -> tuple[str, str | None, str]:
    """(name, configuration, split) of a source text; the split is ``train`` unless given."""
    name, *rest = re.split(r":(?![^\[]*\])", source)  # a split may be train[10:20]
    if len(rest) > 2 or not name:
        raise DataError(
            f"{source!r} names no data set", where="datasets", fix="write datasets:NAME:SPLIT or NAME:CONFIG:SPLIT"
        )
    return name, rest[0] if len(rest) == 2 else None, (rest[-1] if rest else "") or "train"


def load(source: str) -> Rows:
    """All rows of a data set; `DataError` for what cannot be read."""
    name, config, split = named(source)
    if is_saved(name):
        return _split_of(saved(name), split, f"datasets:{source}")
    builder = _builder(source, name, config)
    files = _written(builder, split)
    try:
        if files is not None:
            return _sliced(builder, files, split)
        import datasets

        with no_bars("datasets"):
            rows: Rows = datasets.load_dataset(name, config, split=split)
    except DataError:
        raise
    except Exception as error:  # downloads, builders and decoders raise what they like
        raise unreadable(f"datasets:{source}", error) from error
    return rows


def stream(source: str) -> Any:
    """The rows as a `datasets.IterableDataset`, read as they are needed; `DataError` for what cannot be read."""
    import datasets

    name, config, split = named(source)
    where = f"datasets:{source}"
    if is_saved(name):
        rows: Any = _split_of(saved(name), split, where)
        return rows.to_iterable_dataset()
    builder = _builder(source, name, config)
    files = _written(builder, split)
    if files is None:
        try:
            return datasets.load_dataset(name, config, split=split, streaming=True)
        except Exception as error:  # as in `load`
            raise unreadable(where, error) from error
    if split not in files:
        raise _no_split(split, list(files), where)
    return datasets.IterableDataset.from_generator(_rows_of, gen_kwargs={"files": list(files[split])})


def _rows_of(files: list[str]) -> Iterator[Row]:
    for file in files:
        yield from written_rows(file, file)


def _builder(source: str, name: str, config: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset_builder(name, config)
    except Exception as error:  # as in `load`
        raise unreadable(f"datasets:{source}", error) from error


def _written(builder: Any, split: str) -> dict[str, list[str]] | None:
    """The files of every split where strings could be taken for something else; None for other formats."""
    files = builder.config.data_files
    if builder.__module__.split(".")[-1] not in WRITTEN or not files:
        return None
    known = {str(name): [str(file) for file in part] for name, part in files.items()}
    return known if all(format_of(file.partition("::")[0]) for part in known.values() for file in part) else None


def _sliced(builder: Any, files: dict[str, list[str]], split: str) -> Rows:
    """The rows of a split, or of a part of one such as ``train[:10%]``."""
    import datasets

    name = split.partition("[")[0]
    if name not in files:
        raise _no_split(split, list(files), builder.repo_id or str(builder.base_path))
    local = datasets.DownloadManager().download(files[name])
    pairs = zip(local, files[name], strict=True)
    rows = [row for path, file in pairs for row in written_rows(path, file)]
    chosen = _places(split, name, len(rows))
    return ListedRows(rows[chosen.start : chosen.stop])


def _places(split: str, name: str, count: int) -> range:
    """Which of the `count` rows of the split `name` are meant by ``train`` or by a part such as ``train[:10%]``."""
    import datasets

    (part,) = datasets.ReadInstruction.from_spec(split).to_absolute({name: count})
    return range(part.from_, part.to)


def _split_of(data: Any, split: str, where: str) -> Rows:
    """One split of what was saved; a data set that was saved alone is the split ``train``."""
    splits = {"train": data} if isinstance(data.column_names, list) else dict(data)
    name = split.partition("[")[0]
    if name not in splits:
        raise _no_split(split, list(splits), where)
    rows: Any = splits[name]
    part: Rows = rows if name == split else rows.select(_places(split, name, len(rows)))
    return part


def _no_split(split: str, known: list[str], where: str) -> DataError:
    close = nearest(split, known)
    return DataError(
        f"there is no split {split!r}",
        where=where,
        why=f"splits: {', '.join(known)}",
        fix=f"did you mean {close!r}?" if close else "name one of them",
    )
