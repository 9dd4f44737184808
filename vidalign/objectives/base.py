"""The contract of an objective: generate on-policy, judge, turn the judgement into a dense local loss.

A subclass names what it needs, collects an `Experience` without gradient, cuts it into micro-batches and returns
the loss of each. It never calls ``backward`` and never steps an optimiser: the trainer does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic

import torch
from typing_extensions import TypeVar

from vidalign.engine.blueprint import STUDENT as STUDENT
from vidalign.engine.blueprint import Blueprint as Blueprint
from vidalign.engine.blueprint import Phase as Phase
from vidalign.engine.blueprint import TrainedRole as TrainedRole
from vidalign.errors import UserError
from vidalign.recipe.needs import Needs as Needs
from vidalign.recipe.prompts import weights_of_rewards

if TYPE_CHECKING:
    from vidalign.context import Batch, TrainContext
    from vidalign.cost import Cost, StepSizes
    from vidalign.objectives.parts.around import Around
    from vidalign.recipe.draft import Draft
    from vidalign.rewards.base import ScoreRequest
    from vidalign.students.video import Context

K = TypeVar("K", bound=str, default=Any)


@dataclass
class LossOut:
    """A scalar to differentiate and what to log of it; metric names carry their reduction (``objective/kl/mean``)."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    """Scalars that `Objective.after_step` finds in ``ctx.sums``, added up over micro-batches, updates and processes."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many entries a metric ``.../mean`` is over, where these are not all of the micro-batch in equal parts. The
    mean over the entries of all micro-batches is logged, and nothing where there are none."""


@dataclass
class Experience(Generic[K]):
    """The result of `collect`: tensors with N leading entries, candidates of one prompt adjacent.

    ``Experience[Literal["x0", "sample"]]`` says which tensors an objective keeps: a misspelt key is then found by mypy.

    group_index: ``[N]`` index of the prompt of each candidate, 0 .. P-1 in ascending order.
    context: KV cache of the clean past, one entry per prompt (batch P), or None; it is held once per prompt and
    broadcast over the candidates.
    text: ``[P, L, D]`` features, one entry per prompt, or None where prompts are `Example`s of a language task.
    prompts: a caption, or an `Example`, per prompt.
    shared: further tensors with P leading entries, which the candidates of a prompt have in common.
    metrics: what to log of the collection, by name with reduction.
    request: what is to be judged before the loss; scores: every reward ``[N]`` of it by name, once it is judged.
    """

    tensors: dict[K, torch.Tensor]
    group_index: torch.Tensor
    text: torch.Tensor | None
    prompts: list[Any]
    context: Context | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    shared: dict[str, torch.Tensor] = field(default_factory=dict)
    request: ScoreRequest | None = None
    scores: dict[str, torch.Tensor] = field(default_factory=dict)

    def requesting(self) -> list[Experience[K]]:
        """The experiences with something to judge: this one, or parts of it."""
        return [] if self.request is None else [self]

    def __len__(self) -> int:
        return len(self.group_index)

    def __getitem__(self, name: K) -> torch.Tensor:
        return self.tensors[name]

    @property
    def features(self) -> torch.Tensor:
        """`text`, of prompts that are captions."""
        assert self.text is not None, "examples have no features"
        return self.text

    @property
    def group_size(self) -> int:
        return len(self.group_index) // len(self.prompts)

    @property
    def prompt_of_candidate(self) -> list[Any]:
        """The prompt of each of the N candidates."""
        return [self.prompts[group] for group in self.group_index.tolist()]

    def slices(self, size: int) -> Iterator[tuple[int, int]]:
        """Start and stop of slices in order: whole groups, or equal parts of one, of at most `size` entries."""
        group = self.group_size
        step = size // group * group if size >= group else max(k for k in range(1, size + 1) if group % k == 0)
        for start in range(0, len(self), step):
            yield start, min(start + step, len(self))

    def candidates(self, start: int, stop: int) -> Experience[K]:
        """Entries start .. stop-1: whole groups, or a part of one group (the context is then broadcast over it)."""
        size = self.group_size
        first, last = start // size, -(-stop // size)
        whole = start % size == 0 and stop % size == 0
        assert whole or last - first == 1, "a slice holds whole groups or a part of one"
        return replace(
            self,
            tensors={name: t[start:stop] for name, t in self.tensors.items()},
            group_index=self.group_index[start:stop] - first,
            text=None if self.text is None else self.text[first:last],
            prompts=self.prompts[first:last],
            context=None if self.context is None else self.context.rows(slice(first, last)),
            shared={name: t[first:last] for name, t in self.shared.items()},
            scores={},  # of what was judged, which may be more or less than one row a candidate
        )


@dataclass
class MicroBatch(Generic[K]):
    """A part of the experience for one forward and one backward."""

    data: Experience[K]
    weight: float
    """Share of the whole batch: the weighted sum of the losses of all micro-batches is the one-batch loss."""
    index: int = 0
    """Number of the first sample in this process' experience: a key for random draws."""


