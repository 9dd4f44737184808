"""Codecs: ranges, shapes, streaming equality."""

from __future__ import annotations

import pytest
import torch

from vidalign.codecs import Codec, RGBCodec, build_codec
from vidalign.errors import UserError
from vidalign.students.video import VideoStudentSpec

TINY = {
    "name": "frames",
    "kind": "tiny",
    "downscale": 4,
    "config": {
        "latent_channels": 8,
        "encoder_block_out_channels": [8, 8, 8],
        "decoder_block_out_channels": [8, 8, 8],
        "num_encoder_blocks": [1, 1, 1],
        "num_decoder_blocks": [1, 1, 1],
    },
}
KL = {
    "name": "frames",
    "kind": "kl",
    "downscale": 2,
    "config": {
        "latent_channels": 4,
        "block_out_channels": [8, 8],
        "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
    },
}
WAN = {"name": "wan", "config": {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}}
WAN22 = {
    "name": "wan",
    "downscale": 16,
    "config": {
        "base_dim": 8,
        "num_res_blocks": 1,
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_spatial": 16,
    },
}


def build(config: dict) -> Codec:
    torch.manual_seed(0)
    return build_codec(config).eval()


def test_rgb_is_exact_both_ways() -> None:
    clips = torch.rand(2, 3, 3, 8, 8)
    codec = RGBCodec()
    assert codec.encode(clips).min() < -0.9 and codec.encode(clips).max() > 0.9
    assert torch.allclose(codec.decode(codec.encode(clips)), clips, atol=1e-6)
    assert codec.decode(torch.tensor([-3.0, 3.0])).tolist() == [0, 1]


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY, KL], ids=["tiny", "kl"])
def test_frame_codecs_treat_frames_alone(config: dict) -> None:
    clips = torch.rand(2, 5, 3, 16, 16)
    codec = build(config)
    latents = codec.encode(clips)
    side = 16 // codec.downscale
    assert latents.shape == (2, 5, codec.channels, side, side)
    decoded = codec.decode(latents)
    assert decoded.shape == clips.shape and decoded.min() >= 0 and decoded.max() <= 1
    assert torch.allclose(codec.encode(clips[:1, 3:4]), latents[:1, 3:4], atol=1e-5)
    sliced = build({**config, "slice_frames": 3})
    assert torch.allclose(sliced.decode(latents), decoded, atol=1e-5)


@torch.no_grad()
def test_kl_latents_are_shifted_and_scaled_as_published() -> None:
    codec = build(KL)
    clips = torch.rand(1, 1, 3, 16, 16)
    mode = codec.model.encode(clips[:, 0] * 2 - 1).latent_dist.mode()  # type: ignore[union-attr, operator]
    assert torch.allclose(codec.encode(clips)[:, 0], (mode - 0.25) * 0.5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("config", [WAN, WAN22], ids=["wan 2.1", "wan 2.2"])
def test_streamed_decode_equals_full_decode_exactly(config: dict) -> None:
    codec = build(config)
    latents = torch.randn(2, 9, 16, 2, 2)
    config = codec.model.config  # type: ignore[union-attr]
    mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
    full = codec.model.decode(latents.transpose(1, 2) * std + mean).sample  # type: ignore[union-attr, operator]
    full = ((full + 1) / 2).transpose(1, 2)
    decode, other = codec.stream(), codec.stream()
    chunks = []
    for chunk in latents.split(3, 1):
        chunks.append(decode(chunk))
        other(torch.randn_like(chunk))  # streams do not disturb each other
    assert [c.shape[1] for c in chunks] == [9, 12, 12]
    assert torch.equal(torch.cat(chunks, 1), full)
    assert torch.equal(codec.decode(latents), full)
    fresh = torch.cat([codec.decode(c) for c in latents.split(3, 1)], 1)
    assert fresh.shape[1] == 27  # each chunk as a video of its own is something else


@torch.no_grad()
@pytest.mark.parametrize("config", [WAN, WAN22], ids=["wan 2.1", "wan 2.2"])
def test_clips_decoded_behind_a_shared_history_are_those_of_the_whole_videos(config: dict) -> None:
    """Two videos with three candidates each: 12 frames a clip of 3 latents, not the 9 of a video's beginning."""
    codec = build(config)
    history, clips = torch.randn(2, 6, 16, 2, 2), torch.randn(6, 3, 16, 2, 2)
    whole = codec.decode(torch.cat([history.repeat_interleave(3, 0), clips], 1))
    found = codec.decode(clips, history)
    assert codec.remembers and found.shape[1] == 12
    assert torch.allclose(found, whole[:, -12:], atol=1e-6)


@torch.no_grad()
def test_wan_latents_are_whitened() -> None:
    codec = build(WAN)
    clips = torch.rand(1, 5, 3, 16, 16)
    latents = codec.encode(clips)
    assert latents.shape == (1, 2, 16, 2, 2)
    config = codec.model.config  # type: ignore[union-attr]
    mode = codec.model.encode((clips * 2 - 1).transpose(1, 2)).latent_dist.mode().transpose(1, 2)  # type: ignore[union-attr, operator]
    assert torch.allclose(latents[0, 0, 3], (mode[0, 0, 3] - config.latents_mean[3]) / config.latents_std[3])


def test_shapes_are_known_without_building_the_codec() -> None:
    rgb = VideoStudentSpec(transformer={"in_channels": 3, "patch_size": [1, 8, 8]})
    assert rgb.latent_shape == (3, 32, 32)
    wan = VideoStudentSpec(transformer={"in_channels": 16}, codec={"name": "wan"}, height=480, width=832)
    assert wan.latent_shape == (16, 60, 104)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="'rgb'"):
        build_codec({"name": "rbg"})
    with pytest.raises(UserError, match="shrinks by 4"):
        build_codec({**TINY, "downscale": 8})
    with pytest.raises(UserError, match="path or config"):
        build_codec({"name": "wan"})
