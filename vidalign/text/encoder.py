"""One text-encoder interface over transformers encoders: UMT5, T5, CLIP text, BERT.

As in Wan, prompts are padded to a fixed length, features of the padding are zero, and the student attends all
of them without a mask. Any encoder with `last_hidden_state` serves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidalign.errors import UserError
from vidalign.recipe.plugins import make


class TextEncoder(nn.Module):
    """Prompts to features `[B, length, dim]` (fp32, zero at the padding), without gradient.

    A subclass is a plugin (kind ``text_encoders``) with a ``Config``; it is made with one.
    """

    name: ClassVar[str]

    def __init__(self, model: nn.Module, tokenizer: Any, length: int, key: str) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.length = length
        self.key = key
        """Identity of the encoder, part of the key of cached features."""

    @classmethod
    def unknown_words(cls, prompts: Sequence[str]) -> list[str]:
        """Words of the prompts that it cannot read, each once; found without its weights."""
        return []

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """`[B, length, dim]` for B prompts; longer ones are truncated."""
        batch = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).to(next(self.model.parameters()).device)
        out = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return out.last_hidden_state.float() * batch["attention_mask"].unsqueeze(-1)


def build_text_encoder(config: dict[str, Any]) -> TextEncoder:
    """The encoder of a spec, such as `{"name": "transformers", "path": ..., "length": 512}`."""
    settings = {key: value for key, value in config.items() if key != "name"}
    encoder: TextEncoder = make("text_encoders", config.get("name", "world"), settings, "student.init.text")
    return encoder


class PretrainedEncoder(TextEncoder):
    """A published encoder with its tokenizer, e.g. the `text_encoder` and `tokenizer` folders of a Wan repository."""

    name = "transformers"

    @dataclass
    class Config:
        path: str
        """Folder or hub name."""
        length: int = 512
        """Tokens to which prompts are padded or cut."""
        dtype: str = "bfloat16"
        """Type of its weights."""
        subfolder: str = ""
        """``text_encoder`` where the repository has such a folder; the tokenizer is then read from ``tokenizer``."""

    def __init__(self, config: Config) -> None:
        from transformers import AutoConfig, AutoTokenizer

        path, subfolder = config.path, config.subfolder
        try:
            settings = AutoConfig.from_pretrained(path, subfolder=subfolder)
            model = _encoder_class(settings.model_type).from_pretrained(
                path, subfolder=subfolder, dtype=getattr(torch, config.dtype)
            )
            tokenizer = AutoTokenizer.from_pretrained(path, subfolder="tokenizer" if subfolder else "")
        except (OSError, ValueError, AttributeError) as error:
            why = str(error).splitlines()[0]
            raise UserError("the text encoder cannot be loaded", where=path, why=why) from error
        identity = repr((path, subfolder, config.dtype, config.length, settings.to_json_string()))
        super().__init__(model, tokenizer, config.length, hashlib.sha256(identity.encode()).hexdigest()[:16])


def _encoder_class(model_type: str) -> Any:
    """Encoder-only classes where `AutoModel` would also load a decoder or an image tower."""
    import transformers

    special = {
        "umt5": "UMT5EncoderModel",
        "t5": "T5EncoderModel",
        "clip": "CLIPTextModel",
        "clip_text_model": "CLIPTextModel",
    }
    return getattr(transformers, special.get(model_type, "AutoModel"))
