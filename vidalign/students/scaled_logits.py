"""Models that scale their logits after the projection: losses that project by themselves do it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vidalign.errors import UserError

CHANGED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
"""Config entries of models whose logits are more than a projection of the last hidden state."""

FACTORS: dict[str, tuple[str, Callable[[float], float]]] = {
    "cohere": ("logit_scale", lambda value: value),
    "cohere2": ("logit_scale", lambda value: value),
    "falcon_h1": ("lm_head_multiplier", lambda value: value),
    "granite": ("logits_scaling", lambda value: 1.0 / value),
    "granitemoe": ("logits_scaling", lambda value: 1.0 / value),
}
"""The factor of the logits by type of model, each compared with the model's own logits in the tests: the same entry is
a factor in one family and a divisor in another."""


def logit_factor(config: Any) -> float:
    """What a model multiplies its logits by after the projection; 1 for nothing. Raises `UserError` where it does
    something else with them, or something that is not known."""
    text = config.get_text_config()
    values = {name: value for name in CHANGED_LOGITS if (value := getattr(text, name, None)) not in (None, 1.0)}
    if not values:
        return 1.0
    entry, factor = FACTORS.get(config.model_type, ("", float))
    if [*values] != [entry]:
        raise UserError(
            f"models of type {config.model_type!r} are not supported",
            where="student",
            why=f"{next(iter(values))} changes the logits after the projection, which the losses do themselves",
            fix=f"use a model with a plain lm_head, such as Qwen3 or Llama, or one of {', '.join(FACTORS)}",
        )
    return factor(float(values[entry]))
