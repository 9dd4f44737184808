"""Corruptions of clips that every judge of videos should see, and some that many do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from vidalign.errors import UserError

LATE = 0.75
"""Where the drift begins, as a share of the clip."""


def blurred(clips: torch.Tensor) -> torch.Tensor:
    """Gaussian blur with a standard deviation of 3 % of the shorter side, 1 pixel at least."""
    sd = max(1.0, 0.03 * min(clips.shape[-2:]))
    reach = min(int(3 * sd) + 1, min(clips.shape[-2:]) - 1)
    places = torch.arange(-reach, reach + 1, dtype=torch.float32)
    line = torch.exp(-0.5 * (places / sd) ** 2).to(clips)
    line = line / line.sum()
    flat = clips.flatten(0, 2).unsqueeze(1)
    flat = torch.nn.functional.pad(flat, (reach,) * 4, mode="replicate")
    flat = torch.nn.functional.conv2d(flat, line.view(1, 1, 1, -1))
    return torch.nn.functional.conv2d(flat, line.view(1, 1, -1, 1)).view(clips.shape)


def frozen(clips: torch.Tensor) -> torch.Tensor:
    """The first frame for ever."""
    return clips[:, :1].expand_as(clips).contiguous()


def shuffled(clips: torch.Tensor) -> torch.Tensor:
    """The frames in an order that is the same for all clips, and not the right one."""
    order = torch.randperm(clips.shape[1], generator=torch.Generator().manual_seed(0))
    return clips[:, order if (order != torch.arange(len(order))).any() else order.flip(0)]


def noisy(clips: torch.Tensor) -> torch.Tensor:
    """White noise with a standard deviation of 0.1."""
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    return (clips + 0.1 * noise.to(clips)).clamp(0, 1)


def half_speed(clips: torch.Tensor) -> torch.Tensor:
    """The first half, every frame twice."""
    return clips.repeat_interleave(2, 1)[:, : clips.shape[1]]


def drifting(clips: torch.Tensor) -> torch.Tensor:
    """From three quarters on, frames turn to their blurred and faded selves, as long rollouts do."""
    frames = clips.shape[1]
    ramp = ((torch.arange(frames) / max(1, frames - 1) - LATE) / (1 - LATE)).clamp(0, 1).to(clips).view(1, -1, 1, 1, 1)
    faded = 0.5 * blurred(clips) + 0.5 * clips.mean((2, 3, 4), keepdim=True)
    return clips + ramp * (faded - clips)


CORRUPTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "blur": blurred,
    "freeze": frozen,
    "shuffle": shuffled,
    "noise": noisy,
    "half speed": half_speed,
    "late drift": drifting,
}
"""Of clips ``[B, F, 3, H, W]`` in [0, 1], by name; `other_prompts` is the one that leaves the clips alone."""
WRONG_PROMPT = "wrong prompt"


def other_prompts(prompts: Sequence[str]) -> list[str]:
    """For each of the prompts another one of them. Raises `UserError` where all are the same."""
    distinct = list(dict.fromkeys(prompts))
    if len(distinct) < 2:
        what = "a wrong prompt needs two prompts that differ"
        raise UserError(what, where="data.eval_prompts", why=f"there is one: {distinct[0]!r}", fix="give more prompts")
    following = dict(zip(distinct, [*distinct[1:], distinct[0]], strict=True))
    return [following[prompt] for prompt in prompts]
