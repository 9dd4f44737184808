"""What some models do to their logits after the projection, so that losses that project by themselves do it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vidalign.errors import UserError

SCALED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
"""Config entries of models whose logits are more than a projection of the last hidden state."""

SCALES: dict[str, tuple[str, Callable[[Tensor, float], Tensor]]] = {
    "cohere": ("logit_scale", torch.mul),
    "cohere2": ("logit_scale", torch.mul),
    "falcon_h1": ("lm_head_multiplier", torch.mul),
    "gemma2": ("final_logit_softcapping", lambda logits, cap: torch.tanh(logits / cap) * cap),
    "granite": ("logits_scaling", torch.div),
    "granitemoe": ("logits_scaling", torch.div),
}
"""What follows the projection, by type of model, each compared with its own logits in the tests: the same entry means
a factor in one family and a divisor in another."""


def logit_scale(config: Any) -> Callable[[Tensor], Tensor] | None:
    """What a model does to its logits after the projection; None for nothing. `UserError` where that is not known."""
    text = config.get_text_config()
    values = {name: value for name in SCALED_LOGITS if (value := getattr(text, name, None)) not in (None, 1.0)}
    if not values:
        return None
    entry, apply = SCALES.get(config.model_type, ("", None))
    if apply is None or [*values] != [entry]:
        raise UserError(
            f"models of type {config.model_type!r} are not supported",
            where="student",
            why=f"{next(iter(values))} changes the logits after the projection, which the losses do themselves",
            fix=f"use a model with a plain lm_head, such as Qwen3 or Llama, or one of {', '.join(SCALES)}",
        )
    return lambda logits: apply(logits, float(values[entry]))
