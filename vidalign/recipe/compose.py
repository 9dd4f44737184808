"""From a name to one tree: the file, its `base:` parents (at most two) and the overrides, merged.

Mappings merge key by key, everything else replaces, an empty mapping too. `~key` deletes what a parent wrote. A
section that chooses a plugin, one of the rewards too, is replaced as a whole when its `name` changes: the parent's
settings are another plugin's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vidalign.data.source import spelled_out
from vidalign.errors import Problem, UserError, nearest
from vidalign.recipe.older import current
from vidalign.recipe.source_map import Node, parse_override, read_yaml

MAX_BASES = 2
WEIGHED = ("rewards", "objectives")
"""Sections of labels whose entries have a weight, which may stand for the entry."""
PROMPTS = ("data.prompts", "data.eval_prompts", "evaluation.prompts")
"""Keys with a short form, ``tokens:train``, to which a layer above may add settings."""


def recipes_root() -> Path:
    """The folder of the shipped recipes: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Runnable shipped recipes by name, such as `world/astrolabe`; files called base.yaml are parents."""
    return {name: path for name, path in _shipped_files().items() if path.name != "base.yaml"}


def find_recipe(name: str, beside: Path | None = None) -> Path | None:
    """The file that is meant: a path (for a `base:` in the folder `beside`), or a shipped name."""
    for folder in [beside] if beside is not None else [Path()]:
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    return _shipped_files().get(name.removesuffix(".yaml"))


@dataclass
class Composed:
    """A merged recipe."""

    tree: Node
    path: Path | None
    """The recipe's own file; None when there is no such recipe."""
    whole: bool
    """Whether every file could be read: when not, a missing section may stand in the part that was not."""


def compose(name: str, overrides: list[str], choices: dict[str, str], problems: list[Problem]) -> Composed:
    """The files and the overrides merged. `choices`: sections that choose a plugin, each with its usual `name`."""
    path = find_recipe(name)
    if path is None:
        problems.append(_not_found("recipe", name, ""))
        return Composed(Node({}, name), None, whole=False)
    tree = _with_bases(path, choices, problems)
    whole = not problems
    changes = Node({}, "overrides")
    for number, text in enumerate(overrides, start=1):
        changes = _combine(changes, weights_spelled_out(parse_override(text, number, problems)))
    return Composed(merge(tree, changes, choices, problems), path, whole)


def merge(below: Node, above: Node, choices: dict[str, str], problems: list[Problem], path: str = "") -> Node:
    """`above` laid over `below`; neither is changed."""
    if not isinstance(above.value, dict) or (path and not above.value):
        return above
    if path in PROMPTS and isinstance(below.value, str):
        below = _long_form(below)
    entries = dict(below.value) if isinstance(below.value, dict) else {}
    section, _, label = path.partition(".")
    usual = {**choices, path: label} if section == "rewards" and label and "." not in label else choices
    if (path in usual or path in PROMPTS) and _renamed(entries, above.value, usual.get(path, "")):
        entries = {}
    for key, child in above.value.items():
        if key.startswith("~") and entries.pop(key[1:], None) is None:
            close = nearest(key[1:], entries)
            fix = f"did you mean {close!r}?" if close else ""
            problems.append(Problem(f"there is no {_join(path, key[1:])} to delete", child.where, fix=fix))
    for key, child in above.value.items():
        if not key.startswith("~"):
            under = entries.get(key, Node(None, child.where))
            entries[key] = merge(under, child, choices, problems, _join(path, key))
    return Node(entries, above.where if not isinstance(below.value, dict) else below.where)


def _shipped_files() -> dict[str, Path]:
    root = recipes_root()
    return {str(path.relative_to(root).with_suffix("").as_posix()): path for path in sorted(root.rglob("*.yaml"))}


def _with_bases(path: Path, choices: dict[str, str], problems: list[Problem]) -> Node:
    """The file merged over its parents."""
    layers = [weights_spelled_out(current(read_yaml(path, problems)))]
    while True:
        tree = layers[-1]
        if not isinstance(tree.value, dict):
            problems.append(Problem("a recipe must be a mapping of sections", tree.where))
            layers[-1] = Node({}, tree.where)
            break
        base = tree.value.pop("base", None)
        if base is None:
            break
        if len(layers) > MAX_BASES:
            why = f"a recipe has at most {MAX_BASES} parents above it"
            problems.append(Problem("the chain of `base:` is too long", base.where, why, "copy the keys instead"))
            break
        parent = find_recipe(str(base.value), beside=path.parent)
        if parent is None:
            problems.append(_not_found("base", str(base.value), base.where))
            break
        path = parent
        layers.append(weights_spelled_out(current(read_yaml(path, problems))))
    merged = Node({}, layers[-1].where)
    for layer in reversed(layers):
        merged = merge(merged, layer, choices, problems)
    merged.where = layers[0].where  # what a missing section is blamed on
    return merged


def weights_spelled_out(tree: Node) -> Node:
    """A recipe, or a layer of one, in which ``rewards: {NAME: 1.0}`` says ``{NAME: {weight: 1.0}}``, so that layers add
    settings to it; `objectives` alike."""
    if not isinstance(tree.value, dict):
        return tree
    whole = dict(tree.value)
    for section in WEIGHED:
        if isinstance((given := whole.get(section, Node(None, ""))).value, dict):
            entries = {name: _with_weight(name, entry) for name, entry in given.value.items()}
            whole[section] = Node(entries, given.where)
    return Node(whole, tree.where)


def _with_weight(name: str, entry: Node) -> Node:
    whole = entry.value is None or isinstance(entry.value, dict) or name.startswith("~")
    return entry if whole else Node({"weight": entry}, entry.where)


def _long_form(text: Node) -> Node:
    """Prompts as a mapping."""
    try:
        name, settings = spelled_out(text.value)
    except UserError:
        return text  # reported by the checks
    entries = {"name": name, **settings}
    return Node({key: Node(value, text.where) for key, value in entries.items()}, text.where)


def _not_found(what: str, name: str, where: str) -> Problem:
    known = _shipped_files()
    close = nearest(name.removeprefix("recipes/").removesuffix(".yaml"), known)
    fix = f"did you mean {close!r}?" if close else "`vidalign list recipes` prints the shipped ones"
    return Problem(
        f"there is no {what} {name!r}", where, "neither a file nor a shipped recipe", f"{fix}; see docs/recipes.md"
    )


def _combine(first: Node, second: Node) -> Node:
    """Overrides put together before they are laid over the file, so that their order does not matter."""
    if not (isinstance(first.value, dict) and isinstance(second.value, dict)):
        return second
    entries = dict(first.value)
    for key, child in second.value.items():
        entries[key] = _combine(entries[key], child) if key in entries else child
    return Node(entries, second.where)


def _renamed(below: dict[str, Node], above: dict[str, Node], usual: str) -> bool:
    before = below["name"].value if "name" in below else usual if below else ""
    return bool(before) and "name" in above and before != above["name"].value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
