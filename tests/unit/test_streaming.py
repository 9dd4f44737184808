"""Streamed videos: equal to whole ones, prompt switches, a smaller first chunk, a given first frame, the clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from student_reference import student
from torch import Tensor

from vidalign.codecs import build_codec
from vidalign.engine.rng import generator
from vidalign.errors import UserError
from vidalign.students.samples import SampleRequest
from vidalign.students.video import CachePolicy, VideoStudent
from vidalign.students.video import samples as samples_module
from vidalign.students.video.rollout import Noise, RolloutPlan
from vidalign.students.video.rollout.clock import Clock
from vidalign.students.video.samples import check, write
from vidalign.students.video.streaming import Scene, stream
from vidalign.text.pretrained import build_features

WAN = {"name": "wan", "config": {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}}
PROMPTS = ["a large red circle falls", "a small blue square"]
LONGLIVE = CachePolicy(window=12, sink=3, global_sink=True)
FRAME_WISE = CachePolicy(chunk_frames=1, first_chunk="remainder")


@pytest.fixture(autouse=True)
def same_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec of random weights is the same each time that it is built."""

    def seeded(config: dict) -> object:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build_codec(config)

    monkeypatch.setattr("vidalign.students.video.evaluation.build_codec", seeded)
    monkeypatch.setattr("vidalign.students.video.samples.build_codec", seeded)


class Frames:
    """Takes the place of `ClipWriter`: keeps the frames as they are."""

    made: list[Frames] = []

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps, self.parts = path, fps, []
        self.made.append(self)

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def add(self, clip: Tensor) -> None:
        self.parts.append(clip)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Frames]:
    monkeypatch.setattr(samples_module, "ClipWriter", Frames)
    Frames.made = []
    return Frames.made


def network(policy: CachePolicy | None = None, **changes: object) -> VideoStudent:
    made = student(policy)
    made.spec = replace(made.spec, codec=WAN, text={"name": "world", "dim": 48}, fps=16.0, **changes)
    return made.eval()


def request(*prompts: str, **fields: object) -> SampleRequest:
    return SampleRequest(prompts or (PROMPTS[0],), Path("x.mp4"), **fields)  # type: ignore[arg-type]


def texts(made: VideoStudent, *prompts: str) -> Tensor:
    return build_features(made.spec.text)(list(prompts))


def draws(made: VideoStudent, chunks: int, seed: int = 0) -> Noise:
    return made.draw_noise(RolloutPlan(0, chunks), [generator(seed, "sample", 0, 0)])


def latents_of(made: VideoStudent, scenes: list[Scene], noise: Noise, **options: object) -> Tensor:
    """What is streamed, as latents."""
    parts: list[Tensor] = []
    stream(made, scenes, noise, lambda x: x, lambda n, part: parts.append(part), **options)  # type: ignore[arg-type]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_streamed_sample_is_the_whole_one(dtype: torch.dtype, written: list[Frames]) -> None:
    """Frame by frame what `VideoStudent.sample` makes, which decodes chunk by chunk, and the full decode."""
    made = network(LONGLIVE).to(dtype)
    result = write(made, request(frames=33, seed=5))
    (file,) = written
    assert [part.shape[0] for part in file.parts] == [9, 12, 12] and file.fps == 16 and result.files == [Path("x.mp4")]
    streamed = torch.cat(file.parts)
    assert torch.equal(streamed, made.sample([PROMPTS[0]], frames=9, seed=5)[0])
    whole = made.sampler(9)([PROMPTS[0]], [generator(5, "sample", 0, 0)])[0]
    assert torch.equal(streamed, whole), "one decode of all latents"
    assert not torch.equal(streamed, made.sample([PROMPTS[0]], frames=9, seed=6)[0])


def test_every_prompt_has_a_file_and_noise_of_its_own(written: list[Frames]) -> None:
    made = network()
    result = write(made, request(*PROMPTS, frames=9))
    assert result.files == [Path("x-0.mp4"), Path("x-1.mp4")]
    for n, file in enumerate(written):
        expected = made.sampler(3)([PROMPTS[n]], [generator(0, "sample", 0, n)])[0]
        assert torch.equal(torch.cat(file.parts), expected)


