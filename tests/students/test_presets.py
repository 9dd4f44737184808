"""The shipped presets and those of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidalign import registry
from vidalign.errors import UserError
from vidalign.students.video.presets import differences, nearest_preset, preset, shipped_presets
from vidalign.students.video.spec import DOWNSCALES


def fed(name: str, first: bool = False) -> list[float]:
    """Timesteps that the network sees."""
    return [round(1000 * s, 2) for s in preset(name).spec({}).sampler.steps(first)]


def test_the_published_timesteps_come_out() -> None:
    assert fed("self_forcing") == fed("longlive") == [1000, 937.5, 833.33, 625]
    assert fed("causal_forcing_pp_2step") == [1000, 833.33]
    assert fed("causal_forcing_pp_1step") == [1000]
    assert fed("causal_forcing_pp_1step", first=True) == [1000, 937.5, 833.33, 625]
    assert fed("causvid") == [1000, 757, 522]
    assert fed("rolling_forcing") == [1000, 952.38, 882.35, 769.23, 555.56]
    assert fed("krea_14b") == fed("causal_forcing_long") == fed("self_forcing")
    assert [int(t) for t in fed("longlive2_5b")] == [999, 937, 833, 624]


@pytest.mark.parametrize("name", shipped_presets())
def test_every_preset_gives_a_valid_spec(name: str) -> None:
    family = preset(name)
    spec = family.spec({})
    sizes = (8, 24, (48, 44, 80)) if name == "longlive2_5b" else (spec.cache.chunk_frames, 16, (16, 60, 104))
    transformer = {"in_channels": family.latent_channels}
    assert spec.preset == name and spec.cache.chunk_frames in (0, 1, 3, 8)
    assert (spec.cache.chunk_frames, spec.fps, family.spec(transformer).latent_shape) == sizes
    assert spec.codec["path"] == spec.text["path"] == family.base
    assert differences(spec, family) == []
    assert differences(spec, preset(nearest_preset(spec))) == []


def test_both_forms_of_longlive_keep_the_sink_on_a_prompt_switch() -> None:
    """As `global_sink: true` in the configs that it was released with."""
    for name, rope in (("longlive", "absolute"), ("longlive_infinity", "relative")):
        cache = preset(name).spec({}).cache
        assert (cache.window, cache.sink, cache.rope, cache.global_sink) == (12, 3, rope, True)


def test_an_unknown_family_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'self_forcing'"):
        preset("selfforcing")


def test_a_preset_of_the_users_own_is_named_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text("about: mine\ncache: {chunk_frames: 2, window: 8}\nsampler: {sigmas: [1.0, 0.5]}\nfps: 24\n")
    spec = preset(str(file)).spec({}, base="/base")
    assert (spec.preset, spec.cache.window, spec.sampler.sigmas, spec.fps) == ("short", 8, [1.0, 0.5], 24)
    assert spec.codec == {"name": "wan", "subfolder": "vae", "downscale": 8, "path": "/base"}
    file.write_text("about: mine\ncache: {chunk_frame: 2}\nsampler: {sigmas: [0.9]}\nfsp: 24\n")
    with pytest.raises(UserError) as caught:
        preset(str(file))
    for message in ("did you mean 'chunk_frames'", "must fall strictly from 1.0", "did you mean 'fps'", "short.yaml:2"):
        assert message in str(caught.value)


def test_lengths_in_pixels_and_latents() -> None:
    """The first latent of Wan is one pixel frame, each other one four."""
    spec = preset("self_forcing").spec({})
    assert [spec.pixel_frames(n) for n in (0, 1, 3, 21)] == [0, 1, 9, 81]
    assert [spec.latent_frames(n) for n in (1, 4, 5, 80, 81, 84)] == [1, 1, 2, 20, 21, 21]
    assert [spec.latents_in(seconds) for seconds in (0.01, 5, 5.1)] == [1, 21, 21]
    assert all(spec.latent_frames(spec.pixel_frames(n)) == n for n in range(1, 50))
    rgb = preset("self_forcing").spec({}).__class__()
    assert (rgb.pixel_frames(12), rgb.latent_frames(12), rgb.latents_in(2)) == (12, 12, 16)


def test_positions_end_at_1024() -> None:
    spec = preset("self_forcing").spec({})
    spec.check_frames(1023)
    with pytest.raises(UserError, match="past the rotary table of 1024 entries.*use at most 1023"):
        spec.check_frames(1026)
    preset("longlive_infinity").spec({}).check_frames(3000)


def test_the_scales_known_without_torch_are_those_of_the_codecs() -> None:
    for name, scale in DOWNSCALES.items():
        codec = registry.get("codecs", name)
        assert getattr(codec.Config, "downscale", codec.downscale) == scale
