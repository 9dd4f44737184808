"""Do the parts of a recipe fit together? Every question that can be answered without loading weights.

Each check appends to `problems` (the run is refused) or to `warnings` (it is not). A check that asks whether
something was left out keeps silent about sections that already hold a mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vidalign import registry
from vidalign.errors import Problem, UserError
from vidalign.guest import guest
from vidalign.reading import parse_json
from vidalign.recipe.draft import LANGUAGE, Draft, student_spec
from vidalign.recipe.marks import Node
from vidalign.recipe.prompts import check_prompts, read_source
from vidalign.recipe.schema import Choice, Sections
from vidalign.recipe.typed import build, unknown_key

if TYPE_CHECKING:
    from vidalign.students.video import Sampler

NETWORKS = ("model", "few_step", LANGUAGE)
"""Teachers that are a network with weights."""


def check(recipe: Sections, tree: Node, broken: set[str], problems: list[Problem]) -> list[Problem]:
    """Run every check; returns the warnings."""
    draft = Draft(recipe, tree, broken, problems, [])
    checks: list[Callable[[Draft], None]] = [
        _objective, _rewards, _discriminator, _teacher, _student, _frames, _adapter, _optimizer, check_prompts,
        _settings,
    ]  # fmt: skip
    for view in _views(draft):
        for one in checks:
            one(view)
    _mixture(draft)
    return draft.warnings


def _views(draft: Draft) -> list[Draft]:
    """The recipe as each of its objectives sees it; mistakes that several see are told once."""
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
            if name not in rewards and "rewards" not in draft.broken:
                known = ", ".join(rewards) or "none"
                fix = f"add it to the section rewards, which names {known}"
                draft.refuse(f"{label!r} uses a reward {name!r} that the recipe does not name",
                             f"objectives.{label}.rewards.{name}", fix=fix)  # fmt: skip
    if not parts or {"objectives", "trainer"} & draft.broken:
        return
    steps = range(draft.recipe.trainer.steps)
    idle = [k for k in steps if not any(p.start <= k and (p.stop is None or k < p.stop) for p in parts.values())]
    if idle:
        draft.refuse(f"no objective takes part in step {idle[0]}", "objectives",
                     f"{len(idle)} of {len(steps)} steps have nothing to train on", "change start or stop")  # fmt: skip


def _objective(draft: Draft) -> None:
    needs, objective = draft.needs, draft.recipe.objective
    if needs is None:
        return
    kind = draft.recipe.student.name
    if kind not in registry.names("students"):
        known = registry.names("students")
        draft.refuse(
            f"there is no kind of student {kind!r}", "student.name", fix=f"known: {', '.join(known)}"
        )
    elif kind not in needs.students:
        why = f"it trains students of kind {', '.join(needs.students)}"
        draft.refuse(
            f"the objective {objective.name!r} does not support the student {kind!r}", "student.name", why
        )
    group = getattr(objective.config, "group_size", None)
    if isinstance(group, int) and group < needs.min_group:
        why = "the candidates of one prompt are compared with each other" if group == 1 else ""
        fix = f"use {needs.min_group} or more"
        draft.refuse(
            f"a group size of {group} is too small for {objective.name!r}", "objective.group_size", why, fix
        )


def _settings(draft: Draft) -> None:
    """The objective's own check: its settings fit the video, the sampler and the rewards."""
    from vidalign.objectives.base import Around, Objective

    recipe, chosen = draft.recipe, draft.recipe.objective
    if draft.problems or chosen.config is None:
        return
    spec = student_spec(recipe.student)
    chunk = ((spec or {}).get("cache") or {}) | (recipe.student.cache or {})
    sampler = None if spec is None else _sampler(spec)
    chunks = 0 if spec is None else recipe.data.frames // chunk.get("chunk_frames", 3)
    kind, rewards = registry.get("objectives", chosen.name), getattr(chosen, "rewards", None) or recipe.rewards
    if getattr(kind, "check", Objective.check) is Objective.check:
        return
    try:
        with guest("objective", chosen.name, kind):
            kind(chosen.config).check(Around(chunks, tuple(rewards), sampler))
    except UserError as error:
        for problem in error.problems:
            draft.refuse(problem.what, problem.where, problem.why, problem.fix)


