"""An imported student, as a folder with UMT5 and the VAE of Wan, is prepared, trained and sampled as others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch
from real_student import ADAPTER, prepare, train
from run_helpers import vidalign

import vidalign as package
from vidalign.students.samples import SampleRequest
from vidalign.text.encoder import TextEncoder
from vidalign.text.pretrained import PretrainedText
from vidalign.workflows.sample import sample_student

PROMPT = ("--prompt", "red ball falls")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made, before = tmp_path_factory.mktemp("sampled"), Path.cwd()
    os.chdir(made)
    prepare(made)
    yield made
    os.chdir(before)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The type of the encoder, each time that it is built."""
    plain, found = PretrainedText.build, []

    def counted(self: PretrainedText) -> TextEncoder:
        encoder = plain(self)
        found.append(next(encoder.parameters()).dtype)
        return encoder

    monkeypatch.setattr(PretrainedText, "build", counted)
    return found


def frames(path: str) -> tuple[int, int, int]:
    with av.open(path) as file:
        stream = file.streams.video[0]
        assert float(stream.average_rate) == 16
        return sum(1 for _ in file.decode(video=0)), stream.height, stream.width


def test_it_is_prepared_once_and_trains_without_an_encoder(
    built: list[torch.dtype], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIDALIGN_CACHE", "cache")
    plugin = ("--plugin", "brightness.py")
    assert vidalign("prepare", "recipe.yaml", *plugin) == 0 and built == [torch.bfloat16]
    assert vidalign("prepare", "recipe.yaml", *plugin) == 0 and len(built) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2 prompts, 0 of them encoded now, in cache/text"
    assert train("run", ADAPTER.replace("TARGETS", "blocks")) == 0 and len(built) == 1
    assert vidalign("sample", "--run", "run", *PROMPT, "--frames", "21", "--out", "run.mp4", *plugin) == 0
    assert len(built) == 1 and frames("run.mp4") == (21, 160, 160)


def test_it_is_sampled_by_its_folder(built: list[torch.dtype], capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sample", "student", *PROMPT, "--seconds", "2", "--then", "1s blue square moves", "--stats")
    assert vidalign(*words, "--out", "panda.mp4") == 0
    told = capsys.readouterr()
    assert "note: the video has 33 frames (2.06 s at 16 fps)" in told.err and "recache" in told.out
    assert frames("panda.mp4") == (33, 160, 160) and len(built) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_its_file_holds_what_python_samples(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[torch.Tensor] = []
    monkeypatch.setattr("vidalign.tracking.clips.ClipWriter.add", lambda self, clip: parts.append(clip))
    request = SampleRequest(("blue ball",), Path("x.mp4"), frames=21, seed=3)
    sample_student("student", request, precision=precision)  # type: ignore[arg-type]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    expected = package.load_student("student", dtype=dtype).sample(["blue ball"], frames=6, seed=3)
    assert torch.equal(torch.cat(parts), expected[0])
