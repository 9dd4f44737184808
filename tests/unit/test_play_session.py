"""The session of a page: its clip is that of `sample`, bit for bit, however it is streamed."""

from __future__ import annotations

import gc
import shlex
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from play_helpers import PROMPTS, stage, streamer, student
from test_streaming import WAN, network

from vidalign.codecs import build_codec
from vidalign.errors import UserError
from vidalign.evaluation.metrics.base import Metric
from vidalign.play.session import Session, Start
from vidalign.students.samples import SampleRequest
from vidalign.students.video import CachePolicy, Sampler, VideoStudent
from vidalign.students.video.samples import write
from vidalign.tracking.clips import to_frames

POLICIES = {
    "the whole past": CachePolicy(),
    "a window": CachePolicy(window=6, sink=3, rope="relative"),
    "an EMA sink": CachePolicy(window=9, sink=3, rope="relative", sink_decay=0.9),
    "a kept past": CachePolicy(on_switch="keep", cut_prefix="a small", cut_offset=2),
}


def streamed(session: Session, switches: dict[int, str] | None = None) -> np.ndarray:
    """All frames of the last pane, with prompt changes before the chunks of these numbers."""
    parts = []
    for number in range(session.chunks):
        if number in (switches or {}):
            session.switch((switches or {})[number])
        chunk = session.next()
        assert chunk is not None and chunk.index == number
        parts.append(chunk.frames[-1])
    assert session.next() is None
    return np.concatenate(parts)


def sampled(made: VideoStudent, folder: Path, **fields: Any) -> bytes:
    """The file of `vidalign sample`."""
    request = SampleRequest((PROMPTS[0],), folder / "clip.mp4", **fields)
    return write(made, request).files[0].read_bytes()


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_a_streamed_clip_is_the_sampled_one(policy: CachePolicy) -> None:
    made = student(cache=policy)
    session = Session(stage(made))
    session.start(Start(PROMPTS[0], seed=3, seconds=1.5))
    assert session.frames == 12 and session.chunks == 4
    found = streamed(session)
    assert np.array_equal(found, to_frames(made.sample([PROMPTS[0]], frames=12, seed=3)[0]))
    assert not np.array_equal(found, to_frames(made.sample([PROMPTS[0]], frames=12, seed=4)[0]))


