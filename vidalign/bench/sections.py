"""The sections of a protocol file, typed; `vidalign.bench.protocol` reads and checks a whole one."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Any, Literal

from vidalign.ranges import require

BASE = "base"
"""The row of the start weights."""
REFERENCES = (BASE, "teacher", "ground_truth")
"""Rows of every table that are not trained."""
CLAIM_SEEDS = 6
"""Training seeds of a table that tests claims: with fewer an interval of what the seeds vary is too long."""


@dataclass
class PromptsConfig:
    """Prompts to judge on."""

    source: str
    """`world:SPLIT` or a text file with one prompt a line; for language students `tokens:SPLIT`, `pictures:SPLIT` or a
    table of examples."""
    count: int = 256
    """Prompts taken from it, in a fixed order. Differences vary more over prompts than over evaluation seeds."""
    sha256: str = ""
    """What a text file must have as its hash; empty takes it as it is. The hash of the prompts is recorded anyway."""

    def __post_init__(self) -> None:
        require(self, "count", least=1)


@dataclass
class WeightsConfig:
    """Weights of a network."""

    path: str
    """A safetensors file, a student's folder or a shipped name such as `world/student`."""
    sha256: str = ""
    """What the file, or the weights and settings of the folder, must have as its hash; empty takes it as it is.
    The hash is recorded anyway."""


@dataclass
class TeacherWeights(WeightsConfig):
    """A bidirectional teacher, judged as a row."""

    steps: int = 24
    """Denoising steps a chunk of a video teacher."""
    shift: float = 5.0
    """Timestep shift of those steps."""
    eta: float = 0.85
    """Fresh noise between those steps, in 0..1: 0 for Euler steps."""


@dataclass
class BudgetConfig:
    """What every objective may spend on training."""

    currency: Literal["forwards", "calls", "seconds", "responses"]
    """What is counted. `forwards`: one chunk of one clip through trained networks. `calls`: those of rewards and
    teacher. `seconds`: training on this device. `responses`: what a language student generates."""
    amount: float
    """How much of it."""

    def __post_init__(self) -> None:
        require(self, "amount", above=0)


@dataclass
class EvaluationConfig:
    """How the trained student is sampled and judged."""

    frames: int = 12
    """Length of the judged clips in frames."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Noise seeds: one clip (response) for each prompt and seed, the same noise in every row."""
    temperature: float = 0.0
    """Of a language student's responses; 0 takes the likeliest tokens."""
    long_factor: int = 4
    """Long clips are so many times longer; 0 makes none."""
    long_prompts: int = 16
    """Prompts, the first of the list, that get a long clip."""
    sigmas: list[float] = field(default_factory=list)
    """Noise levels of the few-step sampler; empty means those that the start weights carry."""
    curve_points: int = 5
    """Evaluations during training, evenly spaced."""
    curve_prompts: int = 16
    """Prompts judged at each of them, one clip each."""
    shown: int = 6
    """Clips kept for the report."""

    def __post_init__(self) -> None:
        if self.frames < 1 or not self.seeds:
            raise ValueError("frames and seeds must not be empty")


@dataclass
class HealthConfig:
    """How the judges themselves are examined."""

    clips: int = 66
    """Ground-truth clips that are corrupted in every way of the world's perturbation table; 0 leaves both out."""
    probe_clips: int = 12
    """Clips that an adversary changes pixel by pixel to raise one training reward alone."""
    probe_steps: int = 60
    """Its optimiser steps."""


@dataclass
class AxisConfig:
    """One setting of a recipe that is tuned, over values around the recipe's own."""

    keys: list[str]
    """Settings such as `objective.kl.weight`: a row varies the first that its recipe has above zero, or none."""
    factors: list[float]
    """What the recipe's own value is multiplied by, from the least on; 1 is among them."""
    whole: bool = False
    """Whether values are whole numbers from `least` on."""
    least: float = 0.0
    """No value below it is tried but the recipe's own, and a winner there is at no edge."""

    def __post_init__(self) -> None:
        if not self.keys:
            raise ValueError("keys must name a setting")
        if len(self.factors) < 2 or 1.0 not in self.factors or min(self.factors) <= 0:
            raise ValueError(f"factors must be two or more positive numbers with 1 among them, not {self.factors}")
        if sorted(set(self.factors)) != list(self.factors):
            raise ValueError(f"factors must increase, not {self.factors}")


