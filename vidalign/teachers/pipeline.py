"""A text-to-video pipeline of diffusers as a black-box teacher: sampled once, kept on disk, and read from there.

Clip k of a prompt is a pure function of model, prompt, k and settings. Its noise and its file name are the hash of
them. So an interrupted run goes on with the clips that are there, and the folder is a clip store of its own
(`teachers/store.py`). Only the part of the pipeline that computes is on the accelerator. All clips of a run are made
before its student is built, and the pipeline leaves the memory then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
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
from vidalign.students.video.guidance import Guidance
from vidalign.teachers.clips import ClipShape, normalise, read_clip
from vidalign.teachers.videos import RawClip
from vidalign.tensor_writing import save_tensors

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft
    from vidalign.students.video import VideoStudentSpec
    from vidalign.text.features import PromptFeatures


Clip = tuple[str, int]
"""A prompt, and the number of one of its clips."""
OWN = {"guidance_scale": "scale", "negative_prompt": "negative_prompt"}
"""Arguments of a pipeline's call that are settings of `Guidance`."""


class PipelineTeacher:
    """Samples `per_prompt` clips of a prompt, once. Offers ``clips``.

    build: makes the pipeline; called only when a clip is missing. options: further arguments of the pipeline's call;
    they may override size and length.
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
        batch: int = 1
        """Clips that are sampled at once; the same ones, to rounding, whatever it is."""
        guidance: Guidance | None = None
        """Classifier-free guidance; null = that of the pipeline."""
        options: dict[str, Any] = field(default_factory=dict)
        """Further arguments of the pipeline's call, such as max_sequence_length."""

        def __post_init__(self) -> None:
            require(self, "steps", "per_prompt", "batch", least=1)
            for name in sorted(OWN.keys() & self.options.keys()):
                raise ValueError(f"options names {name}, which is a setting of its own: guidance.{OWN[name]}")

    def __init__(
        self,
        build: Callable[[], Any],
        identity: str,
        shape: ClipShape,
        cache: Path,
        *,
        per_prompt: int = 1,
        batch: int = 1,
        steps: int = 24,
        guidance: Guidance | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self._build, self.identity = build, identity
        self._pipeline: Any = None
        self.shape, self.cache, self.per_prompt, self.batch = shape, cache, per_prompt, batch
        size = {"num_frames": shape.frames, "height": shape.height, "width": shape.width}
        own = {name: value for name, key in OWN.items() if (value := getattr(guidance, key, None))}
        self.call = {**size, "num_inference_steps": steps, **own, **(options or {})}

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
            batch=config.batch,
            steps=config.steps,
            guidance=config.guidance,
            options=config.options,
        )

    def prepare(self, prompts: Sequence[str], features: PromptFeatures | None = None) -> None:
        """Sample every clip of these prompts that is not there, shared out to the processes, which all call it; the
        pipeline leaves the memory then. Where processes do not see each other's disk, each samples what it lacks."""
        clips = [(prompt, number) for prompt in dict.fromkeys(prompts) for number in range(self.per_prompt)]
        lacked = distributed.all_gather_object(self._missing(clips))
        missing = list(dict.fromkeys(clip for own in lacked for clip in own))
        self._sample(missing[distributed.rank() :: distributed.world_size()])
        distributed.barrier()
        self._sample(self._missing(missing))
        if self._pipeline is not None:
            self._pipeline = None
            distributed.free_memory(distributed.device())

    def clips(self, prompts: Sequence[str], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """One of the clips of each prompt, drawn by its generator: ``[B, F, 3, H, W]`` in [0, 1], float32. A clip of a
        prompt that was not prepared is sampled now."""
        drawn = [int(torch.randint(self.per_prompt, (), generator=generator)) for generator in generators]
        chosen = list(zip(prompts, drawn, strict=True))
        self._sample(self._missing(dict.fromkeys(chosen)))
        files = [self.file(*clip) for clip in chosen]
        return torch.stack([normalise(read_clip(file, file.suffix), self.shape) for file in files]).float() / 255

    def file(self, prompt: str, number: int) -> Path:
        """Where clip `number` of a prompt is kept."""
        key = repr((self.identity, prompt, number, sorted(self.call.items())))
        return self.cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"

    def _missing(self, clips: Iterable[Clip]) -> list[Clip]:
        return [clip for clip in clips if not self.file(*clip).is_file()]

    def _sample(self, clips: Sequence[Clip]) -> None:
        """Sample clips, `batch` at once, and keep them."""
        for at in range(0, len(clips), self.batch):
            some = clips[at : at + self.batch]
            if self._pipeline is None:
                self._pipeline = self._build()
            files = [self.file(*clip) for clip in some]
            noise = [torch.Generator().manual_seed(int(file.stem[:15], 16)) for file in files]
            prompts, call = [prompt for prompt, _ in some], dict(self.call)
            if "negative_prompt" in call:
                call["negative_prompt"] = [call["negative_prompt"]] * len(some)
            with guest("pipeline", self.identity, self._pipeline), torch.no_grad():
                frames = self._pipeline(prompt=prompts, generator=noise, output_type="np", **call).frames
                arrays = [torch.from_numpy(np.asarray(one, dtype=np.float32)).permute(0, 3, 1, 2) for one in frames]
            for prompt, file, array in zip(prompts, files, arrays, strict=True):
                self._keep(prompt, file, array)

    def _keep(self, prompt: str, file: Path, array: torch.Tensor) -> None:
        """Write a clip ``[F, 3, H, W]`` in [0, 1] beside its place, then move it there: a half-written file is never
        read. Raises `DataError` for one that is too short."""
        clip = (array.clamp(0, 1) * 255).round().to(torch.uint8)
        normalise(RawClip(clip), self.shape)
        self.cache.mkdir(parents=True, exist_ok=True)
        with replacing(file, sweep=False) as partial:
            save_tensors({"clip": clip.contiguous()}, partial, {"prompt": prompt})


def load_pipeline(path: str) -> Any:
    """A diffusers pipeline from a folder or the hub, for this process' device; `UserError` when it cannot be loaded.

    On an accelerator one part at a time is there, while it computes, and all of it is in host memory between calls.
    """
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
        return offloaded(pipeline, device)


def offloaded(pipeline: Any, device: torch.device) -> Any:
    """The pipeline with its parts in host memory, each on the device while it computes; one that names no order of its
    parts is there as a whole."""
    if device.type == "cpu" or pipeline.model_cpu_offload_seq is None:
        return pipeline.to(device)
    pipeline.enable_model_cpu_offload(device=device)
    return pipeline
