"""Student weights on disk: one safetensors file with the spec in its metadata."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign.reading import check_object
from vidalign.students.video.spec import VideoStudentSpec
from vidalign.students.weights import check_tensors, read, reading_spec, resolve, spec_in, spec_of, write

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


def merged(transformer: torch.nn.Module) -> dict[str, Tensor]:
    """State dict of the plain network, the active adapter merged into it."""
    if hasattr(transformer, "merge_and_unload"):
        adapted: Any = copy.deepcopy(transformer)
        transformer = adapted.merge_and_unload()
    return transformer.state_dict()


def written_spec(path: str | Path) -> dict[str, Any]:
    """The specification of a saved student, a file, a folder or a hub id, as it is written. Raises
    `CheckpointError`."""
    from vidalign.students.hub import is_student_folder

    if is_student_folder(path) or refuse_checkpoint(path):
        from vidalign.students.video.folder import read_folder  # needs torch, which a file of ours does not

        return read_folder(path)[0]
    return spec_of(path)


def load(path: str | Path, spec: VideoStudentSpec | None, dtype: torch.dtype) -> VideoStudent:
    """Rebuild a student from its file or folder, on the CPU; spec: instead of its own, dtype: of its weights."""
    from vidalign.students.hub import is_student_folder
    from vidalign.students.video.folder import load_folder
    from vidalign.students.video.student import VideoStudent

    if is_student_folder(path) or refuse_checkpoint(path):
        return load_folder(path, spec, dtype)

    file = resolve(path)
    tensors, metadata = read(file)
    written = spec_in(metadata, str(file))
    check_spec(written, str(file), "transformer", SIZES)
    with reading_spec(str(file)):
        made = spec or VideoStudentSpec.from_dict(written)
        check_layers(made.transformer, tensors)
        with torch.device("meta"):  # takes no memory
            shapes = VideoStudent.from_spec(made).base.state_dict()
    check_tensors(shapes, tensors, str(file))
    student = VideoStudent.from_spec(made)
    student.base.load_state_dict(tensors)
    return student.to(dtype)


def refuse_checkpoint(path: str | Path) -> bool:
    """Whether a path may name a student on the hub; raises `CheckpointError` for a public checkpoint, which is
    imported."""
    from vidalign.students import hub

    name = str(path)
    if name.endswith(hub.CHECKPOINTS[:-1]) or (Path(path).is_dir() and not hub.is_student_folder(path)):
        raise hub.not_imported(name, [])
    return hub.is_hub_id(name)


def check_spec(spec: dict[str, Any], where: str, network: str, sizes: tuple[str, ...]) -> None:
    """Refuse a file's spec whose part `network` does not give all `sizes`: defaults are those of a large model."""
    with reading_spec(where):
        check_object(spec, {network: dict})
        check_object(spec[network], dict.fromkeys(sizes, str if network == "config" else int))
        check_numbers(spec[network], network)


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


def check_layers(network: dict[str, Any], tensors: Mapping[str, object]) -> None:
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
