"""`vidalign sample` of saved weights: lengths, prompt changes, stats, precision, and what is in memory."""

from __future__ import annotations

import gc
from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from run_helpers import SFT, train, vidalign

from vidalign.students.video import CachePolicy, VideoStudent, VideoStudentSpec
from vidalign.students.video import samples as samples_module
from vidalign.students.video.kind import Video
from vidalign.text.encoder import TextEncoder
from vidalign.worlds.video.text import WorldText

PROMPT = ("--prompt", "a large red circle falls")
NETWORK = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 64,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 1,
}
WAN = {"name": "wan", "config": {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}}


def save(path: Path, policy: CachePolicy) -> None:
    """A tiny student of the shapes of Wan: latents of 8 pixels and 4 frames, 16 frames a second."""
    spec = VideoStudentSpec(transformer=NETWORK, cache=policy, codec=WAN, height=32, width=48, fps=16.0)
    VideoStudent.from_spec(spec).save(path)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDALIGN_CACHE", str(tmp_path / "cache"))
    save(Path("chunks.safetensors"), CachePolicy(window=12, sink=3, global_sink=True))
    save(Path("frames.safetensors"), CachePolicy(chunk_frames=1, first_chunk="remainder"))
    return tmp_path


def video(path: str) -> tuple[int, float]:
    """Frames, and frames a second."""
    with av.open(path) as file:
        stream = file.streams.video[0]
        return sum(1 for _ in file.decode(video=0)), float(stream.average_rate)


def test_a_length_in_seconds_is_rounded_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sample", "chunks.safetensors", *PROMPT, "--seconds", "5", "--out", "panda.mp4", "--stats")
    assert vidalign(*words) == 0
    told = capsys.readouterr()
    assert told.err == ("note: the video has 81 frames (5.06 s at 16 fps): its codec makes 1 frame, then 4 at a time\n")
    lines = told.out.splitlines()
    assert lines[0] == "panda.mp4" and lines[1].split() == [
        "chunk",
        "frames",
        "denoise",
        "clean",
        "decode",
        "write",
        "total",
    ]
    assert len(lines) == 11 and "first frames after" in lines[-1] and "frames a second" in lines[-1]
    assert video("panda.mp4") == (81, 16)


def test_prompts_change_on_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    then = ("--then", "2s a small blue square", "--then", "3.6s a red circle")
    assert vidalign("sample", "chunks.safetensors", *PROMPT, *then, "--frames", "81", "--out", "x.mp4", "--stats") == 0
    told = capsys.readouterr()
    assert "note: the prompt changes at 2.06 s, where a chunk begins, not at 2 s" in told.err
    assert "note: the prompt changes at 3.56 s" in told.err and "recache" in told.out and video("x.mp4")[0] == 81


def test_a_picture_begins_a_frame_wise_video() -> None:
    Image.new("RGB", (100, 100), "red").save("first.png")
    words = ("sample", "frames.safetensors", *PROMPT, "--frames", "17", "--image", "first.png")
    assert vidalign(*words, "--out", "x.mp4") == 0 and video("x.mp4") == (17, 16)


