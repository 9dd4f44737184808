"""What a recipe changes of its student's specification, and what it may not change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vidalign.errors import UsageError
from vidalign.students.video.presets import check_chunk, check_sink, preset, shipped_presets

if TYPE_CHECKING:
    from vidalign.students.video.kind import Video
    from vidalign.students.video.spec import VideoStudentSpec

KEYS = ("codec", "text", "height", "width", "fps", "numerics")


def changed(spec: VideoStudentSpec, config: Video.Config) -> VideoStudentSpec:
    """The specification with the changes of the section ``student``.

    Raises `UsageError` for a preset or a chunk of another family than the recorded one, for what makes no
    specification, and for a sink that the family does not allow.
    """
    values: dict[str, Any] = {key: getattr(config, key) for key in KEYS if getattr(config, key) is not None}
    cache, sampler = spec.cache, spec.sampler
    if config.preset:
        family = preset(config.preset)
        check_chunk(spec, family, "student.preset")
        cache, sampler = family.cache, family.sampler.plain()
        values |= {"prediction": family.prediction, "preset": family.name}
    levels = replace(sampler, **sampler_changes(config.sampler or {}))
    made = replace(spec, **values, cache=replace(cache, **config.cache or {}), sampler=levels)
    _check_policy(made)
    return made


def sampler_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a sampler as a whole: `sigmas` that follow from other timesteps, or another shift, are made anew."""
    anew: dict[str, Any] = {"sigmas": []} if {"timesteps", "shift"} & changes.keys() else {}
    return anew | dict(changes)


def _check_policy(spec: VideoStudentSpec) -> None:
    """The cache policy is a possible one of the recorded family; nothing is known of a family that is not shipped."""
    if spec.preset not in shipped_presets():
        return
    family = preset(spec.preset)
    if spec.cache.chunk_frames != family.cache.chunk_frames:
        raise UsageError(
            f"weights of {spec.preset} cannot make chunks of {spec.cache.chunk_frames}",
            where="student.cache.chunk_frames",
            why=f"they were trained on chunks of {family.cache.chunk_frames}",
            fix="leave it out, or take the weights of another family",
        )
    if family.sink_within_chunk:
        check_sink(spec.cache)
