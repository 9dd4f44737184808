"""The kind of student `video`, as it is registered: light, so that a recipe is checked without its network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vidalign.ranges import require
from vidalign.students.exchange import Card, Leaving
from vidalign.students.kind import Sizes, StudentKind, check_clip_name
from vidalign.students.video.spec import VideoStudentSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vidalign.codecs.base import Codec
    from vidalign.engine.config import Precision
    from vidalign.recipe.draft import Draft
    from vidalign.recipe.schema import StudentChoice
    from vidalign.students.exchange import Imported, ImportOptions
    from vidalign.students.samples import SampleRequest, Samples
    from vidalign.students.video.live import VideoStreamer
    from vidalign.students.video.stand_in import Features
    from vidalign.students.video.student import VideoStudent
    from vidalign.text.features import PromptFeatures


Attention = Literal["auto", "native", "cudnn", "flash", "flash_3", "sage", "flex"]


class Video(StudentKind[VideoStudentSpec, "VideoStudent"]):
    """A causal few-step video student over the Wan transformer of diffusers."""

    spec_type = VideoStudentSpec
    forms: ClassVar[Mapping[str, str]] = {
        **StudentKind.forms,
        "diffusers": "a folder that WanTransformer3DModel and WanPipeline load",
        "original": "one safetensors file under the names of the released Wan code",
        "lora": "the trained adapter for PEFT, for load_lora_weights, and under original names",
    }
    adapter_form = "lora"
    shared = ("codec", "height", "width", "text", "sampler")

    @dataclass
    class Config:
        """Settings of a video student."""

        cache: dict[str, Any] | None = None
        """Changes to its cache policy (`window`, `sink`, `rope`, `sink_decay`, `first_chunk`): a rolling cache makes
        long videos."""
        sampler: dict[str, Any] | None = None
        """Changes to its sampler (`sigmas`, `first_sigmas`, `timesteps`, `shift`): other noise levels than it was
        trained at, such as fewer before a distillation to them."""
        preset: str = ""
        """Cache policy and sampler of this family, see `vidalign list presets`, or of a YAML file in the same form."""
        codec: dict[str, Any] | None = None
        """Codec, instead of the one of the weights: `{name: wan, path: FOLDER, subfolder: vae}`."""
        decoder: str = ""
        """File of a tiny autoencoder of Wan (`taew2_1`, `taew2_2`) that decodes the clips that rewards see in training;
        evaluations and samples use the codec."""
        text: dict[str, Any] | None = None
        """Text encoder, instead of the one of the weights: `{name: transformers, path: FOLDER, ...}`."""
        height: int | None = None
        """Pixel height of clips, instead of that of the weights."""
        width: int | None = None
        """Pixel width of clips."""
        fps: float | None = None
        """Pixel frames a second."""
        numerics: Literal["diffusers", "wan"] | None = None
        """`wan` computes timesteps and positions in float64 as the original network; null = as the weights say."""
        dtype: Literal["float32", "bfloat16"] = "float32"
        """Type of the frozen weights below an adapter; `bfloat16` halves their memory."""
        attention: Attention = "auto"
        """Kernels of attention, by the dispatcher of diffusers; auto takes the one that torch chooses."""
        compile: bool = False
        """Compile the blocks of the network with `torch.compile`: the first chunks and steps wait for it, minutes at
        real size, and results stay the same to rounding."""
        forcing_frames: int = 0
        """Most latent frames of a video that a loss over all of its chunks takes through the network at once, whole
        chunks; 0 = all. Bounds memory, takes a further forward pass; the gradient stays within a part."""

        def __post_init__(self) -> None:
            require(self, "forcing_frames", least=0)

    @classmethod
    def network(cls) -> type[VideoStudent]:
        from vidalign.students.video.student import VideoStudent

        return VideoStudent

    @classmethod
    def build(cls, student: StudentChoice, seed: int) -> VideoStudent:
        import torch

        spec, dtype = cls.spec(student), getattr(torch, student.config.dtype)
        if student.init is not None:
            return cls.from_spec(spec, seed).to(dtype)
        return cls.network().load(student.path, dtype=dtype, spec=spec)

    @classmethod
    def settle(cls, made: VideoStudent, student: StudentChoice) -> None:
        if student.config.attention != "auto":
            made.use_attention(student.config.attention)
        made.forcing_frames = student.config.forcing_frames
        if student.config.compile:
            from vidalign.students.video.blocks import check_compiler

            check_compiler("student.compile")
            made.compile_blocks()

    @classmethod
    def features(cls, spec: VideoStudentSpec) -> PromptFeatures:
        from vidalign.text.pretrained import build_features

        return build_features(spec.text)

    @classmethod
    def codec(cls, spec: VideoStudentSpec) -> Codec:
        from vidalign.codecs import build_codec

        return build_codec(spec.codec)

    @classmethod
    def decoder(cls, student: StudentChoice) -> Codec | None:
        from vidalign.codecs.tiny_wan import TinyWanDecoder

        path = student.config.decoder
        return TinyWanDecoder(TinyWanDecoder.Config(path)) if path else None

    @classmethod
    def presets(cls) -> dict[str, str]:
        from vidalign.students.video.presets import preset, shipped_presets

        return {name: preset(name).about for name in shipped_presets()}

    @classmethod
    def import_checkpoint(cls, preset: str, checkpoint: str, out: Path, options: ImportOptions) -> Imported:
        from vidalign.students.video.importers.convert import import_checkpoint

        return import_checkpoint(preset, checkpoint, out, options)

    @classmethod
    def export(cls, leaving: Leaving, form: str, out: Path, dtype: str) -> Path:
        from vidalign.students.video.exporters import export

        return export(leaving, form, out, dtype)

    @classmethod
    def tensors(cls, path: str | Path) -> Iterator[tuple[str, Tensor]]:
        from vidalign.students.video.exporters import stored

        yield from stored(path)

    @classmethod
    def card(cls, path: str | Path) -> Card:
        from vidalign.students.video.exporters import card

        return card(cls.read_spec(path))

    @classmethod
    def check(cls, draft: Draft) -> None:
        from vidalign.students.video.checks import check

        super().check(draft)
        check(draft)

    @classmethod
    def check_weights(cls, draft: Draft, path: str) -> None:
        from vidalign.students.video.checks import check_weights

        if not check_weights(draft, path, "student.path"):
            super().check_weights(draft, path)

    @classmethod
    def check_frames(cls, spec: VideoStudentSpec, frames: int, where: str) -> None:
        spec.check_frames(frames, where)

    @classmethod
    def recognises(cls, path: str, spec: dict[str, Any]) -> bool:
        from vidalign.students.hub import is_student_folder

        return "transformer" in spec or (not spec and is_student_folder(path))

    @classmethod
    def read_spec(cls, path: str | Path) -> VideoStudentSpec:
        from vidalign.students.video.checkpoint import SIZES, check_spec, written_spec
        from vidalign.students.weights import reading_spec

        written = written_spec(path)
        check_spec(written, str(path), "transformer", SIZES)
        with reading_spec(str(path)):
            return VideoStudentSpec.from_dict(written)

    @classmethod
    def sizes(cls, student: StudentChoice, frames: int) -> Sizes:
        spec = cls.spec(student)
        return Sizes(frames // (spec.cache.chunk_frames or frames), spec.sampler, spec.latent_shape)

    @classmethod
    def spec(cls, student: StudentChoice) -> VideoStudentSpec:
        from vidalign.students.video.changes import changed

        return changed(super().spec(student), student.config)

    @classmethod
    def sampled_as(cls, student: StudentChoice, request: SampleRequest) -> SampleRequest:
        own = student.config
        compile = own.compile if request.compile is None else request.compile
        return replace(request, attention=request.attention or own.attention, compile=compile)

    @classmethod
    def check_samples(cls, spec: VideoStudentSpec, request: SampleRequest) -> None:
        from vidalign.students.video.samples import check

        check_clip_name(request.out)
        check(spec, request)

    @classmethod
    def sampling_dtype(cls, precision: Precision) -> torch.dtype:
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}[precision]

    @classmethod
    def write_samples(
        cls, student: VideoStudent, request: SampleRequest, features: PromptFeatures | None = None
    ) -> Samples:
        from vidalign.students.video.samples import write

        return write(student, request, features)

    @classmethod
    def check_live(cls, spec: VideoStudentSpec) -> None:
        from vidalign.students.video.live import check_live

        check_live(spec)

    @classmethod
    def streamer(
        cls, student: VideoStudent, request: SampleRequest, features: PromptFeatures | None = None
    ) -> VideoStreamer:
        from vidalign.students.video.live import VideoStreamer

        return VideoStreamer(student, request, features or cls.features(student.spec))

    @classmethod
    def levels(cls, path: str | Path) -> list[float]:
        return cls.read_spec(path).sampler.sigmas

    @classmethod
    def stand_in(cls, student: StudentChoice) -> tuple[VideoStudent, Features, Codec]:
        """A tiny student of the same chunks and sampler with random weights, its prompt features and codec. Only the
        specification of the real one is read."""
        from vidalign.students.video.stand_in import stand_in

        return stand_in(cls.spec(student))

    @classmethod
    def unloaded(cls, student: StudentChoice) -> tuple[VideoStudent, Features, Codec]:
        from vidalign.students.video.stand_in import unloaded

        made, features, codec = unloaded(cls.spec(student))
        made.forcing_frames = student.config.forcing_frames
        return made, features, codec
