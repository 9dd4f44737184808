"""The precision of a call, kept for a later one."""

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
