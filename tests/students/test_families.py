"""The families with rules of their own, from a public checkpoint to a video and a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import tiny_pipeline
import tiny_wan
from real_student import RECIPE
from run_helpers import BRIGHTNESS, vidalign

import vidalign as package
from vidalign import registry

PROMPT = ("--prompt", "red ball falls")
CHANNELS = {"longlive2_5b": 48}
FAMILIES = {"rolling_forcing": 32, "causal_forcing_long": 32, "krea_14b": 32, "longlive2_5b": 64}
"""Pixels of a side."""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One student of every family, around a random network of its latent channels."""
    made = tmp_path_factory.mktemp("families")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
        patch.chdir(made)
        for channels in (16, 48):
            network = tiny_wan.network(in_channels=channels, out_channels=channels)
            tiny_pipeline.save_base(made / f"base{channels}", network)
            tiny_wan.save(made / f"{channels}.pt", {"generator": tiny_wan.weights(network, "model.")})
        for name, size in FAMILIES.items():
            channels = CHANNELS.get(name, 16)
            words = ("--checkpoint", f"{channels}.pt", "--base", f"base{channels}", "--out", name)
            assert vidalign("import", name, *words, "--height", str(size), "--width", str(size)) == 0
        Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
        Path("prompts.txt").write_text("red ball falls\nblue square moves\n", encoding="utf-8")
        Path("brightness.py").write_text(BRIGHTNESS, encoding="utf-8")
        yield made


def video(path: str) -> tuple[int, int, float]:
    with av.open(path) as file:
        stream = file.streams.video[0]
        return sum(1 for _ in file.decode(video=0)), stream.height, float(stream.average_rate or 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_sampled_chunk_by_chunk(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    student = package.load_student(name)
    frames = 4 * (6 * student.spec.cache.chunk_frames - 1) + 1
    words = ("sample", name, *PROMPT, "--frames", str(frames), "--out", f"{name}.mp4", "--stats", "--seed", "3")
    assert vidalign(*words) == 0
    fps = 24 if name == "longlive2_5b" else 16
    assert (video(f"{name}.mp4")[0], video(f"{name}.mp4")[2]) == (frames, fps)
    table = capsys.readouterr().out
    assert table.count("\n") >= 8 and "denoise" in table


def test_a_cut_is_a_prompt_that_begins_with_the_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sample", "longlive2_5b", *PROMPT, "--frames", "157", "--seed", "3")
    for out, then in (("plain", "blue square moves"), ("cut", "The scene transitions. blue square moves")):
        assert vidalign(*words, "--then", f"2s {then}", "--out", f"{out}.mp4") == 0
    assert "note: the prompt changes at" in capsys.readouterr().err
    assert Path("plain.mp4").read_bytes() != Path("cut.mp4").read_bytes()


def test_a_rolling_window_takes_no_second_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sample", "rolling_forcing", *PROMPT, "--frames", "69", "--then", "2s blue square moves")
    assert vidalign(*words, "--out", "x.mp4") == 2
    assert "would stand under two prompts" in capsys.readouterr().err and not Path("x.mp4").exists()


@pytest.mark.parametrize("name", ["krea_14b", "longlive2_5b"])
def test_it_is_trained(name: str) -> None:
    size = package.load_student(name).spec.cache.chunk_frames
    changes = (f"student.path={name}", f"data.frames={size}", f"evaluation.frames={size}", "trainer.steps=1")
    assert vidalign("train", "recipe.yaml", "--run", f"run_{name}", "--plugin", "brightness.py", *changes) == 0
    assert (Path(f"run_{name}") / "student.safetensors").is_file()


@pytest.mark.parametrize("changes", [["student.path=rolling_forcing"], ["student.preset=rolling_forcing"]])
def test_a_rolling_window_is_not_trained(changes: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = ["student.path=krea_14b"] if "preset" in changes[0] else []
    assert vidalign("validate", "recipe.yaml", "--plugin", "brightness.py", *changes, *path) == 2
    message = capsys.readouterr().err
    assert "rolling window of chunks cannot be trained" in message and "such as causal_forcing" in message
    assert "override 1" in message
