"""Weights of a frozen network that rest in host memory and are on a device only while it is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class HostWeights:
    """Moves the weights of a frozen `network` to `device`: for good, or with `rests` for as long as `resident` is open.

    Resting weights are pinned where there is an accelerator, copied to the device and dropped there afterwards; nothing
    is copied back, since they do not change. The copy is exact, so results are those of a network that stays.
    """

    def __init__(self, network: nn.Module, device: torch.device, *, rests: bool) -> None:
        self.device, self.moves = device, 0
        """`moves`: how often weights, all or some, were brought to the device."""
        self._home: dict[int, tuple[Tensor, Tensor]] = {}
        """What rests in host memory, by the identity of the tensor that has it; none of a network that stays."""
        self._held: list[set[int]] = []
        """Identities of what each open `resident` has brought."""
        network.to("cpu" if rests else device)
        if rests:
            for one in (*network.parameters(), *network.buffers()):
                one.data = one.data.pin_memory() if device.type == "cuda" else one.data
                self._home[id(one)] = (one, one.data)

    @contextmanager
    def resident(self, parameters: Iterable[Tensor] | None = None) -> Iterator[None]:
        """Weights (these alone, where they are given) are on the device meanwhile; inside another one nothing moves
        twice."""
        if not self._home:
            yield
            return
        chosen = (one for one, _ in self._home.values()) if parameters is None else parameters
        missing = {id(one) for one in chosen} - {key for keys in self._held for key in keys}
        for key in missing:
            one, rests = self._home[key]
            one.data = self._copy(rests)
        self.moves += bool(missing)
        self._held.append(missing)
        try:
            yield
        finally:
            self._held.pop()
            for key in missing:
                one, rests = self._home[key]
                one.data = rests

    def _copy(self, rests: Tensor) -> Tensor:
        return rests.to(self.device, non_blocking=True)
