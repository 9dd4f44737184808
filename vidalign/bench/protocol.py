"""Protocols: one strict, typed YAML says under which conditions objectives are compared.

`load_protocol` reads a file or a shipped one (``quickstart``). It lays overrides and on demand its ``small`` section
over it, and pins what the file only names. Prompts, start weights, sampler, world and metric versions go into the hash.
The rows under ``objectives`` and the teacher do not: a later one joins a protocol and the earlier ones stay comparable.
Every cell carries the hash of its own recipe or weights.
"""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from vidalign import registry
from vidalign.bench.shipped import find_protocol
from vidalign.data.examples import Example
from vidalign.data.paths import is_file_name
from vidalign.data.source import PromptSource, find_source, open_source
from vidalign.errors import DataError, Problem, RecipeError, UserError
from vidalign.ranges import require
from vidalign.reading import content_hash
from vidalign.recipe.compose import merge
from vidalign.recipe.load import read_header
from vidalign.recipe.source_map import Node, parse_override, read_yaml
from vidalign.recipe.typed import build, placed, settings_of
from vidalign.students.kind import StudentKind
from vidalign.students.weights import kind_of, resolve

REFERENCES = ("base", "teacher", "ground_truth")
"""Rows of every table that are not trained."""


@dataclass
class PromptsConfig:
    """Prompts to judge on."""

    source: str
    """`world:SPLIT` or a text file with one prompt a line; for language students `tokens:SPLIT`, `pictures:SPLIT` or a
    table of examples."""
    count: int = 64
    """Prompts taken from it, in a fixed order."""
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
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
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
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Training seeds."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Sampling and judging."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """Examination of the judges."""


@dataclass
class Protocol(ProtocolSections):
    """A checked protocol with everything that it names looked up."""

    name: str = field(default="", init=False)
    """Its name, with ``-small`` for the small version and a part of the hash after overrides."""
    header: str = field(default="", init=False)
    held_out: list[str] = field(default_factory=list, init=False)
    far: list[str] = field(default_factory=list, init=False)
    """The out-of-domain prompts."""
    examples: list[Example] = field(default_factory=list, init=False)
    """The examples of a student that takes examples, those of `held_out` first; else empty."""
    pinned: dict[str, Any] = field(default_factory=dict, init=False)
    """What is hashed, as plain data."""

    @property
    def student_name(self) -> str:
        """The kind of student that is compared: that of the start weights."""
        return kind_of(self.student.path)

    @property
    def student_kind(self) -> type[StudentKind[Any, Any]]:
        """Its class."""
        kind: type[StudentKind[Any, Any]] = registry.get("students", self.student_name)
        return kind

    def frame_rate(self) -> float | None:
        """Frames a second of the clips of its student; None where it has no such number."""
        rate: float | None = getattr(self.student_kind.read_spec(self.student.path), "fps", None)
        return rate

    @property
    def source(self) -> type[PromptSource]:
        """The kind of source that its prompts come from."""
        return find_source(self.prompts.source)[0]

    @property
    def has_truth(self) -> bool:
        """Whether what is right for its prompts is known: worked answers, or clips that their source makes."""
        return bool(self.examples) or self.source.truth is not PromptSource.truth

    @property
    def all_prompts(self) -> list[str]:
        return self.held_out + self.far

    @property
    def asked(self) -> list[Any]:
        """What a student takes: examples, or the prompts themselves."""
        return self.examples or self.all_prompts

    @property
    def split(self) -> dict[str, tuple[int, int]]:
        """Range of `all_prompts` by split."""
        first, last = len(self.held_out), len(self.all_prompts)
        return {"held_out": (0, first)} | ({"out_of_domain": (first, last)} if self.far else {})

    @property
    def text(self) -> str:
        """The pinned protocol as YAML."""
        return yaml.safe_dump(self.pinned, sort_keys=False, allow_unicode=True)

    @property
    def hash(self) -> str:
        return text_hash(self.text)

    @property
    def folder(self) -> Path:
        """Where its cells lie."""
        return Path("runs") / "bench" / self.name


