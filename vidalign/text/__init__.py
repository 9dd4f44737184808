"""Text encoders of video students, and the features of their prompts."""

from vidalign.text.encoder import TextEncoder
from vidalign.text.features import PromptFeatures
from vidalign.text.pretrained import build_text_encoder

__all__ = ["PromptFeatures", "TextEncoder", "build_text_encoder"]
