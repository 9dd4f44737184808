"""`load_recipe`: compose, build, check; a `Recipe` that fits together, or one error with every mistake."""

from __future__ import annotations

import hashlib
from dataclasses import Field, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from vidalign import registry
from vidalign.data.source import shortened
from vidalign.errors import Problem, RecipeError
from vidalign.recipe.checks import check
from vidalign.recipe.compose import compose
from vidalign.recipe.schema import TEACHING, Choice, Part, RewardChoice, Sections, TrainerConfig
from vidalign.recipe.source_map import Node
from vidalign.recipe.typed import WRONG, choose, convert, mix, unknown_key

CHOICES = {f.name: str(f.metadata.get("usual", "")) for f in fields(Sections) if "plugin" in f.metadata}
"""Sections that choose a plugin, each with the name where it gives none."""
LABELLED: dict[str, type[Choice]] = {
    "objectives": Part,
    "rewards": RewardChoice,
    "trackers": Choice,
    "callbacks": Choice,
}
"""Sections of labels that each name a plugin of the kind of that name."""

LOCAL = (("data", "text_cache"),)
"""Keys that say where something lies on this machine; no result depends on them."""


@dataclass
class Recipe(Sections):
    """The sections of a recipe, checked, with what is known about where they came from."""

    trackers: dict[str, Choice] = field(default_factory=dict)
    """Further places to log to, by a label of your choice (`name` if that is another): the settings of each."""
    callbacks: dict[str, Choice] = field(default_factory=dict)
    """Code that runs beside the loop, by a label of your choice (`name` if that is another): the settings of each."""
    name: str = field(default="", init=False)
    """The name that the recipe was loaded by: a path or a shipped name."""
    header: str = field(default="", init=False)
    """The comment at the top of the file."""
    tree: Node = field(default_factory=lambda: Node({}, ""), init=False, repr=False, compare=False)
    """The merged values with their marks."""
    warnings: list[Problem] = field(default_factory=list, init=False)
    """What looks odd but does not stop a run."""

    def plain(self) -> dict[str, Any]:
        """Every section with every default filled in, as plain data that `load_recipe` reads back."""
        return {spec.name: as_plain(getattr(self, spec.name)) for spec in self.written()}

    def local_of_rewards(self) -> list[tuple[str, str]]:
        """(key in the recipe, setting) of the ``local_settings`` of rewards: no result depends on them."""
        kinds = {key: registry.get("rewards", choice.name) for key, choice in self.rewards.items()}
        return [(key, setting) for key, kind in kinds.items() for setting in getattr(kind, "local_settings", ())]

    def written(self) -> list[Field[Any]]:
        """The sections that stand in the file of this recipe."""
        unused = ["objective" if self.objectives else "objectives"]
        unused += [name for name in ("trackers", "callbacks") if not getattr(self, name)]
        return [spec for spec in sections() if spec.name not in unused]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)

    @property
    def hash(self) -> str:
        """The first 12 hex digits of SHA-256 over the resolved values: equal runs have equal hashes."""
        values = self.plain()
        for section, key in LOCAL:
            del values[section][key]
        for name, key in self.local_of_rewards():
            entry = values["rewards"][name]
            if isinstance(entry, dict):  # else it has no other setting than its defaults
                entry.pop(key, None)
        return hashlib.sha256(yaml.safe_dump(values, sort_keys=True).encode()).hexdigest()[:12]


def sections() -> list[Field[Any]]:
    """All sections that a recipe may have."""
    return [spec for spec in fields(Recipe) if spec.init]


