"""Files of `torch.save` before torch 1.6, read tensor by tensor.

`torch.load` cannot map such a file and reads it whole. The file is five pickles, the fourth with the tensors as
references to storages and the fifth with the order of the storages, and then the storages, each eight bytes with its
length before its data. The pickles go through torch's own safe unpickler; the storages are left where they are until
they are asked for.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from typing import BinaryIO

    from torch import Tensor

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
LENGTH = 8
"""Bytes before the data of a storage."""


class LegacyFile:
    """The content with tensors on the meta device, and where their storages are."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._offsets: dict[int, int] = {}
        with file.open("rb") as opened:
            self.content = self._read(opened)

    def read(self, tensor: Tensor) -> Tensor:
        """The tensor of `content` with its values."""
        storage = tensor.untyped_storage()
        begin, size = int(tensor.storage_offset()) * tensor.itemsize, tensor.itemsize * math.prod(tensor.shape)
        if not tensor.is_contiguous():
            begin, size = 0, storage.nbytes()
        data = bytearray(size)
        with self.file.open("rb") as opened:
            opened.seek(self._offsets[storage._cdata] + begin)
            if opened.readinto(data) != size:
                raise EOFError("a storage is cut off")
        flat = torch.frombuffer(data, dtype=tensor.dtype) if size else torch.empty(0, dtype=tensor.dtype)
        if tensor.is_contiguous():
            return flat.view(tensor.shape)
        return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _read(self, opened: BinaryIO) -> Any:
        if (_load(opened), _load(opened)) != (MAGIC, PROTOCOL):
            raise ValueError("it does not begin as a file of torch.save")
        _load(opened)  # of the machine that wrote it
        unpickler = torch._weights_only_unpickler.Unpickler(opened, encoding="utf-8")
        unpickler.persistent_load = self._storage  # type: ignore[method-assign]
        content = unpickler.load()
        keys, at = _load(opened), opened.tell()
        for key in keys:
            storage = self._storages[str(key)]
            self._offsets[storage._cdata] = at + LENGTH
            at += LENGTH + storage.nbytes()
        if at > self.file.stat().st_size:
            raise EOFError("the last storages are cut off")
        return content

    def _storage(self, saved: tuple[Any, ...]) -> torch.TypedStorage:
        """A storage without data for a reference to it."""
        kind, storage_type, key, _, count, view = saved
        if kind != "storage" or view is not None:
            raise ValueError(f"it holds a {kind} beside storages")
        if str(key) not in self._storages:
            self._storages[str(key)] = torch.UntypedStorage(count * storage_type.dtype.itemsize, device="meta")
        return torch.TypedStorage(wrap_storage=self._storages[str(key)], dtype=storage_type.dtype, _internal=True)


def _load(opened: BinaryIO) -> Any:
    return torch._weights_only_unpickler.load(opened, encoding="utf-8")