def test_a_chunk_is_handed_out_before_its_clean_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    made, events = network(), []
    plain = made.extend
    monkeypatch.setattr(made, "extend", lambda *a: events.append("clean") or plain(*a))
    text = texts(made, PROMPTS[0])
    stream(made, [Scene(text, 3)], draws(made, 3), lambda x: x, lambda n, part: events.append(f"chunk {n}"))
    assert events == ["chunk 0", "clean", "chunk 1", "clean", "chunk 2"], "none after the last"


@pytest.mark.parametrize("policy", [CachePolicy(), LONGLIVE, CachePolicy(window=9, sink=3)], ids=str)
def test_a_prompt_switch_rebuilds_the_context(policy: CachePolicy) -> None:
    """Chunk by chunk by hand: rollout, recache under the next prompt, rollout behind it."""
    made = network(policy)
    first, second = texts(made, PROMPTS[0]), texts(made, PROMPTS[1])
    noise = draws(made, 6)
    found = latents_of(made, [Scene(first, 4), Scene(second, 2)], noise)
    head = made.rollout(first, RolloutPlan(0, 4, keep_final=True), noise.frames(0, 12))
    assert head.final is not None
    context = made.recache(head.final, head.latents, second)
    tail = made.rollout(second, RolloutPlan(0, 2), noise.frames(12, 18), context=context)
    assert torch.equal(found, torch.cat([head.latents, tail.latents], 1))
    same = latents_of(made, [Scene(first, 6)], noise)
    assert torch.equal(found[:, :12], same[:, :12]) and not torch.equal(found[:, 12:], same[:, 12:])


def test_the_same_prompt_switched_to_itself_goes_on_as_before_within_the_recache() -> None:
    """A full window is rebuilt in one bidirectional pass: not the same numbers, but close ones."""
    made = network(CachePolicy())
    text, noise = texts(made, PROMPTS[0]), draws(made, 3)
    switched = latents_of(made, [Scene(text, 1), Scene(text, 2)], noise)
    assert torch.allclose(switched, latents_of(made, [Scene(text, 3)], noise), atol=1e-4), "one chunk is its own pass"


def test_switches_of_a_request_come_where_chunks_begin(written: list[Frames]) -> None:
    made = network(LONGLIVE)
    notes: list[str] = []
    asked = request(frames=81, then=((2.5, PROMPTS[1]),), say=notes.append)
    check(made.spec, asked)
    assert notes == ["the prompt changes at 2.81 s, where a chunk begins, not at 2.5 s"]
    write(made, asked)
    streamed = torch.cat(written[0].parts)
    plain = made.sample([PROMPTS[0]], frames=21)[0]
    assert len(streamed) == 81 and torch.equal(streamed[:45], plain[:45])
    assert not torch.equal(streamed[45], plain[45])


def test_the_first_chunk_may_take_the_remainder() -> None:
    """Four frames in chunks of three: one, then three. The chunk behind equals one behind a context of one frame."""
    made = network(CachePolicy(first_chunk="remainder"))
    text = texts(made, PROMPTS[0])
    noise = draws(made, 2).last(4)
    found = latents_of(made, [Scene(text, 2)], noise)
    one = made.rollout(text, RolloutPlan(0, 1, keep_final=True), noise.frames(0, 1))
    rest = made.rollout(text, RolloutPlan(0, 1), noise.frames(1, 4), context=one.final)
    assert one.latents.shape[1] == 1 and torch.equal(found, torch.cat([one.latents, rest.latents], 1))
    clips = made.sample([PROMPTS[0]], frames=4)
    assert clips.shape[1] == 13
    assert torch.equal(clips, made.sampler(4)([PROMPTS[0]], [generator(0, "sample", 0, 0)]))
    with pytest.raises(UserError, match="not whole chunks"):
        network().sample([PROMPTS[0]], frames=4)


@pytest.mark.parametrize("window", [0, 6])
def test_a_smaller_first_chunk_is_evicted_like_any_other(window: int) -> None:
    policy = CachePolicy(first_chunk="remainder", window=window)
    made = network(policy)
    found = latents_of(made, [Scene(texts(made, PROMPTS[0]), 5)], draws(made, 5).last(13))
    assert found.shape[1] == 13 and found.isfinite().all()


