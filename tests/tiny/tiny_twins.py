"""Fills a folder with what the recipes of recipes/twins ask for: students, teachers, judges, clips, prompts, tables.

    python tests/tiny/tiny_twins.py FOLDER

Everything stands in FOLDER/tiny, in the formats of the released models, at a tiny size and with random weights. The
twins are then run inside FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tiny_wan
import torch
from tiny_chats import make_chats
from tiny_clip import save_clip
from tiny_judges import save_backbone, save_hps_v3, save_video_reward
from tiny_pipeline import save_base
from tiny_tae import published

from vidalign.students.exchange import ImportOptions
from vidalign.students.video.importers.convert import import_checkpoint

PROMPTS = ("red ball falls", "blue square moves", "small ball moves", "large square falls")
HELD_OUT = ("blue ball falls", "red square moves")
STUDENTS = {
    "self_forcing": ("self_forcing", 16, 0),
    "aligned": ("self_forcing", 16, 1),
    "longlive": ("longlive", 16, 0),
    "longlive2": ("longlive2_5b", 48, 0),
    "wan": ("wan", 16, 2),
}
"""Preset, latent channels and seed of each student, and of the bidirectional teacher."""
SIDE = {16: 32, 48: 64}
"""Pixels of a side by latent channels."""


def make_twins(folder: Path) -> None:
    """Fill FOLDER/tiny."""
    tiny = folder / "tiny"
    tiny.mkdir(parents=True)
    for channels in SIDE:
        save_base(tiny / f"base{channels}", tiny_wan.network(in_channels=channels, out_channels=channels))
    for name, (preset, channels, seed) in STUDENTS.items():
        network = tiny_wan.network(seed, in_channels=channels, out_channels=channels)
        file = tiny_wan.save(tiny / f"{name}.pt", {"generator": tiny_wan.weights(network, "model.")})
        size = {"height": SIDE[channels], "width": SIDE[channels]}
        options = ImportOptions(heads=tiny_wan.HEADS, base=str(tiny / f"base{channels}"), **size)
        import_checkpoint(preset, str(file), tiny / name, options)
    save_clip(tiny / "clip", agreeing=True)
    seen = save_backbone(tiny / "qwen2_vl")
    save_video_reward(tiny / "video_reward", seen, data_config__max_frame_pixels=1024)
    save_hps_v3(tiny / "HPSv3.safetensors", seen)
    torch.save(published(16, 1), tiny / "tae.pth")
    (tiny / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    (tiny / "held_out.txt").write_text("\n".join(HELD_OUT) + "\n", encoding="utf-8")
    _make_clips(tiny / "clips")
    make_chats(tiny)


def _make_clips(folder: Path) -> None:
    """Two clips of 21 frames for each prompt: a spot that moves over noise."""
    folder.mkdir()
    numbers, lines = np.random.default_rng(0), []
    for number, prompt in enumerate(prompt for prompt in PROMPTS for _ in range(2)):
        clip = numbers.integers(0, 64, (21, 3, 32, 32), dtype=np.uint8)
        for frame in range(21):
            clip[frame, number % 3, frame : frame + 8, 8:16] = 255
        np.savez(folder / f"{number}.npz", clip=clip, fps=16.0)
        lines.append(json.dumps({"file_name": f"{number}.npz", "prompt": prompt}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make_twins(Path(sys.argv[1]))
