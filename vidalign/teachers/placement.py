"""Where the frozen network of a language teacher lies and in which type it computes; what it returns lies beside the
student.

With `offload` its weights rest in host memory and are on the device while it scores, see `HostWeights`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from vidalign.engine.base import View, set_precision
from vidalign.engine.host_weights import HostWeights
from vidalign.errors import UserError
from vidalign.students.chat import TokenBatch

if TYPE_CHECKING:
    from vidalign.students.language import LanguageStudent

WITHOUT_WEIGHTS = ("compose", "prompts", "decode")
"""Methods that only write or read text."""


@dataclass
class Placement:
    """A network on a device, for a student that may be on another one."""

    device: str = ""
    """`cpu`, `cuda` or `cuda:N`; empty: beside the student."""
    offload: bool = False
    """Weights rest in host memory."""
    dtype: str = ""
    """Name of a type of torch, of its weights and its computation; empty: as the engine computes."""

    def settle(self, network: LanguageStudent, precision: str, beside: torch.device) -> LanguageStudent:
        """Give the network its type and its place; beside: the student's device."""
        if self.dtype:
            network.to(getattr(torch, self.dtype))
        else:
            set_precision(network, precision)
        self._beside, self._there = beside, torch.device(self.device) if self.device else beside
        self._network = network
        self.weights = HostWeights(network, self._there, rests=self.offload and not network.head_weight.is_meta)
        return network

    def view(self, plain: View) -> Any:
        """The network as objectives see it; plain: through the engine's precision."""
        return View(self._network, lambda name, *args, **options: self._call(plain, name, args, options))

    def _call(self, plain: View, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        entry = getattr(self._network if self.dtype else plain, name)
        dtype = self._network.head_weight.dtype if self.dtype else None
        if name in WITHOUT_WEIGHTS:
            return _moved(entry(*args, **options), self._beside, None)
        args, options = (_moved(given, self._there, dtype) for given in (args, options))
        with self.resident(head=name == "project"):
            return _moved(entry(*args, **options), self._beside, None)

    def resident(self, *, head: bool = False) -> AbstractContextManager[None]:
        """Weights (of the head alone) are on the device meanwhile; inside another one nothing moves twice."""
        return self.weights.resident(self._network.lm_head.parameters() if head else None)


def check_device(name: str) -> None:
    """Raises `UserError` for a device that this process does not have."""
    count = torch.cuda.device_count() if name.startswith("cuda") else 0
    index = torch.device(name).index or 0
    if name.startswith("cuda") and index >= count:
        there = (
            f"there are {count} accelerators here, cuda:0 to cuda:{count - 1}" if count else "there is no accelerator"
        )
        raise UserError(
            f"the teacher cannot lie on {name!r}", where="teacher.device", why=there, fix="use cpu, or leave it out"
        )


def _moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Tensors inside on the device, floating ones in `dtype` if there is one."""
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, TokenBatch):
        parts = {name: _moved(getattr(value, name), device, dtype) for name in ("ids", "mask", "response", "inputs")}
        logprobs = None if value.logprobs is None else value.logprobs.to(device)
        return replace(value, **parts, logprobs=logprobs)
    if isinstance(value, dict):
        return {key: _moved(one, device, dtype) for key, one in value.items()}
    return type(value)(_moved(one, device, dtype) for one in value) if type(value) in (list, tuple) else value
