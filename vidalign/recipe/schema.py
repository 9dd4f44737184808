"""The sections of a recipe: dataclasses with a docstring under each field (see `vidalign show --explain`).

A section raises ValueError from `__post_init__` for a value out of range. When the message begins with the name of a
field, the line of that field is shown. `plugin(kind)` marks a section whose keys are those of the chosen plugin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vidalign import registry
from vidalign.data.columns import check_columns
from vidalign.data.source import Chosen, completed
from vidalign.engine.config import AdapterConfig, EngineConfig, OptimizerConfig
from vidalign.ranges import require

TEACHING = ("objective", "objectives", "rewards", "discriminator", "teacher", "callbacks", "trackers")
"""Sections that a trained student has no need of."""


@dataclass
class Choice:
    """A plugin chosen by name together with its own `Config`."""

    name: str
    """Name in the registry; `vidalign list` prints all of them."""
    config: Any = None
    """The plugin's own settings."""


@dataclass
class Part(Choice):
    """One objective of several: when it takes part, how much it weighs, what judges it."""

    weight: float = 1.0
    """Factor of its loss."""
    start: int = 0
    """First step in which it takes part."""
    stop: int | None = None
    """First step in which it no longer takes part; null = to the end."""
    rewards: dict[str, float] | None = None
    """Weights of the rewards that it uses, of those that the recipe names; null = all, with the recipe's weights."""

    def __post_init__(self) -> None:
        require(self, "weight", above=0)
        require(self, "start", least=0)
        if self.stop is not None and self.stop <= self.start:
            raise ValueError("stop must come after start")


@dataclass
class RewardChoice(Choice):
    """One reward: how much it weighs, how long it may take, and its own settings."""

    weight: float = 1.0
    """Weight in the sum of all rewards; 0 scores it for the log only."""
    timeout: float | None = None
    """Seconds that it may take for the clips of a step; null = `trainer.reward_timeout`, 0 = for ever."""

    def __post_init__(self) -> None:
        require(self, "timeout", least=0)


def plugin(kind: str, choice: type[Choice] = Choice) -> Any:
    """A section of the form `{name: ..., **Config of that plugin}`, with the further fields of `choice`, whose default
    name stands where the section gives none."""
    usual = choice.__dict__.get("name", "")
    return field(metadata={"plugin": kind, "choice": choice, "usual": usual})


def optional_plugin(kind: str, usual: str = "") -> Any:
    """A `plugin` section that may be left out (null). usual: the name where the section gives none."""
    return field(default=None, metadata={"plugin": kind, "choice": Choice, "usual": usual})