@pytest.mark.parametrize("policy", [CachePolicy(), CachePolicy(chunk_frames=1, first_chunk="remainder")], ids=str)
def test_a_codec_that_remembers_is_streamed_in_order(policy: CachePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Wan's kind: 1 frame of the first latent, 4 of every other; two clips do not mix what it remembers."""
    codec = build_codec(WAN).eval()
    for module in ("evaluation", "live"):
        monkeypatch.setattr(f"vidalign.students.video.{module}.build_codec", lambda settings: codec)
    made = network(policy)
    shared = stage(made)
    sessions = [Session(shared), Session(shared)]
    for session in sessions:
        session.start(Start(PROMPTS[0], seed=2, seconds=33 / 16))
    assert sessions[0].frames == 33
    other, found = (
        np.concatenate(parts) for parts in zip(*(turn(sessions) for _ in range(sessions[0].chunks)), strict=True)
    )
    assert np.array_equal(found, to_frames(made.sample([PROMPTS[0]], frames=9, seed=2)[0]))
    assert np.array_equal(found, other)


def turn(sessions: list[Session]) -> list[np.ndarray]:
    """The next chunk of each."""
    chunks = [session.next() for session in sessions]
    return [chunk.frames[0] for chunk in chunks if chunk is not None]


def test_a_rolling_window_is_streamed_too() -> None:
    made = student(cache=CachePolicy(), sampler=Sampler(sigmas=[1.0, 0.7, 0.4], rolling=True))
    session = Session(stage(made))
    session.start(Start(PROMPTS[0], seconds=1.5))
    assert np.array_equal(streamed(session), to_frames(made.sample([PROMPTS[0]], frames=12)[0]))
    session.start(Start(PROMPTS[0], seconds=1.5))
    session.next()
    with pytest.raises(UserError, match="would stand under two prompts"):
        session.switch(PROMPTS[1])
    assert session.next() is not None, "the clip goes on"


@pytest.mark.parametrize("name", ["the whole past", "a window", "a kept past"])
def test_a_clip_with_prompt_changes_is_the_sampled_one(name: str, tmp_path: Path) -> None:
    """The file too, byte by byte; the changes are those that the command says."""
    made = student(cache=POLICIES[name])
    session = Session(stage(made))
    session.start(Start(f"  {PROMPTS[0]}\n", seed=5, seconds=1.5))
    found = streamed(session, {1: PROMPTS[1], 3: PROMPTS[0]})
    plain = to_frames(made.sample([PROMPTS[0]], frames=12, seed=5)[0])
    assert np.array_equal(found[:3], plain[:3]) and not np.array_equal(found[3:6], plain[3:6])
    then = ((0.375, PROMPTS[1]), (1.125, PROMPTS[0]))
    assert session.film(0) == ("clip.mp4", sampled(made, tmp_path, frames=12, seed=5, then=then))
    words = shlex.split(session.command(0))
    assert words[:5] == ["vidalign", "sample", "weights-0", "--prompt", PROMPTS[0]]
    assert words[5:9] == ["--then", f"0.375s {PROMPTS[1]}", "--then", f"1.125s {PROMPTS[0]}"]
    assert words[9:] == ["--frames", "12", "--seed", "5", "--out", "clip.mp4"]


def test_a_change_that_waits_is_replaced_by_the_next_one() -> None:
    session = Session(stage(student()))
    session.start(Start(PROMPTS[0], seconds=1.5))
    session.next()
    session.switch("a large green square falls")
    session.switch(PROMPTS[1])
    session.next()
    assert session.prompts == [(0, PROMPTS[0]), (3, PROMPTS[1])]


def test_both_panes_begin_with_the_same_noise() -> None:
    made, other = student(), student(seed=1)
    session = Session(stage(made, other))
    session.start(Start(PROMPTS[0], seed=2, seconds=0.75))
    chunks = [session.next() for _ in range(session.chunks)]
    for pane, one in enumerate((made, other)):
        frames = np.concatenate([chunk.frames[pane] for chunk in chunks if chunk])
        assert np.array_equal(frames, to_frames(one.sample([PROMPTS[0]], frames=6, seed=2)[0]))
    assert all(chunk is not None and len(chunk.milliseconds) == 2 for chunk in chunks)


def test_sessions_that_take_turns_do_not_disturb_each_other() -> None:
    """The same student at other scales and under other prompts: what it read of a prompt belongs to one clip."""
    made = student()
    shared = stage(made)
    asked = [Start(PROMPTS[0], 1, 1.5, 1.0), Start(PROMPTS[1], 1, 1.5, 0.5)]
    alone = []
    for one in asked:
        session = Session(shared)
        session.start(one)
        alone.append(streamed(session))
    sessions = [Session(shared), Session(shared)]
    for session, one in zip(sessions, asked, strict=True):
        session.start(one)
    parts: list[list[np.ndarray]] = [[], []]
    for _ in range(4):
        for session, own in zip(sessions, parts, strict=True):
            chunk = session.next()
            assert chunk is not None
            own.append(chunk.frames[0])
    assert all(np.array_equal(np.concatenate(own), one) for own, one in zip(parts, alone, strict=True))
    assert not np.array_equal(*alone)


def test_a_scale_changes_the_last_pane_and_can_be_taken_back() -> None:
    made = student()
    session = Session(stage(student(seed=1), made))
    session.start(Start(PROMPTS[0], seconds=0.375, scale=0.25))
    half = session.next()
    words = [shlex.split(session.command(pane)) for pane in (0, 1)]
    assert "--scale" not in words[0] and words[1][words[1].index("--scale") + 1] == "0.25"
    session.start(Start(PROMPTS[0], seconds=0.375))
    whole = session.next()
    assert half is not None and whole is not None
    assert np.array_equal(half.frames[0], whole.frames[0]) and not np.array_equal(half.frames[1], whole.frames[1])
    assert np.array_equal(whole.frames[1], to_frames(made.sample([PROMPTS[0]], frames=3)[0]))
    assert "--scale" not in session.command(1)


class Seen(Metric):
    """Keeps what it is given; one value a chunk, and one that is not judged."""

    name, shown = "seen", {"frames": "frames", "nothing": "nothing"}

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[torch.Tensor, list[str]]] = []

    def score(self, clips: torch.Tensor, prompts: Any) -> dict[str, torch.Tensor]:
        self.given.append((clips, list(prompts)))
        count = torch.full((len(clips),), float(clips.shape[1]))
        return {"frames": count, "nothing": torch.full((len(clips),), torch.nan), "hidden": count}


