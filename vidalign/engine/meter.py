"""How many bytes of tensors are alive on a device, and the most that were at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Kwargs = dict[str, Any]


class Meter(Protocol):
    """Counts bytes on one device."""

    drawn: bool
    """Whether a whole number was drawn alone, see `end_of`."""

    @property
    def held(self) -> int:
        """Bytes alive now."""

    def restart(self) -> int:
        """Begin another peak; returns the last one."""


class CountedBytes(TorchDispatchMode):
    """Counts all storages on devices of a type that were made inside and are alive."""

    def __init__(self, kind: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch
        self.kind = kind
        self.held = self.peak = 0
        """Bytes alive now, and the most since `restart`."""
        self.drawn = False
        self._seen: dict[int, Any] = {}

    def restart(self) -> int:
        last, self.peak = self.peak, self.held
        return last

    def __torch_dispatch__(
        self, func: Any, types: tuple[type, ...], args: tuple[Any, ...] = (), kwargs: Kwargs | None = None
    ) -> Any:
        return self.counted(func(*args, **(kwargs or {})))

    def counted(self, out: Any) -> Any:
        """What a function returned, its tensors counted."""
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type == self.kind:
                self._count(leaf)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self.held += size
            self.peak = max(self.peak, self.held)
            self._seen[key] = weakref.ref(storage, lambda _: self._freed(key, size))

    def _freed(self, key: int, size: int) -> None:
        del self._seen[key]
        self.held -= size


class AllocatedBytes:
    """What the allocator of an accelerator has given out since this was made."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.drawn = device, False
        self._before = torch.accelerator.memory_allocated(device)
        self.restart()

    @property
    def held(self) -> int:
        return torch.accelerator.memory_allocated(self.device) - self._before

    def restart(self) -> int:
        last = torch.accelerator.max_memory_allocated(self.device) - self._before
        torch.accelerator.reset_peak_memory_stats(self.device)
        return last


@contextmanager
def metered(device: torch.device, *, last: bool) -> Iterator[Meter]:
    """Inside, the bytes of a real device are counted; on a CPU those of every tensor, whatever it is for. last: see
    `end_of`."""
    draw = torch.randint

    def drawn(*args: Any, **kwargs: Any) -> Tensor:
        if size_of((*args, *kwargs.values())):
            return draw(*args, **kwargs)
        meter.drawn = True
        return end_of(args, last)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "randint", drawn))
        meter: Meter = stack.enter_context(CountedBytes("cpu")) if device.type == "cpu" else AllocatedBytes(device)
        yield meter


def size_of(args: tuple[Any, ...]) -> Any:
    """The size that random numbers are drawn in; empty for one alone."""
    return next(x for x in args if isinstance(x, list | tuple))


def end_of(args: tuple[Any, ...], last: bool) -> Tensor:
    """In the place of a whole number that ``torch.randint`` draws alone, such as the fork of a video: the largest that
    it can be, or the smallest."""
    limits = [x for x in args if isinstance(x, int)]
    return torch.tensor(limits[-1] - 1 if last else (limits[0] if len(limits) > 1 else 0))
