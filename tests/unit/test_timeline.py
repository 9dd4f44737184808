"""Lengths in pixel frames and seconds, and the chunks at which prompts change."""

from __future__ import annotations

from pathlib import Path

import pytest

from vidalign.errors import UsageError, UserError
from vidalign.students.samples import SampleRequest
from vidalign.students.video import CachePolicy, VideoStudentSpec
from vidalign.students.video.presets import preset, shipped_presets
from vidalign.students.video.timeline import timeline

REMAINDER = CachePolicy(first_chunk="remainder")
FRAME_WISE = CachePolicy(chunk_frames=1)


def spec(policy: CachePolicy | None = None, codec: str = "wan") -> VideoStudentSpec:
    fps = 16.0 if codec == "wan" else 8.0
    return VideoStudentSpec(cache=policy or CachePolicy(), codec={"name": codec}, height=480, width=832, fps=fps)


def request(**fields: object) -> SampleRequest:
    return SampleRequest(("a",), Path("x.mp4"), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "latents", "rounded"),
    [
        ({"frames": 81}, 21, False),
        ({"seconds": 5}, 21, True),
        ({"seconds": 81 / 16}, 21, False),
        ({"frames": 80}, 21, True),
        ({"frames": 9}, 3, False),
        ({"latents": 21}, 21, False),
        ({"latents": 21, "frames": 45}, 12, False),
    ],
    ids=str,
)
def test_lengths_are_those_of_the_codec(asked: dict, latents: int, rounded: bool) -> None:
    line = timeline(spec(), request(**asked))
    assert (line.latents, line.scenes) == (latents, (latents // 3,))
    assert bool(line.notes) == rounded
    if asked == {"seconds": 5}:
        note = "the video has 81 frames (5.06 s at 16 fps): its codec makes 1 frame, then 4 at a time"
        assert line.notes == (note,)


def test_frames_of_a_frame_wise_codec_count_themselves() -> None:
    line = timeline(spec(codec="rgb"), request(seconds=1.5))
    assert (line.latents, line.notes) == (12, ())
    assert timeline(spec(FRAME_WISE, "rgb"), request(seconds=1.3)).notes == (
        "the video has 10 frames (1.25 s at 8 fps)",
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"frames": 50},
            "a video of 49 frames is not whole chunks - --frames - they are 13 latent frames, and the "
            "student makes chunks of 3 - use 45 frames (2.81 s) or 57 frames (3.56 s)",
        ),
        ({"seconds": 4}, "--seconds"),
        ({"frames": 1}, "use 9 frames (0.56 s)"),
        ({}, "how long is the video? - --seconds - weights alone name no length"),
        ({"frames": 9, "seconds": 1}, "the length is given twice"),
        ({"seconds": 0}, "cannot last 0"),
        ({"seconds": -1}, "cannot last -1"),
        ({"seconds": float("nan")}, "cannot last nan"),
        ({"frames": 81, "then": ((0.0, "b"),)}, "the prompt cannot change at 0 s"),
        ({"frames": 81, "then": ((9.0, "b"),)}, "the video lasts 5.06 s in 7 chunks"),
        ({"frames": 9, "then": ((0.3, "b"),)}, "the video lasts 0.56 s in 1 chunks"),
        ({"frames": 81, "then": ((2.5, "b"), (2.6, "c"))}, "no chunk begins between the prompt changes before 2.6 s"),
        ({"frames": 81, "then": ((4.0, "b"), (2.0, "c"))}, "times ascend"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_the_nearest(asked: dict, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        timeline(spec(), request(**asked))
    assert message in str(raised.value)


def test_a_remainder_makes_every_length_of_the_codec() -> None:
    for latents in range(1, 12):
        line = timeline(spec(REMAINDER), request(frames=4 * latents - 3))
        assert line.latents == latents and line.chunks == -(-latents // 3) and line.notes == ()
    with pytest.raises(UserError, match="not whole chunks"):
        spec(REMAINDER).check_frames(4)  # of training


def test_a_given_frame_is_not_generated() -> None:
    given = {"images": (Path("x.png"),)}
    line = timeline(spec(FRAME_WISE), request(frames=81, **given))
    assert (line.latents, line.chunks) == (20, 20)
    assert timeline(spec(REMAINDER), request(frames=13, **given)).chunks == 1
    with pytest.raises(UsageError, match=r"not whole chunks behind the given frame.*use 13 frames .* or 25 frames"):
        timeline(spec(REMAINDER), request(frames=17, **given))
    with pytest.raises(UsageError, match="use 13 frames"):
        timeline(spec(REMAINDER), request(frames=1, **given))


def test_prompts_change_where_chunks_begin() -> None:
    """Chunks of three latents begin at the frames 9, 21, 33, 45, 57, 69."""
    line = timeline(spec(), request(frames=81, then=((33 / 16, "b"), (2.5, "c"), (4.4, "d"))))
    assert line.scenes == (3, 1, 2, 1)
    assert line.notes == (
        "the prompt changes at 2.81 s, where a chunk begins, not at 2.5 s",
        "the prompt changes at 4.31 s, where a chunk begins, not at 4.4 s",
    )
    line = timeline(spec(REMAINDER), request(frames=49, then=((1 / 16, "b"), (25 / 16, "c"))))
    assert line.scenes == (1, 2, 2) and line.notes == (), "chunks begin behind the remainder: at the frames 1, 13, 25"


def test_frame_wise_presets_take_a_remainder_and_the_others_do_not() -> None:
    policies = {name: preset(name).spec({}).cache for name in shipped_presets()}
    taken = {name for name, policy in policies.items() if policy.first_chunk == "remainder"}
    assert taken == {name for name, policy in policies.items() if policy.chunk_frames == 1} and len(taken) == 3
    assert all(preset(name).spec({}).fps == (24 if name == "longlive2_5b" else 16) for name in policies)
