"""Prompt features: text encoders and the cache that lets the encoder go."""

from vidalign.text.encoder import TextEncoder, build_text_encoder
from vidalign.text.features import PromptFeatures

__all__ = ["PromptFeatures", "TextEncoder", "build_text_encoder"]
