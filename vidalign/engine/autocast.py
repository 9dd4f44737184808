"""The precision of a call: kept for a later one, or left out of one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def present_autocast(device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes contexts in which autocast on `device` is as it is now; for functions that outlive an engine's call."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return nullcontext
    dtype = torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """No casts meanwhile, for what is called from inside of a network's own precision."""
    off = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if off else nullcontext()
