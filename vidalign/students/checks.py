"""Checks that several kinds of student share, for the ``check`` of students and of teachers that are networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from vidalign.engine.adapter_start import check_start
from vidalign.engine.layers import WORDS, match_frozen, match_targets
from vidalign.errors import UserError
from vidalign.reading import parse_json
from vidalign.students.weights import header, kinds

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft


def check_weights(draft: Draft, path: str, key: str, kind: str) -> None:
    """The file exists, its header can be read, and it holds a network of this kind; tensors are not touched."""
    try:
        metadata = header(path).metadata
    except UserError as error:
        draft.refuse_as(error, key)
    except (SafetensorError, OSError) as error:
        draft.refuse(f"cannot read the weights {path!r}", key, f"{error}: half-written or not safetensors")
    else:
        if "spec" in metadata:
            _check_family(draft, metadata["spec"], path, key, kind)
        else:
            why = "the metadata has no key 'spec'"
            draft.refuse(f"the weights {path!r} carry no specification", key, why)


def written_config(path: str) -> dict[str, Any]:
    """The configuration of a transformers model in a weights file or a folder; empty where it cannot be read."""
    try:
        if Path(path).is_dir():
            config = parse_json((Path(path) / "config.json").read_text(encoding="utf-8"))
        else:
            config = header(path).spec.get("config")
    except (UserError, SafetensorError, OSError, KeyError, ValueError):
        return {}  # a name of the hub, or reported with the weights
    return config if isinstance(config, dict) else {}


def written_layers(path: str) -> list[str]:
    """Names of the linear layers in a weights file, by the shapes in its header; none where it cannot be read."""
    try:
        matrices = [key for key, shape in header(path).shapes.items() if len(shape) == 2]
    except (UserError, SafetensorError, OSError):
        return []
    tables = ("embed", "wte.", "wpe.")
    found = (key for key in matrices if not any(table in key for table in tables) and not key.startswith("lm_head"))
    return [key.removesuffix(".weight") for key in found]


def check_folder(draft: Draft, path: str, key: str) -> None:
    """A folder that transformers can read holds a configuration."""
    if not (Path(path) / "config.json").is_file():
        draft.refuse(
            f"the folder {path!r} holds no model of transformers",
            key,
            "there is no config.json",
            "name a folder written by save_pretrained, or a file",
        )


def check_teacher_weights(draft: Draft, path: str, kind: str) -> None:
    """A teacher that is a network names its weights, and they can be read."""
    if path:
        check_weights(draft, path, "teacher.path", kind)
    elif draft.sound("teacher"):
        draft.refuse("the teacher has no weights", "teacher", "it is a network", "give teacher.path")


def check_adapter(draft: Draft, layers: Sequence[str]) -> None:
    """Every adapter pattern matches a layer of the network; no `layers` where they are not known."""
    adapter = draft.recipe.student.adapter
    if adapter is not None and adapter.start:
        try:
            check_start(adapter)
        except UserError as error:
            draft.refuse(error.problems[0].what, error.problems[0].where, error.problems[0].why, error.problems[0].fix)
    if adapter is None or adapter.targets == "blocks":
        return
    for pattern in [adapter.targets] if isinstance(adapter.targets, str) else adapter.targets:
        if not layers and pattern in WORDS:
            continue
        try:
            match_targets(list(layers) or [pattern], [pattern])
        except UserError as error:
            draft.refuse_as(error, "student.adapter.targets")


def check_frozen(draft: Draft, patterns: Sequence[str], parameters: Sequence[str]) -> None:
    """What `student.freeze` names are parameters of the network, of which all are trained; none where they are not
    known."""
    if patterns and draft.recipe.student.adapter is not None:
        why = "an adapter freezes every other weight"
        draft.refuse("student.freeze has no use here", "student.freeze", why, "delete it, or student.adapter")
    try:
        match_frozen(parameters, patterns if parameters else ())
    except UserError as error:
        draft.refuse_as(error, "student.freeze")


def _check_family(draft: Draft, spec: str, path: str, key: str, kind: str) -> None:
    """Weights of one kind of network are not put into another."""
    try:
        entries = dict(parse_json(spec))
    except (TypeError, ValueError):
        return  # what reads the weights says so
    owners = [name for name, one in kinds().items() if one.recognises(path, entries)]
    if owners and kind not in owners:
        whose = key.partition(".")[0]
        why = f"they are those of a {owners[0]} network, the {whose} is a {kind} one"
        draft.refuse(f"the weights {path!r} do not fit", key, why, f"name others, or change {whose}.name")
