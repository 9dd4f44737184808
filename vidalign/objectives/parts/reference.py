"""Astrolabe's penalty towards a reference policy: which samples it holds, and when the reference moves (2603.17051)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from vidalign.engine import distributed
from vidalign.errors import UserError, nearest
from vidalign.losses.selective_kl import BUFFER, RHO_START, adapt_rho, mean_gap, rank_discrepancy, uncertain
from vidalign.ranges import require

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.context import TrainContext
    from vidalign.engine.blueprint import PolicyRule
    from vidalign.students.video import VideoStudent


@dataclass
class KLConfig:
    """The penalty that keeps the student near the reference policy."""

    mode: Literal["selective", "uniform", "none"] = "uniform"
    """selective: samples on which the rewards disagree, two or more rewards needed (one of weight 0 counts); uniform:
    every sample; none: no reference forward at all."""
    weight: float = 1e-4
    """Factor of the mean of ``|x0_cur - x0_ref|^2`` over the chosen samples."""
    primary: str | None = None
    """Reward whose favourites are suspected when the others rank them low; null = the first one listed."""
    reset_drift: float | None = None
    """The reference becomes the current policy when the mean penalty exceeds this share of a running mean of the
    variance of what is predicted; null = never. The paper's 0.15 is for latents of variance near 1."""
    reset_every: int | None = None
    """The reference becomes the current policy after this many steps at the latest (15 in the paper); null = never."""

    def __post_init__(self) -> None:
        require(self, "weight", least=0)
        for name in ("reset_drift", "reset_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, or null for never")
            if value is not None and self.mode == "none":
                raise ValueError(f"{name} resets a reference that mode none does not use")


@dataclass
class KLState:
    """What selection and reset remember from step to step."""

    rho: float = RHO_START
    """Share of the non-negative rank gaps that is penalised."""
    gaps: list[float] = field(default_factory=list)
    """Mean non-negative gap of the last `BUFFER` steps."""
    age: int = 0
    """Steps since the reference was reset."""
    variance: float = 0.0
    """Running mean of the variance of what is predicted."""


class ReferenceControl:
    """Selects the samples that are held near the reference, and replaces a reference that is far or old."""

    def __init__(self, config: KLConfig) -> None:
        self.config = config
        self.state = KLState()

    @property
    def resets(self) -> bool:
        """Whether the reference ever moves."""
        return self.config.reset_drift is not None or self.config.reset_every is not None

    @property
    def rule(self) -> PolicyRule:
        """How the weight set ``reference`` moves."""
        return "own" if self.resets else "fixed"

    def primary(self, names: list[str]) -> str:
        """The reward whose favourites are suspected, of those with these names; `UserError` where there is none."""
        primary = self.config.primary
        if len(names) < 2:
            raise UserError(
                "a selective penalty needs two rewards or more",
                where="objective.kl.mode",
                why=f"it looks for samples on which rewards disagree, and {names[0]} is the only one",
                fix="name a further reward, or use kl.mode: uniform",
            )
        if primary and primary not in names:
            raise UserError(
                f"the primary reward {primary!r} is not among the rewards",
                where="objective.kl.primary",
                fix=f"use {nearest(primary, names) or ' or '.join(names)}",
            )
        return primary or names[0]

    def select(
        self, ctx: TrainContext[VideoStudent], scores: Mapping[str, Tensor], like: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Tensor ``kl_weight`` of this rank's samples, like `like` ``[N]``, from the scores of all ranks by reward; its
        mean over the batch is the mean over the chosen samples. Also what to log."""
        weights, metrics = {}, {}
        if self.config.mode == "uniform":
            weights["kl_weight"] = torch.ones_like(like)
        elif self.config.mode == "selective":
            flat = {name: value.flatten() for name, value in scores.items()}
            gap = rank_discrepancy(flat, self.primary(list(ctx.reward_weights)))
            chosen = self._chosen(gap).view(ctx.world_size, -1)[distributed.rank()].to(like)
            weights["kl_weight"] = chosen
            share = int((chosen > 0).sum()) / len(chosen)
            metrics = {"objective/rho/mean": self.state.rho, "objective/selected/mean": share}
        if self.resets:
            metrics["objective/reference_age/mean"] = float(self.state.age)
        return weights, metrics

    def _chosen(self, gap: Tensor) -> Tensor:
        """Weight of every sample ``[N]`` by its rank gap; rho follows the mean gap."""
        state, mean = self.state, mean_gap(gap)
        state.rho = adapt_rho(state.rho, mean, state.gaps)
        state.gaps = [*state.gaps, mean][-BUFFER:]
        mask = uncertain(gap, state.rho)
        return mask.double() * len(gap) / mask.sum().clamp(min=1)

    @staticmethod
    def sums(distance: Tensor, chosen: Tensor, target: Tensor) -> dict[str, Tensor]:
        """What `follow` reads of a micro-batch: sums over its samples ``[N]`` of the penalty and of the variance of the
        target ``[N, ...]``."""
        variance = target.detach().flatten(1).float().var(1)
        held = chosen > 0
        sums = {"penalty": (distance * held).sum(), "penalised": held.sum()}
        return sums | {"variance": variance.sum(), "samples": torch.ones_like(variance).sum()}

    def follow(self, ctx: TrainContext[VideoStudent]) -> None:
        """``reference <- current`` when the penalised samples have drifted far, or when the reference is old."""
        config, state = self.config, self.state
        total = {name: float(value) for name, value in ctx.sums.items()}
        drift, variance = total["penalty"] / max(total["penalised"], 1), total["variance"] / total["samples"]
        state.age += 1
        state.variance = 0.9 * state.variance + 0.1 * variance if state.variance else variance
        far = config.reset_drift is not None and drift > config.reset_drift * state.variance
        stale = config.reset_every is not None and state.age >= config.reset_every
        if far or stale:
            ctx.policies.copy("current", "reference")
            state.age = 0

    def state_dict(self) -> dict[str, Any]:
        """Its memory, for a checkpoint."""
        return asdict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.state = KLState(**state)
