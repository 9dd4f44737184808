"""Safetensors written tensor by tensor: no more than one tensor is in memory.

`safetensors.torch.save_file` takes all tensors at once. The format is eight bytes with the length of a JSON header, the
header, and the tensors' bytes in its order.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vidalign.errors import CheckpointError
from vidalign.owner import replacing

if TYPE_CHECKING:
    from torch import Tensor

CODES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
"""What the format calls the types of torch, which are named so that torch need not be imported."""
SHARD = 5 * 2**30
"""Bytes of a file before the next one begins."""
INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        count = 1
        for side in self.shape:
            count *= side
        return count * self.dtype.itemsize


def write_file(
    path: Path, entries: Mapping[str, Entry], tensors: Iterator[tuple[str, Tensor]], metadata: Mapping[str, str]
) -> None:
    """Write one file beside and rename it; `tensors` come in the order of `entries`."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    for name, entry in entries.items():
        header[name] = {
            "dtype": CODES[str(entry.dtype)],
            "shape": list(entry.shape),
            "data_offsets": [at, at := at + entry.size],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, entry in entries.items():
            _, tensor = next(tensors)
            assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype), f"{name} is not as announced"
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_shards(
    folder: Path,
    stem: str,
    entries: Mapping[str, Entry],
    tensors: Iterator[tuple[str, Tensor]],
    metadata: Mapping[str, str],
    shard: int = SHARD,
) -> None:
    """Write `stem`.safetensors, or several files with an index, as diffusers and transformers name them."""
    groups = split(entries, shard)
    if len(groups) == 1:
        write_file(folder / f"{stem}.safetensors", entries, tensors, metadata)
        return
    places = {}
    for n, group in enumerate(groups, 1):
        name = f"{stem}-{n:05d}-of-{len(groups):05d}.safetensors"
        write_file(folder / name, group, tensors, metadata)
        places.update(dict.fromkeys(group, name))
    index = {"metadata": {"total_size": sum(e.size for e in entries.values())}, "weight_map": places}
    write_text(folder / f"{stem}{INDEX}", json.dumps(index, indent=1))


def split(entries: Mapping[str, Entry], shard: int) -> list[dict[str, Entry]]:
    """The entries in order, in groups of at most `shard` bytes, or of one tensor that is larger."""
    groups: list[dict[str, Entry]] = [{}]
    filled = 0
    for name, entry in entries.items():
        if groups[-1] and filled + entry.size > shard:
            groups.append({})
            filled = 0
        groups[-1][name] = entry
        filled += entry.size
    return groups


def write_text(path: Path, text: str) -> None:
    """Write beside and rename."""
    try:
        with replacing(path) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError("a file cannot be written", where=str(path), why=str(error)) from error