def _sampler(spec: dict[str, Any]) -> Sampler | None:
    """The sampler of a student's specification; None where what builds the student will refuse it."""
    from vidalign.students.video.spec import Sampler, VideoStudentSpec

    try:
        return Sampler(**spec["sampler"]) if "sampler" in spec else VideoStudentSpec().sampler
    except (TypeError, ValueError, UserError):
        return None


def _rewards(draft: Draft) -> None:
    rewards, needs = draft.recipe.rewards, draft.needs
    for name in rewards:
        try:
            judges = getattr(registry.get("rewards", name), "judges", None)
        except UserError as error:
            draft.pass_on(error, f"rewards.{name}")
            continue
        made = {"video": "clips", LANGUAGE: "texts"}.get(draft.recipe.student.name)
        if judges and made and judges != made:
            what = f"the reward {name!r} cannot judge {made}"
            draft.refuse(what, f"rewards.{name}", f"it judges {judges}", "delete it")
    if needs is not None and needs.rewards and not rewards and "rewards" not in draft.broken:
        known = ", ".join(registry.names("rewards"))
        draft.refuse(
            "there are no rewards",
            "objective.name",
            f"{draft.recipe.objective.name!r} needs one",
            f"known: {known}",
        )


def _discriminator(draft: Draft) -> None:
    """The reward `discriminator`, its section and the teacher's clips go together."""
    recipe, needs = draft.recipe, draft.needs
    named, section = "discriminator" in recipe.rewards, recipe.discriminator
    if needs is not None and needs.discriminator and not named and "rewards" not in draft.broken:
        fix = "add rewards: {discriminator: 1.0}"
        why = f"{recipe.objective.name!r} needs it"
        draft.refuse("the discriminator is not among the rewards", "rewards", why, fix)
    elif named and section is None and "discriminator" not in draft.broken:
        known = ", ".join(registry.names("discriminators"))
        why = "the reward `discriminator` has no network"
        draft.refuse("there is no discriminator", "rewards.discriminator", why, f"add discriminator: {{name: {known}}}")
    elif section is not None and not named and "rewards" not in draft.broken:
        fix = "add rewards: {discriminator: 1.0}, or delete the section"
        draft.refuse("the discriminator is not among the rewards", "discriminator", "nothing would train it", fix)
    own = getattr(recipe.objective, "rewards", None)  # an objective of a mixture may choose among the rewards
    clip = getattr(recipe.objective.config, "clip", None)
    if named and (own is None or "discriminator" in own) and getattr(clip, "score", "video") == "clip":
        why = "it compares videos from their first frame on"
        fix = "use clip: {score: video}"
        draft.refuse("the discriminator cannot judge a clip without its history", "objective.clip.score", why, fix)
    if named and recipe.teacher is None and "teacher" not in draft.broken:
        why = "the discriminator needs one that offers clips"
        draft.refuse("there is no teacher", "teacher", why, "add teacher: {name: world}, or another that offers clips")