def test_scores_are_of_the_frames_since_the_last_change() -> None:
    metric = Seen()
    session = Session(stage(student(), student(seed=1), metrics=[metric]))
    session.start(Start(PROMPTS[0], seconds=1.5))
    found = []
    for number in range(4):
        if number == 2:
            session.switch(PROMPTS[1])
        session.next()
        found.append(session.scores())
    assert [one["seen/frames"] for one in found] == [[3, 3], [6, 6], [3, 3], [6, 6]]
    assert found[0].keys() == {"seen/frames", "seen/nothing"} and found[0]["seen/nothing"] == [None, None]
    assert [prompts for _, prompts in metric.given] == [[PROMPTS[n]] * 2 for n in (0, 0, 1, 1)]
    clips = student().sample([PROMPTS[0]], frames=12)[0]
    assert torch.equal(metric.given[1][0][0], clips[:6])


@pytest.mark.parametrize("how", ["close", "start", "fail"])
def test_a_clip_that_is_left_frees_its_cache(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(stage(student()))
    session.start(Start(PROMPTS[0], seconds=1.5))
    session.next()
    session.next()
    stream: Any = session._own[0].clip.stream  # type: ignore[attr-defined]
    cache = weakref.ref(stream.context.pieces[0].keys[0])
    clip = weakref.ref(stream)
    del stream
    if how == "start":
        session.start(Start(PROMPTS[1], seconds=1.5))
    elif how == "close":
        session.close()
    else:
        with monkeypatch.context() as patch, pytest.raises(MemoryError):
            patch.setattr(VideoStudent, "predict_x0", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
            session.next()
        assert not session.open
    gc.collect()
    assert clip() is None and cache() is None


def test_words_that_the_text_encoder_does_not_know_are_notes() -> None:
    session = Session(stage(student()))
    session.start(Start("a large red wombat falls", seconds=0.375))
    (note,) = session.take_notes()
    assert "wombat" in note and session.take_notes() == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": "x" * 4001}, "4001 characters"),
        ({"seed": -1}, "the seed is -1"),
        ({"seconds": 0.0}, "the length is 0.0"),
        ({"seconds": 61.0}, "at most 60 seconds"),
        ({"seconds": float("nan")}, "the length is nan"),
        ({"scale": -0.5}, "the scale is -0.5"),
        ({"scale": float("inf")}, "the scale is inf"),
    ],
)
def test_what_cannot_be_asked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(Start(PROMPTS[0]), **fields)


def test_what_cannot_be_asked_now() -> None:
    session = Session(stage(student()))
    for call in (session.next, lambda: session.switch(PROMPTS[1])):
        with pytest.raises(UserError, match="there is no clip"):
            call()
    session.start(Start(PROMPTS[0], seconds=0.75))
    with pytest.raises(UserError, match="cannot change at 0 s"):
        session.switch(PROMPTS[1])
    session.next()
    with pytest.raises(UserError, match="the prompt is empty"):
        session.switch(" ")
    session.next()
    with pytest.raises(UserError, match="the clip is complete"):
        session.switch(PROMPTS[1])
    sinking = Session(stage(student(cache=POLICIES["an EMA sink"])))
    sinking.start(Start(PROMPTS[0], seconds=1.5))
    sinking.next()
    with pytest.raises(UserError, match="cannot rebuild an EMA sink"):
        sinking.switch(PROMPTS[1])


@pytest.mark.parametrize(("seconds", "frames"), [(0.01, 3), (0.5, 3), (0.6, 6), (6.0, 48), (60.0, 480)])
def test_a_length_is_the_nearest_one_of_whole_chunks(seconds: float, frames: int) -> None:
    assert streamer(student()).length(seconds) == frames


def test_a_length_ends_with_the_rotary_table() -> None:
    assert streamer(student(fps=60.0)).length(60) == 1023
    assert streamer(student(fps=60.0, cache=POLICIES["a window"])).length(60) == 3600
