"""Can the prompts of a recipe be read, shown by its student and scored by its rewards?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

from vidalign import registry
from vidalign.data import graders
from vidalign.data.source import Chosen, check_gives, find_source, listed, placed, spelled_out
from vidalign.errors import Problem, UserError
from vidalign.guest import guest
from vidalign.recipe.draft import Draft
from vidalign.recipe.needs import Needs
from vidalign.recipe.plugins import as_node
from vidalign.recipe.schema import Choice, Sections
from vidalign.recipe.source_map import Node
from vidalign.recipe.typed import settings_of, unknown_key


def check_prompts(draft: Draft) -> None:
    """The sources exist and have prompts for the student; a reward can score every training prompt."""
    before = len(draft.problems)
    _shared(draft)
    for path, source in sources(draft).items():
        try:
            if not isinstance(source, str):
                _settings(draft, source, path)
            _listed(draft, source)
        except UserError as error:
            for problem in error.problems:
                problem.fix = problem.fix.replace("the path", path)
            draft.refuse_as(error, path)
    if len(draft.problems) == before:
        _scored(draft)
        _privileged(draft)
        _judged(draft)


def _shared(draft: Draft) -> None:
    """The settings of all sources change one of them, and the grader exists and has its settings."""
    recipe = draft.recipe
    _grader(draft, recipe.data.grader, "data.grader")
    for key in ("columns", "grader"):
        if not getattr(recipe.data, key):
            continue
        with suppress(UserError):  # reported with the sources
            meant = [spelled_out(recipe.prompts_of(source))[1] for source in sources(draft).values()]
            if all(settings.get(key) != getattr(recipe.data, key) for settings in meant):
                why = "no source of prompts has such a setting, or each gives its own"
                draft.refuse(f"data.{key} has no effect", f"data.{key}", why, "delete it")


def _grader(draft: Draft, chosen: Any, path: str) -> None:
    """A grader with its settings; `UserError` where it cannot be made, for want of a package."""
    if not chosen:
        return
    name, settings = graders.spelled_out(chosen)
    before = len(draft.problems)
    try:
        settings_of("graders", name, as_node(settings, draft.tree.locate(path)), path, draft.problems)
        if len(draft.problems) == before:
            graders.make_grader(chosen)
    except UserError as error:
        draft.refuse_as(error, path)


def _settings(draft: Draft, source: dict[str, Any], path: str) -> None:
    """The source exists and has these settings; `UserError` for one that does not exist."""
    section, _, key = path.partition(".")
    node = draft.tree.value[section].value[key]
    name, given = spelled_out(draft.recipe.prompts_of(source))
    kind = registry.get("prompts", name)
    if hasattr(kind, "Config"):
        settings = Node({key: child for key, child in node.value.items() if key != "name"}, node.where)
        settings_of("prompts", name, settings, path, draft.problems)
        _grader(draft, given.get("grader", "") if "grader" in node.value else "", f"{path}.grader")
        return
    for unknown in given.keys() - {kind.argument}:
        problem = unknown_key(f"{path}.{unknown}", node.value[unknown].where, [kind.argument])
        draft.problems.append(problem)


def listed_prompts(draft: Draft) -> Iterator[tuple[str, Chosen, list[str]]]:
    """(key, source, prompts) of every source of prompts that can be listed."""
    for path, source in sources(draft).items():
        with suppress(UserError):  # reported by `check_prompts`
            yield path, source, _listed(draft, source)


def unscored(rewards: dict[str, Any], prompts: Iterator[tuple[str, Any]]) -> Problem | None:
    """The problem of the first (place, prompt) that none of the rewards can score; rewards that say nothing score all.

    See `Reward` for ``can_score``.
    """
    if not rewards or not all(hasattr(kind, "can_score") for kind in rewards.values()):
        return None
    for place, prompt in prompts:
        if not any(_can_score(name, kind, prompt) for name, kind in rewards.items()):
            why = f"{' and '.join(rewards)} have no answer for it: {str(getattr(prompt, 'prompt', prompt))[:60]!r}"
            fix = "leave it out, or add a reward that can, see docs/rewards.md"
            return Problem("no reward of the recipe can score a prompt", place, why, fix)
    return None


def _can_score(name: str, kind: Any, prompt: Any) -> bool:
    with guest("reward", name, kind):
        return bool(kind.can_score(prompt))


def weights_of_rewards(objective: Choice, recipe: Sections) -> dict[str, float]:
    """Weights of the rewards that judge for an objective: its own of a mixture, or the recipe's."""
    own: dict[str, float] | None = getattr(objective, "rewards", None)
    return recipe.reward_weights if own is None else own


def weighted(objective: Choice, recipe: Sections) -> dict[str, Any]:
    """The rewards that an objective trains on; those of weight 0 are logged."""
    chosen = weights_of_rewards(objective, recipe)
    kinds = {name: choice.name for name, choice in recipe.rewards.items()}
    return {name: registry.get("rewards", kinds.get(name, name)) for name, weight in chosen.items() if weight}


