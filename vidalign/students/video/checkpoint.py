"""Student weights on disk: one safetensors file with the spec in its metadata."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign.errors import CheckpointError, UserError, nearest
from vidalign.owner import beside
from vidalign.reading import check_object, parse_json
from vidalign.students.video.spec import VideoStudentSpec

SIZES = ("num_layers", "num_attention_heads", "attention_head_dim")
LONGEST = 2**16
"""Most positions of a rotary table."""
LARGEST = 10**8
"""Largest number in the description of a network."""

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.students.video.student import VideoStudent


def save(student: VideoStudent, path: Path, metadata: dict[str, str]) -> None:
    """All weights, adapters merged, with the spec."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in merged(student.transformer).items()}
    write(tensors, student.spec.to_dict(), path, metadata)


def write(tensors: dict[str, Tensor], spec: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    """Write beside and rename, so that a half-written file never has the final name."""
    from safetensors.torch import save_file

    header = {**{k: str(v) for k, v in metadata.items()}, "format": "pt", "spec": json.dumps(spec)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    try:
        save_file(tensors, partial, metadata=header)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError("the student could not be saved", where=str(path), why=str(error)) from error


def merged(transformer: torch.nn.Module) -> dict[str, Tensor]:
    """State dict of the plain network, the active adapter merged into it."""
    if hasattr(transformer, "merge_and_unload"):
        adapted: Any = copy.deepcopy(transformer)
        transformer = adapted.merge_and_unload()
    return transformer.state_dict()


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
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            "unreadable weights",
            where=str(path),
            why=f"{error}: half-written or not safetensors",
            fix="write or download the file again",
        ) from error


def load(path: str | Path) -> VideoStudent:
    """Rebuild a student from its file, in fp32 on the CPU."""
    from vidalign.students.video.student import VideoStudent

    file = resolve(path)
    tensors, metadata = read(file)
    spec = read_spec(metadata, str(file), "transformer", SIZES)
    with reading_spec(str(file)):
        made = VideoStudentSpec.from_dict(spec)
        check_layers(made.transformer, tensors)
        with torch.device("meta"):  # takes no memory
            shapes = VideoStudent.from_spec(made).base.state_dict()
    check_tensors(shapes, tensors, str(file))
    student = VideoStudent.from_spec(made)
    student.base.load_state_dict(tensors)
    return student


def spec_of(path: str | Path) -> VideoStudentSpec:
    """The specification of saved or shipped weights, from the header of the file; tensors are not read."""
    from safetensors import safe_open

    with safe_open(resolve(path), "pt") as file:
        metadata = dict(file.metadata() or {})
    spec = read_spec(metadata, str(path), "transformer", SIZES)
    with reading_spec(str(path)):
        return VideoStudentSpec.from_dict(spec)


def read_spec(metadata: dict[str, str], where: str, network: str, sizes: tuple[str, ...]) -> dict[str, Any]:
    """The spec in a file's metadata; its part `network` gives all `sizes`, as defaults are those of a large model."""
    if "spec" not in metadata:
        raise CheckpointError(
            "no student spec in the file",
            where=where,
            why="its metadata has no key 'spec'",
            fix="save it with `vidalign export`, or import a public checkpoint with a preset",
        )
    with reading_spec(where):
        spec = check_object(parse_json(metadata["spec"]), {network: dict})
        check_object(spec[network], dict.fromkeys(sizes, str if network == "config" else int))
        check_numbers(spec[network], network)
    return spec


def check_numbers(value: Any, name: str) -> None:
    """Raises `ValueError` for a number in the description of a network that none has."""
    if isinstance(value, dict):
        for key, item in value.items():
            check_numbers(item, f"{name}.{key}")
    elif isinstance(value, list):
        for item in value:
            check_numbers(item, name)
    elif isinstance(value, int | float) and not -1 <= value <= LARGEST:
        raise ValueError(f"{name} is {value}: sizes lie in 0..{LARGEST}")


LAYERS = ("num_layers", "num_hidden_layers", "n_layer", "n_layers", "depth")
"""What configurations call the number of their layers."""


def check_layers(network: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` for sizes below 1, and for more layers than there are tensors: they are not even counted."""
    for name, value in network.items():
        if name in SIZES and value < 1:
            raise ValueError(f"{name} is {value}, it must be at least 1")
        if name == "rope_max_seq_len" and value > LONGEST:
            raise ValueError(f"{name} is {value}, more than {LONGEST} frames or patches of a side")
        if name in LAYERS and isinstance(value, int) and value > len(tensors):
            raise ValueError(f"{name} is {value}, and the file holds {len(tensors)} tensors")
        if isinstance(value, dict):  # such as the text_config of a vision-language model
            check_layers(value, tensors)


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


def check_tensors(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """CheckpointError naming the first key that is missing, unknown or misshapen."""
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        key = (missing or unknown)[0]
        what = f"{len(missing)} keys are missing and {len(unknown)} are unknown, the first is {key!r}"
        raise CheckpointError(what, where=where, fix="the file must be of the same architecture")
    for key, value in tensors.items():
        if value.shape != wanted[key].shape:
            shapes = f"found {list(value.shape)}, expected {list(wanted[key].shape)}"
            raise CheckpointError(f"wrong shape of {key!r}", where=where, why=shapes)
