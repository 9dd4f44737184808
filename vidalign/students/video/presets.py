"""The public causal Wan families as numbers: stock Wan2.1 weights with other cache policies and samplers.

Read off the released code and configs of each family. All feed velocity networks; the sampler's `timesteps` are the
original ones, warped by `shift` here. Two families need more than numbers and are refused by name. rolling_forcing
denoises a window of chunks at mixed noise levels jointly; krea_14b recomputes the cache for every chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from vidalign.errors import UserError, nearest
from vidalign.students.video.spec import CachePolicy, Sampler, VideoStudentSpec

FOUR_STEPS = (1000.0, 750.0, 500.0, 250.0)
WAN_CODEC = {"name": "wan", "path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "subfolder": "vae"}
WAN_TEXT = {
    "name": "transformers",
    "path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "subfolder": "text_encoder",
    "length": 512,
}
UNSUPPORTED = {
    "rolling_forcing": "it denoises a rolling window of five chunks at mixed noise levels",
    "krea_14b": "it recomputes the cache from latents before every chunk",
}


@dataclass(frozen=True)
class Preset:
    """One family: how it samples, what it attends, where its weights are in the file."""

    chunk_frames: int = 3
    timesteps: tuple[float, ...] = FOUR_STEPS
    shift: float = 5.0
    first_timesteps: tuple[float, ...] = ()
    """Timesteps of the first chunk where they differ."""
    window: int = 0
    sink: int = 0
    rope: str = "absolute"
    sink_decay: float = 0.0
    global_sink: bool = False
    """Whether a prompt switch keeps the sink, as the configs of LongLive set it."""
    keys: tuple[str, ...] = ("generator_ema", "generator", "model", "state_dict")
    """Where the weights are in the checkpoint, in order of preference; else the file is a flat state dict."""
    lora_alpha: float = 0.0
    """Alpha of the family's LoRA file, which carries none."""
    lora_rank: int = 0
    sigmas: tuple[float, ...] = field(default=())
    """Noise levels given directly (causvid does not warp its list); empty = warp `timesteps`."""

    def spec(self, transformer: dict[str, Any], numerics: str, height: int, width: int) -> VideoStudentSpec:
        """The spec of a student of this family."""
        cache = CachePolicy(self.chunk_frames, self.window, self.sink, self.rope, self.sink_decay, self.global_sink)
        first = Sampler(timesteps=list(self.first_timesteps), shift=self.shift).sigmas if self.first_timesteps else []
        sampler = Sampler(list(self.sigmas), list(self.timesteps), self.shift, first)
        return VideoStudentSpec(
            transformer=transformer,
            cache=cache,
            sampler=sampler,
            prediction="velocity",
            numerics=numerics,
            codec=dict(WAN_CODEC),
            text=dict(WAN_TEXT),
            height=height,
            width=width,
        )


LONGLIVE = Preset(window=12, sink=3, global_sink=True, keys=("generator", "model"), lora_alpha=256.0, lora_rank=256)
PRESETS: dict[str, Preset] = {
    "self_forcing": Preset(),
    "causal_forcing": Preset(keys=("generator", "generator_ema")),
    "causal_forcing_frame": Preset(chunk_frames=1),
    "causal_forcing_pp_2step": Preset(chunk_frames=1, timesteps=(1000.0, 500.0), first_timesteps=FOUR_STEPS),
    "causal_forcing_pp_1step": Preset(chunk_frames=1, timesteps=(1000.0,), first_timesteps=FOUR_STEPS),
    "longlive": LONGLIVE,
    "longlive_infinity": replace(LONGLIVE, rope="relative"),
    "reward_forcing": Preset(window=9, sink=3, rope="relative", sink_decay=0.999),
    "causvid": Preset(keys=("generator",), shift=8.0, sigmas=(1.0, 0.757, 0.522)),
}


def preset(name: str) -> Preset:
    """The preset `name`; UserError with the nearest name, or the reason why a known family is not
    supported.
    """
    if name in PRESETS:
        return PRESETS[name]
    if name in UNSUPPORTED:
        raise UserError(f"the family {name!r} is not supported", why=UNSUPPORTED[name])
    near = nearest(name, PRESETS)
    raise UserError(
        f"unknown preset {name!r}",
        why=f"valid: {', '.join(PRESETS)}",
        fix=f"did you mean {near!r}?" if near else "",
    )
