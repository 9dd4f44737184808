"""Text encoders; what is kept of their features is in test_text_cache.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vidalign.errors import UserError
from vidalign.text.encoder import TextEncoder, padded
from vidalign.text.pretrained import text_plugin
from vidalign.worlds.video.captions import VOCABULARY, prompts
from vidalign.worlds.video.text import world_tokenizer


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return text_plugin({"name": "world"}).build()


def encoded(encoder: TextEncoder, prompts: list[str]) -> Tensor:
    """`[B, length, dim]`, zero at the padding."""
    return torch.stack([padded(features, encoder.length) for features in encoder.encode(prompts)])


def test_the_world_encoder_is_the_same_everywhere(encoder: TextEncoder) -> None:
    words = list(VOCABULARY)[:8]
    features = encoded(encoder, [" ".join(words)])
    assert features.shape == (1, 16, 64) and features.dtype == torch.float32
    assert (features[0, 8:] == 0).all() and (features[0, :8] != 0).all()
    torch.manual_seed(99)
    again = text_plugin({"name": "world"}).build()
    assert torch.equal(encoded(again, [" ".join(words)]), features)


def test_word_order_is_visible(encoder: TextEncoder) -> None:
    one, other = encoded(encoder, ["a red circle hits a blue square", "a blue square hits a red circle"])
    assert (one.sum(0) - other.sum(0)).norm() > 0.5


def test_every_caption_fits_and_none_look_alike(encoder: TextEncoder) -> None:
    captions = prompts("train")
    tokens = world_tokenizer()(captions)["input_ids"]
    assert max(map(len, tokens)) <= 16 and all(1 not in ids for ids in tokens)
    features = encoded(encoder, captions).flatten(1)
    assert torch.pdist(features).min() > 1


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
    encoder = text_plugin(settings).build()
    features = encoded(encoder, ["a red circle", "a blue"])
    assert features.shape == (2, 12, 16) and not any(p.requires_grad for p in encoder.parameters())
    assert (features[0, 3:] == 0).all() and (features[1, 2:] == 0).all() and (features[1, :2] != 0).any()
    (entity,) = encoder.encode(["a &#32; red&amp;#32;circle "])
    cleaned = kind == "UMT5"  # as `WanPipeline` does
    assert (entity.shape == (3, 16) and torch.equal(entity, features[0, :3])) == cleaned
    assert ("'cleaned'" in text_plugin(settings).identity()) == cleaned
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:60])
    with pytest.raises(UserError, match="the text encoder cannot be loaded"):
        text_plugin(settings).build()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'world'"):
        text_plugin({"name": "wrold"})
    with pytest.raises(UserError, match="cannot be loaded"):
        text_plugin({"name": "transformers", "path": str(tmp_path)}).build()
    with pytest.raises(UserError, match="cannot be loaded"):
        text_plugin({"name": "transformers", "path": str(tmp_path)}).identity()


def test_a_library_that_gives_no_reason_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*args: object, **options: object) -> None:
        raise OSError

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", silent)
    with pytest.raises(UserError, match=r"cannot be loaded.*OSError"):
        text_plugin({"name": "transformers", "path": "somewhere"}).build()
