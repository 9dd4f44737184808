"""A text-to-video pipeline of diffusers as a black-box teacher: sampled once, kept on disk, and read from there.

Clip k of a prompt is a pure function of model, prompt, k and settings. Its noise and its file name are the hash of
them. So an interrupted run goes on with the clips that are there, and the folder is a clip store of its own
(`teachers/store.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vidalign.engine import distributed
from vidalign.errors import UserError, first_line
from vidalign.guest import guest
from vidalign.owner import replacing
from vidalign.quiet import no_bars
from vidalign.ranges import require
from vidalign.teachers.clips import ClipShape, RawClip, normalise, read_clip

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.students.video import VideoStudentSpec


class PipelineTeacher:
    """Samples `per_prompt` clips of a prompt when they are first needed. Offers ``clips``.

    build: makes the pipeline; called only when a clip is missing. options: further arguments of the pipeline's call,
    such as ``guidance_scale``; they may override size and length.
    """

    offers = ("clips",)

    @dataclass
    class Config:
        path: str = ""
        """Folder or hub name of the pipeline."""
        steps: int = 24
        """Denoising steps."""
        cache: str = ""
        """Folder in which clips are kept; a later run goes on with them."""
        per_prompt: int = 1
        """Clips that are sampled of each prompt."""
        options: dict[str, Any] = field(default_factory=dict)
        """Further arguments of the pipeline's call, such as guidance_scale."""

        def __post_init__(self) -> None:
            require(self, "steps", "per_prompt", least=1)

    def __init__(
        self,
        build: Callable[[], Any],
        identity: str,
        shape: ClipShape,
        cache: Path,
        *,
        per_prompt: int = 1,
        steps: int = 24,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._build, self.identity = build, identity
        self._pipeline: Any = None
        self.shape, self.cache, self.per_prompt = shape, cache, per_prompt
        size = {"num_frames": shape.frames, "height": shape.height, "width": shape.width}
        self.call = {**size, "num_inference_steps": steps, **(options or {})}

    @classmethod
    def check(cls, draft: Draft) -> None:
        """It names its weights and the folder of its clips."""
        config = draft.settings("teacher", cls.Config)
        for key, meaning in {"path": "its weights", "cache": "where clips are kept"}.items():
            if not getattr(config, key) and draft.sound("teacher"):
                draft.refuse(f"the teacher has no {key}", "teacher", f"it names {meaning}", f"give teacher.{key}")

    @classmethod
    def from_recipe(cls, config: Config, frames: int, spec: VideoStudentSpec) -> PipelineTeacher:
        return cls(
            lambda: load_pipeline(config.path),
            config.path,
            ClipShape.of(spec, frames),
            Path(config.cache),
            per_prompt=config.per_prompt,
            steps=config.steps,
            options=config.options,
        )

    def clips(self, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """One of the clips of each prompt, drawn by its generator: ``[B, F, 3, H, W]`` in [0, 1], float32."""
        chosen = []
        for prompt, generator in zip(prompts, generators, strict=True):
            number = int(torch.randint(self.per_prompt, (), generator=generator))
            file = self.file(prompt, number)
            if not file.is_file():
                self._sample(prompt, file)
            chosen.append(normalise(read_clip(file, file.suffix), self.shape))
        return torch.stack(chosen).float() / 255

    def file(self, prompt: str, number: int) -> Path:
        """Where clip `number` of a prompt is kept."""
        key = repr((self.identity, prompt, number, sorted(self.call.items())))
        return self.cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"

    def _sample(self, prompt: str, file: Path) -> None:
        """Sample a clip and write it beside its place, then move it there: a half-written file is never read."""
        from safetensors.torch import save_file

        if self._pipeline is None:
            self._pipeline = self._build()
        noise = torch.Generator().manual_seed(int(file.stem[:15], 16))
        with guest("pipeline", self.identity, self._pipeline), torch.no_grad():
            frames = self._pipeline(prompt=prompt, generator=noise, output_type="np", **self.call).frames[0]
            array = torch.from_numpy(np.asarray(frames, dtype=np.float32)).permute(0, 3, 1, 2)
        clip = (array.clamp(0, 1) * 255).round().to(torch.uint8)
        normalise(RawClip(clip), self.shape)  # a clip that is too short is not worth keeping
        self.cache.mkdir(parents=True, exist_ok=True)
        with replacing(file, sweep=False) as partial:
            save_file({"clip": clip.contiguous()}, partial, {"prompt": prompt})


def load_pipeline(path: str) -> Any:
    """A diffusers pipeline from a folder or the hub, on this process' device; `UserError` when it cannot be loaded."""
    from diffusers import DiffusionPipeline

    device = distributed.device()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with guest("pipeline", path, DiffusionPipeline):
        try:
            with no_bars("diffusers", "transformers"):
                pipeline = DiffusionPipeline.from_pretrained(path, torch_dtype=dtype)
        except (OSError, ValueError, ImportError) as error:
            why = first_line(error)
            raise UserError(
                f"the pipeline {path!r} cannot be loaded",
                where="teacher.path",
                why=why,
                fix="name a folder or hub model that holds a text-to-video pipeline of diffusers",
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)
