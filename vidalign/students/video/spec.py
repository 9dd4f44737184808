"""What defines a causal video student besides its weights: cache policy, sampler, codec, text encoder.

The public few-step causal families (CausVid, Self-Forcing, LongLive, Reward-Forcing, ...) are stock Wan2.1
weights with other numbers in these dataclasses. A spec travels as JSON in the metadata of the weights file.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch

from vidalign import registry
from vidalign.errors import UserError
from vidalign.losses.flow_matching import warp_sigma
from vidalign.students.spec import StudentSpec, build_spec
from vidalign.students.video.many_steps import ManySteps, no_chunks, read_many_steps

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


POLICY_WORDS = {
    "rope": ("absolute", "relative", "anchored"),
    "on_switch": ("recache", "keep"),
    "first_chunk": ("whole", "remainder"),
}
"""Values of the fields of a `CachePolicy` that are words."""


@dataclass(frozen=True)
class Past:
    """Where a video stands, in latent frames."""

    frames: int = 0
    """How many there are."""
    first: int = 0
    """Where the past and its sink begin: frame 0, or the start of the window of the last prompt switch."""
    cuts: tuple[int, ...] = ()
    """First frames of the shots after the first one."""

    def shot(self, frames: int) -> range | None:
        """The first `frames` frames of the newest shot of which there are frames; None where it is the first shot."""
        begun = [cut for cut in self.cuts if cut < self.frames]
        return range(begun[-1], begun[-1] + frames) if begun else None


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
    """absolute: a frame keeps its index; relative: positions count the kept frames, decided at every read; anchored:
    absolute, but the sink is read as if it stood right before the local past, and a clean pass attends the newest
    frames of the window alone (Rolling-Forcing)."""
    sink_decay: float = 0.0
    """EMA sink of Reward-Forcing: S <- decay S + (1 - decay) evicted, on un-roped keys and values; 0 =
    off.
    """
    global_sink: bool = False
    """Whether a prompt switch keeps the old sink once the video fills the window; see
    `VideoStudent.recache`.
    """
    recompute: bool = False
    """The past is one chunk, whose keys and values are computed from itself alone (Krea); needs window: two chunks and
    rope: relative."""
    on_switch: str = "recache"
    """What a new prompt does: recache rebuilds the past under it; keep leaves the past as it is (LongLive 2)."""
    cut_prefix: str = ""
    """With `on_switch: keep`: a new prompt that begins so is a cut. The first `sink` frames of its shot are then kept
    as long as no other shot begins. Empty = no prompt is one."""
    cut_offset: int = 0
    """Rotary positions that are skipped at a cut."""
    first_chunk: str = "whole"
    """whole: a sampled video is whole chunks; remainder: its first chunk takes the frames that are left over, and may
    be a given picture. Training is on whole chunks."""

    def __post_init__(self) -> None:
        where = "cache"
        for name in ("chunk_frames", "window", "sink", "cut_offset"):
            _check_count(name, getattr(self, name), where)
        for name, words in POLICY_WORDS.items():
            if getattr(self, name) not in words:
                raise UserError(f"unknown {name} {getattr(self, name)!r}", where=where, fix=" or ".join(words))
        causal = [f.name for f in fields(self) if f.name != "chunk_frames" and getattr(self, f.name) != f.default]
        if causal and not self.chunk_frames:
            raise UserError(
                f"chunk_frames: 0 takes no {' and no '.join(causal)}",
                where=where,
                why="a bidirectional network has no cache and makes the whole video at once",
                fix="leave them out",
            )
        if self.window and self.window < self.sink + self.chunk_frames:
            raise UserError(
                f"window {self.window} cannot hold sink {self.sink} and {self.chunk_frames} frames a chunk",
                where=where,
                why="window counts sink, local past and current chunk",
                fix=f"window >= {self.sink + self.chunk_frames}, or 0 for the whole past",
            )
        if self.sink_decay and self.first_chunk == "remainder":
            why = "an EMA sink takes up whole chunks"
            raise UserError("sink_decay needs first_chunk: whole", where=where, why=why)
        if self.sink_decay and not (self.window and self.sink and self.rope == "relative"):
            raise UserError("sink_decay needs window, sink and rope: relative", where=where)
        self._check_family_rules(where)

    def _check_family_rules(self, where: str) -> None:
        """What the rules of single families need beside them."""
        if self.rope == "anchored" and not (self.window and self.sink):
            raise UserError("rope: anchored needs window and sink", where=where, why="the sink is the anchor")
        if self.recompute and (self.window, self.sink, self.rope) != (2 * self.chunk_frames, 0, "relative"):
            fix = f"use window: {2 * self.chunk_frames}, sink: 0, rope: relative"
            raise UserError("recompute needs a past of one chunk at relative positions", where=where, fix=fix)
        if not self.cut_prefix and not self.cut_offset:
            return
        if (self.on_switch, self.rope) != ("keep", "absolute"):
            raise UserError("cuts need on_switch: keep and rope: absolute", where=where)
        if self.window and self.window < 2 * self.sink + self.chunk_frames:
            why = f"it holds the sink of the video and of the shot, {self.sink} frames each, and a chunk"
            raise UserError(f"window {self.window} is too small for cuts", where=where, why=why)

    def attended(self, past: Past, frames: int = 0) -> list[int]:
        """Absolute indices of the past frames that the next `frames` frames attend, ascending; 0 = a chunk."""
        room = self.window - (frames or self.chunk_frames)
        if not self.window or past.frames - past.first <= room:
            return list(range(past.first, past.frames))
        room -= self.sink
        sink, shot = range(past.first, past.first + self.sink), past.shot(self.sink)
        if shot is None or shot.start >= past.frames - room:
            return [*sink, *range(past.frames - room, past.frames)]
        return sorted({*sink, *shot, *range(past.frames - room + self.sink, past.frames)})

    def attended_clean(self, past: Past) -> list[int]:
        """The same of the clean pass of the next chunk, which writes its keys and values."""
        if self.recompute:
            return []
        if self.rope == "anchored":
            return list(range(max(past.first, past.frames - self.window + self.chunk_frames), past.frames))
        return self.attended(past)

    def kept(self, past: Past) -> list[int]:
        """The past frames that later passes may attend, ascending."""
        return sorted({*self.attended(past), *self.attended_clean(past)})

    def position(self, frame: int, past: Past) -> int:
        """The rotary position of a frame, where positions are absolute."""
        return frame + self.cut_offset * sum(cut <= frame for cut in past.cuts)


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

    solver: str = field(default="renoise", kw_only=True)
    """renoise: x0 is noised anew to the next level (Self-Forcing); unipc: the multistep solver of diffusers, without
    fresh noise (LongLive 2)."""
    rolling: bool = field(default=False, kw_only=True)
    """Whether as many chunks as there are levels are denoised together, each one level behind the chunk before it
    (Rolling-Forcing); else one chunk after the other."""

    sigmas: list[float] = field(default_factory=list)
    """Warped noise levels, descending from 1.0; one network call each. Filled from `timesteps` when empty."""
    timesteps: list[float] = field(default_factory=list)
    """Original steps in 0..1000, e.g. [1000, 750, 500, 250]; warped by sigma' = k s / (1 + (k - 1) s)."""
    shift: float = 1.0
    """k in the formula above; used with `timesteps` only."""
    first_sigmas: list[float] = field(default_factory=list)
    """Noise levels of the very first chunk where they differ (causal_forcing_pp); empty = `sigmas`."""
    many_steps: ManySteps | None = None
    """Many-step sampler of a bidirectional network, instead of all of these; null = few steps."""

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise UserError(f"unknown solver {self.solver!r}", where="sampler", fix=" or ".join(SOLVERS))
        if self.rolling and (self.solver != "renoise" or self.first_sigmas):
            raise UserError("rolling needs solver: renoise and one list of levels", where="sampler")
        if not self.sigmas:
            self.sigmas = [warp_sigma(t / 1000, self.shift) for t in self.timesteps or [1000.0]]
        for name, sigmas in (("sigmas", self.sigmas), ("first_sigmas", self.first_sigmas)):
            ordered = all(a > b for a, b in itertools.pairwise(sigmas))
            begins = sigmas[:1] == [1.0] if self.solver == "renoise" else sigmas and 0.99 <= sigmas[0] <= 1
            if sigmas and not (begins and ordered and sigmas[-1] > 0):
                raise UserError(f"{name} must fall strictly from 1.0 and end above 0, found {sigmas}", where="sampler")

    def steps(self, first: bool = False) -> list[float]:
        """Noise levels of a chunk; `first` for the chunk that starts at frame 0."""
        return self.first_sigmas if first and self.first_sigmas else self.sigmas

    @property
    def max_steps(self) -> int:
        """Network calls of the longest list: the number of noise slots a rollout needs, plus one."""
        return max(len(self.sigmas), len(self.first_sigmas))


