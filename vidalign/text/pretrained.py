"""Published text encoders with their tokenizers, read by transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from vidalign.errors import UserError, first_line
from vidalign.quiet import no_bars
from vidalign.recipe.plugins import make
from vidalign.text.base import TextPlugin
from vidalign.text.features import PromptFeatures

if TYPE_CHECKING:
    from vidalign.text.encoder import TextEncoder


CLEANED = ("umt5",)
"""Types of encoder whose prompts are cleaned as Wan does it: HTML entities, spaces, and what `ftfy` mends where it is
installed."""


def text_plugin(config: dict[str, Any]) -> TextPlugin:
    """The text encoder of a spec, such as `{"name": "transformers", "path": ..., "length": 512}`; it is not built."""
    settings = {key: value for key, value in config.items() if key != "name"}
    plugin: TextPlugin = make("text_encoders", config.get("name", "world"), settings, "student.init.text")
    return plugin


def build_features(config: dict[str, Any]) -> PromptFeatures:
    """Prompt features of the encoder of a spec, which is built when a prompt is new."""
    return PromptFeatures(text_plugin(config))


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

    def identity(self) -> str:
        """The commit of a hub repository; of a folder its place with sizes and times of its files."""
        config, place = self.config, Path(self.config.path)
        from diffusers.utils import is_ftfy_available

        with self._reading():
            settings = self._settings()
        parts = [place / config.subfolder, place / "tokenizer"] if config.subfolder else [place]
        commit = getattr(settings, "_commit_hash", None)
        origin = [_state(part) for part in parts] if place.is_dir() else [config.path, commit]
        known = (origin, config.subfolder, config.dtype, config.length, settings.to_json_string())
        cleaned = ("cleaned", is_ftfy_available()) if settings.model_type in CLEANED else ()
        return repr((*known, *cleaned))

    def build(self) -> TextEncoder:
        import torch
        from transformers import AutoTokenizer

        from vidalign.text.encoder import TextEncoder

        path, subfolder = self.config.path, self.config.subfolder
        with self._reading(), no_bars("transformers"):
            dtype, model_type = getattr(torch, self.config.dtype), self._settings().model_type
            network = _encoder_class(model_type)
            model = network.from_pretrained(path, subfolder=subfolder, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(path, subfolder="tokenizer" if subfolder else "")
        return TextEncoder(model, tokenizer, self.config.length, _cleaning(model_type))

    def _settings(self) -> Any:
        """The configuration of the network."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.config.path, subfolder=self.config.subfolder)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """What goes wrong inside is reported with the path."""
        try:
            yield
        except (OSError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
            why = first_line(error)
            raise UserError("the text encoder cannot be loaded", where=self.config.path, why=why) from error


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Place, size and time of the last change of every file in a folder and in those below it."""
    files = sorted(file for file in folder.resolve().rglob("*") if file.is_file())
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _cleaning(model_type: str) -> Callable[[str], str] | None:
    if model_type not in CLEANED:
        return None
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    clean: Callable[[str], str] = prompt_clean
    return clean


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