GRID = {
    "rate": AxisConfig(["trainer.learning_rate"], [1 / 3, 1.0, 3.0]),
    "kl": AxisConfig(["objective.kl.weight", "objective.kl_weight"], [0.1, 1.0, 10.0]),
    "group": AxisConfig(["objective.group_size"], [0.5, 1.0, 2.0], whole=True, least=2.0),
}
"""The grid of every row; see docs/tuning.md."""


@dataclass
class TuningConfig:
    """How `vidalign bench tune` chooses the settings of the rows; not part of the hash."""

    prompts: PromptsConfig
    """Training prompts to judge on: those of every row's recipe."""
    trials: int = 9
    """Trainings of every row, the same number each."""
    widen: int = 2
    """How often one axis may be widened because its winner is at the edge; it takes trials that refine otherwise."""
    metric: str = ""
    """METRIC/NAME that chooses; empty takes the protocol's held-out score, here on training prompts."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Training seeds of every trial."""
    grid: dict[str, AxisConfig] = field(default_factory=lambda: dict(GRID))
    """Axes in the order in which they are tuned; the first is refined with the trials that are left."""

    def __post_init__(self) -> None:
        require(self, "trials", least=1)
        require(self, "widen", least=0)
        if not self.seeds or not self.grid:
            raise ValueError("seeds and grid must not be empty")


@dataclass
class RowConfig:
    """One objective in the comparison."""

    recipe: str
    """A shipped recipe, or a path from the working folder."""
    overrides: list[str] = field(default_factory=list)
    """Changes to it, `key=value`."""
    student: str = ""
    """Other start weights than the protocol's; they must share its latents, text features and sampler."""
    plugin: str = ""
    """A Python file that registers what the recipe names."""
    prepare: str = ""
    """The command that makes what the recipe reads, such as a buffer; it is only printed."""
    before: list[str] = field(default_factory=list)
    """Folders of runs and buffers that were made for this row: what they cost is shown as spent before."""
    baseline: str = "base"
    """The row that this one is to beat: another objective, or `base`, the start weights. Tables give the paired
    differences to it."""
    claim: str = ""
    """The claim that this row tests against its baseline, with the paper; for tables."""

    @property
    def described(self) -> str:
        """The recipe with its changes, as in a command."""
        weights = [f"student.path={self.student}"] if self.student else []
        return shlex.join([self.recipe, *self.overrides, *weights])


@dataclass
class ProtocolSections:
    """A whole protocol file."""

    prompts: PromptsConfig
    """Held-out prompts."""
    student: WeightsConfig
    """Where every objective starts; judged as the row `base`."""
    budget: BudgetConfig
    """The same for every row."""
    objectives: dict[str, RowConfig]
    """Rows by name; not part of the hash."""
    metrics: dict[str, dict[str, Any]]
    """Metrics by their names in the registry, with their settings."""
    out_of_domain: PromptsConfig | None = None
    """Prompts further away from training, reported apart."""
    teacher: TeacherWeights | None = None
    """A teacher to judge as a row, not part of the hash; for objectives it stands in their own recipes."""
    made: dict[str, str] = field(default_factory=dict)
    """Folders of finished runs by row: their students were made for other rows, such as a few-step teacher, and are
    judged as they are. Not part of the hash."""
    seeds: list[int] = field(default_factory=lambda: list(range(CLAIM_SEEDS)))
    """Training seeds: at least as many where a claim is tested; fewer are reported with the table."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Sampling and judging."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """Examination of the judges."""
    tuning: TuningConfig | None = None
    """How `vidalign bench tune` chooses the settings of the rows. Not part of the hash."""
    trained_prompts: bool = False
    """Judge on the prompts that are trained on, and on no others: what `vidalign bench tune` sets."""