def _scored(draft: Draft) -> None:
    """A reward can score every training prompt; the examples of a hub are not read."""
    try:
        rewards = weighted(draft.recipe.objective, draft.recipe)
    except UserError:
        return  # reported with the rewards
    try:
        problem = unscored(rewards, placed(draft.recipe.training_prompts))
    except UserError as error:
        draft.refuse_as(error, "data.prompts")
        return
    if problem is not None:
        problem.where = f"{draft.tree.locate('data.prompts')} ({problem.where})"
        draft.problems.append(problem)


def _privileged(draft: Draft) -> None:
    """Report examples that can be read and of which none has the privileged text that an objective learns from."""
    recipe = draft.recipe
    chosen = recipe.objectives.values() or [recipe.objective]
    named = [one.name for one in chosen if getattr(one.config, "privilege", "") != "none"]
    with suppress(UserError):  # reported with the objective and the prompts
        asking = [name for name in named if getattr(registry.get("objectives", name), "needs", Needs()).privileged]
        if not asking:
            return
        texts = (getattr(example, "privileged", "") for _, example in placed(recipe.training_prompts))
        if next(texts, None) == "" and not any(texts):
            what = f"no example has the privileged text that {' and '.join(asking)} learns from"
            fix = "name its column: data.columns={privileged: NAME}"
            draft.warnings.append(Problem(what, draft.tree.locate("data.prompts"), fix=fix))


def _judged(draft: Draft) -> None:
    """The metrics of the evaluation exist and fit the student; at least one judges the held-out prompts."""
    recipe, settings = draft.recipe, draft.recipe.evaluation
    metrics = find_source(recipe.judged_prompts)[0].judges if settings.metrics is None else settings.metrics
    makes = getattr(registry.get("students", recipe.student.name), "makes", "clips")
    for name, values in metrics.items():
        path = f"evaluation.metrics.{name}"
        try:
            node = as_node(dict(values or {}), draft.tree.locate(path))
            settings_of("metrics", name, node, path, draft.problems)
            judges = registry.get("metrics", name).judges
        except UserError as error:
            draft.refuse_as(error, path)
            continue
        if judges not in ("clips", "answers"):
            draft.refuse(f"the metric {name!r} is for benchmarks", path, f"it judges {judges}", "name it in a protocol")
        elif (judges == "answers") != (makes == "texts"):
            draft.refuse(
                f"the metric {name!r} cannot judge a {recipe.student.name} student",
                path,
                f"it judges {judges}",
                "delete it",
            )
    if not metrics and not recipe.rewards and "rewards" not in draft.broken:
        what = "nothing judges the evaluation prompts: what the student makes of them is shown unjudged"
        where = draft.tree.locate("evaluation.prompts" if settings.prompts else "data.eval_prompts")
        draft.warnings.append(Problem(what, where, fix="name evaluation.metrics, or rewards"))
    trained = {choice.name for choice in recipe.rewards.values() if choice.weight}
    held_out = [name for name in metrics if not same_judge(name, trained)]
    if trained and _learns_from_rewards(draft) and not held_out and draft.sound("evaluation"):
        what = "every judge of the evaluation is a reward that is trained on: nothing held out can show reward hacking"
        where, fix = draft.tree.locate("evaluation.metrics"), "name another one in evaluation.metrics"
        draft.warnings.append(Problem(what, where, fix=fix))


def same_judge(metric: str, rewards: Collection[str]) -> bool:
    """Whether a metric is one of these rewards, all by the names of their plugins."""
    try:
        reward = getattr(registry.get("metrics", metric), "reward", None)
    except UserError:  # reported where it is named
        return False
    return getattr(reward, "name", metric) in rewards


def _learns_from_rewards(draft: Draft) -> bool:
    """Whether the objective is driven by rewards; False where that cannot be said."""
    try:
        return bool(registry.get("objectives", draft.recipe.objective.name).needs.rewards)
    except (UserError, AttributeError):
        return False


def sources(draft: Draft) -> dict[str, Chosen]:
    """The sources of prompts by the key that names each."""
    recipe = draft.recipe
    always: dict[str, Chosen] = {"data.prompts": recipe.data.prompts, "data.eval_prompts": recipe.data.eval_prompts}
    return always | ({"evaluation.prompts": recipe.evaluation.prompts} if recipe.evaluation.prompts else {})


def _listed(draft: Draft, source: Chosen) -> list[str]:
    """The prompts of a source, none where they cannot be listed without cost; `UserError` for a wrong source."""
    name = draft.recipe.student.name
    meant = draft.recipe.prompts_of(source)
    check_gives(meant, name, getattr(registry.get("students", name), "asked", "captions"))
    return listed(meant) or []
