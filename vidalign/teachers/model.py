"""A bidirectional multi-step model as teacher: the ``velocity`` of a network that shares the student's latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vidalign.deferred import without_gradient
from vidalign.students.video.guidance import Guidance, guided
from vidalign.students.video.kind import Video
from vidalign.teachers.network import NetworkTeacher

if TYPE_CHECKING:
    from vidalign.students.video import VideoStudent, VideoStudentSpec
    from vidalign.text.features import PromptFeatures


class ModelTeacher(NetworkTeacher):
    """A frozen bidirectional multi-step video network. Offers ``velocity``, guided where guidance is set."""

    offers = ("velocity",)

    @dataclass
    class Config(NetworkTeacher.Config):
        guidance: Guidance | None = None
        """Classifier-free guidance of its velocity; null = that of the weights, none but for those of the preset
        `wan`."""

    def __init__(self, model: VideoStudent, guidance: Guidance | None = None) -> None:
        super().__init__(model)
        self.guidance = guidance or guidance_of(model.spec)
        self.negative: torch.Tensor | None = None
        """Features ``[1, L, D]`` of the negative prompt, once `prepare` has read it."""

    def configure(self, config: Any) -> None:
        self.guidance = config.guidance or self.guidance

    @classmethod
    def texts(cls, config: Any) -> list[str]:
        """The prompts that it reads beside those of the run."""
        return (config.guidance or guidance_of(Video.read_spec(config.path))).prompts

    def prepare(self, prompts: Sequence[str], features: PromptFeatures | None) -> None:
        """Read the negative prompt."""
        if self.guidance.prompts:
            assert features is not None, "a video student has a text encoder"
            self.negative = features(self.guidance.prompts)

    @without_gradient
    def velocity(self, x_t: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """``[N, F, C, H, W]`` at noise levels ``[N]`` or ``[N, F]``; every frame sees every frame."""

        def predict(words: torch.Tensor) -> torch.Tensor:
            velocity: torch.Tensor = self.model.bidirectional(x_t, sigma, words)
            return velocity

        return guided(predict, text, self.negative, self.guidance.scale)


def guidance_of(spec: VideoStudentSpec) -> Guidance:
    """The guidance that a network is sampled with; none for one without a many-step sampler of its own."""
    return Guidance() if spec.sampler.many_steps is None else spec.sampler.many_steps.guidance
