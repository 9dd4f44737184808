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
from vidalign.losses.projected import Projected, Toward, Written, projected_loss

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
        parts: Sequence[Toward | Written],
        tokens: Tensor | None,
        temperature: float,
        factor: float,
    ) -> Projected:
        """factor: of the logits, see `scaled_logits`; all else as of `projected_loss`."""
        weight, bias = head_weights(self._layer())
        if factor != 1.0:  # of the logits, hence of the states and of the bias
            hidden, bias = hidden * factor, None if bias is None else bias * factor
        return projected_loss(hidden, weight, bias, parts, tokens, temperature=temperature)


def head_weights(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight ``[V, D]`` and bias of a head, with the adapter that is active on it."""
    if not hasattr(layer, "base_layer"):
        return layer.weight, layer.bias
    weight = layer.base_layer.weight
    for name in () if layer.disable_adapters else layer.active_adapters:
        weight = weight + layer.get_delta_weight(name)
    return weight, layer.base_layer.bias


def copied_head(layer: Any, factor: float) -> Head:
    """Logits through copies of the weights of a head as they are now, in the precision of the call.

    All ranks call it; what it returns is called as often as each of them likes.
    """
    with zero3.gathered(layer.parameters()), torch.no_grad():
        weight, bias = head_weights(layer)
        weight, bias = weight.clone(), None if bias is None else bias.clone()
    precision = present_autocast(weight.device)

    def project(hidden: Tensor) -> Tensor:
        with precision():
            logits = nn.functional.linear(hidden, weight, bias)
            return logits if factor == 1.0 else logits * factor

    return project
