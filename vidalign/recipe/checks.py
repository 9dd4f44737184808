"""Do the parts of a recipe fit together? Every question that can be answered without loading weights.

Each check appends to `problems` (the run is refused) or to `warnings` (it is not). A check that asks whether
something was left out keeps silent about sections that already hold a mistake.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from vidalign import registry
from vidalign.asked import needs_rate, without_rate
from vidalign.engine.config import INSTALL, MISSING
from vidalign.errors import Problem, UserError
from vidalign.guest import guest
from vidalign.recipe.draft import Draft
from vidalign.recipe.prompts import check_prompts, weights_of_rewards
from vidalign.recipe.schema import Choice, Sections
from vidalign.recipe.source_map import Node


def check(recipe: Sections, tree: Node, broken: set[str], problems: list[Problem]) -> list[Problem]:
    """Run every check; returns the warnings."""
    draft = Draft(recipe, tree, broken, problems, [])
    checks: list[Callable[[Draft], None]] = [
        _objective,
        _own("objectives"),
        _rewards,
        _own("rewards"),
        _own("discriminators"),
        _own("teachers"),
        _teacher,
        _student,
        _own("students"),
        _own("callbacks"),
        _optimizer,
        _engine,
        check_prompts,
        _fit,
    ]
    for view in _views(draft):
        for one in checks:
            one(view)
    _mixture(draft)
    return draft.warnings


def _views(draft: Draft) -> list[Draft]:
    """The recipe as each of its objectives sees it; mistakes that several see are reported once."""
    recipe, written = draft.recipe, draft.tree.value.get("objectives")
    if written is None:
        return [draft]
    views = []
    for label, part in recipe.objectives.items():
        tree = Node({**draft.tree.value, "objective": written.value[label]}, draft.tree.where)
        views.append(replace(draft, recipe=replace(recipe, objective=part), tree=tree))
    return views or [replace(draft, recipe=replace(recipe, objective=Choice("")))]


def _mixture(draft: Draft) -> None:
    """The rewards of every objective are built, and no step is left without an objective."""
    parts, rewards = draft.recipe.objectives, draft.recipe.rewards
    for label, part in parts.items():
        for name in part.rewards or {}:
            if name not in rewards and draft.sound("rewards"):
                known = ", ".join(rewards) or "none"
                fix = f"add it to the section rewards, which names {known}"
                draft.refuse(
                    f"{label!r} uses a reward {name!r} that the recipe does not name",
                    f"objectives.{label}.rewards.{name}",
                    fix=fix,
                )
    if not parts or {"objectives", "trainer"} & draft.broken:
        return
    steps = range(draft.recipe.trainer.steps)
    idle = [k for k in steps if not any(p.start <= k and (p.stop is None or k < p.stop) for p in parts.values())]
    if idle:
        draft.refuse(
            f"no objective takes part in step {idle[0]}",
            "objectives",
            f"{len(idle)} of {len(steps)} steps have nothing to train on",
            "change start or stop",
        )


def _objective(draft: Draft) -> None:
    needs, objective = draft.needs, draft.recipe.objective
    if needs is None:
        return
    kind = draft.recipe.student.name
    if kind not in registry.names("students"):
        known = registry.names("students")
        draft.refuse(f"there is no kind of student {kind!r}", "student.name", fix=f"known: {', '.join(known)}")
    elif kind not in needs.students:
        why = f"it trains students of kind {', '.join(needs.students)}"
        draft.refuse(f"the objective {objective.name!r} does not support the student {kind!r}", "student.name", why)
    group = getattr(objective.config, "group_size", None)
    if isinstance(group, int) and group < needs.min_group:
        why = "the candidates of one prompt are compared with each other" if group == 1 else ""
        fix = f"use {needs.min_group} or more, see docs/methods/index.md"
        draft.refuse(f"a group size of {group} is too small for {objective.name!r}", "objective.group_size", why, fix)


def _fit(draft: Draft) -> None:
    """The objective's settings fit the video, the sampler and the rewards; checked when nothing else is wrong."""
    chosen = draft.recipe.objective
    if draft.problems or chosen.config is None:
        return
    kind = registry.get("objectives", chosen.name)
    if hasattr(kind, "check_fit"):
        with guest("objective", chosen.name, kind):
            kind.check_fit(draft)


