"""Classifier-free guidance (arXiv 2207.12598): one formula, and one section of settings wherever a network is guided.

    guided = unconditional + scale (conditional - unconditional)

x0 = x_t - sigma velocity is affine in the velocity, and the two weights add up to 1: guidance of the velocity is
guidance of x0. The released code of CausVid and Self-Forcing writes conditional + w (conditional - unconditional), so
its ``guidance_scale: 3.0`` is ``scale: 4.0`` here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidalign.ranges import require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Guidance:
    """How far a prediction is moved away from that of the negative prompt."""

    scale: float = 1.0
    """s in uncond + s (cond - uncond), at least 1; 1 is no guidance, and takes one pass instead of two."""
    negative_prompt: str = ""
    """Text of the unconditional pass; the empty prompt unless given."""

    def __post_init__(self) -> None:
        require(self, "scale", least=1)

    @property
    def prompts(self) -> list[str]:
        """The texts that are read beside the prompts: none where there is no guidance."""
        return [self.negative_prompt] if self.scale > 1 else []


def guided(predict: Callable[[Tensor], Tensor], text: Tensor, negative: Tensor | None, scale: float) -> Tensor:
    """`predict` of the text ``[N, L, D]``, guided by `scale` away from that of the negative text ``[1, L, D]``.

    negative: None where `scale` is 1; `predict` is then called once.
    """
    conditional = predict(text)
    if scale == 1:
        return conditional
    assert negative is not None, "guidance needs the features of its negative prompt"
    unconditional = predict(negative.to(text))
    return unconditional + scale * (conditional - unconditional)
