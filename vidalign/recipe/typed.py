"""A tree of marked values -> dataclasses, with every misspelt key and wrong type collected on the way.

Keys are checked against the dataclass fields. Values are converted by OmegaConf's structured configs (which support
Literal, tuples, unions and enums). That happens one at a time, so that one mistake does not hide the next.
A section with mistakes is still built from its right values, so that the checks after it can go on.
"""

from __future__ import annotations

import math
import types
from collections.abc import Set
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, make_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import omegaconf
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidalign import registry
from vidalign.errors import PluginError, Problem, UserError, nearest
from vidalign.guest import guest
from vidalign.plugin_source import owners
from vidalign.recipe.older import MOVED
from vidalign.recipe.schema import Choice, Part
from vidalign.recipe.source_map import Node

T = TypeVar("T")
C = TypeVar("C", bound=Choice)
WRONG = object()


@dataclass
class NoSettings:
    """Of a reward that declares no ``Config``."""


def build(cls: type[T], node: Node, path: str, problems: list[Problem], default: Any = None) -> T | None:
    """An instance of the dataclass `cls`, or None when a required value is missing or wrong.

    `path` is the dotted name of the section in messages. `default` is the instance that stands where the section is not
    written. A section that is written in part keeps its other values.
    """
    if not isinstance(node.value, dict):
        problems.append(Problem(f"{path} must be a mapping, not {node.plain()!r}", node.where))
        return None
    known = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]
    hints, given = get_type_hints(cls), isinstance(default, cls)
    for key, child in node.value.items():
        if key not in known:
            problems.append(unknown_key(_join(path, key), child.where, known, hints))
    values: dict[str, Any] = {name: getattr(default, name) for name in known} if given else {}
    for name, spec in known.items():
        if name not in node.value:
            if _required(spec) and not given:
                problems.append(
                    Problem(f"{_join(path, name)} is missing", node.where, fix=f"it is a {_say(hints[name])}")
                )
            continue
        before = values[name] if given else _default(spec)
        value = convert(hints[name], node.value[name], _join(path, name), problems, before)
        if value is not WRONG:
            values[name] = value
    if any(_required(spec) and name not in values for name, spec in known.items()):
        return None
    return _construct(cls, values, node, path, problems)


def convert(hint: Any, node: Node, path: str, problems: list[Problem], default: Any = None) -> Any:
    """The value as the type `hint` says; `WRONG` (and a problem) when it is not one. `default`: see `build`."""
    inner = _without_none(hint)
    if node.value is None and inner is not hint:
        return None
    if is_dataclass(inner) and isinstance(inner, type):
        built = build(inner, node, path, problems, default)
        return WRONG if built is None else built
    several = get_args(inner) if get_origin(inner) in (Union, types.UnionType) else ()
    if isinstance(node.value, dict) and any(get_origin(option) is dict for option in several):
        return node.plain()
    if get_origin(inner) is dict and isinstance(node.value, dict):
        item = get_args(inner)[1]
        before = default if isinstance(default, dict) else {}
        pairs = {
            key: convert(item, child, f"{path}.{key}", problems, before.get(key)) for key, child in node.value.items()
        }
        return {key: value for key, value in pairs.items() if value is not WRONG}
    if get_origin(inner) is list and isinstance(node.value, list):
        (item,) = get_args(inner)
        items = [convert(item, child, f"{path}.{i}", problems) for i, child in enumerate(node.value)]
        return [value for value in items if value is not WRONG]
    return _leaf(hint, node, path, problems)


