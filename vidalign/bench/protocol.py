"""Protocols: one strict, typed YAML says under which conditions objectives are compared.

`load_protocol` reads a file or a shipped one (``quickstart``). It lays overrides and on demand its ``small`` section
over it, and pins what the file only names. Prompts, start weights, sampler, world and metric versions go into the hash.
The rows under ``objectives`` and ``made`` and the teacher do not: a later one joins a protocol and the earlier ones
stay comparable. Every cell carries the hash of its own recipe or weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from vidalign import registry
from vidalign.bench.differences import conditions
from vidalign.bench.sections import BASE, REFERENCES, PromptsConfig, ProtocolSections
from vidalign.bench.shipped import find_protocol
from vidalign.data.examples import Example
from vidalign.data.paths import is_file_name
from vidalign.data.source import PromptSource, find_source, open_source
from vidalign.errors import DataError, Problem, RecipeError, UserError, nearest
from vidalign.reading import content_hash
from vidalign.recipe.compose import merge
from vidalign.recipe.load import read_header
from vidalign.recipe.source_map import Node, parse_override, read_yaml
from vidalign.recipe.typed import build, placed, settings_of
from vidalign.students.kind import StudentKind
from vidalign.students.weights import kind_of, resolve

UNPINNED = ("objectives", "teacher", "made", "tuning", "trained_prompts")
"""Sections that are no part of the hash."""


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

    def made_weights(self, row: str) -> Path:
        """The student of a finished run that is judged as the row."""
        return Path(self.made[row]) / self.student_kind.saved

    @property
    def families(self) -> list[str]:
        """The family of every prompt, by its source; empty where there is none."""
        families = [self.source.family(one) for one in self.asked]
        return families if any(families) else []

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
    def conditions(self) -> str:
        """The hash of everything that a cell depends on but its recipe and seed."""
        return text_hash(conditions(self.text))

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
    metrics = tree.value["metrics"].value if "metrics" in tree.value else None
    for metric, settings in metrics.items() if isinstance(metrics, dict) else ():
        _check_metric(metric, settings, problems)
    if protocol is not None:
        _check_rows(protocol, tree, problems)
    if problems or protocol is None:
        raise RecipeError(problems)
    protocol.header = read_header(path)
    _pin(protocol, tree)
    changed = f"-{protocol.hash[:6]}" if overrides else ""
    protocol.name = path.stem + ("-small" if small else "") + changed
    return protocol


def _check_rows(protocol: Protocol, tree: Node, problems: list[Problem]) -> None:
    """Names of rows, and the rows that they name as their baselines."""
    taken = dict.fromkeys(REFERENCES, "is a row of every table")
    for section in ("objectives", "made"):
        for row in getattr(protocol, section):
            if row in taken:
                problems.append(Problem(f"{row!r} {taken[row]}", tree.locate(f"{section}.{row}"), fix="rename it"))
            if not is_file_name(row):
                why = "it names the folder of its runs"
                problems.append(Problem(f"{row!r} is no name of a row", tree.where, why, "use a name without / and .."))
        taken |= dict.fromkeys(protocol.objectives, "is a row under objectives too")
    for row, config in protocol.objectives.items():
        others = [name for name in (BASE, *protocol.objectives) if name != row]
        if config.baseline not in others:
            close = nearest(config.baseline, others)
            why = "a row does not beat itself" if config.baseline == row else "it is neither trained nor the start"
            fix = f"did you mean {close!r}?" if close else f"rows: {', '.join(others)}"
            where = tree.locate(f"objectives.{row}.baseline")
            problems.append(Problem(f"{row!r} has the baseline {config.baseline!r}", where, why, fix))


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
    pinned = [f.name for f in fields(ProtocolSections) if f.name not in UNPINNED]
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


def weights_hash(protocol: Protocol, row: str) -> str:
    """Identifies a row that is judged as it is, as a recipe's hash identifies an objective's: by its weights, of the
    teacher with its sampler. '' for the start weights and the ground truth, which are part of the protocol's hash."""
    if row in protocol.made:
        return text_hash(content_hash(_place(str(protocol.made_weights(row)))))
    teacher = protocol.teacher
    if row != "teacher" or teacher is None:
        return ""
    return text_hash(f"{content_hash(_place(teacher.path))} {teacher.steps} {teacher.shift} {teacher.eta}")


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
