"""The many-step sampler of a bidirectional network: UniPC (arXiv 2302.04867), the scheduler of diffusers.

The scheduler stands as in the released Wan2.1 pipelines: it predicts flow, its noise levels are those of flow matching,
warped by `shift`. It feeds whole timesteps, rounded down, as the network was released with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vidalign.deferred import without_gradient
from vidalign.errors import UserError
from vidalign.ranges import require
from vidalign.students.spec import build_spec
from vidalign.students.video.guidance import Guidance, guided

if TYPE_CHECKING:
    from vidalign.students.video.student import VideoStudent


@dataclass
class ManySteps:
    """Steps, noise levels and guidance of a bidirectional network."""

    steps: int = 50
    """Denoising steps; each is one pass, or two with guidance."""
    shift: float = 3.0
    """k of the warp k s / (1 + (k - 1) s) of the noise levels; Wan2.1 takes 3 at 480p and 5 at 720p."""
    guidance: Guidance = field(default_factory=Guidance)
    """Classifier-free guidance."""

    def __post_init__(self) -> None:
        require(self, "steps", least=1)
        require(self, "shift", above=0)


def no_chunks(where: str = "", whose: str = "a bidirectional network") -> UserError:
    """The error of causal sampling, or causal training, with a bidirectional network; where: the key that names it."""
    return UserError(
        f"{whose} is no causal student",
        where=where,
        why="it makes a whole video at once in many steps, and no weights of it were trained behind a cache",
        fix="name it as teacher.path, or import its checkpoint by a causal preset, see `vidalign list presets`",
    )


def read_many_steps(sampler: dict[str, Any]) -> dict[str, Any]:
    """The section ``sampler`` of a specification with `ManySteps` in it, where it has one. Raises `UserError` for an
    unknown key."""
    written, where = sampler.get("many_steps"), "student.init.sampler.many_steps"
    if not isinstance(written, dict):
        return sampler
    if isinstance(guidance := written.get("guidance"), dict):
        written = {**written, "guidance": build_spec(Guidance, guidance, f"{where}.guidance")}
    return {**sampler, "many_steps": build_spec(ManySteps, written, where)}


@without_gradient
def sample_many_steps(
    model: VideoStudent,
    frames: int,
    text: torch.Tensor,
    negative: torch.Tensor | None,
    generators: Sequence[torch.Generator],
    settings: ManySteps,
) -> torch.Tensor:
    """Clean latents ``[N, F, C, H, W]`` of texts ``[N, L, D]``, one CPU generator each; all frames go together.

    negative: features ``[1, L, D]`` of the negative prompt, None without guidance. The noise is drawn as `WanPipeline`
    draws it from the same generators.
    """
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=settings.shift
    )
    scheduler.set_timesteps(settings.steps, device=text.device)
    scheduler.set_begin_index(0)
    channels, height, width = model.spec.latent_shape
    drawn = [torch.randn((channels, frames, height, width), generator=one) for one in generators]
    x = torch.stack(drawn).transpose(1, 2).to(text.device, model.latent_dtype)
    for timestep in scheduler.timesteps:
        x = scheduler.step(_velocity(model, x, timestep, text, negative, settings), timestep, x, return_dict=False)[0]
    return x


def _velocity(
    model: VideoStudent,
    x: torch.Tensor,
    timestep: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor | None,
    settings: ManySteps,
) -> torch.Tensor:
    """The guided velocity, like `x`. The level is float64, so that the network is fed the whole timestep exactly."""
    level = (timestep.double() / 1000).expand(len(x))
    return guided(lambda words: model.bidirectional(x, level, words), text, negative, settings.guidance.scale)