def _teacher(draft: Draft) -> None:
    teacher, needs, objective = draft.recipe.teacher, draft.needs, draft.recipe.objective.name
    if teacher is None:
        if needs is not None and needs.teacher and "teacher" not in draft.broken:
            why = f"{objective!r} needs one that offers {needs.teacher}"
            draft.refuse("there is no teacher", "teacher", why, "add teacher: {name: ...}")
        return
    if teacher.name in NETWORKS and teacher.path:
        _weights_file(draft, teacher.path, "teacher.path")
    elif teacher.name in NETWORKS and "teacher" not in draft.broken:
        draft.refuse("the teacher has no weights", "teacher", "it is a network", "give teacher.path")
    wanted_keys = {"store": {"path": "its clips"}, "pipeline": {"path": "its weights", "cache": "where clips are kept"}}
    for key, meaning in wanted_keys.get(teacher.name, {}).items():
        if not getattr(teacher, key) and "teacher" not in draft.broken:
            draft.refuse(f"the teacher has no {key}", "teacher", f"it names {meaning}", f"give teacher.{key}")
    if teacher.name == "store" and teacher.path:
        _store(draft, teacher.path)
    try:
        offers = registry.get("teachers", teacher.name).offers
    except UserError as error:
        draft.pass_on(error, "teacher.name")
        return
    wanted = {needs.teacher: repr(objective)} if needs is not None and needs.teacher else {}
    if "discriminator" in draft.recipe.rewards:
        wanted.setdefault("clips", "the discriminator")
    for offer, who in wanted.items():
        if offer not in offers:
            why = f"{who} needs {offer}, this one offers {', '.join(offers)}"
            draft.refuse(f"the teacher {teacher.name!r} does not fit", "teacher.name", why)


def _store(draft: Draft, path: str) -> None:
    """The store can be listed and has a clip for every training prompt; nothing is decoded."""
    from vidalign.teachers.store import index_clips

    try:
        known = {entry.prompt for entry in index_clips(Path(path))}
        wanted = read_source(draft.recipe.data.prompts)
    except UserError as error:
        draft.pass_on(error, "teacher.path")
        return
    missing = [prompt for prompt in wanted if prompt not in known]
    if missing:
        shown = ", ".join(repr(prompt) for prompt in missing[:3]) + (", ..." if len(missing) > 3 else "")
        why = f"{len(missing)} of {len(wanted)} training prompts: {shown}"
        draft.refuse("the teacher's store lacks clips", "teacher.path", why, "train on prompts that have clips")


def _student(draft: Draft) -> None:
    student = draft.recipe.student
    if student.path and student.init:
        draft.refuse(
            "student has both path and init",
            "student.init",
            "the weights come from one of them",
            "delete one",
        )
    elif student.path:
        _weights_file(draft, student.path, "student.path")
    elif not student.init and "student" not in draft.broken:
        draft.refuse(
            "there is no student", "student", fix="give student.path (weights) or student.init (random)"
        )
    if student.init and student.name == "video":
        from vidalign.students.video import VideoStudentSpec

        written = draft.tree.value["student"].value["init"]
        build(VideoStudentSpec, written, "student.init", draft.problems)
        _transformer(draft, written)
    if student.init and student.name == LANGUAGE:
        from vidalign.students.language_config import LanguageSpec

        build(LanguageSpec, draft.tree.value["student"].value["init"], "student.init", draft.problems)
    if student.cache and student.name == LANGUAGE:
        draft.refuse("a language student has no cache policy", "student.cache", "it is for videos", "delete it")
    if student.cache and student.name == "video":
        _cache(draft, draft.tree.value["student"].value["cache"])


def _transformer(draft: Draft, init: Node) -> None:
    """The network's configuration has no misspelt key."""
    from vidalign.students.video.wan import SETTINGS

    settings = init.value.get("transformer") if isinstance(init.value, dict) else None
    for key, node in settings.value.items() if settings is not None and isinstance(settings.value, dict) else ():
        if key not in SETTINGS:
            draft.problems.append(unknown_key(f"student.init.transformer.{key}", node.where, SETTINGS))


def _cache(draft: Draft, changes: Node) -> None:
    """The student's cache policy with its changes is a possible one."""
    from vidalign.students.video import CachePolicy

    own = (student_spec(draft.recipe.student) or {}).get("cache")
    own = own if isinstance(own, dict) else {}  # an `init` that is wrong has been refused already
    policy = {key: Node(value, changes.where) for key, value in own.items()} | changes.value
    build(CachePolicy, Node(policy, changes.where), "student.cache", draft.problems)


