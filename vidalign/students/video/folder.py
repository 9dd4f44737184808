"""A student as a folder that diffusers reads: `transformer/` and `vidalign.json`.

The network's configuration stands in `transformer/config.json`, everything else of the specification in
`vidalign.json`, with what made the folder. VAE, text encoder and tokenizer stay in the base folder, or under the
base's hub id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign.errors import CheckpointError
from vidalign.reading import check_object, read_json
from vidalign.students import hub
from vidalign.students.streamed import write_text
from vidalign.students.video.checkpoint import SIZES, check_layers, check_spec
from vidalign.students.video.importers.files import open_checkpoint
from vidalign.students.video.spec import VideoStudentSpec
from vidalign.students.weights import check_tensors, reading_spec

if TYPE_CHECKING:
    from vidalign.students.video.student import VideoStudent

NETWORK = "transformer"
STEM = "diffusion_pytorch_model"
"""How diffusers calls the weights."""
FORMAT = 1


def read_folder(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Specification and provenance of a folder or a hub id, unchecked. Raises `CheckpointError`."""
    folder = hub.student_folder(str(path), weights=False) if not Path(path).is_dir() else Path(path)
    try:
        written = check_object(read_json(folder / hub.DESCRIPTION), {"format": int, "spec": dict, "made": dict})
        spec = {**written["spec"], "transformer": _network_config(folder)}
        return spec, {str(key): str(value) for key, value in written["made"].items()}
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            "the folder of a student cannot be read",
            where=str(path),
            why=str(error),
            fix="write it again with `vidalign import`",
        ) from error


def _network_config(folder: Path) -> dict[str, Any]:
    """The network's configuration without the entries of diffusers itself, which begin with an underscore."""
    config = dict(read_json(folder / NETWORK / "config.json"))
    return {key: value for key, value in config.items() if not key.startswith("_")}


def write_description(folder: Path, spec: VideoStudentSpec, made: Mapping[str, str]) -> None:
    """Write `transformer/config.json` and `vidalign.json`."""
    from diffusers import WanTransformer3DModel, __version__

    with torch.device("meta"):
        full = dict(WanTransformer3DModel(**spec.transformer).config)
    config = {key: value for key, value in full.items() if not key.startswith("_")}
    named = {"_class_name": "WanTransformer3DModel", "_diffusers_version": __version__, **config}
    (folder / NETWORK).mkdir(parents=True, exist_ok=True)
    write_text(folder / NETWORK / "config.json", json.dumps(named, indent=2))
    own = {key: value for key, value in spec.to_dict().items() if key != "transformer"}
    write_text(folder / hub.DESCRIPTION, json.dumps({"format": FORMAT, "spec": own, "made": dict(made)}, indent=2))


def load_folder(path: str | Path, spec: VideoStudentSpec | None, dtype: torch.dtype) -> VideoStudent:
    """The student of a folder or hub id on the CPU; spec: instead of its own."""
    from diffusers import WanTransformer3DModel

    from vidalign.quiet import no_bars
    from vidalign.students.video.student import VideoStudent

    folder = hub.student_folder(str(path), weights=True) if not Path(path).is_dir() else Path(path)
    written, _ = read_folder(folder)
    check_spec(written, str(path), "transformer", SIZES)
    weights = open_checkpoint(folder / NETWORK)
    with reading_spec(str(path)):
        made = spec or VideoStudentSpec.from_dict(written)
        check_layers(made.transformer, weights.entries)
        with torch.device("meta"):
            expected = WanTransformer3DModel(**made.transformer).state_dict()
    check_tensors(expected, weights.entries, str(path))
    with no_bars("diffusers"):
        network = WanTransformer3DModel.from_pretrained(folder / NETWORK, torch_dtype=dtype, local_files_only=True)
    return VideoStudent(made, network.train()).to(dtype)  # diffusers keeps norms in fp32, the families do not