@dataclass
class StudentChoice(Choice):
    """The model that is trained: its kind, where its weights come from, and the settings of that kind."""

    name: str = "video"
    """Kind of student in the registry."""
    path: str = ""
    """A safetensors file or a shipped name such as `world/student`. For video students also a folder of
    `vidalign import` or a hub id, for language students the folder or hub name of a transformers model."""
    init: dict[str, Any] | None = None
    """Specification of a randomly initialised student, instead of `path`."""
    adapter: AdapterConfig | None = None
    """Low-rank adapters; none means full fine-tuning."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


@dataclass
class DataConfig:
    """Prompts, and the clips of objectives that learn from clips."""

    prompts: str | dict[str, Any] = "world:train"
    """Training prompts: `world:SPLIT`, a text file with one prompt a line, or a json, jsonl, csv, tsv or parquet file
    with a column `prompt`. For language students `tokens:SPLIT`, `rules:SPLIT`, `pictures:SPLIT`,
    `signs:SPLIT`, `datasets:NAME:SPLIT`, `datasets:NAME:CONFIG:SPLIT`, or such a table. The long form is a mapping with
    `name` and the settings of that source: `{name: tokens, split: train, privilege: hints}`."""
    eval_prompts: str | dict[str, Any] = "world:held_out"
    """Prompts that are never trained on, in the same form."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns of tables that have other names than `prompt`, `privileged`, `images`, `answer` and `response`:
    `{prompt: question, answer: solution}`."""
    grader: str | dict[str, Any] = ""
    """What compares responses with the answers of tables, for `exact_match` as reward and as metric: `last_number`, or
    `{name: regex, pattern: "Answer: (.*)"}`; `vidalign list graders` prints all. Empty = `equals`. A long form of
    prompts may name another: `{name: table, path: FILE, grader: boxed}`."""
    frames: int = 12
    """Length of a clip in frames."""
    text_cache: str = ""
    """Folder in which features of prompts are kept for all runs; empty = `$VIDALIGN_CACHE/text`, or
    `~/.cache/vidalign/text`. It is no part of what makes two runs equal."""

    def __post_init__(self) -> None:
        check_columns(self.columns)
        require(self, "frames", least=1)


@dataclass
class TrainerConfig(OptimizerConfig):
    """The loop: how many steps, how large, how the optimiser moves, what is kept."""

    steps: int = 60
    """Training steps; a step collects experience once and updates on it."""
    prompts_per_step: int = 8
    """Distinct prompts in every step, over all processes."""
    micro_batch: int = 16
    """Samples in one forward and backward pass; results do not depend on it."""
    weight_decay: float = 1e-4
    """Decoupled weight decay for adamw, L2 for sgd."""
    rollout_batch: int = 0
    """Most candidates that a rollout generates at once: bounds its memory; results do not depend on it. 0 = all."""
    score_ahead: bool = True
    """Rewards judge the clips of one part of the rollout (see rollout_batch) beside the next part, in threads of their
    own; false judges each part where it is finished. Scores are equal bit for bit."""
    signal_floor: float = 0.1
    """Groups in which the spread of every reward is below this share of its running median weigh 0; 0 trains on all
    that differ. Raw sums (`combine: raw_sum`) count as one reward."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights; 0 keeps none."""
    save_every: int = 20
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints kept, besides the best."""
    eval_every: int = 0
    """Steps between evaluations on held-out prompts; 0 evaluates only before and after."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights of the run's student; bfloat16 halves the file and rounds most of a small update away."""
    max_skipped: int = 3
    """Updates in a row that may be skipped because their gradient is not finite; then the run stops."""
    max_on_policy_gap: float = 0.0
    """Largest `health/on_policy_gap` of a step; above it the run stops, because what generated the samples is stale or
    computes otherwise than the loss. 0 only warns, above 0.05."""
    reward_timeout: float = 0.0
    """Seconds that a reward may take for the clips of a step; 0 waits for ever."""
    on_reward_timeout: Literal["stop", "nan"] = "stop"
    """What follows when a reward takes longer: the run stops, or its clips are not scored (NaN)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "signal_floor", "ema_decay", least=0, below=1)
        require(self, "rollout_batch", "reward_timeout", "eval_every", "max_on_policy_gap", least=0)
        require(self, "steps", "prompts_per_step", "micro_batch", "save_every", "keep", "max_skipped", least=1)


@dataclass
class TrackingConfig:
    """What a run writes and shows."""

    tensorboard: bool = True
    """Write scalars and animated clips for TensorBoard; JSON lines are always written."""
    clips_every: int = 20
    """Steps between logged clips; 0 logs none."""
    panel: Literal["auto", "live", "plain", "none"] = "auto"
    """`live` panel in a terminal, `plain` lines elsewhere; `auto` chooses."""

    def __post_init__(self) -> None:
        require(self, "clips_every", least=0)


@dataclass
class EvaluationConfig:
    """The judgement before and after training."""

    prompts: str | dict[str, Any] = ""
    """Prompts to judge on; empty means `data.eval_prompts`."""
    metrics: dict[str, dict[str, Any] | None] | None = None
    """Metrics by name with their settings, beside the recipe's rewards; null = those that the prompts' source offers.
    They grade against its right answers."""
    count: int = 64
    """Prompts taken from them."""
    seeds: int = 1
    """Clips generated for each prompt."""
    frames: int = 12
    """Length of the judged clips in frames."""
    sampler: Literal["causal", "teacher"] = "causal"
    """How clips are made: the causal few-step sampler, or that of a bidirectional teacher."""
    temperature: float = 0.0
    """Temperature of a language student's answers; 0 takes the likeliest tokens."""

    def __post_init__(self) -> None:
        require(self, "temperature", least=0)
        require(self, "count", "seeds", "frames", least=1)


@dataclass
class Sections:
    """A whole recipe."""

    objective: Choice = plugin("objectives")
    """How a judgement becomes a gradient: `name` and the settings of that objective."""
    student: StudentChoice = plugin("students", StudentChoice)
    """The model that is trained."""
    objectives: dict[str, Part] = field(default_factory=dict)
    """Several objectives at once, instead of `objective`. A label of your choice maps to the settings of each, `name`
    (the label if left out), `weight`, `start`, `stop` and `rewards`."""
    seed: int = 0
    """Every random number of the run follows from it."""
    teacher: Choice | None = optional_plugin("teachers", usual="model")
    """What the objective learns from, never trained: `name` and the settings of that teacher."""
    data: DataConfig = field(default_factory=DataConfig)
    """Prompts and clips."""
    rewards: dict[str, RewardChoice] = field(default_factory=dict)
    """Rewards by a key of your choice: a weight, or `name` (the key if left out), `weight`, `timeout` and the settings
    of that reward. Scores, metrics and errors bear the key."""
    discriminator: Choice | None = optional_plugin("discriminators")
    """The network of the reward `discriminator` and how it is trained against the teacher's clips."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """The loop."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Processes and precision."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """What a run writes and shows."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The judgement before and after training."""

    @property
    def training_prompts(self) -> Chosen:
        """Source of the prompts that are trained on."""
        return self.prompts_of(self.data.prompts)

    @property
    def judged_prompts(self) -> Chosen:
        """Source of the prompts that the evaluation judges."""
        return self.prompts_of(self.evaluation.prompts or self.data.eval_prompts)

    def prompts_of(self, chosen: Chosen) -> Chosen:
        """A source as this recipe means it: with its columns and grader; as captions for a student that takes these."""
        asked = getattr(registry.get("students", self.student.name), "asked", "captions")
        return completed(chosen, asked, columns=self.data.columns, grader=self.data.grader)

    @property
    def reward_weights(self) -> dict[str, float]:
        """Weight of each reward by its key."""
        return {name: choice.weight for name, choice in self.rewards.items()}
