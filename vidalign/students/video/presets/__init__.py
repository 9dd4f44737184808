"""The public Wan families, one YAML file each: stock Wan2.1 weights with other cache policies and samplers.

The numbers are read off the released code and configs of each family. A file of the user's own, in the same form, is
named by its path. Where a key is left out, the default of its dataclass stands: `Preset`, `CachePolicy`, `Sampler`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vidalign.errors import RecipeError, UsageError, UserError, nearest
from vidalign.recipe.source_map import read_yaml
from vidalign.recipe.typed import build
from vidalign.students.video.spec import CachePolicy, Sampler, VideoStudentSpec

FOLDER = Path(__file__).parent
DIFFERENCES = 3
"""Differences that a message lists."""


@dataclass
class LoraDefaults:
    """What the family's LoRA files do not carry."""

    alpha: float = 0.0
    rank: int = 0
    """Checked against the file; 0 = any."""


@dataclass
class PresetSampler(Sampler):
    """The sampler, with the first chunk's list as timesteps too."""

    first_timesteps: list[float] = field(default_factory=list)
    """Original steps of the first chunk where they differ, warped by `shift`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_timesteps:
            self.first_sigmas = Sampler(timesteps=self.first_timesteps, shift=self.shift).sigmas

    def plain(self) -> Sampler:
        """What a specification keeps of it."""
        levels = list(self.sigmas), list(self.timesteps), self.shift, list(self.first_sigmas)
        return Sampler(*levels, solver=self.solver, rolling=self.rolling, many_steps=deepcopy(self.many_steps))


@dataclass
class Preset:
    """One family: how it samples, what it attends, where its weights are in the file."""

    about: str
    """What it is, with paper and repository."""
    cache: CachePolicy
    """What a chunk attends."""
    sampler: PresetSampler
    """Its noise levels."""
    prediction: Literal["velocity", "x0"] = "velocity"
    keys: list[str] = field(default_factory=lambda: ["generator_ema", "generator", "model", "state_dict"])
    """Where the weights are in a checkpoint, in order of preference; else the file is a flat state dict."""
    lora: LoraDefaults = field(default_factory=LoraDefaults)
    base: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    """Folder or hub id with VAE, text encoder and tokenizer."""
    codec: dict[str, Any] = field(default_factory=lambda: {"name": "wan", "subfolder": "vae", "downscale": 8})
    """Codec of the latents; one with a `subfolder` is read from `base`."""
    text: dict[str, Any] = field(
        default_factory=lambda: {"name": "transformers", "subfolder": "text_encoder", "length": 512}
    )
    """Text encoder; one with a `subfolder` is read from `base`."""
    latent_channels: int = 16
    height: int = 480
    """Pixel height of clips."""
    width: int = 832
    fps: float = 16.0
    """Pixel frames a second."""
    sink_within_chunk: bool = False
    """Whether a sink longer than a chunk is refused: the released code of LongLive corrupts its cache there."""
    licence: str = ""
    """Of the released weights, as the hub writes it; empty where it was not read off their page."""
    name: str = field(default="", init=False)
    """As it is recorded: a shipped name, or the stem of the user's file."""

    def __post_init__(self) -> None:
        if self.sink_within_chunk:
            check_sink(self.cache)

    def spec(
        self,
        transformer: dict[str, Any],
        *,
        base: str = "",
        numerics: str = "diffusers",
        height: int = 0,
        width: int = 0,
    ) -> VideoStudentSpec:
        """The spec of a student of this family; base, height, width: instead of the preset's own."""
        base = base or self.base
        parts = (self.codec, self.text)
        codec, text = ({**part, "path": base} if "subfolder" in part else dict(part) for part in parts)
        return VideoStudentSpec(
            transformer=transformer,
            cache=CachePolicy(**asdict(self.cache)),
            sampler=self.sampler.plain(),
            prediction=self.prediction,
            numerics=numerics,
            codec=codec,
            text=text,
            height=height or self.height,
            width=width or self.width,
            fps=self.fps,
            preset=self.name,
            base=base,
        )


def check_sink(cache: CachePolicy) -> None:
    """Raises `UserError` for a sink that is longer than a chunk."""
    if cache.sink > cache.chunk_frames:
        raise UserError(
            f"a sink of {cache.sink} frames is longer than a chunk of {cache.chunk_frames}",
            where="cache.sink",
            why="the released code of LongLive overwrites the frames of such a sink, so no weights fit it",
            fix=f"use sink <= {cache.chunk_frames}",
        )


def shipped_presets() -> dict[str, Path]:
    """The files of the shipped presets by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def preset(name: str) -> Preset:
    """The shipped preset `name`, or the one in the YAML file of that path.

    Raises `UsageError` for an unknown name, with the nearest one, and `RecipeError` with every mistake of a file.
    """
    shipped = shipped_presets()
    if name in shipped:
        return _read(shipped[name])
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        return _read(Path(name))
    near = nearest(name, shipped)
    raise UsageError(
        f"unknown preset {name!r}",
        why=f"shipped: {', '.join(shipped)}",
        fix=f"did you mean {near!r}?" if near else "or name a YAML file of your own",
    )


def _read(path: Path) -> Preset:
    problems: list[Any] = []
    tree = read_yaml(path, problems)
    made = None if problems else build(Preset, tree, path.stem, problems)
    if made is None or problems:
        raise RecipeError(problems)
    made.name = path.stem
    return made


def differences(spec: VideoStudentSpec, family: Preset) -> list[str]:
    """Where the policy of a spec is not that of a preset, such as ``cache.chunk_frames is 1, not 3``."""
    own, other = family.sampler.plain(), spec.sampler
    pairs: list[tuple[str, Any, Any]] = [
        (f"cache.{key}", getattr(spec.cache, key), value) for key, value in asdict(family.cache).items()
    ]
    pairs += [(f"sampler.{key}", _rounded(getattr(other, key)), _rounded(getattr(own, key))) for key in LEVELS]
    pairs += [(f"sampler.{key}", getattr(other, key), getattr(own, key)) for key in ("solver", "rolling")]
    pairs += [("prediction", spec.prediction, family.prediction)]
    return [f"{key} is {value!r}, not {expected!r}" for key, value, expected in pairs if value != expected]


LEVELS = ("sigmas", "first_sigmas")


def _rounded(levels: list[float]) -> list[float]:
    return [round(level, 4) for level in levels]


def nearest_preset(spec: VideoStudentSpec) -> str:
    """The shipped preset from which a spec differs least."""
    return min(shipped_presets(), key=lambda name: len(differences(spec, preset(name))))


def check_chunk(spec: VideoStudentSpec, family: Preset, where: str) -> None:
    """Raises `UsageError` when a preset has other chunks than the recorded preset of the weights: shapes do not say
    that they belong to another family."""
    if not spec.preset or spec.cache.chunk_frames == family.cache.chunk_frames:
        return
    listed = differences(spec, family)
    more = f" and {len(listed) - DIFFERENCES} more" if len(listed) > DIFFERENCES else ""
    raise UsageError(
        f"weights of {spec.preset} cannot be used as {family.name}",
        where=where,
        why="in the weights " + "; ".join(listed[:DIFFERENCES]) + more,
        fix=f"the nearest preset is {nearest_preset(spec)}",
    )
