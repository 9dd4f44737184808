"""Health monitors: each watches the logged metrics, and warns once, with a fix.

A monitor reads metrics by name; the name may carry one reduction suffix (`health/grad_norm/max`). What is not
logged is not judged. The names that the monitors read:

    reward/mean, reward/<component>/mean   means over the batch; NaN or constant is a fault
    health/reward_nan        fraction of items whose reward failed (NaN)
    health/zero_std_groups   fraction of groups in which all candidates score the same
    health/low_spread_groups fraction of groups whose spread is below the signal floor
    health/adapter_layers    layers that the adapter pattern matched
    health/grad_norm         norm of the gradient before clipping
    health/skipped_updates   updates of this step whose gradient was not finite
    health/on_policy_gap     relative difference between what rollout and replay predict
    health/motion            mean movement in the generated clips (any non-negative measure)
    objective/selected       share of the samples that a selective penalty chose (a mixture puts its label before it)
    health/held_out          score of the held-out judge
    health/discriminator_margin_sigmoid      mean sigmoid(D(student) - D(teacher)): 1/2 cannot separate, 0 saturated
    health/discriminator_pair_accuracy       share of pairs of trained prompts separated
    health/discriminator_held_out_accuracy   the same on prompts that the discriminator is not trained on
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vidalign.errors import UserError

Metrics = dict[str, float]


@dataclass(frozen=True)
class Health:
    """One warning: `name` is the key in the troubleshooting page, `fix` says what to do."""

    name: str
    message: str
    fix: str


Monitor = Callable[[Metrics], Health | None]


class HealthMonitors:
    """Runs every monitor on what was logged; each is dropped after its first warning."""

    def __init__(self, monitors: Iterable[Monitor] | None = None) -> None:
        self._monitors = list(default_monitors() if monitors is None else monitors)

    def check(self, metrics: Metrics) -> list[Health]:
        """Warnings that are new with these metrics."""
        warnings, silent = [], []
        for monitor in self._monitors:
            warning = monitor(metrics)
            if warning is None:
                silent.append(monitor)
            else:
                warnings.append(warning)
        self._monitors = silent
        return warnings


def default_monitors() -> list[Monitor]:
    """The monitors of a run, new ones each time: some remember earlier steps."""
    return [
        reward_nan,
        RewardConstant(),
        zero_std_groups,
        adapter_empty,
        zero_gradient,
        skipped_updates,
        on_policy_gap,
        nobody_selected,
        MotionCollapse(),
        HeldOutFalling(),
        Lasting(discriminator_saturated),
        Lasting(discriminator_blind),
        Lasting(discriminator_memorises),
    ]


def find(metrics: Metrics, name: str) -> float | None:
    """The value of `name`, or of `name` with one reduction suffix; None where it was not logged."""
    if name in metrics:
        return metrics[name]
    for key, value in metrics.items():
        if key.startswith(name + "/") and "/" not in key[len(name) + 1 :]:
            return value
    return None


def reward_nan(metrics: Metrics) -> Health | None:
    """A reward is not finite, or has failed for some items."""
    bad = [name for name, value in metrics.items() if name.startswith("reward/") and not math.isfinite(value)]
    failed = find(metrics, "health/reward_nan") or 0.0
    if not bad and failed == 0:
        return None
    what = f"{', '.join(bad)} is not finite" if bad else f"{failed:.1%} of the rewards are NaN"
    return Health(
        "reward_nan",
        f"{what}; such items are left out of the update",
        "score one of the logged clips with that reward alone; check its input range and frame rate",
    )


def zero_std_groups(metrics: Metrics) -> Health | None:
    """Most groups have rewards without a spread."""
    low = find(metrics, "health/low_spread_groups")
    fraction = find(metrics, "health/zero_std_groups") if low is None else low
    if fraction is None or not fraction > 0.5:
        return None
    return Health(
        "zero_std_groups",
        f"in {fraction:.0%} of the groups the candidates score the same or nearly so, so they teach nothing",
        "raise objective.group_size, use harder prompts, or add a reward that is not saturated",
    )


def adapter_empty(metrics: Metrics) -> Health | None:
    """The adapter has no layer."""
    layers = find(metrics, "health/adapter_layers")
    if layers is None or layers > 0:
        return None
    return Health(
        "adapter_empty",
        "the adapter matched no layer, so nothing is trained",
        "set student.adapter.targets to blocks, or to a pattern of layers that exist",
    )


def zero_gradient(metrics: Metrics) -> Health | None:
    """The gradient norm is exactly 0."""
    norm = find(metrics, "health/grad_norm")
    if norm is None or norm != 0:
        return None
    return Health(
        "zero_gradient",
        "the gradient norm is exactly 0, so this step changed nothing",
        "check that advantages are not all 0 (health/zero_std_groups) and that the trained role is free",
    )


def skipped_updates(metrics: Metrics) -> Health | None:
    """Updates of the step were skipped."""
    count = find(metrics, "health/skipped_updates")
    if count is None or count == 0:
        return None
    return Health(
        "skipped_updates",
        f"the gradient of {count:.0f} updates of this step was not finite, so they were skipped",
        "look for NaN in the loss and the rewards; lower trainer.learning_rate, or set engine.precision to fp32",
    )


def weights_exploded(growth: dict[str, float], kept: int | None, limit: float = 10.0) -> Health | None:
    """Judges a checkpoint: the norm of each role's trained weights over that at the run's start. Not a monitor."""
    role = max(growth, key=lambda name: growth[name], default="")
    if not role or growth[role] <= limit:
        return None
    return Health(
        "weights_exploded",
        f"the weights of the {role} are {growth[role]:.3g} times as large as at the start, so this checkpoint may be "
        + ("ruined; there is no sound one before it" if kept is None else f"ruined; that of step {kept} is kept too"),
        "judge a sample of the student; begin a new run with a lower trainer.learning_rate",
    )


def on_policy_gap(metrics: Metrics, limit: float = 0.05) -> Health | None:
    """bf16 leaves about 0.01; a wrong cache policy, sigma or adapter leaves more than 0.3."""
    gap = find(metrics, "health/on_policy_gap")
    if gap is None or gap <= limit:
        return None
    return Health(
        "on_policy_gap",
        f"rollout and replay of the same states differ by {gap:.2f} (limit {limit:.2f})",
        "compare cache policy, sigma list and active adapter of the two; train in fp32 to rule out rounding",
    )


def check_on_policy(metrics: Metrics, limit: float, step: int) -> None:
    """Raises `UserError` where rollout and loss of a step disagree by more than `limit`; 0 allows everything. All ranks
    have the same metrics."""
    gap = find(metrics, "health/on_policy_gap")
    if limit and gap is not None and not gap <= limit:
        raise UserError(
            f"rollout and loss disagree by {gap:.3g} at step {step + 1}",
            where="trainer.max_on_policy_gap",
            why=f"at most {limit:g} is allowed; what generates has other weights than the loss, or computes otherwise",
            fix="go on with --resume; look for a generator that was not updated, or at its precision",
        )


def nobody_selected(metrics: Metrics) -> Health | None:
    """A batch of 8 selects no sample in about one of seven steps."""
    empty = [n for n, share in metrics.items() if re.fullmatch(r"objective/(.+_)?selected/mean", n) and share == 0]
    if not empty:
        return None
    return Health(
        "nobody_selected",
        f"{empty[0]} is 0: the rewards agree on all samples of this step, so the selective penalty held no sample back",
        "raise trainer.prompts_per_step or objective.group_size, or use kl.mode: uniform",
    )


def discriminator_saturated(metrics: Metrics, floor: float = 0.01) -> Health | None:
    """The mean sigmoid of the margin is below `floor`."""
    left = find(metrics, "health/discriminator_margin_sigmoid")
    if left is None or left >= floor:
        return None
    return Health(
        "discriminator_saturated",
        f"mean sigmoid(D(student) - D(teacher)) is {left:.4f}: every pair is separated, D hardly learns any more",
        "look for a trivial cue (size, rate, codec, length, watermark; discriminator.reencode hides the autoencoder); "
        "lower discriminator.learning_rate or updates",
    )


def discriminator_blind(metrics: Metrics, limit: float = 0.48) -> Health | None:
    """The mean sigmoid of the margin is above `limit`; 1/2 is chance."""
    left = find(metrics, "health/discriminator_margin_sigmoid")
    if left is None or left <= limit:
        return None
    return Health(
        "discriminator_blind",
        f"mean sigmoid(D(student) - D(teacher)) is {left:.3f}: D cannot separate the two, its scores are noise",
        "raise discriminator.warm_up.max_steps or discriminator.learning_rate; or the student is done",
    )


def discriminator_memorises(metrics: Metrics, gap: float = 0.25) -> Health | None:
    """The pair accuracy on trained prompts is more than `gap` above that on held-out ones."""
    trained = find(metrics, "health/discriminator_pair_accuracy")
    held_out = find(metrics, "health/discriminator_held_out_accuracy")
    if trained is None or held_out is None or trained - held_out <= gap:
        return None
    return Health(
        "discriminator_memorises",
        f"pair accuracy is {trained:.2f} on trained prompts and {held_out:.2f} on held-out ones",
        "use more teacher clips or prompts; lower discriminator.learning_rate or updates",
    )


class Lasting:
    """A monitor that reports only when it would have for `patience` judgements in a row."""

    def __init__(self, monitor: Monitor, patience: int = 5) -> None:
        self._monitor, self._patience, self._count = monitor, patience, 0

    def __call__(self, metrics: Metrics) -> Health | None:
        warning = self._monitor(metrics)
        self._count = self._count + 1 if warning else 0
        return warning if self._count >= self._patience else None


class RewardConstant:
    """A mean reward that stays the same to eight digits for `patience` logs in a row."""

    def __init__(self, patience: int = 5) -> None:
        self._patience = patience
        self._recent: dict[str, deque[float]] = {}

    def __call__(self, metrics: Metrics) -> Health | None:
        for name, value in metrics.items():
            if name.startswith("reward/") and name.endswith("/mean") and "group_std" not in name:
                recent = self._recent.setdefault(name, deque(maxlen=self._patience))
                recent.append(value)
                spread = max(recent) - min(recent)
                if len(recent) == self._patience and spread <= 1e-8 * (1 + abs(value)):
                    return self._warning(name, value)
        return None

    def _warning(self, name: str, value: float) -> Health:
        return Health(
            "reward_constant",
            f"{name} has been {value:.4g} for {self._patience} logs in a row",
            "check that the reward sees the clips and prompts; drop a saturated reward from the recipe",
        )


class MotionCollapse:
    """Movement below `floor` of its start (mean of the first three logs) for three logs in a row."""

    def __init__(self, floor: float = 0.5, patience: int = 3) -> None:
        self._floor, self._patience = floor, patience
        self._start: list[float] = []
        self._low = 0

    def __call__(self, metrics: Metrics) -> Health | None:
        motion = find(metrics, "health/motion")
        if motion is None:
            return None
        if len(self._start) < self._patience:
            self._start.append(motion)
            return None
        start = sum(self._start) / len(self._start)
        self._low = self._low + 1 if motion < self._floor * start else 0
        if self._low < self._patience:
            return None
        return Health(
            "motion_collapse",
            f"movement fell from {start:.3g} to {motion:.3g}: clips are freezing",
            "add or weight up a motion reward, raise the KL weight, lower the learning rate",
        )


class HeldOutFalling:
    """The held-out judge stays below its best for two checks while the trained reward is above that time's.

    The trained reward of a check is the mean of `reward/mean` since the check before: one batch is too noisy.
    """

    def __init__(self, margin: float = 0.03, patience: int = 2) -> None:
        self._margin, self._patience = margin, patience
        self._rewards: list[float] = []
        self._best: tuple[float, float] | None = None  # held-out score, trained reward at that time
        self._low = 0

    def __call__(self, metrics: Metrics) -> Health | None:
        reward, held_out = metrics.get("reward/mean"), find(metrics, "health/held_out")
        if reward is not None and math.isfinite(reward):
            self._rewards.append(reward)
        if held_out is None or not math.isfinite(held_out) or not self._rewards:
            return None
        trained = sum(self._rewards) / len(self._rewards)
        self._rewards = []
        if self._best is None or held_out > self._best[0]:
            self._best, self._low = (held_out, trained), 0
            return None
        fallen = held_out < self._best[0] - self._margin and trained > self._best[1]
        self._low = self._low + 1 if fallen else 0
        return self._warning(held_out, trained) if self._low >= self._patience else None

    def _warning(self, held_out: float, trained: float) -> Health:
        assert self._best is not None, "a warning needs a best check to compare with"
        return Health(
            "held_out_falling",
            f"held-out score fell from {self._best[0]:.3f} to {held_out:.3f} "
            f"while the trained reward rose from {self._best[1]:.3f} to {trained:.3f}",
            "stop here and take the best checkpoint; raise the KL weight or train on several rewards",
        )
