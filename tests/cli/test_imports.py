"""What a command imports before it has work to do: waiting for it is what a user notices first."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from diffusers import WanTransformer3DModel

from vidalign import registry
from vidalign.engine import layers
from vidalign.students.video import wan

HEAVY = {"diffusers", "transformers", "peft"}
TORCH = "torch.nn"
"""A part of torch, whose own place is taken by a module that waits for its first use."""
ASK = """
import sys
from vidalign import cli
try:
    cli.main(sys.argv[2:])
except SystemExit as leaving:
    assert not leaving.code, leaving.code
found = set(sys.argv[1].split(",")) & set(sys.modules)
assert not found, f"imported: {found}"
"""


def imports_none_of(names: set[str], command: str) -> None:
    arguments = [sys.executable, "-c", ASK, ",".join(names), *command.split()]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["recipes", "protocols", *registry.KINDS])
def test_list_imports_no_torch(kind: str) -> None:
    imports_none_of({TORCH, *HEAVY}, f"list {kind}")


@pytest.mark.parametrize(
    "recipe",
    [
        "world/astrolabe",
        "world/mix_dmd_astrolabe",
        "world/ar_copo",
        "world/diffusion_nft",
        "world/dopd",
        "tokens/dopd",
        "pictures/opsd",
        "tokens/pretrain/student",
        "world/gan",
        "world/afd",
        "world/ar_copo_discriminator",
        "world/astrolabe_discriminator",
        "world/student_dmd",
        "world/sft",
        "world/astrolabe rewards.hps.name=hps_v3 rewards.mq.name=video_align rewards.mq.dimension=MQ",
        "world/afd discriminator.name=vision_language discriminator.path=a/b discriminator.head=rm_head",
    ],
)
@pytest.mark.parametrize("command", ["show", "show --explain", "validate"])
def test_a_recipe_is_shown_without_torch(command: str, recipe: str) -> None:
    imports_none_of({TORCH, *HEAVY}, f"{command} {recipe}")


@pytest.mark.parametrize(
    "recipe",
    [
        "world/gan",
        "world/mix_dmd_astrolabe",
        "tokens/dopd",
        "world/astrolabe student.adapter.rank=4 student.adapter.targets=[attn1.to_q]",
    ],
)
def test_a_recipe_is_checked_without_the_libraries_of_models(recipe: str) -> None:
    imports_none_of(HEAVY, f"validate {recipe}")


@pytest.mark.parametrize("more", [{}, {"image_dim": 8, "added_kv_proj_dim": 64}])
def test_the_names_of_the_network_are_those_of_diffusers(more: dict[str, int]) -> None:
    config = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, **more}
    with torch.device("meta"):
        network = WanTransformer3DModel(**config)
    assert wan.linear_layers(config) == layers.linear_layers(network)
    assert set(wan.SETTINGS) == {name for name in network.config if not name.startswith("_")}
