"""Does a recipe fit its video student? Answered from its specification; no weights are loaded, no network is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidalign import registry
from vidalign.errors import Problem, UserError
from vidalign.recipe.prompts import listed_prompts
from vidalign.recipe.source_map import Node
from vidalign.recipe.typed import build, unknown_key
from vidalign.students.checks import check_adapter
from vidalign.students.hub import report_idle_adapter
from vidalign.students.video.changes import changed, sampler_changes
from vidalign.students.video.kind import Video
from vidalign.students.video.many_steps import no_chunks
from vidalign.students.video.spec import CachePolicy, Sampler, VideoStudentSpec
from vidalign.students.video.wan import SETTINGS, linear_layers
from vidalign.students.weights import reading_spec

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.recipe.schema import StudentChoice


def check(draft: Draft) -> None:
    """What a recipe must fit besides the weights, see `StudentKind.check`."""
    student = draft.recipe.student
    if student.init:
        _check_transformer(draft, draft.tree.value["student"].value["init"])
    spec, made = written_spec(student), None
    if spec is not None and _is_bidirectional(spec):
        key, whose = ("init", "it") if student.init else ("path", repr(student.path))
        draft.refuse_as(no_chunks(whose=f"{whose}, a bidirectional network,"), f"student.{key}")
    elif spec is not None and (made := _changed(draft, spec)) is not None:
        _check_sampler(draft, made)
        _check_decoder(draft, made)
        _check_frames(draft, made)
        _check_words(draft, made)
    check_adapter(draft, _linear_layers(draft, spec))
    if student.path and (student.adapter is None or not student.adapter.start):
        report_idle_adapter(student.path)
    _check_dtype(draft)
    _check_compile(draft)
    if made is not None:
        check_forcing(draft, "student.forcing_frames", draft.settings("student", Video.Config).forcing_frames, made)


def check_weights(draft: Draft, path: str, key: str) -> bool:
    """The check of weights that are no single file: a folder, a hub id, or a public checkpoint; False for a file.

    key: of the recipe, where they are named.
    """
    from vidalign.students.hub import is_student_folder
    from vidalign.students.video.checkpoint import refuse_checkpoint

    try:
        if is_student_folder(path):
            Video.read_spec(path)
            if Path(path).is_dir():
                from vidalign.students.video.folder import NETWORK
                from vidalign.students.video.importers.files import open_checkpoint

                open_checkpoint(Path(path) / NETWORK)
            return True
        if not refuse_checkpoint(path):
            return False
    except UserError as error:
        draft.refuse_as(error, key)
        return True
    why = "it is downloaded when training begins, and nothing of it is checked before"
    draft.warnings.append(Problem(f"{path} is taken as a hub id", draft.tree.locate(key), why))
    return True


def written_spec(student: StudentChoice) -> dict[str, Any] | None:
    """The specification that stands in the weights, or `init`; None when it cannot be read without a network."""
    from vidalign.students import hub
    from vidalign.students.hub import is_student_folder
    from vidalign.students.video.checkpoint import written_spec

    if student.init:
        return student.init
    if hub.is_hub_id(student.path) and not is_student_folder(student.path):
        return None
    try:
        return written_spec(student.path)
    except (UserError, OSError, KeyError, ValueError):
        return None  # the check of the weights says why


def _is_bidirectional(spec: dict[str, Any]) -> bool:
    """See `VideoStudentSpec.bidirectional`, of one as it is written."""
    cache = spec.get("cache")
    return isinstance(cache, dict) and cache.get("chunk_frames") == 0


def _changed(draft: Draft, spec: dict[str, Any]) -> VideoStudentSpec | None:
    """The specification with the changes of the recipe; None where one of them is wrong."""
    config, before = draft.settings("student", Video.Config), len(draft.problems)
    try:
        with reading_spec("student"):
            own = VideoStudentSpec.from_dict(dict(spec))
    except UserError:
        own = None  # the check of the weights or of `init` says why
    if config.cache and not config.preset:
        _check_changes(draft, CachePolicy, "cache", config.cache, spec)
    if config.sampler and not config.preset:
        _check_changes(draft, Sampler, "sampler", sampler_changes(config.sampler), spec)
    if own is None or len(draft.problems) > before:
        return None
    chosen = config.preset or "chunk_frames" in (config.cache or {})
    if chosen and not own.preset and not draft.recipe.student.init:
        why = "shapes do not tell families apart, so nobody can check that this is the policy it was trained with"
        key = "student.preset" if config.preset else "student.cache"
        draft.warnings.append(Problem("the weights do not name their preset", draft.tree.locate(key), why))
    try:
        return changed(own, config)
    except UserError as error:
        for one in error.problems:
            draft.refuse(one.what, one.where if one.where.startswith("student.") else "student", one.why, one.fix)
    return None


def _check_sampler(draft: Draft, spec: VideoStudentSpec) -> None:
    """A rolling window is no sampler to train with."""
    if not spec.sampler.rolling:
        return
    draft.refuse(
        "a student that denoises a rolling window of chunks cannot be trained",
        "student.preset" if draft.settings("student", Video.Config).preset else "student.path",
        "a loss denoises one chunk behind clean ones, and its sampler several chunks at several levels together",
        "sample, evaluate and export it, or take a student that denoises chunk after chunk, such as causal_forcing",
    )


def _check_decoder(draft: Draft, spec: VideoStudentSpec) -> None:
    """A tiny decoder is there and reads the student's latents."""
    path = draft.settings("student", Video.Config).decoder
    if not path:
        return
    from vidalign.codecs.tiny_wan import latents_of

    try:
        found = latents_of(path)
    except UserError as error:
        draft.refuse_as(error, "student.decoder")
        return
    own = (spec.latent_shape[0], spec.downscale)
    if found != own:
        what = f"the tiny decoder reads latents of {found[0]} channels, each of {found[1]} pixels"
        draft.refuse(what, "student.decoder", f"those of the student have {own[0]} channels and {own[1]} pixels")


