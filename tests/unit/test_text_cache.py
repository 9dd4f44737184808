"""Features of prompts on disk and in memory: encoded once, un-padded, in the type of an encoder that is then gone."""

from __future__ import annotations

import gc
import multiprocessing
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from vidalign.text import cache
from vidalign.text.base import TextPlugin
from vidalign.text.cache import Encoded, FeatureMemory, default_folder
from vidalign.text.encoder import TextEncoder
from vidalign.text.features import PromptFeatures
from vidalign.text.pretrained import PretrainedText, text_plugin
from vidalign.worlds.video.captions import VOCABULARY
from vidalign.worlds.video.text import WorldText, world_tokenizer

CAPTIONS = ["a red circle", "a blue square", "a large red square falls"]


class Counting(WorldText):
    """Counts how often it is built."""

    built = 0

    def build(self) -> TextEncoder:
        self.built += 1
        return super().build()


def features(folder: Path, plugin: TextPlugin | None = None, **options: int) -> PromptFeatures:
    return PromptFeatures(plugin or Counting(WorldText.Config()), folder, **options)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def encoders() -> list[TextEncoder]:
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), TextEncoder)]


def test_a_prompt_is_encoded_once_and_padded_at_read(tmp_path: Path) -> None:
    before = len(encoders())
    made = features(tmp_path)
    first = made([*CAPTIONS, CAPTIONS[0]])
    assert first.shape == (4, 16, 64) and first.dtype == torch.float32 and torch.equal(first[0], first[3])
    assert (first[0, 3:] == 0).all() and (first[0, :3] != 0).all()
    whole = WorldText(WorldText.Config()).build()
    assert torch.equal(first[2, :5], whole.encode([CAPTIONS[2]])[0]), "bit for bit as without a cache"
    del whole
    assert torch.equal(made(CAPTIONS), first[:3]) and made.plugin.built == 1 and made.encoded == 3
    assert len(encoders()) == before, "the encoder is released"
    later = features(tmp_path)
    assert torch.equal(later(CAPTIONS), first[:3]) and later.plugin.built == 0 and later.encoded == 0


def test_files_hold_the_tokens_alone_in_the_encoders_type(tmp_path: Path) -> None:
    features(tmp_path)(CAPTIONS[:1])
    (file,) = files(tmp_path)
    with safe_open(file, "pt") as opened:
        tensor = opened.get_tensor("features")
        assert tensor.shape == (3, 64) and tensor.dtype == torch.float32
        assert opened.metadata()["prompt"] == CAPTIONS[0] and opened.metadata()["length"] == "16"


@pytest.fixture
def umt5(tmp_path: Path) -> Path:
    """A tiny encoder of the family of Wan, as a folder of weights."""
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": len(VOCABULARY) + 2}
    folder = tmp_path / "umt5"
    UMT5EncoderModel(UMT5Config(**sizes)).save_pretrained(folder / "text_encoder")
    world_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def pretrained(folder: Path, **settings: object) -> TextPlugin:
    return text_plugin({"name": "transformers", "path": str(folder), "subfolder": "text_encoder", **settings})


def test_a_bf16_encoder_is_kept_in_bf16_without_loss(umt5: Path, tmp_path: Path) -> None:
    plugin = pretrained(umt5, length=512)
    made = features(tmp_path / "cache", plugin)(CAPTIONS)
    assert made.shape == (3, 512, 16) and made.dtype == torch.bfloat16
    assert torch.equal(made[1, :3], plugin.build().encode([CAPTIONS[1]])[0]) and (made[1, 3:] == 0).all()
    assert all(file.stat().st_size < 2000 for file in files(tmp_path / "cache")), "padding is not stored"
    assert torch.equal(features(tmp_path / "cache", pretrained(umt5, length=512))(CAPTIONS), made)


def test_the_key_is_text_encoder_and_length(umt5: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for changes in ({"length": 8}, {"length": 9}, {"length": 8, "dtype": "float32"}, {"length": 8}):
        features(folder, pretrained(umt5, **changes))(CAPTIONS[:1])
    assert len(files(folder)) == 3
    weights = umt5 / "text_encoder" / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    features(folder, pretrained(umt5, length=8))(CAPTIONS[:1])
    assert len(files(folder)) == 4, "other weights in the same place"


def test_prepare_encodes_only_what_is_missing(tmp_path: Path) -> None:
    assert features(tmp_path).prepare(CAPTIONS[:2]) == 2
    again = features(tmp_path)
    assert again.prepare(CAPTIONS[:2]) == 0 and again.plugin.built == 0
    assert again.prepare([*CAPTIONS, *CAPTIONS]) == 1 and again.encoded == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "empty"])