def load_recipe(path_or_name: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file or a shipped one such as `world/astrolabe`, with overrides `key=value`, `~key`.

    Nothing is loaded or started. Raises RecipeError with every mistake found, each with its file and line.
    """
    problems: list[Problem] = []
    recipe, broken = _read(str(path_or_name), list(overrides or []), problems)
    recipe.warnings = check(recipe, recipe.tree, broken, problems)
    if problems:
        raise RecipeError(_unique(problems))
    return _with_short_prompts(recipe)


def read_recipe(path_or_name: str | Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe that is not checked: files that it names need not be there. Raises RecipeError for unknown keys and
    values of a wrong type."""
    problems: list[Problem] = []
    recipe, _ = _read(str(path_or_name), list(overrides or []), problems)
    if problems:
        raise RecipeError(_unique(problems))
    return _with_short_prompts(recipe)


def _read(name: str, overrides: list[str], problems: list[Problem]) -> tuple[Recipe, set[str]]:
    """The recipe and the names of its broken sections; raises RecipeError where there is no such file."""
    composed = compose(name, overrides, CHOICES, problems)
    if composed.path is None:
        raise RecipeError(problems)
    recipe, broken = build_sections(composed.tree, composed.whole, problems)
    recipe.name, recipe.header, recipe.tree = name, read_header(composed.path), composed.tree
    return recipe, broken


def _with_short_prompts(recipe: Recipe) -> Recipe:
    recipe.data.prompts, recipe.data.eval_prompts = map(shortened, (recipe.data.prompts, recipe.data.eval_prompts))
    recipe.evaluation.prompts = shortened(recipe.evaluation.prompts)
    return recipe


def load_student_recipe(path: Path) -> Recipe:
    """What a run's recipe says of its student. What taught or judged it is not read and need not be there."""
    problems: list[Problem] = []
    composed = compose(str(path), [], CHOICES, problems)
    kept = {key: node for key, node in composed.tree.value.items() if key not in TEACHING}
    recipe, _ = build_sections(Node(kept, composed.tree.where), False, problems)
    if problems:
        raise RecipeError(_unique(problems))
    recipe.name = str(path)
    return recipe


def written_sections(path_or_name: str | Path, overrides: list[str]) -> dict[str, Any]:
    """What a recipe writes, with what it inherits and its overrides, before any check. Raises `RecipeError` where
    there is no such file."""
    problems: list[Problem] = []
    composed = compose(str(path_or_name), overrides, CHOICES, problems)
    if composed.path is None:
        raise RecipeError(problems)
    sections: dict[str, Any] = composed.tree.plain()
    return sections


def written(path_or_name: str | Path, overrides: list[str], section: str, key: str) -> Any:
    """The value that a recipe writes at ``section.key``, before any check; None where it writes nothing."""
    below = compose(str(path_or_name), overrides, CHOICES, []).tree.value.get(section)
    node = below.value.get(key) if below is not None and isinstance(below.value, dict) else None
    return None if node is None else node.plain()


def read_header(path: Path) -> str:
    """The comment lines at the top of a recipe, without their `#`."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").removeprefix(" "))
    return "\n".join(lines)


def build_sections(tree: Node, whole: bool, problems: list[Problem]) -> tuple[Recipe, set[str]]:
    """The recipe and the names of its broken sections, for which defaults stand in."""
    known = get_type_hints(Recipe)
    hints = {spec.name: known[spec.name] for spec in sections()}
    for key, child in tree.value.items():
        if key not in hints:
            problem = unknown_key(key, child.where, [*hints, "base"])
            if inside := _sections_with(key, hints):
                problem.fix = f"did you mean {' or '.join(repr(f'{section}.{key}') for section in inside)}?"
            problems.append(problem)
    values: dict[str, Any] = {}
    broken = set() if whole else set(hints)
    for spec in sections():
        name, before = spec.name, len(problems)
        node = tree.value.get(name)
        if spec.default is None and (node is None or node.value is None):
            continue
        if name == "objective" and "objectives" in tree.value:
            if node is not None:
                why = "a recipe has one objective or several"
                problems.append(Problem("both objective and objectives are given", node.where, why, "delete one"))
            values[name] = Choice("mixture")
        elif name in LABELLED:
            values[name] = {} if node is None else mix(name, LABELLED[name], node, name, problems)
        elif "plugin" in spec.metadata:
            kind, cls = spec.metadata["plugin"], spec.metadata["choice"]
            chosen = node or Node({}, tree.where)
            choice = choose(kind, chosen, name, problems, cls, CHOICES[name]) if node or whole else None
            values[name] = cls(CHOICES[name]) if choice is None else choice
        elif node is not None:
            value = convert(hints[name], node, name, problems)
            values |= {} if value is WRONG else {name: value}
        if len(problems) > before:
            broken.add(name)
    return Recipe(**values), broken


def _sections_with(key: str, hints: dict[str, Any]) -> list[str]:
    """The sections that have a setting of this name."""
    names = []
    for section, hint in hints.items():
        kinds = [hint, *get_args(hint)]
        if any(is_dataclass(kind) and key in {f.name for f in fields(kind)} for kind in kinds):
            names.append(section)
    return sorted(names, key=lambda section: hints[section] is not TrainerConfig)


def _unique(problems: list[Problem]) -> list[Problem]:
    return [problem for i, problem in enumerate(problems) if problem not in problems[:i]]


def _weight_alone(key: str, choice: RewardChoice) -> float | None:
    """The weight of a reward that has no other setting than its defaults: its short form."""
    config = None if choice.config is None else type(choice.config)
    try:
        usual = choice.name == key and choice.timeout is None and (config is None or choice.config == config())
    except TypeError:  # a setting without default
        usual = False
    return choice.weight if usual else None


def _short(key: str, value: Any) -> Any:
    weight = _weight_alone(key, value) if isinstance(value, RewardChoice) else None
    return as_plain(value) if weight is None else weight


def as_plain(value: Any) -> Any:
    """Settings as plain data that YAML holds and `load_recipe` reads back."""
    if isinstance(value, Choice):
        own = {f.name: as_plain(getattr(value, f.name)) for f in fields(value) if f.name != "config"}
        return {**own, **as_plain(value.config)}
    if is_dataclass(value):
        return {f.name: as_plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return {key: _short(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return value
