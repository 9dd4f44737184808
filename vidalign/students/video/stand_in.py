"""Stand-ins for a video student: a tiny network whose calls are counted, and the real one without its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from vidalign.codecs import build_codec
from vidalign.codecs.base import describe_codec
from vidalign.students.video.spec import VideoStudentSpec
from vidalign.students.video.student import VideoStudent

if TYPE_CHECKING:
    from vidalign.codecs.base import Codec

Features = Callable[[Sequence[str]], torch.Tensor]
SIZE, WIDTH = 8, 16
"""Pixels and text features of the stand-in."""
TRANSFORMER = {
    "patch_size": [1, SIZE, SIZE],
    "num_attention_heads": 1,
    "attention_head_dim": WIDTH,
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": WIDTH,
    "freq_dim": WIDTH,
    "ffn_dim": WIDTH,
    "num_layers": 1,
    "rope_max_seq_len": 1024,
}


def stand_in(spec: VideoStudentSpec) -> tuple[VideoStudent, Features, Codec]:
    """A student with the chunks, cache policy and sampler of `spec`, its prompt features and its codec."""
    small = VideoStudentSpec(
        transformer=TRANSFORMER, cache=spec.cache, sampler=spec.sampler, prediction="x0", height=SIZE, width=SIZE
    )

    def features(prompts: Sequence[str]) -> torch.Tensor:
        return torch.zeros(len(prompts), 1, WIDTH)

    return VideoStudent.from_spec(small), features, build_codec(small.codec)


def unloaded(spec: VideoStudentSpec) -> tuple[VideoStudent, Features, Codec]:
    """The student of `spec` and its codec with weights on the meta device, and features of the real shape."""
    length, width = int(spec.text.get("length", 1)), int(spec.transformer.get("text_dim", 4096))

    def features(prompts: Sequence[str]) -> torch.Tensor:
        return torch.zeros(len(prompts), length, width)

    with torch.device("meta"):
        return VideoStudent.from_spec(spec), features, build_codec(describe_codec(spec.codec))
