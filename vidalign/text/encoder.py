"""One text-encoder interface over transformers encoders: UMT5, T5, CLIP text, BERT.

As in Wan, prompts are padded to a fixed length, features of the padding are zero, and the student attends all
of them without a mask. Any encoder with `last_hidden_state` serves.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from vidalign.errors import UserError, nearest
from vidalign.quiet import no_bars

ENCODERS = ("world", "transformers")


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
        return out.last_hidden_state.float() * batch["attention_mask"].unsqueeze(-1)


def build_text_encoder(config: dict[str, Any]) -> TextEncoder:
    """The encoder of a spec: `{"name": "world"}` or `{"name": "transformers", "path": ..., "length":
    512}`.
    """
    options = dict(config)
    name = options.pop("name", "world")
    if name == "world":
        from vidalign.text.world import world_encoder

        return world_encoder(**options)
    if name == "transformers":
        return pretrained_encoder(**options)
    near = nearest(name, ENCODERS)
    raise UserError(
        f"unknown text encoder {name!r}",
        where="student.init.text.name",
        why=f"valid: {', '.join(ENCODERS)}",
        fix=f"did you mean {near!r}?" if near else "",
    )


def pretrained_encoder(
    path: str, length: int = 512, dtype: str = "bfloat16", subfolder: str = ""
) -> TextEncoder:
    """A published encoder with its tokenizer, e.g. the `text_encoder` and `tokenizer` folders of a Wan
    repository.

    path: folder or hub name; when `subfolder` is empty and the repository has a `text_encoder` folder, pass
    subfolder="text_encoder" (its tokenizer is then read from "tokenizer").
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(path, subfolder=subfolder)
        with no_bars("transformers"):
            model = _encoder_class(config.model_type).from_pretrained(
                path, subfolder=subfolder, dtype=getattr(torch, dtype)
            )
        tokenizer = AutoTokenizer.from_pretrained(path, subfolder="tokenizer" if subfolder else "")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            "the text encoder cannot be loaded", where=path, why=str(error).splitlines()[0]
        ) from error
    key = hashlib.sha256(
        repr((path, subfolder, dtype, length, config.to_json_string())).encode()
    ).hexdigest()[:16]
    return TextEncoder(model, tokenizer, length, key)


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
