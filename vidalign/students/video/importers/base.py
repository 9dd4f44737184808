"""The base of a student: the folder or hub id with VAE, text encoder and tokenizer, as diffusers lays it out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vidalign.errors import CheckpointError
from vidalign.reading import read_json
from vidalign.students import hub

PARTS = ("vae", "text_encoder", "tokenizer")
LINKED = (*PARTS, "scheduler")
INDEX = "model_index.json"
LAYOUT = "vae/, text_encoder/, tokenizer/ and scheduler/, as in Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def check_base(base: str) -> str:
    """The base as it is recorded: a hub id, or the absolute path of a folder; '' for none.

    Raises `CheckpointError` for a folder of another layout.
    """
    if not base or (hub.is_hub_id(base) and not base.startswith(".")):
        return base
    folder = Path(base)
    missing = [name for name in PARTS if not (folder / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"{base} is no base folder",
            where="--base",
            why=f"there is no {', no '.join(missing)}" if folder.is_dir() else "there is no such folder",
            fix=f"expected: {LAYOUT}",
        )
    return str(folder.resolve())


def network_of_base(base: str, where: str) -> dict[str, Any]:
    """The configuration of the base's own network, as far as it is on this machine; empty where it is not."""
    file = _file(base, "transformer/config.json") if base else None
    if file is None or not file.is_file():
        return {}
    try:
        config = dict(read_json(file))
        return {"attention_head_dim": int(config["attention_head_dim"])} | {
            key: config[key] for key in ("eps", "qk_norm", "rope_max_seq_len") if key in config
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "the network of the base cannot be read", where=str(file), why=str(error), fix="or give --heads"
        ) from error


def link_base(folder: Path, base: str) -> None:
    """Link the base's parts into a student's folder where they are on this machine, so that a pipeline of diffusers
    reads it as one model."""
    index = _file(base, INDEX) if base else None
    if index is None or not index.is_file():
        return
    root = index.parent
    for name in LINKED:
        if (root / name).is_dir():
            os.symlink(root / name, folder / name, target_is_directory=True)
    os.symlink(index, folder / INDEX)


def _file(base: str, name: str) -> Path | None:
    """A file of the base on this machine."""
    return Path(base) / name if Path(base).is_dir() else hub.cached(base, name)