def choose(kind: str, node: Node, path: str, problems: list[Problem], cls: type[C], usual: str = "") -> C | None:
    """A section `{name: ..., **Config}`: the plugin's own dataclass decides which keys it has beside those of `cls`.

    usual: the name where the section gives none. None when a field of `cls` is wrong.
    """
    if usual and isinstance(node.value, dict):
        node = Node({"name": Node(usual, node.where)} | node.value, node.where)
    if not isinstance(node.value, dict) or "name" not in node.value:
        names = ", ".join(registry.names(kind))
        problems.append(
            Problem(f"{path}.name is missing", node.where, f"it chooses one of the {kind}", f"known: {names}")
        )
        return cls("")
    own = {f.name for f in fields(cls)} - {"config"}
    name, config = str(node.value["name"].value), None
    settings = Node({key: child for key, child in node.value.items() if key not in own}, node.where)
    before = len(problems)
    try:
        config = settings_of(kind, name, settings, path, problems, own)
    except UserError as error:
        problems += placed(error, node.value["name"].where)
        name = ""
    for problem in problems[before:]:
        _name_owner(problem, kind, path, settings)
    terms = {key: child for key, child in node.value.items() if key in own} | {"name": Node(name, node.where)}
    chosen = build(cls, Node(terms, node.where), path, problems)
    if chosen is not None:
        chosen.config = config
    return chosen


def _name_owner(problem: Problem, kind: str, path: str, settings: Node) -> None:
    """Of a key that the chosen plugin does not have: say which other one has it."""
    for key in settings.value:
        if problem.what == f"unknown key {_join(path, key)!r}" and (others := owners(kind, key)):
            problem.fix = f"it is a setting of {' and '.join(map(repr, others))}, another of the {kind}"


def settings_of(
    kind: str, name: str, node: Node, path: str, problems: list[Problem], reserved: Set[str] = frozenset()
) -> Any:
    """The `Config` of a plugin; `UserError` for one that does not exist or fails on its own.

    reserved: keys of the entry itself, which no setting may be called.
    """
    plugin = registry.get(kind, name)
    with guest(kind.removesuffix("s"), name, plugin):
        config = getattr(plugin, "Config", NoSettings) if kind == "rewards" else plugin.Config
        if taken := sorted(reserved & {spec.name for spec in fields(config)}):
            raise PluginError(
                f"the settings of {name!r} among {kind} have the names of keys of the section: {', '.join(taken)}",
                where=f"{config.__module__}:{config.__qualname__}",
                why=f"every entry has {', '.join(sorted(reserved))} of its own",
                fix="rename the setting in the plugin's Config",
            )
        return build(config, node, path, problems)


def mix(kind: str, cls: type[C], node: Node, path: str, problems: list[Problem]) -> dict[str, C]:
    """A section of labels, each with the fields of `cls` and the plugin's own settings.

    ``name`` is the label if left out; cls: `Part` for objectives, `RewardChoice` for rewards.
    """
    if not isinstance(node.value, dict) or (not node.value and cls is Part):
        problems.append(Problem(f"{path} must be a mapping of labels to {kind}, not {node.plain()!r}", node.where))
        return {}
    parts = {}
    for label, entry in node.value.items():
        if entry.value is not None and not isinstance(entry.value, dict):
            what = f"{path}.{label} must be a mapping, not {entry.plain()!r}"
            problems.append(Problem(what, entry.where, fix=f"write {label}: {{SETTING: VALUE}}, or {label}: {{}}"))
            continue
        named = entry.value or {}
        whole = Node({"name": Node(label, entry.where)} | named, entry.where)
        part = choose(kind, whole, f"{path}.{label}", problems, cls=cls)
        if part is not None:
            parts[label] = part
    return parts


def placed(error: UserError, where: str) -> list[Problem]:
    """The problems of an error, blamed on the place `where` in a recipe."""
    return [Problem(p.what, f"{where} ({p.where})" if p.where else where, p.why, p.fix) for p in error.problems]


def unknown_key(path: str, where: str, known: Any, hints: dict[str, Any] | None = None) -> Problem:
    """The problem of a key that its section does not have; with its `hints`, a value for a key is recognised too."""
    key = path.rpartition(".")[2]
    close, meant = nearest(key, known), _value_like(key, hints or {})
    fix = f"known: {', '.join(known)}" if known else "it takes no settings"
    if place := MOVED.get((path.rpartition(".")[0], key)):
        fix = f"it moved to {place}"
    elif close or meant:
        fix = f"did you mean {close!r}?" if close else f"did you mean `{meant}`?"
    return Problem(f"unknown key {path!r}", where, fix=f"{fix} (see docs/recipes.md)")