def _frames(draft: Draft) -> None:
    """The lengths of videos are whole chunks of the student."""
    recipe, spec = draft.recipe, student_spec(draft.recipe.student)
    if spec is None or "student" in draft.broken:
        return
    own = spec.get("cache")
    policy = (own if isinstance(own, dict) else {}) | (recipe.student.cache or {})
    chunk = policy.get("chunk_frames", 3)
    if not isinstance(chunk, int) or chunk < 1:
        return  # told as a mistake of the cache policy
    lengths = {"data.frames": recipe.data.frames}
    if recipe.evaluation.sampler == "causal":
        lengths["evaluation.frames"] = recipe.evaluation.frames
    for key, frames in lengths.items():
        if frames % chunk:
            draft.refuse(f"a video of {frames} frames is not whole chunks", key,
                         f"the student makes chunks of {chunk}", f"use a multiple of {chunk}")  # fmt: skip


def _adapter(draft: Draft) -> None:
    """Every adapter pattern matches a layer of the network, which is not built for that."""
    from vidalign.engine.policies import match_targets

    adapter = draft.recipe.student.adapter
    if adapter is None or adapter.targets == "blocks":
        return
    layers = _linear_layers(draft)
    for pattern in [adapter.targets] if isinstance(adapter.targets, str) else adapter.targets:
        try:
            match_targets(layers or [pattern], [pattern])
        except UserError as error:
            draft.pass_on(error, "student.adapter.targets")


def _optimizer(draft: Draft) -> None:
    if draft.recipe.trainer.learning_rate < 0:
        draft.refuse("the learning rate is negative", "trainer.learning_rate", "the loss would rise", "use 0 or more")
    if draft.recipe.trainer.optimizer == "muon" and draft.recipe.engine.name == "deepspeed":
        why = "it needs whole matrices, and ZeRO divides the weights into flat pieces"
        draft.refuse("muon does not run on DeepSpeed", "trainer.optimizer", why, "use adamw, or engine.name: plain")


def _linear_layers(draft: Draft) -> list[str]:
    """Names of the student's linear layers; none when its specification is unknown or wrong."""
    spec = student_spec(draft.recipe.student)
    if spec is None:
        return []
    from vidalign.students.video.wan import linear_layers

    settings = spec.get("transformer", {})
    try:
        return [f"transformer.{name}" for name in linear_layers(settings)]
    except (AttributeError, TypeError, ValueError) as error:
        draft.refuse("the student's transformer cannot be built", "student.init.transformer", str(error))
        return []


def _weights_file(draft: Draft, path: str, key: str) -> None:
    """The file exists and its header can be read; tensors are not touched."""
    from vidalign.students.video.checkpoint import resolve

    if draft.recipe.student.name == LANGUAGE:
        from vidalign.students.language_config import is_transformers

        if is_transformers(path):
            return
    try:
        with safe_open(resolve(path), "np") as file:
            metadata = file.metadata() or {}
    except UserError as error:
        draft.pass_on(error, key)
    except (SafetensorError, OSError) as error:
        draft.refuse(f"cannot read the weights {path!r}", key, f"{error}: half-written or not safetensors")
    else:
        if "spec" not in metadata:
            draft.refuse(
                f"the weights {path!r} carry no specification", key, "the metadata has no key 'spec'"
            )
        else:
            _kind_of_weights(draft, metadata["spec"], path, key)


def _kind_of_weights(draft: Draft, spec: str, path: str, key: str) -> None:
    """Weights of a video network are not put into a language model, nor the other way round."""
    teacher = draft.recipe.teacher
    kind = draft.recipe.student.name if key == "student.path" or teacher is None else teacher.name
    wanted = LANGUAGE if kind == LANGUAGE else "video" if kind in ("video", "model", "few_step") else ""
    try:
        found = {"config": LANGUAGE, "transformer": "video"}
        kinds = [name for entry, name in found.items() if entry in parse_json(spec)]
    except (TypeError, ValueError):
        return  # what reads the weights says so
    if wanted and kinds and wanted not in kinds:
        whose = key.partition(".")[0]
        why = f"they are those of a {kinds[0]} network, the {whose} is a {wanted} one"
        draft.refuse(f"the weights {path!r} do not fit", key, why, f"name others, or change {whose}.name")
