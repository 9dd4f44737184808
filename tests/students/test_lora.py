"""LoRA files of every naming, merged into the weights or kept as an adapter."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_wan
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tiny_wan import assert_equal, imported, save, stored

from vidalign.errors import CheckpointError, UserError
from vidalign.students.video.importers.names import original

RANK, ALPHA = 4, 6.0
LAYERS = ["blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0", "blocks.1.ffn.net.0.proj", "condition_embedder.time_proj"]
Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def network() -> WanTransformer3DModel:
    return tiny_wan.network()


@pytest.fixture
def checkpoint(tmp_path: Path, network: WanTransformer3DModel) -> Path:
    return save(tmp_path / "x.pt", {"generator": tiny_wan.weights(network)})


@pytest.fixture
def factors(network: WanTransformer3DModel) -> Factors:
    """A and B of some layers."""
    shapes = {name: network.get_submodule(name).weight.shape for name in LAYERS}
    return {name: (torch.randn(RANK, s[1]) / 8, torch.randn(s[0], RANK) / 8) for name, s in shapes.items()}


def merged(network: WanTransformer3DModel, factors: Factors, scale: float = ALPHA / RANK) -> dict[str, torch.Tensor]:
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for name, (down, up) in factors.items():
        state[f"{name}.weight"] += scale * up @ down
    return state


def assert_close(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    found = stored(folder)
    assert found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def own(name: str) -> str:
    """A layer under its original name."""
    return original(f"{name}.weight").removesuffix(".weight")


def named(factors: Factors, form: str) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA file in one of the namings."""
    patterns = {
        "longlive": lambda n, p: f"base_model.model.model.{own(n)}.lora_{p}.default.weight",
        "peft": lambda n, p: f"base_model.model.{n}.lora_{p}.weight",
        "diffusers": lambda n, p: f"transformer.{n}.lora_{p}.weight",
        "original": lambda n, p: f"diffusion_model.{own(n)}.lora_{p}.weight",
        "comfy": lambda n, p: f"diffusion_model.{own(n)}.lora_{'down' if p == 'A' else 'up'}.weight",
        "kohya": lambda n, p: f"lora_unet_{own(n).replace('.', '_')}.lora_{'down' if p == 'A' else 'up'}.weight",
    }
    tensors = {patterns[form](name, p): x for name, ab in factors.items() for p, x in zip("AB", ab, strict=True)}
    if form in ("comfy", "kohya"):
        alphas = {patterns[form](name, "A").replace(".lora_down.weight", ".alpha") for name in factors}
        tensors |= {name: torch.tensor(ALPHA) for name in alphas}
    return tensors


@pytest.mark.parametrize("form", ["longlive", "peft", "diffusers", "original", "comfy", "kohya"])
def test_every_naming_is_merged(
    tmp_path: Path, checkpoint: Path, network: WanTransformer3DModel, factors: Factors, form: str
) -> None:
    save_file(named(factors, form), tmp_path / "lora.safetensors")
    alpha = {} if form in ("comfy", "kohya") else {"lora_alpha": ALPHA}
    folder = imported(checkpoint, tmp_path / "out", lora=str(tmp_path / "lora.safetensors"), **alpha)
    assert_close(folder, merged(network, factors))


@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_of_a_peft_folder_stands_in_its_settings(
    tmp_path: Path, checkpoint: Path, network: WanTransformer3DModel, rslora: bool
) -> None:
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=["attn1.to_q", "ffn.net.2"],
        use_rslora=rslora,
        rank_pattern={"blocks.0.attn1.to_q": 2},
        alpha_pattern={"blocks.1.ffn.net.2": 3},
        init_lora_weights=False,
    )
    made = peft.get_peft_model(tiny_wan.network(), config)
    made.save_pretrained(tmp_path / "peft")
    folder = imported(checkpoint, tmp_path / "out", lora=str(tmp_path / "peft"))
    assert_close(folder, made.merge_and_unload().state_dict())


def test_alpha_in_the_header_of_diffusers_is_read(
    tmp_path: Path, checkpoint: Path, network: WanTransformer3DModel, factors: Factors
) -> None:
    layers = {f"{name}.lora_{p}.weight": x for name, ab in factors.items() for p, x in zip("AB", ab, strict=True)}
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": LAYERS}
    WanPipeline.save_lora_weights(tmp_path / "lora", layers, transformer_lora_adapter_metadata=settings)
    folder = imported(checkpoint, tmp_path / "out", lora=str(tmp_path / "lora"))
    assert_close(folder, merged(network, factors))


def test_ranks_may_differ_and_weights_and_biases_may_have_differences(
    tmp_path: Path, checkpoint: Path, network: WanTransformer3DModel
) -> None:
    wide, narrow = (torch.randn(6, 32), torch.randn(32, 6)), (torch.randn(2, 32), torch.randn(32, 2))
    head = "diffusion_model.blocks.0.self_attn"
    tensors = {f"{head}.{name}.lora_{p}.weight": x for name, ab in (("q", wide), ("k", narrow)) for p, x in _du(ab)}
    tensors |= {f"{head}.q.alpha": torch.tensor(6.0), f"{head}.k.alpha": torch.tensor(1.0)}
    tensors |= {f"{head}.k.diff_b": torch.randn(32), f"{head}.norm_q.diff": torch.randn(32)}
    tensors["diffusion_model.patch_embedding.diff"] = torch.randn(32, 16, 1, 2, 2)
    save_file(tensors, tmp_path / "lora.safetensors")
    expected = merged(network, {"blocks.0.attn1.to_q": wide}, 1.0)
    expected["blocks.0.attn1.to_k.weight"] += 0.5 * narrow[1] @ narrow[0]
    expected["blocks.0.attn1.to_k.bias"] += tensors[f"{head}.k.diff_b"]
    expected["blocks.0.attn1.norm_q.weight"] += tensors[f"{head}.norm_q.diff"]
    expected["patch_embedding.weight"] += tensors["diffusion_model.patch_embedding.diff"]
    assert_close(imported(checkpoint, tmp_path / "out", lora=str(tmp_path / "lora.safetensors")), expected)


