"""What defines a causal video student besides its weights: cache policy, sampler, codec, text encoder.

The public few-step causal families (CausVid, Self-Forcing, LongLive, Reward-Forcing, ...) are stock Wan2.1
weights with other numbers in these dataclasses. A spec travels as JSON in the metadata of the weights file.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vidalign import registry
from vidalign.errors import UserError
from vidalign.losses.flow_matching import warp_sigma
from vidalign.students.spec import StudentSpec, build_spec
from vidalign.students.video.guidance import Guidance
from vidalign.students.video.unipc import UniPC

if TYPE_CHECKING:
    from vidalign.codecs.base import Codec

MAX_POSITIONS = 1024
"""Entries of the rotary table of every Wan2.1 network."""
DOWNSCALES = {"rgb": 1, "wan": 8, "frames": 8}
"""Pixels per latent position of our codecs where the settings do not say, so that a recipe is checked without torch."""
MOST = 100_000
"""Frames of a window, or pixels of a side."""


def _check_count(name: str, value: Any, where: str, least: int = 0) -> None:
    """Frames and pixels are whole numbers, and there is an end to them."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise UserError(f"{name} is {value!r}", where=where, why=f"it is a whole number in {least}..{MOST}")


@dataclass
class CachePolicy:
    """Which clean past frames a chunk attends, and at which rotary positions."""

    chunk_frames: int = 3
    """Latent frames generated together; 0 = the whole video at once by a bidirectional network, without a cache."""
    window: int = 0
    """Latent frames attended, sink and current chunk included; 0 = the whole past."""
    sink: int = 0
    """First frames that are never evicted; eviction drops the frames right after them."""
    rope: str = "absolute"
    """absolute: a frame keeps its index; relative: positions count the kept frames, decided at every read."""
    sink_decay: float = 0.0
    """EMA sink of Reward-Forcing: S <- decay S + (1 - decay) evicted, on un-roped keys and values; 0 =
    off.
    """
    global_sink: bool = False
    """Whether a prompt switch keeps the old sink once the video fills the window; see
    `VideoStudent.recache`.
    """
    first_chunk: str = "whole"
    """whole: a sampled video is whole chunks; remainder: its first chunk takes the frames that are left over, and may
    be a given picture. Training is on whole chunks."""

    def __post_init__(self) -> None:
        where = "cache"
        for name in ("chunk_frames", "window", "sink"):
            _check_count(name, getattr(self, name), where)
        causal = self.window or self.sink or self.first_chunk != "whole" or self.rope != "absolute"
        if causal and not self.chunk_frames:
            raise UserError(
                "chunk_frames: 0 takes no window, sink, rope or first_chunk",
                where=where,
                why="a bidirectional network has no cache and makes the whole video at once",
                fix="leave them out",
            )
        if self.rope not in ("absolute", "relative"):
            raise UserError(f"unknown rope {self.rope!r}", where=where, fix="absolute or relative")
        if self.window and self.window < self.sink + self.chunk_frames:
            raise UserError(
                f"window {self.window} cannot hold sink {self.sink} and {self.chunk_frames} frames a chunk",
                where=where,
                why="window counts sink, local past and current chunk",
                fix=f"window >= {self.sink + self.chunk_frames}, or 0 for the whole past",
            )
        if self.first_chunk not in ("whole", "remainder"):
            raise UserError(f"unknown first_chunk {self.first_chunk!r}", where=where, fix="whole or remainder")
        if self.sink_decay and self.first_chunk == "remainder":
            why = "an EMA sink takes up whole chunks"
            raise UserError("sink_decay needs first_chunk: whole", where=where, why=why)
        if self.sink_decay and not (self.window and self.sink and self.rope == "relative"):
            raise UserError("sink_decay needs window, sink and rope: relative", where=where)

    def kept_frames(self, start: int, first: int = 0) -> list[int]:
        """Absolute indices of the past frames that a chunk starting at frame `start` attends, ascending.

        first: the frame at which the past, and with it the sink, begins.
        """
        if not self.window or start - first <= self.window - self.chunk_frames:
            return list(range(first, start))
        local = self.window - self.chunk_frames - self.sink
        return [*range(first, first + self.sink), *range(start - local, start)]


def no_chunks(where: str = "", whose: str = "a bidirectional network") -> UserError:
    """The error of causal sampling, or causal training, with a bidirectional network; where: the key that names it."""
    return UserError(
        f"{whose} is no causal student",
        where=where,
        why="it makes a whole video at once in many steps, and no weights of it were trained behind a cache",
        fix="name it as teacher.path, or import its checkpoint by a causal preset, see `vidalign list presets`",
    )


def no_switch() -> UserError:
    """The error of a prompt switch under a policy that cannot be rebuilt."""
    return UserError(
        "a prompt switch cannot rebuild an EMA sink",
        where="student.cache.sink_decay",
        why="it holds a mean of evicted frames under the old prompt",
        fix="use sink_decay: 0, or go on under the old prompt",
    )