def test_nobody_else_is_in_memory_while_a_student_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder is built before there is a student, and gone when it is there; a second sample builds none."""

    def alive(kind: type) -> int:
        gc.collect()
        return sum(issubclass(type(thing), kind) for thing in gc.get_objects())

    build, write, seen = WorldText.build, samples_module.write, []
    before = alive(TextEncoder), alive(VideoStudent)

    def building(self: WorldText) -> TextEncoder:
        seen.append(("students", alive(VideoStudent) - before[1]))
        return build(self)

    def writing(*arguments: object) -> object:
        seen.append(("encoders", alive(TextEncoder) - before[0]))
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(WorldText, "build", building)
    monkeypatch.setattr(samples_module, "write", writing)
    words = ("sample", "chunks.safetensors", *PROMPT, "--frames", "9", "--out", "x.mp4")
    assert vidalign(*words) == 0 and seen == [("students", 0), ("encoders", 0)]
    assert vidalign(*words) == 0 and seen[2:] == [("encoders", 0)]


@pytest.mark.parametrize(
    ("words", "dtype"),
    [
        (("chunks.safetensors", "--precision", "bf16"), torch.bfloat16),
        (("chunks.safetensors", "--precision", "fp32"), torch.float32),
        (("--run", "run"), torch.float64),
        (("--run", "run", "--precision", "bf16"), torch.bfloat16),
    ],
    ids=str,
)
def test_network_and_codec_are_in_the_precision_that_is_asked(
    words: tuple[str, ...], dtype: torch.dtype, recipe_folder: Path, unjudged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "run" in words:
        assert train(*SFT, "trainer.steps=1", "engine.precision=fp64", "data.frames=9") == 0
    seen: list[torch.dtype] = []
    plain = samples_module.build_codec

    def building(config: dict) -> object:
        codec = plain(config)
        codec.register_buffer("probe", torch.zeros(1))
        codec.stream = lambda: seen.append(codec.probe.dtype) or codec.decode  # type: ignore[attr-defined, func-returns-value]
        return codec

    monkeypatch.setattr(samples_module, "build_codec", building)
    kept, write = [], samples_module.write
    monkeypatch.setattr(
        samples_module, "write", lambda student, *a: kept.append(student.weight_dtype) or write(student, *a)
    )
    length = () if "run" in words else ("--frames", "9")
    assert vidalign("sample", *words, *PROMPT, *length, "--out", "x.gif") == 0
    assert kept == [dtype] and seen == [dtype]


MISTAKES = {
    "": "one student is sampled - STUDENT - name its weights, or a run with --run RUN",
    "chunks.safetensors --run run": "one student is sampled",
    "chunks.safetensors --best --frames 9": "weights have no steps",
    "chunks.safetensors": "how long is the video?",
    "chunks.safetensor --frames 9": "no such weights",
    "chunks.safetensors --frames 50": "use 45 frames (2.81 s) or 57 frames (3.56 s)",
    "chunks.safetensors --frames 9 --seconds 1": "the length is given twice",
    "chunks.safetensors --frames 9 --prompt caf\udce9": "a prompt cannot be read - --prompt - it holds half a",
    "chunks.safetensors --seconds -1": "a video cannot last -1.0 s",
    "chunks.safetensors --frames 81 --then 2.5:b": "a prompt change is '2.5:b' - --then - it begins with the second",
    "chunks.safetensors --frames 81 --image x.png": "was not trained behind a single frame",
    "frames.safetensors --frames 81 --image x.png": "the picture cannot be read - --image",
    "tokens/student --stats": "this option does not fit - --stats - a language student answers with text",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_named_before_any_work(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Video, "load", lambda *a, **k: pytest.fail("weights were loaded"))
    monkeypatch.setattr(WorldText, "build", lambda self: pytest.fail("the encoder was built"))
    assert vidalign("sample", *words.split(), *PROMPT, "--out", "x.mp4") == 2
    told = capsys.readouterr().err
    assert MISTAKES[words] in told and told.count("error:") == 1 and not Path("x.mp4").exists()


def test_an_ema_sink_is_not_switched(capsys: pytest.CaptureFixture[str]) -> None:
    save(Path("ema.safetensors"), CachePolicy(window=9, sink=3, rope="relative", sink_decay=0.9))
    words = ("ema.safetensors", *PROMPT, "--frames", "33", "--then", "1s b", "--out", "x.mp4")
    assert vidalign("sample", *words) == 2 and "cannot rebuild an EMA sink" in capsys.readouterr().err


def test_a_shipped_student_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign("sample", "tokens/student", "--prompt", "chain : 7 | 1 : plus 5", "--out", "x.txt") == 0
    assert Path("x.txt").read_text().startswith("chain : 7 | 1 : plus 5\n-> ")


@pytest.mark.parametrize(
    ("words", "kernels", "compiled"),
    [
        (("chunks.safetensors",), None, False),
        (("chunks.safetensors", "--attention", "native", "--compile"), "native", True),
        (("--run", "run"), "native", True),
        (("--run", "run", "--attention", "auto", "--no-compile"), None, False),
    ],
    ids=str,
)
def test_kernels_are_those_that_are_asked_or_those_of_the_run(
    words: tuple[str, ...],
    kernels: str | None,
    compiled: bool,
    recipe_folder: Path,
    unjudged: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[VideoStudent] = []
    monkeypatch.setattr(VideoStudent, "compile_blocks", lambda self: seen.append(self))
    if "run" in words:
        assert train(*SFT, "trainer.steps=1", "data.frames=9", "student.attention=native", "student.compile=true") == 0
    used, plain = [], samples_module.stream

    def streaming(student: VideoStudent, *arguments: object, **options: object) -> None:
        block = student.base.blocks[0]
        used.append((block.attn1.processor._attention_backend, student in seen))
        plain(student, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(samples_module, "stream", streaming)
    assert vidalign("sample", *words, *PROMPT, "--frames", "9", "--out", "x.mp4") == 0
    assert used == [(kernels, compiled)]


@pytest.mark.parametrize(
    ("kernels", "told"),
    [
        ("flsh", "unknown attention kernels 'flsh' - --attention - known: auto, native, cudnn, flash"),
        ("sage", "the attention kernels 'sage' cannot be used - --attention"),
    ],
)
def test_kernels_that_cannot_be_used_are_refused_before_any_work(
    kernels: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorldText, "build", lambda self: pytest.fail("the text encoder is built"))
    words = ("sample", "chunks.safetensors", *PROMPT, "--frames", "9", "--out", "x.mp4", "--attention", kernels)
    assert vidalign(*words) == 2 and told in capsys.readouterr().err


def test_a_language_student_has_no_such_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sample", "tokens/student", "--prompt", "2+2", "--out", "x.txt")
    assert vidalign(*words, "--compile") == 2 and "this option does not fit - --compile" in capsys.readouterr().err
    assert vidalign(*words, "--attention", "auto") == 2
