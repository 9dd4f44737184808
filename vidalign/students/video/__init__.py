"""Causal few-step video students over diffusers `WanTransformer3DModel`."""

from vidalign.students.video.context import Context
from vidalign.students.video.spec import CachePolicy, Sampler, VideoStudentSpec
from vidalign.students.video.student import VideoStudent

__all__ = ["CachePolicy", "Context", "Sampler", "VideoStudent", "VideoStudentSpec"]
