"""Clips and prompts to what a reward network reads: one user turn that shows a video or a picture, then asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vidalign.rewards.reward_models import frames
from vidalign.rewards.reward_models.network import Batch

PROMPT = "{text_prompt}"
"""What a template holds in the place of the prompt."""
Shown = Literal["video", "image"]


class Reader:
    """Turns clips and prompts into batches; its tokenizer knows the special tokens at which the head is read."""

    def __init__(self, processor: Any, shown: Shown, template: str, reward_tokens: Sequence[str]) -> None:
        self.processor, self.shown, self.template = processor, shown, template
        self.tokenizer: Any = processor.tokenizer
        self.tokenizer.add_tokens(list(reward_tokens), special_tokens=True)
        self.tokenizer.padding_side = "right"
        self.reward_tokens: list[int] = self.tokenizer.convert_tokens_to_ids(list(reward_tokens))
        self._pad = f"<|{shown}_pad|>"
        pictures = processor.image_processor
        self._patch, self._merged = int(pictures.patch_size), int(pictures.merge_size)
        self._mean, self._std = torch.tensor(pictures.image_mean), torch.tensor(pictures.image_std)

    @property
    def vocabulary(self) -> int:
        """Number of tokens, the special ones included."""
        return len(self.tokenizer)

    @property
    def visual_token(self) -> int:
        """The token in whose place what is seen stands."""
        token: int = self.tokenizer.convert_tokens_to_ids(self._pad)
        return token

    def read(self, clips: Tensor, prompts: Sequence[str], pixels: tuple[int, int], *, grey: bool = False) -> Batch:
        """A batch of clips ``[B, F, 3, H, W]`` in [0, 1], or of pictures (F = 1), and one prompt each.

        pixels: the fewest and the most of a frame; grey: without colour.
        """
        size = frames.fitted_size(clips.shape[-2], clips.shape[-1], pixels, self._patch * self._merged)
        levels = frames.in_bytes(clips, size, grey)
        if levels.shape[1] % 2:
            levels = torch.cat([levels, levels[:, -1:]], 1)
        patches, grid = frames.patches(levels, self._mean.to(levels), self._std.to(levels), self._patch, self._merged)
        seen = int(grid[0].prod()) // self._merged**2
        texts = [self.text(prompt).replace(self._pad, self._pad * seen, 1) for prompt in prompts]
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        return Batch(tokens["input_ids"], tokens["attention_mask"], patches, grid)

    def text(self, prompt: str) -> str:
        """The conversation about a prompt. Special tokens that stand in the prompt itself are broken up, so that they
        are read as text."""
        for token in self.tokenizer.get_added_vocab():
            prompt = prompt.replace(token, f"{token[:1]} {token[1:]}")
        words = {"type": "text", "text": self.template.replace(PROMPT, prompt)}
        turn = {"role": "user", "content": [{"type": self.shown}, words]}
        text: str = self.processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        return text


def template(name: str) -> str:
    """The published question of a reward model, as it is: white space is part of what the model was trained on."""
    whole = (Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8")
    return whole.partition("\n---\n")[2]
