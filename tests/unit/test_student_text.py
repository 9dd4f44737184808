"""Text encoders and the feature cache."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vidalign.errors import UserError
from vidalign.text.encoder import TextEncoder
from vidalign.text.features import PromptFeatures
from vidalign.text.pretrained import build_text_encoder
from vidalign.worlds.video.captions import VOCABULARY, prompts
from vidalign.worlds.video.text import world_tokenizer


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return build_text_encoder({"name": "world"})


def test_the_world_encoder_is_the_same_everywhere(encoder: TextEncoder) -> None:
    words = list(VOCABULARY)[:8]
    features = encoder.encode([" ".join(words)])
    assert features.shape == (1, 16, 64) and features.dtype == torch.float32
    assert (features[0, 8:] == 0).all() and (features[0, :8] != 0).all()
    torch.manual_seed(99)
    again = build_text_encoder({"name": "world"})
    assert torch.equal(again.encode([" ".join(words)]), features) and again.key == encoder.key


def test_word_order_is_visible(encoder: TextEncoder) -> None:
    one, other = encoder.encode(["a red circle hits a blue square", "a blue square hits a red circle"])
    assert (one.sum(0) - other.sum(0)).norm() > 0.5


def test_every_caption_fits_and_none_look_alike(encoder: TextEncoder) -> None:
    captions = prompts("train")
    tokens = world_tokenizer()(captions)["input_ids"]
    assert max(map(len, tokens)) <= 16 and all(1 not in ids for ids in tokens)
    features = encoder.encode(captions).flatten(1)
    assert torch.pdist(features).min() > 1


def test_unknown_words_warn_once_by_name() -> None:
    encoder = build_text_encoder({"name": "world"})
    with pytest.warns(UserWarning, match="aardvark, zebra"):
        features = encoder.encode(["a zebra", "a aardvark"])
    assert torch.equal(features[0], features[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["a zebra"])


class Counting(TextEncoder):
    """Counts the prompts it encodes."""

    def __init__(self, inner: TextEncoder) -> None:
        super().__init__(inner.model, inner.tokenizer, inner.length, inner.key)
        self.count = 0

    def encode(self, prompts: list[str]) -> Tensor:
        self.count += len(prompts)
        return super().encode(prompts)


def test_features_are_computed_once_and_the_encoder_released(encoder: TextEncoder, tmp_path: Path) -> None:
    counting, built = Counting(encoder), []

    def build() -> TextEncoder:
        built.append(1)
        return counting

    features = PromptFeatures(build, key="world", folder=tmp_path)
    first = features(["a red circle", "a blue square", "a red circle"])
    assert counting.count == 2 and torch.equal(first[0], first[2])
    assert torch.equal(first[1], encoder.encode(["a blue square"])[0])
    features.release()
    assert torch.equal(features(["a blue square"])[0], first[1]) and len(built) == 1
    later = PromptFeatures(build, key="world", folder=tmp_path)
    assert torch.equal(later(["a red circle"])[0], first[0]) and len(built) == 1
    counting.count, in_memory = 0, PromptFeatures(build)
    assert torch.equal(in_memory(["a red circle"]), in_memory(["a red circle"])) and counting.count == 1
    other = PromptFeatures(build, key="another encoder", folder=tmp_path)
    other(["a red circle"])
    assert len(built) == 3


@pytest.mark.parametrize("kind", ["UMT5", "T5", "CLIPText", "Bert"])
def test_published_encoder_families(kind: str, tmp_path: Path) -> None:
    """Tiny random models of the families, saved and read back as a user's folder would be."""
    import transformers

    size = 40
    settings = {
        "UMT5": {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        "T5": {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        "CLIPText": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        "Bert": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
    }[kind]
    config = getattr(transformers, f"{kind}Config")(vocab_size=size, pad_token_id=0, eos_token_id=1, **settings)
    name = {
        "UMT5": "UMT5EncoderModel",
        "T5": "T5EncoderModel",
        "CLIPText": "CLIPTextModel",
        "Bert": "BertModel",
    }[kind]
    model = getattr(transformers, name)(config).eval()
    model.save_pretrained(tmp_path)
    world_tokenizer().save_pretrained(tmp_path)
    settings = {"name": "transformers", "path": str(tmp_path), "length": 12, "dtype": "float32"}
    encoder = build_text_encoder(settings)
    features = encoder.encode(["a red circle", "a blue"])
    assert features.shape == (2, 12, 16) and not any(p.requires_grad for p in encoder.parameters())
    assert (features[0, 3:] == 0).all() and (features[1, 2:] == 0).all() and (features[1, :2] != 0).any()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'world'"):
        build_text_encoder({"name": "wrold"})
    with pytest.raises(UserError, match="cannot be loaded"):
        build_text_encoder({"name": "transformers", "path": str(tmp_path)})