def _du(pair: tuple[torch.Tensor, torch.Tensor]) -> Any:
    return zip(("down", "up"), pair, strict=True)


def test_the_preset_knows_the_alpha_of_its_own_files(
    tmp_path: Path, checkpoint: Path, network: WanTransformer3DModel
) -> None:
    pair = torch.randn(256, 32) / 50, torch.randn(32, 256) / 50
    lora = {
        f"base_model.model.blocks.1.cross_attn.o.lora_{p}.default.weight": x for p, x in zip("AB", pair, strict=True)
    }
    path = save(tmp_path / "lora.pt", {"generator_lora": lora, "step": 1})
    folder = imported(checkpoint, tmp_path / "out", "longlive", lora=str(path))
    assert_close(folder, merged(network, {"blocks.1.attn2.to_out.0": pair}, 1.0))
    with pytest.raises(UserError, match="the alpha of the LoRA is not known.*rank of .* is 256.*--lora-alpha"):
        imported(checkpoint, tmp_path / "other", lora=str(path))
    small = {name: x[:8] if x.shape[0] == 256 else x[:, :8] for name, x in lora.items()}
    with pytest.raises(UserError, match="the preset's alpha is for rank 256"):
        imported(checkpoint, tmp_path / "other", "longlive", lora=str(save(tmp_path / "small.pt", small)))


def test_a_merge_into_bf16_rounds_once(tmp_path: Path, network: WanTransformer3DModel, factors: Factors) -> None:
    path = save(tmp_path / "y.pt", tiny_wan.weights(network))
    save_file(named(factors, "comfy"), tmp_path / "lora.safetensors")
    folder = imported(path, tmp_path / "out", lora=str(tmp_path / "lora.safetensors"), dtype="bfloat16")
    found, exact = stored(folder), merged(network, factors)
    ulp = {
        name: (value.float() - exact[name]).abs() / exact[name].abs().clamp_min(1e-9) for name, value in found.items()
    }
    assert max(float(value.max()) for value in ulp.values()) <= 2**-8


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"unet.down.0.lora_A.weight": (4, 8), "unet.down.0.lora_B.weight": (8, 4)}, "matches nothing in the network"),
    ({"transformer.blocks.0.attn1.to_q.lora_A.weight": (4, 32)}, "does not fit together.*B is missing"),
    (
        {
            "transformer.blocks.0.attn1.to_q.lora_A.weight": (4, 32),
            "transformer.blocks.0.attn1.to_q.lora_B.weight": (32, 5),
        },
        r"does not fit together.*A is \[4, 32\], B is \[32, 5\]",
    ),
    ({"blocks.0.self_attn.q.dora_scale": (32, 1)}, "'blocks.0.self_attn.q.dora_scale' is no tensor of a LoRA.*DoRA"),
    (
        {f"blocks.{n}.self_attn.q.lora_{p}.weight": s for n in (0, 7) for p, s in (("A", (4, 32)), ("B", (32, 4)))},
        "1 layers of the LoRA are not in the network.*blocks.7.attn1.to_q",
    ),
]


@pytest.mark.parametrize(("shapes", "message"), REFUSED)
def test_a_lora_that_does_not_fit_is_refused(tmp_path: Path, checkpoint: Path, shapes: Any, message: str) -> None:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=message):
        imported(checkpoint, tmp_path / "out", lora=str(tmp_path / "lora.safetensors"), lora_alpha=1.0)
    assert not (tmp_path / "out").exists()


def test_a_lora_of_another_size_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    wrong = {f"blocks.0.self_attn.q.lora_{p}.weight": torch.zeros(s) for p, s in (("A", (4, 64)), ("B", (64, 4)))}
    save_file(wrong, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"blocks.0.attn1.to_q.* \[64, 64\], the weight is \[32, 32\]"):
        imported(checkpoint, tmp_path / "out", lora=str(tmp_path / "lora.safetensors"), lora_alpha=1.0)


def test_a_lora_is_kept_as_an_adapter(
    tmp_path: Path, checkpoint: Path, network: WanTransformer3DModel, factors: Factors
) -> None:
    save_file(named(factors, "comfy"), tmp_path / "lora.safetensors")
    folder = imported(checkpoint, tmp_path / "out", lora=str(tmp_path / "lora.safetensors"), keep_lora=True)
    assert_equal(stored(folder), network.state_dict())
    made = peft.PeftModel.from_pretrained(tiny_wan.network(), str(folder / "adapter"))
    torch.testing.assert_close(made.merge_and_unload().state_dict(), merged(network, factors), atol=1e-6, rtol=1e-5)
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == ALPHA
    assert load_file(folder / "adapter" / "adapter_model.safetensors").keys() == named(factors, "peft").keys()
    mixed = named(factors, "comfy") | {"diffusion_model.blocks.0.self_attn.q.alpha": torch.tensor(math.pi)}
    save_file(mixed, tmp_path / "mixed.safetensors")
    with pytest.raises(UserError, match="cannot be kept as an adapter.*leave out --keep-lora"):
        imported(checkpoint, tmp_path / "other", lora=str(tmp_path / "mixed.safetensors"), keep_lora=True)
