"""Files of the Hugging Face hub: what an id means, and what to say when the hub cannot be reached."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vidalign.errors import CheckpointError, first_line
from vidalign.students.language_config import is_hub_name

DESCRIPTION = "vidalign.json"
"""What makes a folder that of a student: its specification but the network's configuration."""
STUDENT = [DESCRIPTION, "transformer/config.json"]
WEIGHTS = [*STUDENT, "transformer/*.safetensors", "transformer/*.json"]
CHECKPOINTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")

_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[\w.-]*\w")


def is_hub_id(name: str) -> bool:
    """Whether a text is OWNER/NAME, and no path or shipped name."""
    return (
        is_hub_name(name) and bool(_ID.fullmatch(name)) and not Path(name).exists() and not name.endswith(CHECKPOINTS)
    )


def is_student_folder(path: str | Path) -> bool:
    """Whether a path is the folder of a student; a hub id is one when what is known of it says so."""
    return (Path(path) / DESCRIPTION).is_file() or (is_hub_id(str(path)) and cached(str(path), DESCRIPTION) is not None)


def report_idle_adapter(path: str | Path) -> None:
    """Warn where the folder of a student holds an adapter beside the weights, which are read without it."""
    if is_student_folder(path) and (Path(path) / "adapter" / "adapter_config.json").is_file():
        what = f"the adapter in {path}/adapter is not used: student.adapter.start goes on from it"
        warnings.warn(f"{what}, `vidalign import` without --keep-lora merges it", stacklevel=3)


def cached(repository: str, file: str) -> Path | None:
    """A file of a repository, if it is on this machine already; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file)
    return Path(found) if isinstance(found, str) else None


def look_up(name: str) -> None:
    """Fetch the description of a student on the hub, if the repository has one: then `is_student_folder` knows it. A
    repository that has none, or cannot be reached, is left to those who read weights there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if is_hub_id(name) and cached(name, DESCRIPTION) is None:
        with suppress(EntryNotFoundError, *network_errors()):
            hf_hub_download(name, DESCRIPTION)


def checkpoint_file(name: str) -> Path:
    """The file or folder that an id means: OWNER/NAME/FILE, or OWNER/NAME for a repository with diffusers weights."""
    from huggingface_hub import hf_hub_download

    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if file:
        with _reaching(name):
            return Path(hf_hub_download(f"{owner}/{repository}", file))
    folder = repository_folder(name, WEIGHTS)
    if (folder / "transformer").is_dir():
        return folder  # the other parts of a pipeline stay where they are
    return repository_folder(name, ["*.safetensors", "*.index.json"])


def student_folder(name: str, *, weights: bool) -> Path:
    """The folder of a student on the hub, downloaded where it is not on this machine.

    weights: with them; else its description alone. Raises `CheckpointError` for a repository that cannot be reached or
    holds no student, with the command that imports the checkpoints in it.
    """
    folder = repository_folder(name, WEIGHTS if weights else STUDENT)
    if not (folder / DESCRIPTION).is_file():
        raise not_imported(name, _listed(name))
    return folder


def not_imported(where: str, files: Sequence[str]) -> CheckpointError:
    """The error of a public checkpoint that stands where a student is expected."""
    source = f"{where}/{files[0]}" if files else where
    return CheckpointError(
        "this is a public checkpoint, not a student of vidalign",
        where=where,
        why="it carries no specification: its cache policy and sampler are not written in it"
        + (f"; files there: {', '.join(files[:4])}" if files else ""),
        fix=f"run `vidalign import PRESET --checkpoint {source} --out DIR`, then name DIR "
        "(`vidalign list presets`), see docs/real_students.md",
    )


def _listed(name: str) -> list[str]:
    """The checkpoint files of a repository."""
    from huggingface_hub import HfApi

    with _reaching(name):
        return [file for file in HfApi().list_repo_files(name) if file.endswith(CHECKPOINTS)]


def repository_folder(name: str, patterns: list[str], revision: str = "main") -> Path:
    """The folder into which the files of these patterns are downloaded, where they are not on this machine.

    Raises `CheckpointError` for a repository that cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with _reaching(name):
        return Path(snapshot_download(name, allow_patterns=patterns, revision=revision))


def network_errors() -> tuple[type[Exception], ...]:
    """What a call of the hub raises when a name is wrong or it is not reached: its own, and those of the client
    below."""
    from huggingface_hub.errors import HfHubHTTPError

    names = ("HTTPError", "RequestException", "OSError")
    return (ValueError, *(cls for cls in HfHubHTTPError.__mro__ if cls.__name__ in names))


@contextmanager
def _reaching(name: str) -> Iterator[None]:
    """Whatever goes wrong with the hub is one clear error."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        yield
    except RepositoryNotFoundError as error:
        why, fix = "there is no such repository, or it is private", "correct the name, or log in with `hf auth login`"
        raise CheckpointError("not on the hub", where=name, why=why, fix=fix) from error
    except network_errors() as error:
        reason = first_line(error)[:120]
        why = f"it is not on this machine, and the hub cannot be reached: {reason}"
        fix = f"download it where there is a network with `hf download {name}`, or name a local folder"
        raise CheckpointError("a hub id cannot be read", where=name, why=why, fix=fix) from error