def _rewards(draft: Draft) -> None:
    rewards, needs = draft.recipe.rewards, draft.needs
    makes = getattr(_plugin(draft, "students", draft.recipe.student.name), "makes", "")
    for name, choice in rewards.items():
        if not choice.name:
            continue  # reported where it was read
        path, kind = f"rewards.{name}", _plugin(draft, "rewards", choice.name, f"rewards.{name}")
        judges = getattr(kind, "judges", "")
        if judges and makes and judges != makes:
            draft.refuse(f"the reward {name!r} cannot judge {makes}", path, f"it judges {judges}", "delete it")
        elif needs_rate(kind) and not _has_rate(draft):
            draft.refuse_as(without_rate("reward", name), path)
        if hasattr(kind, "role") and choice.name != name:  # what learns has one network, one section, one checkpoint
            why = "a reward that learns has one network, which is saved under the name of its plugin"
            draft.refuse(f"{choice.name!r} has another key, {name!r}", path, why, f"call it {choice.name}")
    if needs is None or not needs.rewards or not draft.sound("rewards"):
        return
    objective = draft.recipe.objective
    if not rewards:
        known, why = ", ".join(registry.names("rewards")), f"{objective.name!r} needs one"
        draft.refuse("there are no rewards", "objective.name", why, f"known: {known}")
    elif not any(weights_of_rewards(objective, draft.recipe).values()):
        why = f"{objective.name!r} trains on their weighted sum"
        draft.refuse("no reward has a weight", "rewards", why, "give one a weight other than 0")


def _has_rate(draft: Draft) -> bool:
    """Whether the kind of student says how many frames its clips have in a second, as far as its class shows it."""
    spec = getattr(_plugin(draft, "students", draft.recipe.student.name), "spec_type", None)
    return spec is None or not is_dataclass(spec) or any(field.name == "fps" for field in fields(spec))


def _teacher(draft: Draft) -> None:
    """There is a teacher where one is needed, and it offers what the objective and the rewards learn from."""
    teacher, needs, objective = draft.recipe.teacher, draft.needs, draft.recipe.objective.name
    if teacher is None:
        if needs is not None and needs.teacher and draft.sound("teacher"):
            why = f"{objective!r} needs one that offers {needs.teacher}"
            draft.refuse("there is no teacher", "teacher", why, "add teacher: {name: ...}, see docs/teachers.md")
        return
    offers = getattr(_plugin(draft, "teachers", teacher.name), "offers", None)
    if offers is None:
        return  # reported where it was read
    required = {needs.teacher: repr(objective)} if needs is not None and needs.teacher else {}
    for name, choice in draft.recipe.rewards.items():
        if offer := getattr(_plugin(draft, "rewards", choice.name), "teacher_offers", ""):
            required.setdefault(offer, f"the {name}")
    for offer, who in required.items():
        if offer not in offers:
            why = f"{who} needs {offer}, this one offers {', '.join(offers)}"
            draft.refuse(f"the teacher {teacher.name!r} does not fit", "teacher.name", why)


def _student(draft: Draft) -> None:
    student = draft.recipe.student
    if student.path and student.init:
        why = "the weights come from one of them"
        draft.refuse("student has both path and init", "student.init", why, "delete one")
    elif not student.path and not student.init and draft.sound("student"):
        fix = "give student.path (weights) or student.init (random)"
        draft.refuse("there is no student", "student", fix=fix)


def _optimizer(draft: Draft) -> None:
    if draft.recipe.trainer.optimizer == "muon" and draft.recipe.engine.name == "deepspeed":
        why = "it needs whole matrices, and ZeRO divides the weights into flat pieces"
        draft.refuse("muon does not run on DeepSpeed", "trainer.optimizer", why, "use adamw, or engine.name: plain")


def _engine(draft: Draft) -> None:
    """A recipe is also checked on machines that it does not run on."""
    if draft.recipe.engine.name == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        where = draft.tree.locate("engine.name")
        draft.warnings.append(Problem(MISSING, where, "it is not installed here", INSTALL))


def _own(kind: str) -> Callable[[Draft], None]:
    """The checks that plugins of a kind bring along: a class method or function ``check(draft)``."""

    def run(draft: Draft) -> None:
        for path, name in _chosen(draft, kind):
            plugin = _plugin(draft, kind, name)
            if plugin is None or not hasattr(plugin, "check"):
                continue
            try:
                with guest(kind.removesuffix("s"), name, plugin):
                    plugin.check(draft)
            except UserError as error:
                draft.refuse_as(error, path)

    return run


def _chosen(draft: Draft, kind: str) -> Iterator[tuple[str, str]]:
    """(key, name) of the plugins of a kind that the recipe chooses."""
    recipe = draft.recipe
    if kind == "rewards":
        yield from ((f"rewards.{name}", choice.name) for name, choice in recipe.rewards.items() if choice.name)
        return
    if kind == "callbacks":
        labelled: dict[str, Choice] = getattr(recipe, kind, {})
        yield from ((f"{kind}.{label}", choice.name) for label, choice in labelled.items() if choice.name)
        return
    section = kind.removesuffix("s")
    chosen = getattr(recipe, section)
    if chosen is not None and chosen.name:
        yield f"{section}.name", chosen.name


def _plugin(draft: Draft, kind: str, name: str, path: str = "") -> Any:
    """A plugin, or None where there is none; with a `path`, the reason why it cannot be imported is reported there."""
    try:
        return registry.get(kind, name)
    except UserError as error:
        if path:
            draft.refuse_as(error, path)
        return None