SOLVERS = ("renoise", "unipc")


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
        if self.bidirectional != (self.sampler.many_steps is not None):
            raise UserError(
                f"cache.chunk_frames is {self.cache.chunk_frames}, sampler.many_steps is {self.sampler.many_steps}",
                where="student",
                why="chunk_frames: 0 and many_steps are of a bidirectional network, which makes whole videos",
                fix="give both, or neither",
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

    def check_causal(self, where: str = "") -> None:
        """Raises `UserError`, which names the key `where`, for a bidirectional network."""
        if self.bidirectional:
            raise no_chunks(where)

    def check_frames(self, frames: int, where: str = "") -> None:
        """Raises `UserError`, which names the key `where`, unless a clip of `frames` latent frames is whole chunks."""
        size = self.cache.chunk_frames
        self.check_causal(where)
        if frames < 1 or frames % size:
            raise UserError(
                f"a video of {frames} frames is not whole chunks",
                where=where,
                why=f"the student makes chunks of {size}",
                fix=f"use a multiple of {size}",
            )
        if self.cache.rope != "relative" and frames > MAX_POSITIONS:
            raise UserError(
                f"a video of {frames} frames is past the rotary table of {MAX_POSITIONS} entries",
                where=where,
                why="positions grow with the length of the video",
                fix=f"use at most {MAX_POSITIONS // size * size}, or student.cache={{window: N, rope: relative}}",
            )

    def chunks_in(self, frames: int, where: str = "") -> int:
        """Chunks of a sampled clip of `frames` latent frames, of which the first may be smaller where the cache policy
        says so. Raises `UserError` as `check_frames`."""
        size = self.cache.chunk_frames
        self.check_causal(where)
        chunks = -(-frames // size)
        self.check_frames(chunks * size if self.cache.first_chunk == "remainder" else frames, where)
        return chunks

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VideoStudentSpec:
        """Inverse of `to_dict`; an unknown key raises UserError naming the nearest one."""
        values = dict(values)
        if isinstance(values.get("sampler"), dict):
            values["sampler"] = read_many_steps(values["sampler"])
        for name, part in (("cache", CachePolicy), ("sampler", Sampler)):
            if isinstance(values.get(name), dict):
                values[name] = build_spec(part, values[name], f"student.init.{name}")
        return build_spec(cls, values, "student.init")
