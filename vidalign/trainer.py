"""The training loop: collect on-policy, judge, update role by role, follow up, watch, save.

Run folder: recipe.yaml, metrics.jsonl, tensorboard/, checkpoints/, student.safetensors, evaluation.json,
evaluation-clips.json, report.html.
A run whose folder holds a checkpoint goes on from it; the numbers are those of an uninterrupted run.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign.build import build_callbacks, build_context, build_objective, build_trackers
from vidalign.callbacks import CALLS, Callback, restore, states_of
from vidalign.context import Batch
from vidalign.engine import distributed
from vidalign.engine.checkpoint import Checkpoints, reading_state
from vidalign.errors import PluginError, UserError
from vidalign.evaluation.evaluator import Evaluation, Evaluator
from vidalign.evaluation.fixed_prompts import TAG, FixedPrompts
from vidalign.guest import guarded
from vidalign.objectives.base import Experience, Objective, Phase
from vidalign.objectives.parts.reduction import reduce_metrics, weighted_metrics
from vidalign.plugins import keep_plugins
from vidalign.provenance import describe_run
from vidalign.recipe.resume import check_begun, check_same_recipe, judges_digest, prompts_digest, report_other_prompts
from vidalign.recipe.sharing import processes_of_a_group
from vidalign.run_folder import new_run_dir, save_rewards, save_student
from vidalign.tracking.health import check_on_policy, skipped_updates, weights_exploded
from vidalign.tracking.tracker import Tracker

if TYPE_CHECKING:
    from vidalign.context import TrainContext
    from vidalign.recipe import Recipe
    from vidalign.students.base import Generator


class Trainer:
    """Trains the student of a recipe in a run folder. Every rank of a distributed run makes one.

    callbacks: called after those that the recipe names, see `vidalign.callbacks`. generator: what answers the prompts
    of a language student, see `vidalign.students.generation`; None = the student itself.
    """

    def __init__(
        self,
        recipe: Recipe,
        run_dir: str | Path | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        generator: Generator | None = None,
        resume: bool = False,
        trust_checkpoint: bool = False,
    ) -> None:
        self.recipe = recipe
        self.objective = build_objective(recipe)
        self.callbacks = build_callbacks(recipe) | _named(callbacks)
        distributed.setup(single=recipe.engine.name == "deepspeed")
        self.run_dir = Path(run_dir) if run_dir else new_run_dir(recipe)
        processes_of_a_group(recipe, distributed.world_size())
        self.checkpoints = Checkpoints(self.run_dir / "checkpoints", keep_last=recipe.trainer.keep)
        saved = self.checkpoints.all_steps()
        check_begun(self.run_dir, saved, resume, recipe.trainer.steps)
        if saved:
            check_same_recipe(self.run_dir / "recipe.yaml", recipe)
        self.ctx = build_context(recipe, self.objective, Tracker.silent())
        self.ctx.generator = generator
        self.prompts = self.ctx.prompts
        self._digest = prompts_digest(self.prompts, recipe.training_prompts)
        self.evaluator, self._judges = Evaluator.from_recipe(recipe, self.ctx.rewards), judges_digest(recipe)
        self._fixed = FixedPrompts(recipe, self.evaluator)
        self.step = 0
        self.step_started = time.perf_counter()
        self._begun = self._stop = False
        self.stopped = ""
        """Why a callback ended training before its last step; '' where none did, or gave no reason."""
        self.score: float | None = None
        """Held-out score of the present step, if any: the best checkpoint is kept beside the newest ones."""
        self._start_norms = self._weight_norms()
        """Norms of every role's trained weights before the first step."""
        if saved:
            self._resume(trust_checkpoint)
        self._check_weights("training cannot begin with them", "start from other weights (student.path)")
        frozen = self.ctx.roles.not_finite()
        self._refuse_weights(frozen, "training cannot begin with them", "use another teacher (teacher.path)")
        self._suspects: list[dict[str, Any]] = []
        """Steps in a row, up to now, in which an update was skipped: their ids and prompts."""
        self.tracker = self.ctx.tracker = self._tracker(self.step)

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self._stop or self.step >= self.recipe.trainer.steps

    def stop(self, why: str = "") -> None:
        """End training after the present step, as if it were the last one; the first reason is kept in `stopped`."""
        self._stop, self.stopped = True, self.stopped or why

    def fit(self) -> Path:
        """Run all steps that are left, saving on the way and at the end; returns the run folder."""
        every = self.recipe.trainer.save_every
        try:
            self._begin()
            while not self.done:
                self.train_step()
                if self.done and self._skipping():
                    raise self._stopped("the last update was skipped")
                judged = self.score is not None  # a score belongs to the weights that it judged
                if (self.step % every == 0 or self.done or judged) and not self._skipping():
                    self.save()
            save_rewards(self.ctx, self.run_dir)
            save_student(self.ctx, self.run_dir, self.recipe)
            self._call("on_end")
        except PluginError as error:
            error.problems[0].where += f", step {self.step + 1}"
            error.problems[0].fix = f"{self._go_on()}; {error.problems[0].fix}".removesuffix("; ")
            raise
        finally:
            self.tracker.close()
        return self.run_dir

    def train_step(self) -> dict[str, float]:
        """One step: collect, judge, the phases in turn, follow-up, metrics; returns what was logged."""
        self._begin()
        self.step_started, self.score = time.perf_counter(), None
        ctx, objective = self.ctx, self.objective
        ctx.step, ctx.update, ctx.metrics, ctx.sums = self.step, 0, {}, {}
        before = self._skipped()
        if self.step == 0 and ctx.rewards is not None:
            with self.tracker.phase("warm_up"):
                ctx.rewards.warm_up(self.prompts)
        batch = self._batch()
        with self.tracker.phase("collect"), torch.no_grad():
            experience = objective.collect(ctx, batch)
        experience = judge_experience(ctx, objective, experience)
        self._call("on_experience", experience)
        metrics = reduce_metrics({name: [(1.0, value)] for name, value in (ctx.metrics | experience.metrics).items()})
        for phase in objective.phases(self.step):
            with self.tracker.phase(phase.role):
                metrics |= self._run_phase(experience, phase)
        check_on_policy(metrics, self.recipe.trainer.max_on_policy_gap, self.step)
        metrics["health/skipped_updates"] = float(self._skipped() - before)
        self._check_skipped(batch, metrics)
        ctx.sums = {name: ctx.gather(total[None]).sum(0) for name, total in sorted(ctx.sums.items())}
        objective.after_step(ctx)
        if self.recipe.trainer.ema_decay > 0:
            ctx.policies.ema_update("ema", "current", self._ema_decay())
        self.step += 1
        if self.step == 1 and ctx.policies.adapter is not None:
            metrics["health/adapter_layers"] = float(ctx.policies.adapted_layers)
        metrics |= self._held_out()
        self._call("on_step_end", metrics)
        self._show_fixed()
        metrics["perf/step/seconds"] = time.perf_counter() - self.step_started
        self.tracker.log(self.step, metrics)
        return metrics

    def save(self) -> Path:
        """Write a checkpoint of the current step; all ranks call it. Weights that are not finite are refused."""
        self._check_weights("no checkpoint is written", self._go_on())
        state: dict[str, Any] = {"objective": self.objective.state_dict(), "prompts": self._digest}
        state["judges"], state["usual"] = self._judges, self.evaluator.usual
        score, self.score = self.score, None
        state["rewards"] = self.ctx.rewards.state_dict() if self.ctx.rewards else {}
        state["signal"] = self.ctx.signal.state_dict()
        state["weight_norms"] = self._start_norms
        state["callbacks"] = states_of(self.callbacks, self.recipe)
        growth = {r: norm / max(self._start_norms[r], 1e-12) for r, norm in self._weight_norms().items()}
        if warning := weights_exploded(growth, self.checkpoints.newest_sound()):
            self.tracker.warn(warning)
        judge = f"{' '.join(self.evaluator.usual or ())} {self._judges}"
        folder = self.checkpoints.save(self.step, state, self._parts(), score=score, judge=judge, sound=warning is None)
        self._call("on_save", folder)
        return folder

    def evaluate(self, prompts: int = 32) -> Evaluation:
        """Judge the student that would be kept now on some of the recipe's evaluation prompts; one clip each."""
        with self.ctx.kept():
            return self.evaluator(self._sampler(), prompts, 1)

    def _sampler(self) -> Any:
        """How evaluations sample the student; within `kept`."""
        ctx, own = self.ctx, self.recipe.evaluation
        return ctx.student.sampler(own.frames, features=ctx.features, codec=ctx.codec, temperature=own.temperature)

    def _show_fixed(self) -> None:
        if self._fixed.due(self.step, self.done):
            with self.tracker.phase(TAG), self.ctx.kept():
                self._fixed.show(self.step, self._sampler(), self.tracker, self.ctx.student)

    def phases(self) -> tuple[Phase, ...]:
        """The roles that a step trains, in order: rewards that learn, before they judge, then the objective's."""
        rewards = self.ctx.rewards.trainable if self.ctx.rewards else []
        learning = [phase for reward in rewards for phase in reward.blueprint().phases()]
        return (*learning, *self.objective.phases(self.step))

    # --- callbacks ---

    def _begin(self) -> None:
        """Start the callbacks, once."""
        if not self._begun:
            self._begun = True
            self._call("on_start")
            if self.step == 0:
                self._show_fixed()

    def _call(self, hook: str, *what: Any) -> None:
        """Call a hook of every callback; processes agree on whether training stops."""
        if not self.callbacks:
            return
        with torch.no_grad():
            for callback in self.callbacks.values():
                getattr(callback, hook)(self, *what)
        stops = distributed.all_gather_object((self._stop, self.stopped))
        self._stop, self.stopped = any(stop for stop, _ in stops), next((why for _, why in stops if why), "")

    # --- parts of a step ---

    def _batch(self) -> Batch:
        """This rank's prompts: the samples of a step are dealt out in turn; neighbours have one together where there
        are fewer than ranks."""
        total, spread = self.recipe.trainer.prompts_per_step, self.ctx.spread
        first = self.step * total
        ids = list(range(first + distributed.rank() // spread, first + total, distributed.world_size() // spread))
        return Batch(self.step, [self.prompts[i] for i in ids], ids)

    def _run_phase(self, experience: Experience, phase: Phase) -> dict[str, float]:
        ctx, gathered = self.ctx, defaultdict(list)
        with ctx.roles.phase(phase.role) as engine:
            for update in range(phase.updates):
                ctx.update = update
                pieces = list(self.objective.micro_batches(ctx, experience, phase))
                distributed.check_equal(len(pieces), "the number of micro-batches")
                for piece in pieces:
                    out = self.objective.loss(ctx, piece, phase)
                    engine.backward(out.loss * piece.weight)
                    for name, total in out.sums.items():
                        ctx.sums[name] = ctx.sums.get(name, 0) + total.detach()
                    for name, pair in weighted_metrics(out, piece.weight).items():
                        gathered[_role_name(name, phase.role)].append(pair)
                gathered[_role_name("health/grad_norm/mean", phase.role)].append((1.0, engine.step()))
                if engine.skipped_in_row >= self.recipe.trainer.max_skipped:
                    break  # the step ends the run
            gathered[_role_name("perf/learning_rate", phase.role)].append((1.0, engine.learning_rate))
        return reduce_metrics(gathered)

    def _skipped(self) -> int:
        return sum(engine.skipped for engine in self.ctx.roles.engines.values())

    def _skipping(self) -> list[str]:
        """Roles whose newest update was skipped."""
        return [role for role, engine in self.ctx.roles.engines.items() if engine.skipped_in_row]

    def _check_skipped(self, batch: Batch, metrics: dict[str, float]) -> None:
        """Remember the batch of a skipped update; stop the run after too many in a row."""
        if not self._skipping():
            self._suspects.clear()
            return
        suspect = {"step": batch.step, "ids": batch.ids, "prompts": [str(prompt) for prompt in batch.prompts]}
        self._suspects = [*self._suspects, suspect][-self.recipe.trainer.max_skipped :]
        worst = max(engine.skipped_in_row for engine in self.ctx.roles.engines.values())
        if worst >= self.recipe.trainer.max_skipped:
            if warning := skipped_updates(metrics):
                self.tracker.warn(warning)
            raise self._stopped(f"{worst} updates in a row were skipped")

    def _stopped(self, what: str) -> UserError:
        """The error that ends a run whose updates are being skipped; its batches are written for a replay."""
        parts = distributed.all_gather_object(self._suspects)
        file = self.run_dir / f"failed-step-{self.ctx.step}.json"
        content = {"seed": self.recipe.seed, "roles": self._skipping(), "batches": [b for part in parts for b in part]}
        if distributed.rank() == 0:
            file.write_text(json.dumps(content, indent=1), encoding="utf-8")
        return UserError(
            f"{what} at step {self.ctx.step + 1}",
            where=f"role {', '.join(self._skipping())}; the prompts are in {file}",
            why="the gradient is not finite (NaN or infinity)",
            fix=f"{self._go_on()}; lower trainer.learning_rate, or look for NaN in the loss and the rewards",
        )

    def _go_on(self) -> str:
        saved = self.checkpoints.steps()
        return f"go on with --resume from {self.checkpoints.path(saved[-1])}" if saved else "nothing is saved yet"

    def _check_weights(self, what: str, fix: str) -> None:
        """Refuse weights that are not finite, by name; all ranks call it."""
        trained = {role: engine.not_finite() for role, engine in self.ctx.roles.engines.items()}
        self._refuse_weights(trained, what, fix)

    def _refuse_weights(self, named: dict[str, list[str]], what: str, fix: str) -> None:
        """Refuse the weights of these names, by role."""
        for role, bad in named.items():
            if bad:
                more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
                not_finite = f"weights of the {role} are not finite: {', '.join(bad[:3])}{more}"
                raise UserError(not_finite, where=str(self.run_dir), why=what, fix=fix)

    def _weight_norms(self) -> dict[str, float]:
        return {role: engine.weight_norm() for role, engine in self.ctx.roles.engines.items()}

    def _ema_decay(self) -> float:
        """The recipe's decay, smaller in the first steps so that the average forgets the initial weights."""
        return min(self.recipe.trainer.ema_decay, (1 + self.step) / (10 + self.step))

    def _held_out(self) -> dict[str, float]:
        every = self.recipe.trainer.eval_every
        if not every or self.step % every:
            return {}
        with self.tracker.phase("held_out"):
            evaluation = self.evaluate()
            metrics = distributed.broadcast_object(evaluation.health())  # what is saved hangs on it, on every process
        self._call("on_evaluate", evaluation)
        score = metrics.get("health/held_out/mean", math.nan)
        self.score = score if math.isfinite(score) else None
        return metrics

    # --- run folder ---

    def _parts(self) -> dict[str, Any]:
        return {**self.ctx.roles.engines, "policies": self.ctx.policies}

    def _resume(self, trust: bool) -> None:
        self.step, state = self.checkpoints.load(self._parts(), trust=trust)
        with reading_state(self.checkpoints.path(self.step) / "state.pt"):
            self.objective.load_state_dict(state["objective"])
            if self.ctx.rewards:
                self.ctx.rewards.load_state_dict(state.get("rewards", {}))
            self.ctx.signal.load_state_dict(state.get("signal", {}))
            report_other_prompts(state.get("prompts", ""), self._digest)
            if state.get("judges") == self._judges and state["usual"]:
                self.evaluator.usual = tuple(state["usual"])
            restore(self.callbacks, state.get("callbacks", {}), self.recipe)
            norms = state.get("weight_norms", {})
            self._start_norms |= {role: float(norms.get(role, norm)) for role, norm in self._start_norms.items()}

    def _tracker(self, start_step: int) -> Tracker:
        if distributed.rank() != 0:
            return Tracker.silent()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        (self.run_dir / "recipe.yaml").write_text(self.recipe.to_yaml(), encoding="utf-8")
        keep_plugins(self.run_dir)
        tracking = self.recipe.tracking
        return Tracker(
            self.run_dir,
            describe_run(self.recipe) | {"time": datetime.now(UTC).isoformat(timespec="seconds")},
            total_steps=self.recipe.trainer.steps,
            tensorboard=tracking.tensorboard,
            panel=tracking.panel,
            start_step=start_step,
            others=build_trackers(self.recipe),
        )


@torch.no_grad()
def judge_experience(ctx: TrainContext, objective: Objective, experience: Experience) -> Experience:
    """Rewards that learn take their steps on what was rolled out; all rewards judge it; the objective digests that."""
    parts, learning = experience.requesting(), ctx.rewards.trainable if ctx.rewards else []
    if learning and objective.needs.rewards and not parts and type(objective).digest is Objective.digest:
        raise UserError(
            f"the reward {learning[0].name!r} cannot learn from {objective.name!r}",
            where="objective.name",
            why="the objective calls ctx.score in collect instead of requesting a judgement",
            fix="return what is judged in Experience.request and give it digest, see docs/adding_an_objective.md",
        )
    for reward in learning:
        requests = [part.request for part in parts if part.request and part.request.judged_by(reward.name)]
        if requests:
            with ctx.tracker.phase(reward.role):
                reward.learn(requests[0])
    with ctx.tracker.phase("judge"):
        for part in parts:
            assert part.request is not None, "it is one of those that request"
            part.scores = ctx.judge(part.request)
        experience = objective.digest(ctx, experience)
    for part in experience.requesting():
        part.request = None  # its clips are large
    return experience


def _named(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Callbacks by a name that is the same when the run is resumed."""
    names = [type(callback).__qualname__ for callback in callbacks]
    numbered = [f"{name} {names[:n].count(name) + 1}" for n, name in enumerate(names)]
    return {key: guarded("callback", key, one, CALLS) for key, one in zip(numbered, callbacks, strict=True)}


def _role_name(metric: str, role: str) -> str:
    """Metrics of other roles than the student carry the role's name: objective/fake_score_loss/mean."""
    if role == "student":
        return metric
    group, rest = metric.split("/", 1)
    return f"{group}/{role}_{rest}"