class Objective:
    """Base of every objective; depth of inheritance one.

    Subclasses give ``name``, ``needs``, a nested dataclass ``Config`` with a docstring under each field, `collect`
    and `loss`; the rest has a default.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[Needs] = Needs()
    spreads: ClassVar[bool] = False
    """Whether several processes may share a group of candidates: its loss looks at one candidate at a time."""

    @dataclass
    class Config:
        pass

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def check(cls, draft: Draft) -> None:
        """Refuse a recipe whose other sections do not fit; ranges of own settings are checked by `Config`."""
        chosen = draft.recipe.objective
        if not cls.needs.discriminator or not draft.sound("rewards"):
            return
        if "discriminator" not in draft.recipe.rewards:
            what, why = "the discriminator is not among the rewards", f"{chosen.name!r} needs it"
            draft.refuse(what, "rewards", why, "add rewards: {discriminator: 1.0}")
        for name, weight in weights_of_rewards(chosen, draft.recipe).items():
            if name != "discriminator" and weight:
                what, why = f"{chosen.name!r} does not train on the reward {name!r}", "it has the discriminator's alone"
                draft.refuse(what, f"rewards.{name}", why, "give it weight 0 to log it, or use objective astrolabe")

    @classmethod
    def check_fit(cls, draft: Draft) -> None:
        """See `fit`; called when nothing else is wrong."""
        if cls.fit is Objective.fit:
            return
        from vidalign.objectives.parts.around import around

        try:
            cls(draft.recipe.objective.config).fit(around(draft))
        except UserError as error:
            for problem in error.problems:
                draft.refuse(problem.what, problem.where, problem.why, problem.fix)

    def fit(self, around: Around) -> None:
        """Raise `UserError` for settings that do not fit the rest of the recipe; nothing is loaded yet."""

    def blueprint(self) -> Blueprint:
        """What is built for it: weight sets of the student, trained networks, how their optimisers differ."""
        return Blueprint()

    def phases(self, step: int) -> tuple[Phase, ...]:
        """Which roles are trained in a step, in order."""
        return self.blueprint().phases()

    def check_models(self, student: Any, teacher: Any) -> None:
        """Raise `UserError` where student and teacher, both loaded, do not fit each other or the settings."""

    def collect(self, ctx: TrainContext, batch: Batch) -> Experience:
        """Roll out, and say in `Experience.request` what is to be judged; called without gradient."""
        raise NotImplementedError

    def digest(self, ctx: TrainContext, experience: Experience) -> Experience:
        """Turn the judgement, `Experience.scores`, into data for the loss; called without gradient.

        Between `collect` and this, rewards that learn are trained on what is requested, and then everything judges it.
        """
        return experience

    def micro_batches(self, ctx: TrainContext, experience: Experience, phase: Phase) -> Iterable[MicroBatch]:
        """Cut the experience into at most ``trainer.micro_batch`` samples each; same number on all ranks."""
        for start, stop in experience.slices(ctx.micro_batch):
            yield MicroBatch(experience.candidates(start, stop), (stop - start) / len(experience), start)

    def loss(self, ctx: TrainContext, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        """Loss of one micro-batch, a mean over its samples; one forward of the trained role, no backward."""
        raise NotImplementedError

    def after_step(self, ctx: TrainContext) -> None:
        """Move the weight sets that are not fixed: those that follow the student do, unless a subclass has more to say.
        ``ctx.sums`` holds the sums of the losses."""
        for name, rule in self.blueprint().policies.items():
            if rule == "current":
                ctx.policies.copy("current", name)

    def cost(self, sizes: StepSizes) -> Cost:
        """What one step of a single process costs, known from the recipe alone; benchmarks set budgets by it.

        Counts a dry step on a small stand-in of the student. Override it where steps differ, by a random fork say, or
        where a count is not representative. Raises `UserError` where no stand-in can be made.
        """
        return sizes.dry_step(self)

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart beside the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, "an objective that saves state restores it"
