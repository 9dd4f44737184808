"""The head of a language student, from hidden states to losses and logits, where ZeRO-3 may have divided its weight.

A loss projects chunks of rows, whose number differs between processes, so the weight is made whole once a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vidalign.engine import zero3
from vidalign.engine.autocast import present_autocast
from vidalign.losses.projected import Part, Projected, projected_loss

if TYPE_CHECKING:
    from vidalign.losses.projected import Head


class HeadLosses(nn.Module):
    """`projected_loss` through the head of `model`, in a module without weights of its own.

    ZeRO-3 makes a weight whole for the module that reads it, and again when a gradient reaches what that module
    returned. Read in the student's own pass, it would be gathered for every call of the student.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._layer = model.get_output_embeddings  # a method: the head is a module of the model, not of this one

    def forward(
        self,
        hidden: Tensor,
        parts: Sequence[Part],
        tokens: Tensor | None,
        temperature: float,
        factor: float,
        entries: int | None,
    ) -> Projected:
        """factor: of the logits, see `scaled_logits`; entries: see `head_weights`; all else as of `projected_loss`."""
        weight, bias = head_weights(self._layer(), entries)
        if factor != 1.0:  # of the logits, hence of the states and of the bias
            hidden, bias = hidden * factor, None if bias is None else bias * factor
        return projected_loss(hidden, weight, bias, parts, tokens, temperature=temperature)


def head_weights(layer: Any, entries: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Weight ``[V, D]`` and bias of a head, with the adapter that is active on it.

    entries: how many of the vocabulary are asked for, where it is not all; see `common_tokens.limit`.
    """
    base = getattr(layer, "base_layer", layer)
    weight, bias = base.weight, base.bias
    if base is not layer and not layer.disable_adapters:
        for name in layer.active_adapters:
            weight = weight + layer.get_delta_weight(name)
    if entries is None:
        return weight, bias
    return weight[:entries], None if bias is None else bias[:entries]


def copied_head(layer: Any, factor: float, entries: int | None) -> Head:
    """Logits through copies of the weights of a head as they are now, in the precision of the call.

    All ranks call it; what it returns is called as often as each of them likes.
    """
    with zero3.gathered(layer.parameters()), torch.no_grad():
        weight, bias = head_weights(layer, entries)
        weight, bias = weight.clone(), None if bias is None else bias.clone()
    precision = present_autocast(weight.device)

    def project(hidden: Tensor) -> Tensor:
        with precision():
            logits = nn.functional.linear(hidden, weight, bias)
            return logits if factor == 1.0 else logits * factor

    return project