@pytest.mark.parametrize("policy", [FRAME_WISE, CachePolicy(first_chunk="remainder")], ids=str)
def test_a_given_first_frame_is_kept_and_followed(policy: CachePolicy, tmp_path: Path, written: list[Frames]) -> None:
    made = network(policy)
    picture = tmp_path / "first.png"
    Image.effect_noise((64, 48), 80).convert("RGB").save(picture)
    asked = request(frames=13, images=(picture,), stats=True)
    check(made.spec, asked)
    (times,) = write(made, asked).times
    size = made.chunk_frames
    assert [chunk.frames for chunk in times.chunks] == [1, *[4 * size] * (3 // size)]
    assert times.chunks[0].parts.keys() == {"decode", "write", "clean"}
    streamed = torch.cat(written[0].parts)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = build_codec(WAN).eval()
    pixels = torch.tensor(np.asarray(Image.open(picture))).permute(2, 0, 1)[None, None] / 255
    with torch.no_grad():
        given = codec.encode(pixels)
        text = texts(made, PROMPTS[0])
        context = made.extend(made.begin(text), given, text)
        plan = RolloutPlan(0, 3 // size)
        rest = made.rollout(text, plan, draws(made, 3 // size), context=context).latents
        expected = codec.decode(torch.cat([given, rest], 1))[0]
    assert torch.equal(streamed, expected)
    write(made, request(frames=13))
    assert not torch.equal(streamed, torch.cat(written[1].parts))


def test_pictures_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    picture = tmp_path / "first.png"
    Image.new("RGB", (8, 8)).save(picture)
    with pytest.raises(UserError, match="was not trained behind a single frame"):
        check(network().spec, request(frames=9, images=(picture,)))
    with pytest.raises(UserError, match="begins with one picture"):
        check(network(FRAME_WISE).spec, request(frames=9, images=(picture, picture)))
    with pytest.raises(UserError, match="the picture cannot be read - --image"):
        check(network(FRAME_WISE).spec, request(frames=9, images=(tmp_path / "none.png",)))


class Counted(Clock):
    """Counts how often the device is waited for."""

    waits = 0

    def now(self) -> float:
        Counted.waits += 1
        return super().now()


def test_the_clock_waits_for_the_device_only_where_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, written: list[Frames]
) -> None:
    monkeypatch.setattr(samples_module, "Clock", Counted)
    monkeypatch.setattr("vidalign.students.video.rollout.clock.Clock", Counted)
    waits: list[object] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: waits.append(device))
    made = network()
    Counted.waits = 0
    assert write(made, request(frames=33)).times == [] and Counted.waits == 0
    (times,) = write(made, request(frames=33, stats=True)).times
    assert Counted.waits > 0 and waits == [], "there is nothing to wait for on a CPU"
    assert [c.frames for c in times.chunks] == [9, 12, 12]
    assert [sorted(c.parts) for c in times.chunks] == [["clean", "decode", "denoise", "write"]] * 2 + [
        ["decode", "denoise", "write"]
    ]
    parts = times.chunks[0].parts
    assert times.first_frames >= parts["denoise"] + parts["decode"] and times.frames_per_second > 0
    Clock(torch.device("cuda")).now()
    assert waits == [torch.device("cuda")]


def test_stats_are_a_table_in_milliseconds(written: list[Frames]) -> None:
    asked = request(frames=33, stats=True, then=((1.0, PROMPTS[1]),))
    (times,) = write(network(), asked).times
    lines = times.lines()
    assert lines[0].split() == ["chunk", "frames", "recache", "denoise", "clean", "decode", "write", "total"]
    assert len(lines) == 6 and lines[1].split()[2] == "-" and "recache" in times.chunks[2].parts
    assert lines[4].startswith("mean of 1..") and "first frames after" in lines[-1]


def test_an_ema_sink_and_several_prompts_refuse_a_switch() -> None:
    decayed = network(CachePolicy(window=9, sink=3, rope="relative", sink_decay=0.9))
    with pytest.raises(UserError, match="cannot rebuild an EMA sink"):
        check(decayed.spec, request(frames=33, then=((1.0, "b"),)))
    with pytest.raises(UserError, match="prompts follow one --prompt"):
        check(network().spec, request(*PROMPTS, frames=33, then=((1.0, "b"),)))
    with pytest.raises(UserError, match="sink_decay needs first_chunk: whole"):
        CachePolicy(window=9, sink=3, rope="relative", sink_decay=0.9, first_chunk="remainder")
    with pytest.raises(UserError, match="unknown first_chunk"):
        CachePolicy(first_chunk="half")
