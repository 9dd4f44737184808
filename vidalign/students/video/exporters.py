"""A trained student in the forms that others read: a diffusers folder, original names, LoRA files.

What is written computes what was trained, or it is refused: pipelines and the families' own code take a network that
predicts velocity, and a LoRA is the whole difference only where an adapter was trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from vidalign.errors import UsageError
from vidalign.owner import replacing
from vidalign.students.exchange import Card, Leaving, trained_adapter
from vidalign.students.hub import is_student_folder, student_folder
from vidalign.students.streamed import Entry, write_file, write_shards
from vidalign.students.video.folder import NETWORK, STEM, write_description
from vidalign.students.video.importers.base import link_base
from vidalign.students.video.importers.files import Checkpoint, open_checkpoint
from vidalign.students.video.importers.lora import Lora, read_lora
from vidalign.students.video.importers.names import original
from vidalign.students.video.importers.peft_folder import write_adapter
from vidalign.students.video.kind import Video
from vidalign.students.video.presets import LoraDefaults, preset, shipped_presets
from vidalign.students.video.spec import VideoStudentSpec
from vidalign.students.weights import resolve
from vidalign.tensor_writing import save_tensors

ORIGINAL_LORA = Path("original") / "lora.safetensors"
"""Where the LoRA under original names is, in the folder of a LoRA."""


@dataclass
class Source:
    """Weights that leave, under their names in diffusers."""

    weights: Checkpoint
    spec: VideoStudentSpec
    leaving: Leaving
    dtype: torch.dtype | None
    """Type of what is written; None = as stored."""


def export(leaving: Leaving, form: str, out: Path, dtype: str) -> Path:
    """Write `out`, a file or folder, in one of `Video.forms`. Raises `UsageError` for what cannot leave in
    that form, before anything is written."""
    spec = Video.read_spec(leaving.path)
    _check_prediction(spec, form)
    if out.exists() and form != "single":
        raise UsageError(f"{out} exists already", where="--out", fix="name another one, or remove it")
    weights = open_checkpoint(leaving.path / NETWORK if leaving.path.is_dir() else leaving.path)
    source = Source(weights, spec, leaving, getattr(torch, dtype) if dtype else None)
    if form in ("single", "original"):
        ({"single": _single, "original": _original}[form])(source, out)
        return out
    with replacing(out) as partial:
        {"diffusers": _diffusers, "lora": _lora}[form](source, partial)
    return out


def stored(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a saved student and its name in diffusers, one after the other."""
    if is_student_folder(path):
        weights = open_checkpoint(
            (Path(path) if Path(path).is_dir() else student_folder(str(path), weights=True)) / NETWORK
        )
    else:
        weights = open_checkpoint(resolve(path))
    yield from weights.tensors(list(weights.entries))


def _check_prediction(spec: VideoStudentSpec, form: str) -> None:
    """What reads the result takes velocity."""
    if form != "single" and spec.prediction != "velocity":
        raise UsageError(
            f"a student that predicts {spec.prediction} cannot be exported as {form!r}",
            where="--to",
            why="what reads it takes the network's output for the velocity, noise minus clip",
            fix="use --to single, which keeps the specification",
        )


def _diffusers(source: Source, folder: Path) -> None:
    """A student's folder, which `WanTransformer3DModel` reads and, with the base on this machine, `WanPipeline` too."""
    entries = _entries(source)
    write_shards(folder / NETWORK, STEM, entries, _tensors(source, list(entries)), {})
    write_description(folder, source.spec, source.leaving.made)
    link_base(folder, source.spec.base)


def _single(source: Source, out: Path) -> None:
    """One safetensors file with the specification."""
    entries = _entries(source)
    written = {**source.leaving.made, "spec": json.dumps(source.spec.to_dict())}
    write_file(out, entries, _tensors(source, list(entries)), written)


def _original(source: Source, out: Path) -> None:
    """One safetensors file under the names of the released Wan code."""
    entries = _entries(source)
    renamed = {original(name): entry for name, entry in entries.items()}
    write_file(out, renamed, _tensors(source, list(entries)), source.leaving.made)


def _entries(source: Source) -> dict[str, Entry]:
    """The tensors as they are written."""
    if source.dtype is None:
        return source.weights.entries
    return {name: replace(entry, dtype=source.dtype) for name, entry in source.weights.entries.items()}


def _tensors(source: Source, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    for name, value in source.weights.tensors(names):
        yield name, value.to(source.dtype or value.dtype)


def _lora(source: Source, folder: Path) -> None:
    """The trained adapter three times: for PEFT, for `WanPipeline.load_lora_weights`, and under original names."""
    from diffusers import WanPipeline

    lora = _trained_lora(source)
    assert lora.uniform is not None, "an adapter has one rank and one alpha"
    rank, alpha = lora.uniform
    write_adapter(folder, lora, source.dtype, source.leaving.start)
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(lora.layers)}
    layers = {
        f"{name}.lora_{part}.weight": value.to(source.dtype or value.dtype)
        for name in lora.layers
        for part, value in zip("AB", lora.factors(name), strict=True)
    }
    WanPipeline.save_lora_weights(folder, layers, transformer_lora_adapter_metadata=settings)
    _original_lora(lora, folder / ORIGINAL_LORA, source)


def _trained_lora(source: Source) -> Lora:
    """The adapter of the run; `UsageError` where there is none."""
    shapes = {name: entry.shape for name, entry in source.weights.entries.items()}
    return read_lora(trained_adapter(source.leaving, "diffusers"), shapes, None, LoraDefaults())


def _original_lora(lora: Lora, file: Path, source: Source) -> None:
    """``lora_down``, ``lora_up`` and ``alpha`` under ``diffusion_model.``. Outside the blocks the scale is part of
    ``lora_up`` and there is no alpha: the converter of diffusers reads none there."""
    tensors: dict[str, Tensor] = {}
    for name in lora.layers:
        down, up = (value.to(source.dtype or value.dtype) for value in lora.factors(name))
        own = "diffusion_model." + original(f"{name}.weight").removesuffix(".weight")
        if name.startswith("blocks."):
            tensors[f"{own}.alpha"] = torch.tensor(lora.scale(name) * lora.rank(name))
        else:
            up = up * lora.scale(name)
        tensors |= {f"{own}.lora_down.weight": down, f"{own}.lora_up.weight": up}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, file, metadata={"format": "pt", **source.leaving.made})


def card(spec: VideoStudentSpec) -> Card:
    """What a model card says of a student of this specification."""
    family = preset(spec.preset) if spec.preset in shipped_presets() else None
    family_name, many = spec.preset or "of its own", spec.sampler.many_steps
    about = f"A causal video student of the family {family_name}: "
    about += f"chunks of {spec.cache.chunk_frames} latents, {len(spec.sampler.sigmas)} noise levels"
    if many is not None:
        about = f"A bidirectional video network of the family {family_name}: {many.steps} UniPC steps"
    return Card(f"{about}, {spec.width} x {spec.height}.", spec.base, family.licence if family else "")