def _check_dtype(draft: Draft) -> None:
    """Weights that are trained are fp32: an update of a bf16 weight is mostly lost to rounding."""
    student, dtype = draft.recipe.student, draft.settings("student", Video.Config).dtype
    precision = draft.recipe.engine.precision
    if dtype != "float32" and precision not in ("bf16", "auto"):
        why = f"with engine.precision {precision} all weights are made {precision}"
        draft.refuse(f"weights of {dtype} do not stay so", "student.dtype", why, "add engine.precision=bf16")
    if dtype != "float32" and student.adapter is None:
        why = "all weights are trained, and most of an update is lost to rounding in 8 bits"
        fix = "add student.adapter, or use float32"
        draft.refuse(f"weights of {dtype} cannot be trained", "student.dtype", why, fix)


def _check_compile(draft: Draft) -> None:
    """ZeRO-3 gathers the weights of every layer when it is called, which no graph can hold."""
    engine = draft.recipe.engine
    if draft.settings("student", Video.Config).compile and engine.name == "deepspeed" and engine.zero_stage == 3:
        why = "DeepSpeed gathers weights between the layers of a block, where a graph would have to end"
        draft.refuse("ZeRO-3 does not run compiled blocks", "student.compile", why, "use engine.zero_stage=2")


def check_forcing(draft: Draft, key: str, frames: int, spec: VideoStudentSpec) -> None:
    """Parts of teacher forcing are whole chunks, of weights that are not divided."""
    size, engine = spec.cache.chunk_frames, draft.recipe.engine
    if size and frames % size:
        near = max(size, round(frames / size) * size)
        draft.refuse(f"{key} {frames} is not whole chunks", key, f"chunks have {size} latent frames", f"use {near}")
    if frames and engine.name == "deepspeed" and engine.zero_stage == 3:
        why = "a part is made again in the backward pass, with weights that are divided by then"
        draft.refuse("ZeRO-3 does not take teacher forcing in parts", key, why, "use engine.zero_stage=2")


def _check_transformer(draft: Draft, init: Node) -> None:
    """The network's configuration has no misspelt key."""
    settings = init.value.get("transformer") if isinstance(init.value, dict) else None
    for key, node in settings.value.items() if settings is not None and isinstance(settings.value, dict) else ():
        if key not in SETTINGS:
            draft.problems.append(unknown_key(f"student.init.transformer.{key}", node.where, SETTINGS))


def _check_changes(
    draft: Draft, part: type[CachePolicy | Sampler], key: str, changes: dict[str, Any], spec: dict[str, Any]
) -> None:
    """The student's cache policy, or its sampler, with the changes is a possible one."""
    written = draft.tree.value["student"].value[key]
    own = spec.get(key)
    own = own if isinstance(own, dict) else {}  # an `init` that is wrong has been refused already
    whole = Node.of(own | changes, written.where).value | written.value
    build(part, Node(whole, written.where), f"student.{key}", draft.problems)


def _check_frames(draft: Draft, spec: VideoStudentSpec) -> None:
    """The lengths of videos are whole chunks of the student, and its positions reach as far."""
    if not draft.sound("student"):
        return
    recipe = draft.recipe
    lengths = {"data.frames": recipe.data.frames}
    if recipe.evaluation.sampler == "causal":
        lengths["evaluation.frames"] = recipe.evaluation.frames
    for key, frames in lengths.items():
        try:
            spec.check_frames(frames)
        except UserError as error:
            draft.refuse(error.problems[0].what, key, error.problems[0].why, error.problems[0].fix)


def _linear_layers(draft: Draft, spec: dict[str, Any] | None) -> list[str]:
    """Names of the student's linear layers; none when its specification is unknown or wrong."""
    if spec is None or draft.recipe.student.adapter is None or draft.recipe.student.adapter.targets == "blocks":
        return []
    try:
        return [f"transformer.{name}" for name in linear_layers(spec.get("transformer", {}))]
    except (AttributeError, TypeError, ValueError) as error:
        draft.refuse("the student's transformer cannot be built", "student.init.transformer", str(error))
        return []


def _check_words(draft: Draft, spec: VideoStudentSpec) -> None:
    """A warning of words outside the vocabulary of the student's text encoder."""
    name = spec.text.get("name", "")
    if name not in registry.names("text_encoders"):
        return
    encoder = registry.get("text_encoders", name)
    for _, source, prompts in listed_prompts(draft):
        if words := encoder.unknown_words(prompts):
            shown = ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
            why = "the student's text encoder reads them as unknown words"
            draft.warnings.append(Problem(f"words outside the world's vocabulary: {shown}", str(source), why))