@dataclass
class Sampler:
    """Few-step sampler: an explicit list of noise levels, or original timesteps to be warped by `shift`."""

    sigmas: list[float] = field(default_factory=list)
    """Warped noise levels, descending from 1.0; one network call each. Filled from `timesteps` when empty."""
    timesteps: list[float] = field(default_factory=list)
    """Original steps in 0..1000, e.g. [1000, 750, 500, 250]; warped by sigma' = k s / (1 + (k - 1) s)."""
    shift: float = 1.0
    """k in the formula above; used with `timesteps` only."""
    first_sigmas: list[float] = field(default_factory=list)
    """Noise levels of the very first chunk where they differ (causal_forcing_pp); empty = `sigmas`."""
    unipc: UniPC | None = None
    """Many-step sampler of a bidirectional network, instead of all of these; null = few steps."""

    def __post_init__(self) -> None:
        if not self.sigmas:
            self.sigmas = [warp_sigma(t / 1000, self.shift) for t in self.timesteps or [1000.0]]
        for name, sigmas in (("sigmas", self.sigmas), ("first_sigmas", self.first_sigmas)):
            ordered = all(a > b for a, b in itertools.pairwise(sigmas))
            if sigmas and not (sigmas[0] == 1.0 and ordered and sigmas[-1] > 0):
                raise UserError(f"{name} must fall strictly from 1.0 and end above 0, found {sigmas}", where="sampler")

    def steps(self, first: bool = False) -> list[float]:
        """Noise levels of a chunk; `first` for the chunk that starts at frame 0."""
        return self.first_sigmas if first and self.first_sigmas else self.sigmas

    @property
    def max_steps(self) -> int:
        """Network calls of the longest list: the number of noise slots a rollout needs, plus one."""
        return max(len(self.sigmas), len(self.first_sigmas))


def scheduler_sigmas(shift: float, steps: int = 1000) -> torch.Tensor:
    """The scheduler's whole table, `[steps]`: s_i = 1 - i / steps, warped."""
    return warp_sigma(torch.linspace(1, 0, steps + 1)[:-1], shift)


