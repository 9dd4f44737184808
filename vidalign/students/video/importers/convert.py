"""A public checkpoint made into a student's folder, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vidalign.engine.adapter_start import patterns
from vidalign.errors import CheckpointError, UsageError
from vidalign.owner import replacing
from vidalign.students import hub
from vidalign.students.exchange import Imported, ImportOptions
from vidalign.students.streamed import Entry, write_shards
from vidalign.students.video.folder import NETWORK, STEM, read_folder, write_description
from vidalign.students.video.importers.base import check_base, link_base, network_of_base
from vidalign.students.video.importers.files import Checkpoint, open_checkpoint
from vidalign.students.video.importers.lora import Lora, read_lora
from vidalign.students.video.importers.names import rename
from vidalign.students.video.importers.peft_folder import write_adapter
from vidalign.students.video.importers.shapes import HEAD, heads_to_size, infer_config
from vidalign.students.video.presets import Preset, check_chunk, preset
from vidalign.students.video.spec import VideoStudentSpec
from vidalign.students.weights import check_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

ADAPTER = "adapter"
"""Folder of a LoRA that is kept."""


def import_checkpoint(name: str, checkpoint: str, out: Path, options: ImportOptions) -> Imported:
    """Make the folder `out` of the checkpoint, a file, folder or hub id, by the preset `name`.

    Raises `UsageError` or `CheckpointError` before anything is written; the folder appears when it is whole.
    """
    family = preset(name)
    notes: list[str] = []
    if out.exists():
        raise UsageError(f"{out} exists already", where="--out", fix="name another folder, or remove it")
    source = open_checkpoint(_local(checkpoint), family.keys, options.key)
    names = _names(source)
    shapes = {new: source.entries[old].shape for new, old in names.items()}
    base = check_base(options.base)
    spec = family.spec(
        _config(shapes, checkpoint, family, options, notes),
        base=base,
        height=options.height,
        width=options.width,
    )
    _check_family(checkpoint, spec, family, notes)
    _check_network(spec, shapes, checkpoint)
    lora = None
    if options.lora:
        lora = read_lora(_local(options.lora), shapes, options.lora_alpha, family.lora)
    made = {"checkpoint": checkpoint, "preset": family.name} | ({"lora": options.lora} if lora else {})
    with replacing(out) as partial:
        merged = None if options.keep_lora else lora
        _write_weights(partial, source, names, merged, options.dtype)
        write_description(partial, spec, made)
        link_base(partial, spec.base)
        if lora and options.keep_lora:
            write_adapter(partial / ADAPTER, lora, base=str(out))
            notes.append(_how_to_go_on(lora, out))
    return Imported(out, [_summary(spec), *notes])


def _local(name: str) -> Path:
    """A path as it is, a hub id as the path of what was downloaded."""
    if Path(name).exists() or name.startswith((".", "/")) or name.count("/") == 0:
        return Path(name)
    return hub.checkpoint_file(name)


def _names(source: Checkpoint) -> dict[str, str]:
    """Names in diffusers to those in the file."""
    names: dict[str, str] = {}
    for key in source.entries:
        new = rename(key)
        if new in names:
            raise CheckpointError(
                f"two tensors are called {new!r} once prefixes are stripped",
                where=source.where,
                why=f"{names[new]!r} and {key!r}",
                fix="name the part of the file that is meant with --key",
            )
        names[new] = key
    return names


def _config(
    shapes: Mapping[str, tuple[int, ...]], where: str, family: Preset, options: ImportOptions, notes: list[str]
) -> dict[str, Any]:
    """The network's configuration; what the shapes do not say comes from the base, from --heads, or is assumed."""
    known = network_of_base(options.base, where)
    if options.heads:
        head = heads_to_size(shapes, options.heads, where)
    elif known:
        head = int(known["attention_head_dim"])
    else:
        head = HEAD
    config = infer_config(shapes, where, head)
    if not options.heads and not known:
        heads = config["num_attention_heads"]
        notes.append(f"the shapes do not say how many heads there are: {heads} heads of {HEAD} channels are assumed")
    if config["in_channels"] != family.latent_channels:
        raise UsageError(
            f"weights for {config['in_channels']} latent channels do not fit the preset {family.name!r}",
            where=where,
            why=f"its codec has {family.latent_channels}",
            fix="name the preset of this family (`vidalign list presets`), or a YAML file of your own",
        )
    return {**known, **config}


def _check_family(checkpoint: str, spec: VideoStudentSpec, family: Preset, notes: list[str]) -> None:
    """What the checkpoint itself says about its family agrees with the preset; most say nothing."""
    if hub.is_student_folder(checkpoint):
        recorded = VideoStudentSpec.from_dict(read_folder(checkpoint)[0])
        check_chunk(recorded, family, "PRESET")
    else:
        why = "shapes do not tell families apart"
        notes.append(f"the checkpoint does not name its family, and {why}: it is taken as {spec.preset}")


def _check_network(spec: VideoStudentSpec, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """The tensors are those of the network, by name and shape."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        expected = WanTransformer3DModel(**spec.transformer).state_dict()
    found = {name: Entry(shape, torch.float32) for name, shape in shapes.items()}
    check_tensors(expected, found, where)


def _write_weights(folder: Path, source: Checkpoint, names: dict[str, str], lora: Lora | None, dtype: str) -> None:
    """The tensors under their names in diffusers, with the LoRA merged and in the asked type."""
    target = getattr(torch, dtype) if dtype else None
    entries = {new: source.entries[old] for new, old in names.items()}
    if target is not None:
        entries = {new: replace(entry, dtype=target) for new, entry in entries.items()}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for new, (_, value) in zip(names, source.tensors(list(names.values())), strict=True):
            exact = value.to(torch.promote_types(value.dtype, target)) if target else value
            merged = lora.merge(new, exact) if lora else exact
            yield new, merged.to(target or value.dtype)

    write_shards(folder / NETWORK, STEM, entries, tensors(), {})


def _summary(spec: VideoStudentSpec) -> str:
    """What a student of this specification does."""
    cache, levels = spec.cache, ", ".join(f"{1000 * sigma:g}" for sigma in spec.sampler.sigmas)
    past = f"a window of {cache.window} latents with a sink of {cache.sink}" if cache.window else "the whole past"
    does = f"chunks of {cache.chunk_frames} latents, {past}, timesteps {levels}"
    if (many := spec.sampler.many_steps) is not None:
        does = f"bidirectional, {many.steps} UniPC steps at shift {many.shift:g}, guidance {many.guidance.scale:g}"
    return f"preset {spec.preset}: {does}; {spec.width} x {spec.height} at {spec.fps:g} frames a second"


def _how_to_go_on(lora: Lora, out: Path) -> str:
    assert lora.uniform is not None, "only such a LoRA is kept"
    rank, alpha = lora.uniform
    where = f"start: {out / ADAPTER}, targets: [{', '.join(patterns(set(lora.layers)))}]"
    return (
        f"the LoRA is kept beside the weights: go on with student.path={out} "
        f"'student.adapter={{rank: {rank}, alpha: {alpha:g}, {where}}}'"
    )
