"""The discriminator as a trainable reward (AFD, arXiv 2605.26105, section on the discriminator; GAN).

What an objective submits for judgement is first compared with teacher clips of the same prompts by the Bradley-Terry
loss (`losses/bradley_terry.py`), then scored. The trainer runs one step of the discriminator before the judgement, as
in AFD, whichever the objective. Warm-up runs on rollouts of the initial student until the pair accuracy on held-out
prompts is reached.

What we changed: the loss is the mean over all teacher clips x candidates of a prompt. A share of the prompts, by hash,
is never trained on and measures the accuracy at no cost. In a mixture it learns from the first objective that it
judges. Stored clips have 256 levels a colour, so every clip is rounded to them before it is judged. The fractions of a
student's would give it away. A clip that ends early is compared with the beginning of the teacher's, so clips must
begin where the video begins (Astrolabe: ``clip.score: video``).
Watch: held-out pair accuracy (memory against judgement), mean sigmoid of the margin (0 = saturated, 1/2 = blind).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from vidalign import registry
from vidalign.cost import Cost, StepSizes
from vidalign.deferred import without_gradient
from vidalign.engine import distributed
from vidalign.engine.blueprint import Blueprint, TrainedRole
from vidalign.engine.rng import generator
from vidalign.errors import UserError
from vidalign.guest import guarded, guest
from vidalign.losses.bradley_terry import bradley_terry_loss, gan_loss, pair_accuracy
from vidalign.rewards.base import ScoreRequest, TrainableReward
from vidalign.students.video.rollout import RolloutPlan

if TYPE_CHECKING:
    from vidalign.data.source import PromptSource
    from vidalign.recipe import Recipe
    from vidalign.recipe.draft import Draft
    from vidalign.rewards.discriminators.base import DiscriminatorConfig
    from vidalign.rewards.discriminators.network import Discriminator
    from vidalign.rewards.run import Run
    from vidalign.students.video import VideoStudentSpec
    from vidalign.text.features import PromptFeatures

BATCH = 16
"""Clips scored in one forward."""
MEMORY = 0.9
"""Decay of the running held-out accuracy at every update that saw a held-out prompt."""
ENOUGH_PAIRS = 16
"""Held-out pairs that were seen before the warm-up may end on it."""


class DiscriminatorReward(TrainableReward):
    """How much a network that is trained on the teacher's clips prefers a clip; comparable inside a prompt only."""

    name = "discriminator"
    role = "discriminator"
    teacher_offers = "clips"

    def __init__(self, network: Discriminator, config: DiscriminatorConfig) -> None:
        self.network, self.config, self.updates = network, config, config.updates
        self._right, self._pairs = 0.0, 0.0  # running sums over held-out pairs
        self._seen = 0  # held-out pairs so far
        self._module: Callable[[], Any] = lambda: self.network
        """Its network: that of its engine in a training run."""

    @classmethod
    def check(cls, draft: Draft) -> None:
        """Its section and the teacher's clips are there, and the objective shows it whole videos."""
        recipe = draft.recipe
        if recipe.discriminator is None and draft.sound("discriminator"):
            known, why = ", ".join(registry.names("discriminators")), "the reward `discriminator` has no network"
            fix = f"add discriminator: {{name: {known}}}"
            draft.refuse("there is no discriminator", "rewards.discriminator", why, fix)
        own = getattr(recipe.objective, "rewards", None)  # an objective of a mixture may choose among the rewards
        clip = getattr(recipe.objective.config, "clip", None)
        if (own is None or cls.name in own) and getattr(clip, "score", "video") == "clip":
            what = "the discriminator cannot judge a clip without its history"
            why, fix = "it compares videos from their first frame on", "use clip: {score: video}"
            draft.refuse(what, "objective.clip.score", why, fix)
        if recipe.teacher is None and draft.sound("teacher"):
            why = "the discriminator needs one that offers clips"
            fix = "add teacher: {name: world}, or another that offers clips"
            draft.refuse("there is no teacher", "teacher", why, fix)

    @classmethod
    def from_recipe(cls, recipe: Recipe, spec: VideoStudentSpec, features: PromptFeatures) -> DiscriminatorReward:
        section = recipe.discriminator
        assert section is not None, "the recipe was checked"
        name = section.name
        kind = registry.get("discriminators", name)
        with guest("discriminator", name, kind):
            network = kind.from_recipe(section.config, spec, features, recipe.seed)
        return cls(guarded("discriminator", name, network, ("forward",)), section.config)

    def blueprint(self) -> Blueprint:
        config = self.config
        own = {"learning_rate": config.learning_rate, "warmup_steps": config.warmup_steps, "schedule": "constant"}
        return Blueprint(roles={self.role: TrainedRole(self.updates, lambda student, teacher: self.network, own)})

    @classmethod
    def cost(cls, recipe: Recipe, sizes: StepSizes) -> Cost:
        """Teacher clips, and in the first step the rollouts of the longest warm-up."""
        assert recipe.discriminator is not None, "the recipe was checked"
        config: DiscriminatorConfig = recipe.discriminator.config
        cost = Cost(teacher_calls=config.updates * config.teacher_clips * sizes.prompts)
        warm_up = config.warm_up
        if sizes.step > 0 or config.warm_up_length == 0:
            return cost
        rollout = replace(sizes, prompts=warm_up.prompts).rollout(RolloutPlan(prefix=0, branch=sizes.chunks))
        clips = config.teacher_clips * warm_up.prompts
        return cost + Cost(forwards=warm_up.rounds * rollout, teacher_calls=warm_up.max_steps * clips)

    def attach(self, ctx: Run) -> None:
        self.ctx = ctx
        self._module = lambda: ctx.roles.module(self.role)

    @property
    def held_out_accuracy(self) -> float:
        """Running pair accuracy on prompts that are not trained on; NaN before the first of them."""
        return self._right / self._pairs if self._pairs else math.nan

    @without_gradient
    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Scores ``[B]`` of clips ``[B, F, 3, H, W]`` in [0, 1]; comparable inside a prompt only."""
        parts = [self.judge(clips[k : k + BATCH], prompts[k : k + BATCH]) for k in range(0, len(clips), BATCH)]
        return {self.name: torch.cat(parts)}

    def judge(self, clips: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores ``[B]`` in one forward, differentiable with respect to the clips if the network is."""
        scores: torch.Tensor = self._module()(in_bytes(clips), prompts)
        return scores

    def teacher_clips(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], clips: torch.Tensor
    ) -> torch.Tensor:
        """A clip of the teacher for every prompt, as long as those of the student, `clips`, and through its autoencoder
        with `reencode`."""
        ctx = self.ctx
        samples: torch.Tensor = ctx.teacher.clips(prompts, generators)
        if samples.shape[1] < clips.shape[1] or samples.shape[2:] != clips.shape[2:]:
            raise UserError(
                f"the student's clips are {_size(clips)}, the teacher's {_size(samples)}",
                where="discriminator",
                why="size and length would give the student away",
                fix="normalise the teacher's clips to the student's size, and make them as long as what is scored",
            )
        samples = samples[:, : clips.shape[1]].to(clips.device, clips.dtype)
        if self.config.reencode:
            with torch.no_grad():
                samples = ctx.decode(ctx.encode(samples)).to(clips.dtype)
        return samples

    def learn(self, request: ScoreRequest) -> None:
        """`updates` steps on these clips of the student against fresh teacher clips."""
        assert request.first_frame == 0, "clips are compared with the teacher's where the video begins"
        for update in range(self.config.updates):
            self.ctx.metrics |= self._update(request, self.ctx.step, f"update {update}")

    def warm_up(self, prompts: PromptSource) -> None:
        """Whole videos of the initial student, until the accuracy is reached; nothing for a frozen network."""
        config, ctx, step = self.config.warm_up, self.ctx, 0
        kept: list[tuple[torch.Tensor, list[str]]] = []  # latents, which are small, on the CPU
        while step < self.config.warm_up_length and not self._ready(config.accuracy):
            if step < config.rounds:
                kept.append(self._first_videos(prompts, step))
            latents, chosen = kept[step % config.rounds]
            with torch.no_grad():
                clips = ctx.decode(latents.to(ctx.device))
            request = ScoreRequest(clips, chosen, torch.arange(len(chosen)))
            ctx.metrics |= self._update(request, step, "warm-up")
            step += 1
        ctx.metrics["health/discriminator_warm_up_steps"] = float(step)

    @without_gradient
    def _first_videos(self, prompts: PromptSource, step: int) -> tuple[torch.Tensor, list[str]]:
        """This process' share of fresh videos of the student: latents ``[B, F, C, H, W]`` on the CPU, and prompts."""
        ctx, first, count = self.ctx, step * self.config.warm_up.prompts, self.config.warm_up.prompts
        ids = list(range(first + distributed.rank(), first + count, ctx.world_size))
        chosen, plan = [prompts[i] for i in ids], RolloutPlan(prefix=0, branch=ctx.chunks)
        noise = ctx.student.draw_noise(plan, [generator(ctx.seed, "discriminator warm-up", 0, i) for i in ids])
        with ctx.gathered():
            return ctx.student.rollout(ctx.text(chosen), plan, noise).latents.cpu(), chosen

    def _ready(self, accuracy: float | None) -> bool:
        return accuracy is not None and self._seen >= ENOUGH_PAIRS and self.held_out_accuracy >= accuracy

    # --- one update ---

    def _update(self, request: ScoreRequest, step: int, purpose: str) -> dict[str, float]:
        """One optimiser step; the metrics are over all processes."""
        ctx, clips, prompts = self.ctx, request.clips, request.prompt_of_clip
        teacher = self._teacher_clips(request.prompts, clips, step, purpose)
        trained = torch.tensor([not is_held_out(p, self.config.held_out) for p in prompts])
        total = int(ctx.gather(trained.sum().unsqueeze(0)).sum())
        size = max(1, ctx.micro_batch // (1 + self.config.teacher_clips))
        distributed.check_equal(len(prompts), "the number of clips that the discriminator compares")
        rows = []
        with torch.enable_grad(), ctx.roles.phase(self.role) as engine:
            for start in range(0, len(prompts), size):
                part = slice(start, start + size)
                winner, loser = self._pairs_of(clips[part], request.group_index[part], request.prompts, teacher)
                losses = self._losses(winner, loser)
                engine.backward((losses * trained[part].to(losses)).sum() * (ctx.world_size / max(total, 1)))
                seen = torch.cat([winner - loser, losses.unsqueeze(1)], 1).detach()
                rows.append(seen.to(torch.promote_types(seen.dtype, torch.float32)))
            norm = engine.step() if total else 0.0
        all_ranks = ctx.gather(torch.cat(rows))
        metrics = self._measure(all_ranks[:, :-1], all_ranks[:, -1], ctx.gather(trained))
        return metrics | {"health/discriminator_grad_norm/mean": norm}

    def _losses(self, winner: torch.Tensor, loser: torch.Tensor) -> torch.Tensor:
        """The loss of every candidate ``[N]``, a mean over the teacher clips that it is compared with."""
        pairs = bradley_terry_loss(winner - loser) if self.config.loss == "bt" else gan_loss(winner, loser)
        return pairs.mean(1)

    def _pairs_of(
        self, clips: torch.Tensor, group_index: torch.Tensor, prompts: Sequence[str], teacher: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``D(x_T, y)`` ``[N, teacher_clips]`` and ``D(x_hat, y)`` ``[N, 1]``, with gradient; one forward.

        teacher: of every group ``[P, teacher_clips, F, 3, H, W]``.
        """
        present, place = group_index.unique(return_inverse=True)
        count = self.config.teacher_clips
        both = torch.cat([clips, teacher[present].flatten(0, 1)])
        words = [prompts[g] for g in [*group_index.tolist(), *present.repeat_interleave(count).tolist()]]
        scores = self.judge(both, words)
        student, winners = scores[: len(clips)], scores[len(clips) :].view(len(present), count)
        return winners[place], student.unsqueeze(1)

    def _teacher_clips(self, prompts: Sequence[str], clips: torch.Tensor, step: int, purpose: str) -> torch.Tensor:
        """Clips for every prompt ``[P, teacher_clips, F, 3, H, W]``, as long as the student's."""
        count = self.config.teacher_clips
        repeated = [p for p in prompts for _ in range(count)]
        draws = [generator(self.ctx.seed, f"teacher of {p}/{purpose}", step, k) for p in prompts for k in range(count)]
        samples: torch.Tensor = self.teacher_clips(repeated, draws, clips).unflatten(0, (len(prompts), count))
        return samples

    def _measure(self, margin: torch.Tensor, losses: torch.Tensor, trained: torch.Tensor) -> dict[str, float]:
        """What to log of the margins ``[N, teacher_clips]`` and losses ``[N]`` of all processes, before the update."""
        right, trained = pair_accuracy(margin).mean(1), trained.to(margin.device)
        metrics = {
            "reward/discriminator_margin/mean": float(margin.mean()),
            "health/discriminator_margin_sigmoid/mean": float(torch.sigmoid(-margin).mean()),
        }
        if trained.any():
            metrics["objective/discriminator_loss/mean"] = float(losses[trained].mean())
            metrics["health/discriminator_pair_accuracy/mean"] = float(right[trained].mean())
        if not trained.all():
            self._right = MEMORY * self._right + float(right[~trained].sum())
            self._pairs = MEMORY * self._pairs + int((~trained).sum())
            self._seen += int((~trained).sum())
        if self._pairs:
            metrics["health/discriminator_held_out_accuracy/mean"] = self.held_out_accuracy
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"right": self._right, "pairs": self._pairs, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._right, self._pairs, self._seen = state["right"], state["pairs"], state["seen"]


def is_held_out(prompt: str, share: float) -> bool:
    """Whether the discriminator is never trained on a prompt: the same on every machine, by a hash of the text."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def in_bytes(clips: torch.Tensor) -> torch.Tensor:
    """Clips in [0, 1] on the 256 levels of a stored clip; the gradient is that of the identity."""
    precise = clips.detach().to(torch.promote_types(clips.dtype, torch.float32))
    return ((precise * 255).round() / 255).to(clips.dtype) + (clips - clips.detach())


def _size(clips: torch.Tensor) -> str:
    frames, _, height, width = clips.shape[1:]
    return f"{frames} frames of {height}x{width}"