@dataclass
class VideoStudentSpec(StudentSpec):
    """Everything needed to rebuild a student around its weights."""

    transformer: dict[str, Any] = field(default_factory=dict)
    """Config of diffusers `WanTransformer3DModel`."""
    cache: CachePolicy = field(default_factory=CachePolicy)
    sampler: Sampler = field(default_factory=lambda: Sampler(sigmas=[1.0, 0.8, 0.6, 0.4]))
    prediction: str = "velocity"
    """What the network puts out: velocity (noise - x0) or x0."""
    numerics: str = "diffusers"
    """diffusers: fp32 sinusoid and rotary table; wan: float64 ones, bit-equal to the original network in
    fp32.
    """
    codec: dict[str, Any] = field(default_factory=lambda: {"name": "rgb"})
    text: dict[str, Any] = field(default_factory=lambda: {"name": "world"})
    height: int = 32
    """Pixel height of clips, a multiple of patch times codec; so is the width."""
    width: int = 32
    fps: float = 8.0
    """Pixel frames a second."""
    preset: str = ""
    """The family whose policy this is, as far as it is known."""
    base: str = ""
    """Folder or hub id that VAE, text encoder and tokenizer come from; empty where `codec` and `text` need none."""

    @property
    def bidirectional(self) -> bool:
        """Whether it makes a whole video at once, without a cache: a teacher, and no causal student."""
        return not self.cache.chunk_frames

    @property
    def downscale(self) -> int:
        """Pixels per latent position, in each direction; the codec is not built."""
        name = self.codec.get("name", "rgb")
        if "downscale" in self.codec or name in DOWNSCALES:
            return int(self.codec.get("downscale") or DOWNSCALES[name])
        return int(getattr(self._codec.Config, "downscale", self._codec.downscale))

    @property
    def _codec(self) -> type[Codec]:
        kind: type[Codec] = registry.get("codecs", self.codec.get("name", "rgb"))
        return kind

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent frame; the codec is not built."""
        scale = self.downscale
        return (int(self.transformer.get("in_channels", 16)), self.height // scale, self.width // scale)

    def pixel_frames(self, latents: int) -> int:
        """Pixel frames of a clip of `latents` latent frames: the first latent is one frame, each other one
        `Codec.stride` of them."""
        return 1 + (latents - 1) * self._codec.stride if latents else 0

    def latent_frames(self, pixels: int) -> int:
        """Latent frames of the longest clip that is no longer than `pixels` pixel frames; at least 1."""
        return 1 + max(pixels - 1, 0) // self._codec.stride

    def latents_in(self, seconds: float) -> int:
        """Latent frames of a clip of so many seconds, rounded to the nearest that the codec can make; at least 1."""
        return 1 + max(round((seconds * self.fps - 1) / self._codec.stride), 0)

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            _check_count(name, getattr(self, name), "student", least=1)
        for name in ("codec", "text"):
            chosen = getattr(self, name)
            if not isinstance(chosen, dict) or not isinstance(chosen.get("name", ""), str):
                raise UserError(f"{name} is {str(chosen)[:60]!r}", where="student", fix="{name: ..., settings}")
        if self.bidirectional != (self.sampler.unipc is not None):
            raise UserError(
                f"cache.chunk_frames is {self.cache.chunk_frames}, and sampler.unipc is "
                + ("not given" if self.bidirectional else "given"),
                where="student",
                why="a bidirectional network makes 0 frames a chunk, the whole video, by UniPC; others make chunks",
                fix="use 1 frame or more, or give sampler.unipc" if self.bidirectional else "use 0, or leave it out",
            )
        if self.prediction not in ("velocity", "x0"):
            raise UserError(f"unknown prediction {self.prediction!r}", where="student", fix="velocity or x0")
        if self.numerics not in ("diffusers", "wan"):
            raise UserError(f"unknown numerics {self.numerics!r}", where="student", fix="diffusers or wan")
        if self.transformer.get("patch_size", (1, 2, 2))[0] != 1:
            raise UserError(
                "patch_size must be 1 in time",
                where="student.init.transformer.patch_size",
                why="a causal student handles latent frames one by one",
            )
        for name in ("added_kv_proj_dim", "image_dim"):
            if self.transformer.get(name) is not None:
                raise UserError(
                    f"{name} is {self.transformer[name]!r}",
                    where=f"student.init.transformer.{name}",
                    why="it is of an image-to-video network, which reads a picture too; a student reads text",
                    fix="take the text-to-video checkpoint of the family",
                )
        if not isinstance(self.fps, int | float) or not 0 < self.fps <= 1000:
            raise UserError(f"fps is {self.fps!r}", where="student", why="it is a number above 0 and at most 1000")
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Height and width are whole patches of whole latent positions; not asked of a codec that is not known."""
        if self.codec.get("name", "rgb") not in registry.names("codecs"):
            return
        patch = self.transformer.get("patch_size", (1, 2, 2))
        for name, side in (("height", patch[1]), ("width", patch[2])):
            unit, size = int(side) * self.downscale, getattr(self, name)
            if size % unit:
                near = max(round(size / unit), 1) * unit
                raise UserError(
                    f"{name} is {size}, not a multiple of {unit}",
                    where=f"student.{name}",
                    why=f"the network takes patches of {side} latent positions, each of {self.downscale} pixels",
                    fix=f"use {near}",
                )

    def check_frames(self, frames: int, where: str = "") -> None:
        """Raises `UserError`, which names the key `where`, unless a clip of `frames` latent frames is whole chunks."""
        size = self.cache.chunk_frames
        if self.bidirectional:
            raise no_chunks(where)
        if frames < 1 or frames % size:
            raise UserError(
                f"a video of {frames} frames is not whole chunks",
                where=where,
                why=f"the student makes chunks of {size}",
                fix=f"use a multiple of {size}",
            )
        if self.cache.rope == "absolute" and frames > MAX_POSITIONS:
            raise UserError(
                f"a video of {frames} frames is past the rotary table of {MAX_POSITIONS} entries",
                where=where,
                why="positions are absolute and grow with the length of the video",
                fix=f"use at most {MAX_POSITIONS // size * size}, or student.cache={{window: N, rope: relative}}",
            )

    def chunks_in(self, frames: int, where: str = "") -> int:
        """Chunks of a sampled clip of `frames` latent frames, of which the first may be smaller where the cache policy
        says so. Raises `UserError` as `check_frames`."""
        size = self.cache.chunk_frames
        if self.bidirectional:
            raise no_chunks(where)
        chunks = -(-frames // size)
        self.check_frames(chunks * size if self.cache.first_chunk == "remainder" else frames, where)
        return chunks

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VideoStudentSpec:
        """Inverse of `to_dict`; an unknown key raises UserError naming the nearest one."""
        values = dict(values)
        if isinstance(values.get("sampler"), dict):
            values["sampler"] = _with_unipc(values["sampler"])
        for name, part in (("cache", CachePolicy), ("sampler", Sampler)):
            if isinstance(values.get(name), dict):
                values[name] = build_spec(part, values[name], f"student.init.{name}")
        return build_spec(cls, values, "student.init")


def _with_unipc(sampler: dict[str, Any]) -> dict[str, Any]:
    """The section ``sampler`` with what stands below it in the form of its dataclasses."""
    unipc, where = sampler.get("unipc"), "student.init.sampler.unipc"
    if not isinstance(unipc, dict):
        return sampler
    if isinstance(guidance := unipc.get("guidance"), dict):
        unipc = {**unipc, "guidance": build_spec(Guidance, guidance, f"{where}.guidance")}
    return {**sampler, "unipc": build_spec(UniPC, unipc, where)}
