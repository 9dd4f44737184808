"""Published text encoders with their tokenizers, read by transformers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidalign.errors import UserError
from vidalign.quiet import no_bars
from vidalign.recipe.plugins import make
from vidalign.text.base import TextPlugin
from vidalign.text.features import PromptFeatures

if TYPE_CHECKING:
    from vidalign.text.encoder import TextEncoder


def build_text_encoder(config: dict[str, Any]) -> TextEncoder:
    """The encoder of a spec, such as `{"name": "transformers", "path": ..., "length": 512}`."""
    settings = {key: value for key, value in config.items() if key != "name"}
    plugin: TextPlugin = make("text_encoders", config.get("name", "world"), settings, "student.init.text")
    return plugin.build()


def build_features(config: dict[str, Any]) -> PromptFeatures:
    """Prompt features of the encoder of a spec, which is built on first use."""
    return PromptFeatures(lambda: build_text_encoder(config))


class PretrainedText(TextPlugin):
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

    config: Config

    def build(self) -> TextEncoder:
        import torch
        from transformers import AutoConfig, AutoTokenizer

        from vidalign.text.encoder import TextEncoder

        path, subfolder, dtype = self.config.path, self.config.subfolder, self.config.dtype
        try:
            settings = AutoConfig.from_pretrained(path, subfolder=subfolder)
            with no_bars("transformers"):
                model = _encoder_class(settings.model_type).from_pretrained(
                    path, subfolder=subfolder, dtype=getattr(torch, dtype)
                )
            tokenizer = AutoTokenizer.from_pretrained(path, subfolder="tokenizer" if subfolder else "")
        except (OSError, ValueError, AttributeError) as error:
            why = str(error).splitlines()[0]
            raise UserError("the text encoder cannot be loaded", where=path, why=why) from error
        identity = repr((path, subfolder, dtype, self.config.length, settings.to_json_string()))
        return TextEncoder(model, tokenizer, self.config.length, hashlib.sha256(identity.encode()).hexdigest()[:16])


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
