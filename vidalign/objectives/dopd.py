"""DOPD: dual on-policy distillation of language and vision-language students (arXiv 2606.30626).

One step:
1. the student S answers bare prompts, `group_size` times each;
2. a frozen teacher T^p and the student's own weights S^p score the responses with privileged text p in the prompt. With
   l_T, l_S the log-probabilities of a sampled token and q = exp(l), the gap is ``A = |l_T - l_S|``;
3. thresholds are batch means of A and of ``q_S + q_T`` over all ranks without their top 5 %. They divide the tokens
   into four regimes (`losses/routing.py`), each with its target, divergence, support and weight:
   LH  low gap, sure       T^p       reverse KL, top-K + tail   0.6
   LL  low gap, unsure     sg[S^p]   reverse KL, top-K + tail   0.3
   HT  high gap, q_T >= q_S  T^p     Jensen-Shannon, full       1
   HS  high gap, q_T < q_S   sg[S^p] reverse KL, top-K + tail   0.6
4. the loss is the mean over the tokens of a response, then over responses, differentiated directly.

What we changed: a tail bucket beside the top K tokens, without which the divergence can be negative. S^p has the
student's weights by default, which do not move within a step; `student_target` keeps it frozen, or a moving average.
Hidden states of T^p and S^p are kept from the routing for the loss.
`reward_weight` adds a policy gradient of the recipe's rewards (`parts/token_rewards.py`), which the paper has not.
Exact: where p is empty, S^p is S, and LL and HS have no value and no gradient.
Ablations: HT only ``lh.weight=0 ll.weight=0 hs.weight=0``; equal weights: all 1; no privilege ``privilege=none``; no
student source ``ll.source=teacher hs.source=teacher``; no teacher source ``lh.source=student ht.source=student``; not
aware of the advantage ``routing=uniform``; granularity ``lh.support=sampled``, `full` and so on; support of the teacher
``lh.support=target_top_k`` and so on; form of p ``data.prompts.privilege=executed`` and so on.
Knobs that matter: learning rate, data.prompts.privilege, student_target, the weights, top_k.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch

from vidalign.cost import Cost
from vidalign.engine import distributed
from vidalign.engine.policies import CURRENT
from vidalign.losses import routing
from vidalign.losses.projected import Head, Toward
from vidalign.losses.routing import Regime
from vidalign.objectives.base import Blueprint, Experience, LossOut, MicroBatch, Needs, Objective, Phase
from vidalign.objectives.parts import tokens
from vidalign.objectives.parts.around import Around
from vidalign.objectives.parts.student_target import StudentTarget
from vidalign.objectives.parts.token_rewards import TokenRewards
from vidalign.ranges import require
from vidalign.tracking.tokens import ColouredResponse

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.context import Batch, TrainContext
    from vidalign.cost import StepSizes
    from vidalign.students.language import LanguageStudent
    from vidalign.teachers.base import LogitTeacher

    Context = TrainContext[LanguageStudent, LogitTeacher]

NAMES = tuple(regime.name.lower() for regime in Regime)
SOURCES = ("teacher", "student")
"""Whose hidden states with privilege are scored."""
SHOWN = 8
"""Responses on a page of coloured tokens."""


@dataclass
class RegimeConfig:
    """How the tokens of one regime are trained."""

    source: Literal["teacher", "student"] = "teacher"
    """Target: the privileged teacher, or the privileged student."""
    divergence: Literal["reverse_kl", "forward_kl", "js", "jsd"] = "reverse_kl"
    """Of student and target, see `losses/divergences.py`."""
    support: Literal["top_k", "target_top_k", "full", "sampled"] = "top_k"
    """top_k: the student's likeliest tokens and a tail; target_top_k: those of the target; full: the whole vocabulary;
    sampled: the token of the response alone, an estimate of the reverse KL."""
    weight: float = 1.0
    """Factor of the loss; 0 leaves these tokens out."""

    def __post_init__(self) -> None:
        require(self, "weight", least=0)
        if self.support == "sampled" and self.divergence != "reverse_kl":
            raise ValueError(f"support: sampled estimates divergence: reverse_kl, not {self.divergence}")


class DOPD(Objective):
    name = "dopd"
    needs = Needs(students=("language",), teacher="logits", privileged=True)

    @dataclass
    class Config(StudentTarget, TokenRewards):
        group_size: int = 4
        """Responses per prompt."""
        privilege: Literal["own", "shuffled", "none"] = "own"
        """Whose privileged text the privileged policies see; shuffled: that of another prompt, a control."""
        routing: Literal["advantage", "uniform"] = "advantage"
        """uniform: no routing, every token is trained as `ht` says."""
        trim: float = 0.05
        """Share of the largest values that the thresholds leave out."""
        top_k: int = 128
        """Tokens of a support that is top_k or target_top_k."""
        beta: float = 0.5
        """Weight of the target in the mixture of jsd, in 0..1."""
        lh: RegimeConfig = field(default_factory=lambda: RegimeConfig("teacher", weight=0.6))
        """Low gap, sure."""
        ll: RegimeConfig = field(default_factory=lambda: RegimeConfig("student", weight=0.3))
        """Low gap, unsure."""
        ht: RegimeConfig = field(default_factory=lambda: RegimeConfig("teacher", "js", "full", 1.0))
        """High gap, the teacher is surer of the sampled token."""
        hs: RegimeConfig = field(default_factory=lambda: RegimeConfig("student", weight=0.6))
        """High gap, the student is surer."""

        def __post_init__(self) -> None:
            StudentTarget.__post_init__(self)
            TokenRewards.__post_init__(self)
            require(self, "trim", least=0, below=1)
            require(self, "top_k", least=1)
            require(self, "beta", least=0, most=1)

    config: Config

    def blueprint(self) -> Blueprint:
        return Blueprint(self.config.policies)

    def after_step(self, ctx: Context) -> None:
        self.config.follow(ctx)

    # --- collect ---

    def fit(self, around: Around) -> None:
        if self.config.privilege == "shuffled":
            distributed.check_others(around.prompts)
        self.config.fit_rewards(around, self.config.group_size)

    def collect(self, ctx: Context, batch: Batch) -> Experience:
        data = tokens.sample(ctx, batch, self.config.group_size)
        texts = tokens.privileged_texts(data.prompts, self.config.privilege)
        data.prompts = [replace(example, privileged=text) for example, text in zip(data.prompts, texts, strict=True)]
        mask = data["response"]
        scored = {source: tokens.score(ctx, self._weights_of(source), data, texts) for source in SOURCES}
        teacher, student = (scored[source].logp for source in SOURCES)
        regime, metrics = self._route(ctx, teacher[mask], student[mask])
        data.tensors["regime"] = torch.zeros_like(data["response_ids"]).masked_scatter(mask, regime)
        weights = tokens.token_weights(mask).to(teacher.dtype)
        for name, source in (("teacher", "teacher"), ("privileged_student", "student")):
            mean = ctx.gather((scored[source].entropy[mask] * weights).sum()[None]).mean()
            metrics[f"objective/entropy_{name}/mean"] = float(mean)
        for source in self._sources():
            data.tensors[f"{source}_states"] = scored[source].states
        data.metrics |= metrics
        self._show(ctx, data, teacher - student)
        self.config.request(ctx, data)
        return data

    def digest(self, ctx: Context, experience: Experience) -> Experience:
        return self.config.digest(ctx, experience)

    def _route(self, ctx: Context, teacher: Tensor, student: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Regimes ``[m]`` of this process' tokens, with thresholds and shares over all processes."""
        all_ranks = tokens.gather_tokens(ctx, teacher), tokens.gather_tokens(ctx, student)
        thresholds = routing.thresholds(*all_ranks, self.config.trim)
        uniform = self.config.routing == "uniform"

        def regimes(teacher: Tensor, student: Tensor) -> Tensor:
            chosen = routing.route_tokens(teacher, student, thresholds)
            return torch.full_like(chosen, int(Regime.HT)) if uniform else chosen

        shares = routing.fractions(regimes(*all_ranks)).tolist()
        gaps = routing.gap(*all_ranks)
        metrics = {
            "objective/gap/mean": float(gaps.double().mean()),
            "objective/gap/max": float(gaps.max()),
            "objective/gap_threshold/mean": thresholds.gap,
            "objective/confidence_threshold/mean": thresholds.confidence,
        }
        metrics |= {f"objective/share_{name}/mean": share for name, share in zip(NAMES, shares, strict=True)}
        for edge, share in routing.gap_histogram(gaps).items():
            metrics[f"objective/gap_from_{edge}/mean"] = share
        return regimes(teacher, student), metrics

    def _show(self, ctx: Context, data: Experience, gap: Tensor) -> None:
        """A page of sampled responses, every token in the colour of its regime."""
        if not ctx.clips_every or ctx.step % ctx.clips_every:
            return
        tokenizer, examples, shown = ctx.student.chat.tokenizer, data.prompt_of_candidate, []
        for n in list(range(0, len(data), max(1, len(data) // SHOWN)))[:SHOWN]:
            keep = data["response"][n]
            words = [tokenizer.decode([token]) for token in data["response_ids"][n][keep].tolist()]
            regimes = [NAMES[r] for r in data["regime"][n][keep].tolist()]
            shown.append(
                ColouredResponse(examples[n].prompt, examples[n].privileged, words, regimes, gap[n][keep].tolist())
            )
        ctx.tracker.tokens(ctx.step, shown)

    # --- loss ---

    def loss(self, ctx: Context, micro_batch: MicroBatch, phase: Phase) -> LossOut:
        data, mask = micro_batch.data, tokens.mask_of(micro_batch.data)
        regime = data["regime"][:, : mask.shape[1]][mask]
        states, weights = tokens.states(ctx, ctx.student, data), tokens.token_weights(mask)
        rows = {name: (regime == Regime[name.upper()]).nonzero()[:, 0] for name in NAMES if self._of(name).weight}
        rows = {name: index for name, index in rows.items() if len(index)}
        targets = {source: self._states(source, data, mask, states) for source in self._sources()}
        heads = {source: tokens.target_head(ctx, self._weights_of(source)) for source in targets}
        sampled = tokens.tokens_of(data)
        parts = [self._part(name, index, weights, sampled, targets, heads) for name, index in rows.items()]
        found, metrics, counts = tokens.distil(ctx, data, states, parts)
        for name in NAMES:  # the parts add up, unweighted
            own = rows.get(name, regime[:0])
            metrics[f"objective/loss_{name}/mean"] = (found.losses[own] * weights[own]).sum()
        return LossOut(found.total, metrics, counts=counts)

    def _part(
        self,
        name: str,
        rows: Tensor,
        weights: Tensor,
        sampled: Tensor,
        targets: dict[str, Tensor],
        heads: dict[str, Head | None],
    ) -> Toward:
        """How the rows of a regime are trained."""
        one = self._of(name)
        toward = Toward(
            rows,
            one.weight * weights[rows],
            targets[one.source][rows],
            heads[one.source],
            one.divergence,
            self.config.beta,
        )
        if one.support == "sampled":
            return replace(toward, sampled=sampled[rows])
        if one.support == "full":
            return toward
        return replace(toward, top_k=self.config.top_k, chosen_by="student" if one.support == "top_k" else "target")

    def _states(self, source: str, data: Experience, mask: Tensor, states: Tensor) -> Tensor:
        """Hidden states ``[M, D]`` of the privileged teacher or student, as they were scored; those of the student that
        is trained, without privilege, are `states`."""
        kept = data[f"{source}_states"][:, : mask.shape[1]][mask]
        if self._weights_of(source) != CURRENT:
            return kept
        bare = torch.tensor([not example.privileged for example in data.prompt_of_candidate])
        return torch.where(bare.to(mask.device)[:, None].expand(mask.shape)[mask][:, None], states.detach(), kept)

    def _weights_of(self, source: str) -> str:
        """The teacher, or the weight set of the privileged student."""
        return tokens.TEACHER if source == "teacher" else self.config.weight_set

    def _sources(self) -> list[str]:
        """The targets of regimes that count."""
        names = NAMES if self.config.routing == "advantage" else ("ht",)
        return list(dict.fromkeys(self._of(name).source for name in names if self._of(name).weight))

    def cost(self, sizes: StepSizes) -> Cost:
        """A rollout, both privileged policies and the loss, whatever the regimes; rewards where they take part."""
        responses = sizes.prompts * self.config.group_size
        judged = responses * sizes.rewards if self.config.reward_weight else 0
        return Cost(forwards=3 * responses, reward_calls=judged, teacher_calls=responses, responses=responses)

    def _of(self, name: str) -> RegimeConfig:
        settings: RegimeConfig = getattr(self.config, name)
        return settings
