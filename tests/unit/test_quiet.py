"""Loading a model leaves standard error to our own messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertConfig, BertModel, BertTokenizerFast
from transformers.utils import logging

from vidalign.quiet import no_bars
from vidalign.text.pretrained import text_plugin


def test_a_text_encoder_is_loaded_without_bars(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(tmp_path)
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    capfd.readouterr()
    text_plugin({"name": "transformers", "path": str(tmp_path), "length": 4}).build()
    assert "Loading" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled(), "what the user's own code loads is not touched"


def test_bars_that_were_off_stay_off() -> None:
    logging.disable_progress_bar()
    try:
        with no_bars("transformers"):
            assert not logging.is_progress_bar_enabled()
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()


def test_a_load_that_fails_restores_the_bars() -> None:
    with pytest.raises(OSError, match="gone"), no_bars("transformers", "diffusers"):
        assert not logging.is_progress_bar_enabled()
        raise OSError("gone")
    assert logging.is_progress_bar_enabled()
