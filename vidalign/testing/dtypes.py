"""Finds operations of a plugin's own file that mix floating types: a tensor was made with a type of its own."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from vidalign import losses
from vidalign.objectives import parts

INSIDE = tuple(module.__file__.removesuffix("__init__.py") for module in (torch, losses, parts) if module.__file__)
"""Folders whose frames are passed over in the search of the caller."""

CONVERSIONS = {"to", "type_as", "copy_", "__setitem__", "result_type", "promote_types", "__get__"}
"""Operations that are given two types on purpose."""


LATENTS = 3
"""Dimensions from which on a tensor is noise, latents or features; statistics of a clip may be in fp32 on purpose."""


class MixedDtypes(TorchFunctionMode):
    """Watches what runs inside; `problems` then has a line of the file of `plugin` for each operation that mixes types.

    Operations of vidalign's losses and of the parts that objectives share count where the plugin calls them.
    """

    def __init__(self, plugin: type) -> None:
        super().__init__()
        self.file = inspect.getfile(plugin)
        self.problems: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = _caller(sys._getframe(1))
        if own is not None and own.f_code.co_filename == self.file and func.__name__ not in CONVERSIONS:
            tensors = [tensor for tensor in _tensors((args, kwargs)) if tensor.ndim >= LATENTS]
            dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
            if len(dtypes) > 1:
                mixed = " and ".join(sorted(str(dtype) for dtype in dtypes))
                self.problems.append(f"{self.file}:{own.f_lineno} ({func.__name__} of {mixed})")
        return func(*args, **(kwargs or {}))


def _caller(frame: FrameType | None) -> FrameType | None:
    """The innermost frame outside torch, the losses and the shared parts of vidalign."""
    while frame is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame = frame.f_back
    return frame


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, torch.Tensor):
        yield value