def test_a_damaged_file_is_encoded_again(damage: str, tmp_path: Path) -> None:
    expected = features(tmp_path)(CAPTIONS[:1])
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[-3] ^= 0xFF
    file.write_bytes({"cut": content[:-40], "flipped": content, "other": b"{}", "empty": b""}[damage])
    again = features(tmp_path)
    assert again.prepare(CAPTIONS[:1]) == (damage != "flipped"), "a flipped bit is seen when the numbers are read"
    fresh = features(tmp_path)
    assert torch.equal(fresh(CAPTIONS[:1]), expected) and torch.equal(features(tmp_path)(CAPTIONS[:1]), expected)


def test_a_folder_that_cannot_be_written_is_warned_about_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = features(tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match=r"cannot be kept in .*VIDALIGN_CACHE or data.text_cache") as seen:
        made(CAPTIONS)
    assert len(seen) == 1 and made.encoded == 3
    made(CAPTIONS)
    assert made.encoded == 3, "memory holds them"


def test_memory_is_bounded_and_forgets_what_was_unused_for_longest() -> None:
    one = Encoded(torch.zeros(10, 10), 16)
    memory = FeatureMemory(limit=900)
    for name in "ab":
        memory.add(name, one)
    assert memory.get("a") is one
    memory.add("c", one)
    assert memory.bytes == 800 and memory.get("b") is None and memory.get("a") is memory.get("c") is one
    memory.add("c", one)
    assert memory.bytes == 800, "the same prompt counts once"
    memory.add("d", Encoded(torch.zeros(1000), 16))
    assert memory.bytes == 0, "what is larger than the limit is not kept"


def test_a_batch_larger_than_memory_is_answered(tmp_path: Path) -> None:
    made = features(tmp_path, memory=0)
    assert torch.equal(made(CAPTIONS), features(tmp_path)(CAPTIONS)) and made.encoded == 3


def fill(folder: str, ready: object) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    ready.wait()  # type: ignore[attr-defined]
    PromptFeatures(WorldText(WorldText.Config()), folder)([f"a {word} circle" for word in VOCABULARY])


def test_processes_may_fill_a_folder_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=fill, args=(str(tmp_path), barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    made = features(tmp_path)
    assert made.prepare([f"a {word} circle" for word in VOCABULARY]) == 0
    assert not list(tmp_path.rglob("*.partial")) and len(files(tmp_path)) == len(set(VOCABULARY))


def test_the_folder_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDALIGN_CACHE", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own" / "text"
    monkeypatch.delenv("VIDALIGN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "vidalign" / "text"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "vidalign" / "text"


def test_unknown_words_warn_once_by_name_whether_encoded_or_read(tmp_path: Path) -> None:
    for _ in range(2):
        made = features(tmp_path)
        with pytest.warns(UserWarning, match="aardvark, zebra"):
            rows = made(["a zebra", "a aardvark"])
        assert torch.equal(rows[0], rows[1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made(["a zebra"])


class Recording(TextEncoder):
    """Remembers where it ran."""

    places: list[str] = []

    def encode(self, prompts: list[str]) -> list[Tensor]:
        self.places.append(str(next(self.model.parameters()).device))
        return super().encode(prompts)


@pytest.mark.parametrize(("on_device", "place"), [(True, "meta"), (False, "cpu")])
def test_the_plugin_says_whether_it_runs_on_the_device(
    on_device: bool, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class Config:
        length: int = 16

    class Own(WorldText):
        def build(self) -> TextEncoder:
            inner = super().build()
            return Recording(inner.model, inner.tokenizer, inner.length)

    monkeypatch.setattr(Own, "on_device", on_device)
    monkeypatch.setattr("vidalign.engine.distributed.device", lambda: torch.device("meta"))
    Recording.places = []
    made = features(tmp_path, Own(WorldText.Config()))
    if on_device:
        with pytest.raises((NotImplementedError, RuntimeError)):  # a meta tensor has no numbers to keep
            made(CAPTIONS[:1])
    else:
        made(CAPTIONS[:1])
    assert Recording.places == [place]
    assert WorldText.on_device is False and PretrainedText.on_device is True


def test_a_prompt_does_not_depend_on_those_encoded_with_it(tmp_path: Path) -> None:
    many = [f"a {word} circle" for word in VOCABULARY]
    together, alone = features(tmp_path / "a")(many), features(tmp_path / "b")
    assert torch.equal(together, torch.cat([alone([prompt]) for prompt in many]))
    assert cache.MEMORY == 2**30
