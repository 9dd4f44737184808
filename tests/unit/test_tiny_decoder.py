"""The tiny decoder against the published rule written out frame by frame, on random weights under its key names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_tae import STAGES, published
from torch import Tensor
from torch.nn import functional

from vidalign.codecs.tiny_wan import TinyWanDecoder
from vidalign.errors import RecipeError, UserError
from vidalign.recipe import load_recipe


def by_hand(weights: dict[str, Tensor], latents: Tensor, patch: int) -> Tensor:
    """One video ``[F, C, h, w]``: each frame goes through all layers before the next one, and leaves what it was."""
    memory: dict[int, Tensor] = {}
    frames: list[Tensor] = []

    def conv(name: str, x: Tensor) -> Tensor:
        weight = weights[f"{name}.weight"]
        return functional.conv2d(x, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def through(x: Tensor, at: int, stage: int) -> None:
        if stage == 3:
            pixels = conv("decoder.22", x.relu()).clamp(0, 1)
            frames.append(functional.pixel_shuffle(pixels, patch)[0])
            return
        width, _, times = STAGES[stage]
        for block in range(at, at + 3):
            before = memory.get(block, torch.zeros_like(x))
            memory[block] = x
            y = torch.cat([x, before], 1)
            for part in (0, 2, 4):
                y = conv(f"decoder.{block}.conv.{part}", y if part == 0 else y.relu())
            x = (y + x).relu()
        x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
        grow = weights[f"decoder.{at + 4}.conv.weight"][-times * width :]
        for one in functional.conv2d(x, grow).split(width, 1):
            through(conv(f"decoder.{at + 5}", one), at + 6, stage + 1)

    for latent in latents:
        through(conv("decoder.1", 3 * torch.tanh(latent[None] / 3)).relu(), 3, 0)
    return torch.stack(frames[3:])


@pytest.fixture(params=[(16, 1, 1), (48, 2, 1), (16, 1, 2)], ids=["taew2_1", "taew2_2", "more frames"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.save(published(*request.param), tmp_path / "tae.pth")
    return tmp_path / "tae.pth"


@torch.no_grad()
def test_it_decodes_as_published(file: Path) -> None:
    decoder = TinyWanDecoder(TinyWanDecoder.Config(str(file))).double()
    weights = {name: value.double() for name, value in torch.load(file).items()}
    latents = torch.randn(2, 4, decoder.channels, 3, 2, generator=torch.Generator().manual_seed(1)).double()
    clips = decoder.decode(latents)
    assert clips.shape == (2, 13, 3, 3 * decoder.downscale, 2 * decoder.downscale)
    for clip, one in zip(clips, latents, strict=True):
        torch.testing.assert_close(clip, by_hand(weights, one, decoder.patch), rtol=1e-9, atol=1e-9)
    assert clips.std() > 0.05, "weights that are cut off everywhere would show nothing"


@torch.no_grad()
def test_a_stream_and_what_follows_a_history_are_parts_of_the_whole(file: Path) -> None:
    decoder = TinyWanDecoder(TinyWanDecoder.Config(str(file)))
    latents = torch.randn(2, 6, decoder.channels, 3, 2, generator=torch.Generator().manual_seed(1))
    whole, stream = decoder.decode(latents), decoder.stream()
    parts = torch.cat([stream(part) for part in latents.split((1, 3, 2), 1)], 1)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    group = latents[:, 3:].repeat_interleave(2, 0)
    behind = decoder.decode(group, latents[:, :3])
    torch.testing.assert_close(behind, whole[:, 9:].repeat_interleave(2, 0), rtol=1e-5, atol=1e-5)


def test_files_that_are_no_tiny_decoder_are_refused(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            TinyWanDecoder(TinyWanDecoder.Config(str(path)))
        return str(caught.value)

    assert "No such file" in refused(tmp_path / "nowhere.pth") and "taew2_1" in refused(tmp_path / "nowhere.pth")
    (tmp_path / "page.pth").write_text("<html>")
    assert "student.decoder" in refused(tmp_path / "page.pth")
    torch.save([1], tmp_path / "list.pth")
    assert "does not hold the tensors" in refused(tmp_path / "list.pth")
    weights = published(16, 1)
    weights["decoder.5.conv.0.weight"] = torch.zeros(3)
    save_file(weights, tmp_path / "other.safetensors")
    assert "decoder.5.conv.0.weight" in refused(tmp_path / "other.safetensors")


def test_a_recipe_names_one_that_reads_its_latents(tmp_path: Path) -> None:
    torch.save(published(48, 2), tmp_path / "tae.pth")
    with pytest.raises(
        RecipeError, match=r"reads latents of 48 channels, each of 16 pixels.*those of the student have 3"
    ):
        load_recipe("world/astrolabe", [f"student.decoder={tmp_path / 'tae.pth'}"])
    with pytest.raises(RecipeError, match="the tiny decoder cannot be used"):
        load_recipe("world/astrolabe", ["student.decoder=nowhere.pth"])
