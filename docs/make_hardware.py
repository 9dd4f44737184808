"""Prints the video rows of the README's hardware table: `vidalign plan` on students of real size without their weights.

    python docs/make_hardware.py FOLDER

Fills FOLDER with students whose files hold names and shapes and are otherwise empty (sparse), and plans there. A row
takes one to three minutes of a core.
"""

from __future__ import annotations

import json
import struct
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from vidalign.recipe import load_recipe
from vidalign.students.video.folder import NETWORK, STEM, write_description
from vidalign.students.video.presets import preset
from vidalign.workflows.plan import plan_step

COMMON = {
    "patch_size": [1, 2, 2],
    "attention_head_dim": 128,
    "text_dim": 4096,
    "freq_dim": 256,
    "rope_max_seq_len": 1024,
}
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "students/sf": ("self_forcing", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
    "students/longlive2": (
        "longlive2_5b",
        {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
    ),
    "students/sf14": ("self_forcing", {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}),
}
"""Preset and network of the 1.3B, the 5B and a 14B student."""
SHARD = 8 * 2**30
"""Bytes of a file: each must fit into the address space that the system lends."""
LARGE = ["student.path=students/sf14", "trainer.prompts_per_step=8", "trainer.micro_batch=1", "trainer.rollout_batch=2"]
ROWS = (
    ("wan_1_3b/astrolabe", 1, []),
    ("wan_1_3b/astrolabe", 8, ["trainer.prompts_per_step=8"]),
    ("wan_1_3b/ar_copo", 1, []),
    ("longlive2_5b/astrolabe", 1, []),
    ("longlive2_5b/astrolabe", 8, ["trainer.prompts_per_step=8"]),
    ("wan_1_3b/astrolabe", 8, LARGE),
    (
        "wan_1_3b/astrolabe",
        8,
        [*LARGE, "objective.group_size=8", "student.adapter.rank=64", "student.adapter.alpha=64"],
    ),
)


def hollow(folder: Path, family: str, network: dict[str, Any]) -> None:
    """A student's folder whose weights are names and shapes alone, in bf16."""
    spec = preset(family).spec({**COMMON, "in_channels": 16, "out_channels": 16, **network})
    write_description(folder, spec, {})
    with torch.device("meta"):
        state = WanTransformer3DModel(**spec.transformer).state_dict()
    shards: list[dict[str, Any]] = [{}]
    at = 0
    for name, value in state.items():
        size = 2 * value.numel()
        if at + size > SHARD:
            shards, at = [*shards, {}], 0
        shards[-1][name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [at, at + size]}
        at += size
    index = {}
    for number, tensors in enumerate(shards, 1):
        file = folder / NETWORK / f"{STEM}-{number:05d}-of-{len(shards):05d}.safetensors"
        header = json.dumps(tensors).encode()
        with file.open("wb") as out:
            out.write(struct.pack("<Q", len(header)) + header)
            out.truncate(8 + len(header) + max(entry["data_offsets"][1] for entry in tensors.values()))
        index |= dict.fromkeys(tensors, file.name)
    content = json.dumps({"metadata": {}, "weight_map": index})
    (folder / NETWORK / f"{STEM}.safetensors.index.json").write_text(content, encoding="utf-8")


def main(folder: str) -> None:
    """Plan every row in the folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with chdir(folder):
        Path("prompts.txt").write_text("".join(f"prompt {n}\n" for n in range(64)), encoding="utf-8")
        Path("held_out.txt").write_text("".join(f"other {n}\n" for n in range(64)), encoding="utf-8")
        for path, (family, network) in STUDENTS.items():
            hollow(Path(path), family, network)
        for name, gpus, overrides in ROWS:
            plan = plan_step(load_recipe(name, overrides), gpus)
            words = " ".join(["vidalign plan", name, f"--gpus {gpus}", *overrides])
            print(f"{plan.peak / 1e9:.1f} GB: {words}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