def _value_like(key: str, hints: dict[str, Any]) -> str:
    """The setting `name: value` whose value, one of a few words, is most like `key`; '' when none is close."""
    for name, hint in hints.items():
        if get_origin(hint) is Literal and (close := nearest(key, map(str, get_args(hint)))):
            return f"{name}: {close}"
    return ""


@cache
def _schema(hint: Any) -> Any:
    """What OmegaConf lays a value of one type over; `merge` copies it."""
    return OmegaConf.structured(make_dataclass("Leaf", [("value", hint, omegaconf.MISSING)]))


def _leaf(hint: Any, node: Node, path: str, problems: list[Problem]) -> Any:
    schema, whole = _schema(hint), hint
    plain = node.plain()
    if get_origin(hint) in (Union, types.UnionType):  # a mapping was taken before
        hint = Union[tuple(option for option in get_args(hint) if get_origin(option) is not dict)]  # noqa: UP007
    try:
        merged = OmegaConf.merge(schema, {"value": plain})
        value = OmegaConf.to_object(merged).value  # type: ignore[union-attr]
    except OmegaConfBaseException:
        options = [option for option in get_args(_without_none(hint)) if isinstance(option, str)]
        close = nearest(str(plain), options)
        fix = (
            f"did you mean {close!r}?"
            if close
            else "`vidalign show RECIPE --explain` says what it means, see docs/recipes.md"
        )
        what = f"{path} must be {_say(whole)}, not {plain!r} ({type(plain).__name__})"
        problems.append(Problem(what, node.where, fix=fix))
        return WRONG
    numbers = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        problems.append(Problem(f"{path} must be a finite number, not {plain!r}", node.where))
        return WRONG
    return value


def _construct(cls: type[T], values: dict[str, Any], node: Node, path: str, problems: list[Problem]) -> T | None:
    try:
        return cls(**values)
    except UserError as error:
        for problem in error.problems:
            where = node.locate(problem.where.rpartition(".")[2])
            problems.append(Problem(f"{path}: {problem.what}".removeprefix(": "), where, problem.why, problem.fix))
    except ValueError as error:
        field = str(error).split(" ", 1)[0]
        what = _join(path, str(error)) if field in values else f"{path}: {error}".removeprefix(": ")
        problems.append(Problem(what, node.locate(field)))
    return None


def _required(spec: Field[Any]) -> bool:
    return spec.default is MISSING and spec.default_factory is MISSING


def _default(spec: Field[Any]) -> Any:
    """What stands in a field that is not written; None when the field is required."""
    if spec.default_factory is not MISSING:
        return spec.default_factory()
    return None if spec.default is MISSING else spec.default


def _without_none(hint: Any) -> Any:
    """`X` of `X | None`; any other hint as it is."""
    if get_origin(hint) not in (Union, types.UnionType) or type(None) not in get_args(hint):
        return hint
    rest = [option for option in get_args(hint) if option is not type(None)]
    return rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007


def _say(hint: Any) -> str:
    """A type in words."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is type(None):
        return "null"
    if origin in (Union, types.UnionType):
        return " or ".join(_say(option) for option in args)
    if origin is Literal:
        return "one of " + ", ".join(repr(option) for option in args)
    if origin is list:
        return f"list of {_say(args[0])}"
    if origin is dict:
        return f"mapping to {args[1].__name__}" if isinstance(args[1], type) else "mapping"
    if origin is tuple:
        return f"list of {len(args)} values ({', '.join(_say(option) for option in args)})"
    return "mapping" if is_dataclass(hint) else getattr(hint, "__name__", str(hint))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