def text_hash(text: str) -> str:
    """First 12 hex digits of SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_protocol(name: str, overrides: list[str] | None = None, *, small: bool = False) -> Protocol:
    """Read a protocol file or a shipped one. Raises `RecipeError` with every mistake found, each with its place."""
    problems: list[Problem] = []
    path = find_protocol(name)
    tree = read_yaml(path, problems)
    if not isinstance(tree.value, dict):
        raise RecipeError([*problems, Problem("a protocol must be a mapping of sections", tree.where)])
    reduced = tree.value.pop("small", None)
    if small and reduced is None:
        problems.append(Problem(f"{path.stem} has no small version", tree.where, fix="give it a section small:"))
    layers = [reduced] if small and reduced is not None else []
    layers += [parse_override(text, n, problems) for n, text in enumerate(overrides or [], start=1)]
    for layer in layers:
        tree = merge(tree, layer, {}, problems)
    protocol = build(Protocol, tree, "", problems)
    for metric, settings in (tree.value["metrics"].value or {}).items() if "metrics" in tree.value else ():
        _check_metric(metric, settings, problems)
    for row in protocol.objectives if protocol is not None else ():
        if row in REFERENCES:
            problems.append(
                Problem(f"{row!r} is a row of every table", tree.locate(f"objectives.{row}"), fix="rename it")
            )
        if not is_file_name(row):
            why = "it names the folder of its runs"
            problems.append(Problem(f"{row!r} is no name of a row", tree.where, why, "use a name without / and .."))
    if problems or protocol is None:
        raise RecipeError(problems)
    protocol.header = read_header(path)
    _pin(protocol, tree)
    changed = f"-{protocol.hash[:6]}" if overrides else ""
    protocol.name = path.stem + ("-small" if small else "") + changed
    return protocol


def _check_metric(name: str, settings: Node, problems: list[Problem]) -> None:
    try:
        if isinstance(settings.value, dict):
            settings_of("metrics", name, settings, f"metrics.{name}", problems)
    except UserError as error:
        problems.extend(placed(error, settings.where))


def _pin(protocol: Protocol, tree: Node) -> None:
    """Look up what the file names; raises `UserError` for prompts or weights that are not what it says."""
    protocol.held_out = _prompts(protocol, protocol.prompts, tree, "prompts")
    if protocol.out_of_domain is not None:
        protocol.far = _prompts(protocol, protocol.out_of_domain, tree, "out_of_domain")
        shared = set() if protocol.examples else set(protocol.held_out) & set(protocol.far)
        if shared:
            raise UserError(
                f"{len(shared)} prompts are in both splits, the first is {min(shared)!r}",
                where=tree.locate("out_of_domain"),
                fix="take them from sources that share none",
            )
    _check_student(protocol, tree)
    sigmas = _sampler_levels(protocol, tree)
    pinned = [f.name for f in fields(ProtocolSections) if f.name not in ("objectives", "teacher")]
    values = {name: getattr(protocol, name) for name in pinned}
    plain = {name: asdict(value) if hasattr(value, "__dataclass_fields__") else value for name, value in values.items()}
    plain["prompts"]["sha256"] = text_hash("\n".join(protocol.held_out))
    if protocol.out_of_domain is not None:
        plain["out_of_domain"]["sha256"] = text_hash("\n".join(protocol.far))
    weights = protocol.student
    plain["student"]["sha256"] = _same_hash(_place(weights.path), weights.sha256, tree.locate("student"))
    if protocol.teacher is not None and find_teacher(protocol) is not None:
        _same_hash(_place(protocol.teacher.path), protocol.teacher.sha256, tree.locate("teacher"))
    plain["evaluation"]["sigmas"] = sigmas
    versions = {name: registry.get("metrics", name).version for name in protocol.metrics}
    protocol.pinned = {"world": protocol.source.version, **plain, "metric_versions": versions}


def teacher_hash(teacher: TeacherWeights) -> str:
    """Identifies the teacher's row by weights and sampler, as a recipe's hash identifies an objective's."""
    weights = content_hash(_place(teacher.path))
    return text_hash(f"{weights} {teacher.steps} {teacher.shift} {teacher.eta}")


def _check_student(protocol: Protocol, tree: Node) -> None:
    """The start weights are of a student that takes such prompts."""
    asked, gives = protocol.student_kind.asked, protocol.source.gives
    if asked != gives:
        raise UserError(
            f"a {protocol.student_name} student does not take {gives}",
            where=tree.locate("student"),
            why=f"{protocol.prompts.source} gives {gives}, and {protocol.student.path} takes {asked}",
            fix="name other prompts, or other start weights",
        )


def _sampler_levels(protocol: Protocol, tree: Node) -> list[float]:
    """Noise levels of the start weights' sampler; `UserError` when the protocol sets others."""
    expected, levels = protocol.evaluation.sigmas, protocol.student_kind.levels(protocol.student.path)
    if expected and expected != levels:
        raise UserError(
            "the start weights have another sampler than the protocol",
            where=tree.locate("evaluation.sigmas"),
            why=f"{protocol.student.path} visits {levels}, the protocol {expected}",
            fix="name other start weights, or their levels",
        )
    return levels


def find_teacher(protocol: Protocol) -> Path | None:
    """The teacher's weights, or None when the protocol names none or they are not there."""
    if protocol.teacher is None:
        return None
    try:
        return _place(protocol.teacher.path)
    except UserError:
        return None


def _prompts(protocol: Protocol, config: PromptsConfig, tree: Node, section: str) -> list[str]:
    """The prompts of one section, whose key a mistake names."""
    try:
        return _read_section(protocol, config, tree.locate(section))
    except DataError as error:
        for problem in error.problems:
            problem.where = problem.where or tree.locate(f"{section}.source")
            problem.fix = problem.fix.replace("the path", f"{section}.source")
        raise


def _read_section(protocol: Protocol, config: PromptsConfig, where: str) -> list[str]:
    """Examples are kept beside their prompts."""
    if find_source(config.source)[0].gives != protocol.source.gives:
        fix = "take both kinds of prompts from sources of the same kind"
        raise UserError("one protocol judges videos or answers, not both", where=where, fix=fix)
    if Path(config.source).is_file() and config.sha256:
        _same_hash(Path(config.source), config.sha256, where)
    items = open_source(config.source, 0).first(config.count)
    if protocol.source.gives == "examples":
        protocol.examples += items
    return [str(getattr(one, "prompt", one)) for one in items]


def _place(weights: str) -> Path:
    """A folder as it is, else a file of weights; raises `CheckpointError` where there is none."""
    return Path(weights) if Path(weights).is_dir() else resolve(weights)


def _same_hash(path: Path, expected: str, where: str) -> str:
    """SHA-256 of a file or a folder; `DataError` when it does not begin with `expected`."""
    try:
        digest = content_hash(path)
    except OSError as error:
        raise DataError(f"cannot read {path}", where=where, why=str(error)) from error
    if not digest.startswith(expected):
        raise DataError(
            f"{path.name} is not what the protocol pins",
            where=where,
            why=f"its sha256 is {digest[:12]}, the protocol says {expected[:12]}",
            fix="restore it",
        )
    return digest
