"""One text-encoder interface over transformers encoders: UMT5, T5, CLIP text, BERT.

As in Wan, prompts are padded to a fixed length, features of the padding are zero, and the student attends all
of them without a mask. Any encoder with `last_hidden_state` serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class TextEncoder(nn.Module):
    """Prompts to the features of their tokens, without gradient; the padding is left to who reads them.

    length: tokens to which prompts are padded before the network, and to which `padded` brings their features. clean:
    what is done to a prompt before its tokens are looked up.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, length: int, clean: Callable[[str], str] | None = None
    ) -> None:
        super().__init__()
        self.clean = clean
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.length = length

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> list[Tensor]:
        """`[tokens, dim]` of each prompt, in the type that the network computes; longer prompts are truncated."""
        texts = prompts if self.clean is None else [self.clean(prompt) for prompt in prompts]
        batch = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).to(next(self.model.parameters()).device)
        out = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        kept = batch["attention_mask"].bool()
        return [features[mask] for features, mask in zip(out.last_hidden_state, kept, strict=True)]


def padded(features: Tensor, length: int) -> Tensor:
    """`[tokens, dim]` to `[length, dim]`: zeros after the tokens."""
    return torch.cat([features, features.new_zeros(length - len(features), features.shape[1])])
