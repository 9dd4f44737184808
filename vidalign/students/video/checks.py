"""Does a recipe fit its video student? Answered from its specification; no weights are loaded, no network is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from vidalign import registry
from vidalign.errors import Problem, UserError
from vidalign.recipe.prompts import listed_prompts
from vidalign.recipe.source_map import Node
from vidalign.recipe.typed import build, unknown_key
from vidalign.students.checks import check_adapter
from vidalign.students.video.kind import Video
from vidalign.students.video.spec import CachePolicy, VideoStudentSpec
from vidalign.students.video.wan import SETTINGS, linear_layers
from vidalign.students.weights import header

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.recipe.schema import StudentChoice


def check(draft: Draft) -> None:
    """What a recipe must fit besides the weights, see `StudentKind.check`."""
    student = draft.recipe.student
    if student.init:
        _check_transformer(draft, draft.tree.value["student"].value["init"])
    spec = written_spec(student)
    if draft.settings("student", Video.Config).cache:
        _check_cache(draft, draft.tree.value["student"].value["cache"], spec or {})
    if spec is not None:
        _check_frames(draft, spec)
    check_adapter(draft, _linear_layers(draft, spec))
    if spec is not None:
        _check_words(draft, spec)


def written_spec(student: StudentChoice) -> dict[str, Any] | None:
    """The specification that stands in the header of the weights, or `init`; None when it cannot be read."""
    if student.init:
        return student.init
    try:
        return header(student.path).spec
    except (UserError, SafetensorError, OSError, KeyError, ValueError):
        return None  # the check of the weights says why


def _check_transformer(draft: Draft, init: Node) -> None:
    """The network's configuration has no misspelt key."""
    settings = init.value.get("transformer") if isinstance(init.value, dict) else None
    for key, node in settings.value.items() if settings is not None and isinstance(settings.value, dict) else ():
        if key not in SETTINGS:
            draft.problems.append(unknown_key(f"student.init.transformer.{key}", node.where, SETTINGS))


def _check_cache(draft: Draft, changes: Node, spec: dict[str, Any]) -> None:
    """The student's cache policy with its changes is a possible one."""
    own = spec.get("cache")
    own = own if isinstance(own, dict) else {}  # an `init` that is wrong has been refused already
    policy = {key: Node(value, changes.where) for key, value in own.items()} | changes.value
    build(CachePolicy, Node(policy, changes.where), "student.cache", draft.problems)


def _check_frames(draft: Draft, spec: dict[str, Any]) -> None:
    """The lengths of videos are whole chunks of the student."""
    if not draft.sound("student"):
        return
    recipe, own = draft.recipe, spec.get("cache")
    policy = (own if isinstance(own, dict) else {}) | (draft.settings("student", Video.Config).cache or {})
    chunk = policy.get("chunk_frames", 3)
    if not isinstance(chunk, int) or chunk < 1:
        return  # reported as a mistake of the cache policy
    lengths = {"data.frames": recipe.data.frames}
    if recipe.evaluation.sampler == "causal":
        lengths["evaluation.frames"] = recipe.evaluation.frames
    for key, frames in lengths.items():
        if frames % chunk:
            why, fix = f"the student makes chunks of {chunk}", f"use a multiple of {chunk}"
            draft.refuse(f"a video of {frames} frames is not whole chunks", key, why, fix)


def _linear_layers(draft: Draft, spec: dict[str, Any] | None) -> list[str]:
    """Names of the student's linear layers; none when its specification is unknown or wrong."""
    if spec is None or draft.recipe.student.adapter is None or draft.recipe.student.adapter.targets == "blocks":
        return []
    try:
        return [f"transformer.{name}" for name in linear_layers(spec.get("transformer", {}))]
    except (AttributeError, TypeError, ValueError) as error:
        draft.refuse("the student's transformer cannot be built", "student.init.transformer", str(error))
        return []


def _check_words(draft: Draft, spec: dict[str, Any]) -> None:
    """A warning of words outside the vocabulary of the student's text encoder."""
    text = spec.get("text", VideoStudentSpec().text)
    name = text.get("name") if isinstance(text, dict) else None
    if name not in registry.names("text_encoders"):
        return
    encoder = registry.get("text_encoders", name)
    for _, source, prompts in listed_prompts(draft):
        if words := encoder.unknown_words(prompts):
            shown = ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
            why = "the student's text encoder reads them as unknown words"
            draft.warnings.append(Problem(f"words outside the world's vocabulary: {shown}", str(source), why))
