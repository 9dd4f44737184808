"""A stage of tiny students for the tests of `vidalign play`."""

from __future__ import annotations

from typing import Any

import torch

from vidalign.play.panes import Pane, Stage
from vidalign.students.samples import SampleRequest
from vidalign.students.video import CachePolicy, Sampler, VideoStudent, VideoStudentSpec
from vidalign.students.video.live import CLIP, VideoStreamer
from vidalign.testing.recipes import VIDEO
from vidalign.text.pretrained import build_features

PROMPTS = ["a large red circle falls", "a small blue square bounces"]


def student(seed: int = 0, cache: CachePolicy | None = None, **changes: Any) -> VideoStudent:
    """A network with random weights on pictures of 32 x 32 pixels."""
    values = {**VIDEO, "cache": cache or CachePolicy(), "sampler": Sampler(sigmas=[1.0, 0.7, 0.4]), **changes}
    made = VideoStudent.from_spec(VideoStudentSpec(**values), seed)
    return made.eval().requires_grad_(False)


def streamer(made: VideoStudent) -> VideoStreamer:
    return VideoStreamer(made, SampleRequest(("",), CLIP), build_features(made.spec.text))


def stage(*made: VideoStudent, **fields: Any) -> Stage:
    """Panes for these students; the last one has a scale: all weights times it."""
    panes = [Pane(f"student {n}", streamer(one), (f"weights-{n}",)) for n, one in enumerate(made)]
    whole = {name: value.clone() for name, value in made[-1].state_dict().items()}

    @torch.no_grad()
    def put(scale: float) -> None:
        for name, value in made[-1].state_dict().items():
            value.copy_(whole[name] * scale)

    panes[-1].put, panes[-1].scale = put, "Adapter scale"
    return Stage(panes, **{"seconds": 1.5, "prompts": PROMPTS, **fields})
