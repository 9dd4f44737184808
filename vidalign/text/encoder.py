"""One text-encoder interface over transformers encoders: UMT5, T5, CLIP text, BERT.

As in Wan, prompts are padded to a fixed length and features of the padding are zero. The student attends all of them
without a mask. Any encoder with `last_hidden_state` serves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class TextEncoder(nn.Module):
    """Prompts to features `[B, length, dim]` (fp32, zero at the padding), without gradient."""

    def __init__(self, model: nn.Module, tokenizer: Any, length: int, key: str) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.length = length
        self.key = key
        """Identity of the encoder, part of the key of cached features."""

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """`[B, length, dim]` for B prompts; longer ones are truncated."""
        batch = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).to(next(self.model.parameters()).device)
        out = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        features: Tensor = out.last_hidden_state.float() * batch["attention_mask"].unsqueeze(-1)
        return features
