"""Import of public checkpoints: key choice, wrappers, LoRA files, presets, strictness."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from student_reference import FIXTURE, weights

from vidalign.errors import CheckpointError, UserError
from vidalign.students.video.presets import PRESETS, preset
from vidalign.students.video.public import import_student, infer_config, rename


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    """The state dict under its original names, without a prefix."""
    with safe_open(FIXTURE, "pt") as file:
        keys = [k for k in file.keys() if k.startswith("sf_state_dict/")]
        return {k.removeprefix("sf_state_dict/model."): file.get_tensor(k) for k in keys}


def write(path: Path, content: dict) -> Path:
    torch.save(content, path / "public.pt")
    return path / "public.pt"


def load(path: Path, name: str = "self_forcing", **kwargs: object) -> torch.Tensor:
    student = import_student(path, name, transformer=weights()[1], **kwargs)  # type: ignore[arg-type]
    return student.base.blocks[1].attn2.to_out[0].weight


@pytest.mark.parametrize(
    "prefix", ["", "model.", "model._fsdp_wrapped_module.", "model._orig_mod.", "diffusion_model."]
)
def test_prefixes_and_wrappers_are_stripped(tmp_path: Path, original: dict, prefix: str) -> None:
    path = write(tmp_path, {"generator": {prefix + k: v for k, v in original.items()}})
    assert torch.equal(load(path), original["blocks.1.cross_attn.o.weight"])


def test_the_ema_is_preferred_and_can_be_overridden(tmp_path: Path, original: dict) -> None:
    other = {k: v + 1 for k, v in original.items()}
    path = write(tmp_path, {"generator": other, "generator_ema": original, "step": 3})
    expected = original["blocks.1.cross_attn.o.weight"]
    assert torch.equal(load(path), expected)
    assert torch.equal(load(path, key="generator"), expected + 1)
    assert torch.equal(load(path, "causal_forcing"), expected + 1)
    with pytest.raises(CheckpointError, match="no key 'ema'"):
        load(path, key="ema")
    flat = write(tmp_path, original)
    assert torch.equal(load(flat, "reward_forcing"), expected)


def test_loading_is_strict(tmp_path: Path, original: dict) -> None:
    short = {k: v for k, v in original.items() if k != "head.head.bias"}
    with pytest.raises(CheckpointError, match="proj_out.bias"):
        load(write(tmp_path, short))
    with pytest.raises(CheckpointError, match="extra"):
        load(write(tmp_path, {**original, "extra.weight": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"found \[2\], expected \[64\]"):
        load(write(tmp_path, {**original, "head.head.bias": torch.zeros(2)}))
    (tmp_path / "public.pt").write_bytes((tmp_path / "public.pt").read_bytes()[:9000])
    with pytest.raises(CheckpointError, match="unreadable"):
        load(tmp_path / "public.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "nothing.pt")


def test_a_lora_file_is_merged_with_the_presets_alpha(tmp_path: Path, original: dict) -> None:
    rank = preset("longlive").lora_rank
    a, b = torch.randn(rank, 64), torch.randn(64, rank)
    name = "base_model.model.blocks.1.cross_attn.o.lora_"
    lora = {name + "A.default.weight": a, name + "B.default.weight": b}
    (tmp_path / "lora").mkdir()
    file = write(tmp_path / "lora", {"generator_lora": lora})
    path = write(tmp_path, {"generator": original})
    expected = original["blocks.1.cross_attn.o.weight"] + b @ a * preset("longlive").lora_alpha / rank
    assert torch.allclose(load(path, "longlive", lora=file), expected)
    with pytest.raises(CheckpointError, match="does not fit"):
        load(path, "self_forcing", lora=file)
    wrong = {k.replace("cross_attn.o", "cross_attn.x"): v for k, v in lora.items()}
    with pytest.raises(CheckpointError, match="does not fit"):
        load(path, "longlive", lora=write(tmp_path / "lora", wrong))


def test_the_rename_table_covers_the_whole_diffusers_network(original: dict) -> None:
    from diffusers import WanTransformer3DModel

    network = WanTransformer3DModel(**weights()[1])
    assert {rename(k) for k in original} == set(network.state_dict())


def test_the_published_sizes_are_read_off_the_shapes() -> None:
    from diffusers import WanTransformer3DModel

    config = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
    with torch.device("meta"):
        network = WanTransformer3DModel(**config)
    tensors = network.state_dict()
    assert len(tensors) == 825 and sum(x.numel() for x in tensors.values()) == 1_418_996_800
    found = infer_config(tensors, "meta")
    assert all(
        list(v) == list(network.config[k]) if k == "patch_size" else v == network.config[k] for k, v in found.items()
    )


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_gives_a_valid_spec(name: str) -> None:
    spec = preset(name).spec({}, "diffusers", 480, 832)
    assert spec.sampler.sigmas[0] == 1.0 and spec.cache.chunk_frames in (1, 3)


def test_the_published_timesteps_come_out() -> None:
    def fed(name: str, first: bool = False) -> list[float]:
        return [round(1000 * s, 2) for s in preset(name).spec({}, "diffusers", 480, 832).sampler.steps(first)]

    assert fed("self_forcing") == [1000, 937.5, 833.33, 625]
    assert fed("causal_forcing_pp_2step") == [1000, 833.33]
    assert fed("causal_forcing_pp_1step") == [1000]
    assert fed("causal_forcing_pp_1step", first=True) == [1000, 937.5, 833.33, 625]
    assert fed("causvid") == [1000, 757, 522]


def test_unknown_and_unsupported_families_are_named() -> None:
    with pytest.raises(UserError, match="'self_forcing'"):
        preset("selfforcing")
    with pytest.raises(UserError, match="recomputes the cache"):
        preset("krea_14b")


def test_both_forms_of_longlive_keep_the_sink_on_a_prompt_switch() -> None:
    """As `global_sink: true` in the configs that it was released with."""
    for name, rope in (("longlive", "absolute"), ("longlive_infinity", "relative")):
        cache = preset(name).spec({}, "wan", 480, 832).cache
        assert (cache.window, cache.sink, cache.rope, cache.global_sink) == (12, 3, rope, True)
