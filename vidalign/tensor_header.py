"""The header of a safetensors file, read without mapping the file: of weights larger than memory, too.

The format is eight bytes with the length of a JSON header (little endian), the header, and the tensors' bytes in its
order without gaps (https://huggingface.co/docs/safetensors). `safe_open` maps the whole file before it reads the
header, which fails where the address space is limited.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vidalign.reading import check_object, parse_json, regular

LONGEST = 100_000_000
"""Bytes of a header that the format allows."""
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4}
SIZES |= {"I64": 8, "U64": 8, "F64": 8, "C64": 8}
"""Bytes of a number; tensors of other types are not compared with their shape."""


@dataclass(frozen=True)
class TensorEntry:
    """What the header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """Its type as the format names it, such as ``BF16``."""


@dataclass(frozen=True)
class TensorHeader:
    """What stands in a file before its tensors."""

    metadata: Mapping[str, str]
    entries: Mapping[str, TensorEntry]
    """Of every tensor, by name."""


def read_header(path: Path) -> TensorHeader:
    """The header of a file. Raises `OSError`, and `SafetensorError` for one that ends early or is no such file."""
    size = regular(path).stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(LONGEST, size - 8):
            raise SafetensorError("it is truncated, or not a safetensors file")
        text = file.read(length)
    try:
        written = check_object(parse_json(text), {})
        metadata = check_object(written.pop("__metadata__", None) or {}, {})
        check_object(metadata, dict.fromkeys(metadata, str))
        tensors = sorted((_tensor(name, value) for name, value in written.items()), key=lambda one: one[2:])
    except (ValueError, TypeError) as error:
        raise SafetensorError(f"it is not a safetensors file: {error}") from error
    place = 0
    for name, _, first, last in tensors:
        if first != place:
            raise SafetensorError(f"the tensor {name!r} begins at byte {first}, the one before ends at {place}")
        place = last
    expected = 8 + length + place
    if expected > size:
        raise SafetensorError(f"it is truncated: {size} bytes of {expected}")
    if expected < size:
        raise SafetensorError(f"there are {size - expected} bytes behind the last tensor")
    return TensorHeader(metadata, {name: entry for name, entry, _, _ in tensors})


def _tensor(name: str, value: Any) -> tuple[str, TensorEntry, int, int]:
    """Name, entry, first byte and the one after the last; `ValueError` for what is none."""
    check_object(value, {"dtype": str, "shape": list, "data_offsets": list})
    shape, offsets = value["shape"], value["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, *offsets)) or len(offsets) != 2:
        raise ValueError(f"the shape or place of {name!r} is {shape}, {offsets}")
    first, last = offsets
    size = SIZES.get(value["dtype"])
    if first > last or (size is not None and last - first != size * math.prod(shape)):
        raise ValueError(f"{name!r}, {value['dtype']} {shape}, takes the bytes {first} to {last}")
    return name, TensorEntry(tuple(shape), value["dtype"]), first, last
