"""Causal few-step video students over diffusers `WanTransformer3DModel`.

What stands behind these names is imported at first use: only `VideoStudent` needs diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidalign.students.video.context import Context as Context
    from vidalign.students.video.spec import CachePolicy as CachePolicy
    from vidalign.students.video.spec import Sampler as Sampler
    from vidalign.students.video.spec import VideoStudentSpec as VideoStudentSpec
    from vidalign.students.video.student import VideoStudent as VideoStudent

__all__ = ["CachePolicy", "Context", "Sampler", "VideoStudent", "VideoStudentSpec"]

_HOMES = {
    "CachePolicy": "spec",
    "Context": "context",
    "Sampler": "spec",
    "VideoStudent": "student",
    "VideoStudentSpec": "spec",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
