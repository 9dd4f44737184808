"""The update that AFD, DiffusionNFT and Astrolabe share: rollouts noised again and predicted by three policies.

``current`` is trained, ``old`` rolled out, ``reference`` holds the student near where it began; the loss stands in
`losses/forward_process.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from vidalign.errors import UserError
from vidalign.losses.flow_matching import add_noise, expand_sigma
from vidalign.losses.forward_process import forward_process_loss, reference_penalty
from vidalign.objectives.base import Experience, LossOut

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.context import TrainContext
    from vidalign.engine.blueprint import PolicyRule
    from vidalign.students.video import VideoStudent
    from vidalign.students.video.spec import Sampler

Space = Literal["x0", "velocity"]
"""Where predictions are compared; x0-space is sigma^2 times velocity-space."""


@dataclass(frozen=True)
class Noised:
    """Clips of the rollout ``[N, F, C, H, W]``, noised again to levels ``[N, F]`` of the sampler."""

    x0: Tensor
    noise: Tensor
    sigma: Tensor
    x_t: Tensor

    def target(self, space: Space) -> Tensor:
        """What a perfect prediction of the rollout is, like `x0`."""
        return self.x0 if space == "x0" else self.noise - self.x0

    def seen_in(self, space: Space, velocity: Tensor) -> Tensor:
        """A predicted velocity in that space, like `x0`."""
        return velocity if space == "velocity" else self.x_t - expand_sigma(self.sigma, self.x_t) * velocity


def noise_again(
    ctx: TrainContext[VideoStudent],
    data: Experience,
    *,
    each: bool,
    sigma_min: float = 0.0,
    sigma_max: float = 1.0,
    shared: int = 1,
) -> Noised:
    """The clips ``x0`` of an experience at levels of the sampler, noise and level by the number of each ``sample``.

    each: see `sample_sigmas`. shared: how many candidates in a row share their noise and level.
    """
    x0 = data["x0"]
    generators = ctx.generators("loss", [sample // shared * shared for sample in data["sample"].tolist()])
    noise = ctx.normal(x0.shape[1:], generators)
    first = data.context is None or data.context.frames == 0
    chunks = x0.shape[1] // ctx.chunk_frames
    sigma = sample_sigmas(ctx, generators, chunks, each=each, first=first, sigma_max=sigma_max, sigma_min=sigma_min)
    return Noised(x0, noise, sigma, add_noise(x0, noise, sigma))


def three_policy_loss(
    ctx: TrainContext[VideoStudent],
    data: Experience,
    noised: Noised,
    *,
    beta: float,
    old_decay: float | None,
    kl_weight: float | None,
    space: Space = "velocity",
    kl_space: Space | None = None,
    advantage_clip: float | None = None,
) -> tuple[LossOut, Tensor | None]:
    """``mean(signal L) + kl_weight mean(kl_weight_n |current - reference|^2)``, L of `forward_process_loss`.

    Tensors ``[N]`` of the experience: reward_weight, signal, and kl_weight where samples are not held alike. kl_weight:
    None leaves out the reference and its forward. kl_space: where the penalty is taken, as `space` unless given.
    advantage_clip: turns on DiffusionNFT's adaptive weighting. Also returns the squared distances ``[N]`` to the
    reference, without gradient.
    """

    def velocity() -> Tensor:
        return ctx.student.velocity(noised.x_t, noised.sigma, data.features, data.context, clean=noised.x0)

    current = velocity()
    if old_decay == 0 and ctx.update == 0:
        old = current.detach()  # `decay_old` has just set it to the current one: the same numbers, one forward less
    else:
        with torch.no_grad(), ctx.policy("old"):
            old = velocity()
    losses = forward_process_loss(
        noised.seen_in(space, current),
        noised.seen_in(space, old),
        noised.target(space),
        data["reward_weight"],
        beta=beta,
        advantage_clip=advantage_clip,
    )
    policy = (data["signal"] * losses).mean()
    out = LossOut(policy, {"objective/policy/mean": policy.detach()})
    if kl_weight is None:
        return out, None
    with torch.no_grad(), ctx.policy("reference"):
        reference = velocity()
    space = kl_space or space
    distance = reference_penalty(noised.seen_in(space, current), noised.seen_in(space, reference))
    penalty = (data.tensors.get("kl_weight", torch.ones_like(distance)) * distance).mean()
    out.loss = policy + kl_weight * penalty
    out.metrics["objective/kl/mean"] = penalty.detach()
    return out, distance.detach()


def decay_old(ctx: TrainContext[VideoStudent], decay: float | None) -> None:
    """``old <- d old + (1 - d) current``; None is the schedule ``d = min(0.001 step, 0.5)`` of DiffusionNFT."""
    ctx.policies.ema_update("old", "current", min(0.001 * ctx.step, 0.5) if decay is None else decay)


def old_rule(decay: float | None) -> PolicyRule:
    """The rule of an `old` that `decay_old` moves."""
    return "current" if decay == 0 else "own"


def sampler_levels(
    sampler: Sampler, sigma_max: float = 1.0, sigma_min: float = 0.0, *, first: bool = False
) -> list[float]:
    """The sampler's own noise levels in ``[sigma_min, sigma_max]``, descending; `UserError` when there is none.

    first: those of the chunk that begins the video, which may have a list of its own.
    """
    visited = sampler.steps(first)
    levels = [sigma for sigma in visited if sigma_min <= sigma <= sigma_max]
    if not levels:
        chunk = " in the first chunk" if visited is not sampler.sigmas else ""
        raise UserError(
            f"{sigma_min} to {sigma_max} leaves no noise level to train on{chunk}",
            where="objective.sigma_max",
            why=f"the student's sampler visits {visited}",
            fix="let the range hold one of them",
        )
    return levels


def sample_sigmas(
    ctx: TrainContext[VideoStudent],
    generators: list[torch.Generator],
    chunks: int,
    *,
    each: bool,
    first: bool = True,
    sigma_max: float = 1.0,
    sigma_min: float = 0.0,
) -> torch.Tensor:
    """One of the sampler's levels for every frame of `chunks` chunks, ``[N, F]``, a generator a sample.

    each: whether every chunk draws its own, or all of a sample have one. first: whether the video begins with these
    chunks; where the sampler has other levels there, the first chunk draws among those.
    """
    sampler = ctx.student.spec.sampler

    def draw(count: int, *, first: bool) -> torch.Tensor:
        levels = torch.tensor(sampler_levels(sampler, sigma_max, sigma_min, first=first))
        return levels[torch.stack([torch.randint(len(levels), (count,), generator=g) for g in generators])]

    sigma = draw(chunks if each else 1, first=False).expand(-1, chunks)
    if first and sampler.first_sigmas:
        sigma = torch.cat([draw(1, first=True), sigma[:, 1:]], 1)
    return sigma.repeat_interleave(ctx.chunk_frames, 1).to(ctx.device)
