"""The causal video student: one stock network, every causal pattern through plans and a frozen context.

Conventions: x_t = (1 - sigma) x0 + sigma noise, velocity = noise - x0, timestep = 1000 sigma (never rounded).
The network predicts velocity or x0 (`spec.prediction`). Rows of one prompt are adjacent: n = prompt * group +
g; texts and contexts may have one row per prompt and are broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidalign.engine.rng import generator
from vidalign.errors import UserError
from vidalign.students.base import Pass, Student, require_list
from vidalign.students.video import checkpoint
from vidalign.students.video import plan as plans
from vidalign.students.video.blocks import compiled
from vidalign.students.video.context import Context, Piece, Reader
from vidalign.students.video.evaluation import Sample, clip_sampler
from vidalign.students.video.forcing import in_parts
from vidalign.students.video.plan import AttentionPlan, Layout
from vidalign.students.video.prediction import converted, levels
from vidalign.students.video.processors import Runtime, install, use_attention
from vidalign.students.video.rollout.branching import rollout
from vidalign.students.video.rollout.clock import Clock
from vidalign.students.video.rollout.noise import Noise
from vidalign.students.video.rollout.plan import Rollout, RolloutPlan
from vidalign.students.video.rope import RotaryTables
from vidalign.students.video.spec import Past, VideoStudentSpec, no_switch
from vidalign.students.video.streaming import OnChunk


class VideoStudent(Student[VideoStudentSpec]):
    """A causal (or bidirectional) video denoiser.

    `transformer` is the diffusers network, or a PEFT model around it. Everything goes through `forward`, so
    an engine may wrap the whole module: `engine(x_t, sigma, text, context, clean=..., output="x0")`.
    """

    def __init__(self, spec: VideoStudentSpec, transformer: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.transformer = transformer
        base = self.base
        install(base, spec.numerics)
        self.tables = RotaryTables(base.config.attention_head_dim, spec.numerics)

    spec_type = VideoStudentSpec
    inside = "transformer"
    forcing_frames: int = 0
    """Most frames that teacher forcing takes through the network at once, whole chunks, see `forcing`; 0 = all."""
    __call__: Callable[..., Tensor]

    @classmethod
    def from_spec(cls, spec: VideoStudentSpec, seed: int = 0) -> VideoStudent:
        """A network with random weights that depend on `seed` only."""
        from diffusers import WanTransformer3DModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(spec, WanTransformer3DModel(**spec.transformer))

    @property
    def base(self) -> Any:
        """The diffusers network under PEFT and engine wrappers."""
        module: Any = self.transformer
        while not hasattr(module, "patch_embedding") or hasattr(module, "get_base_model"):
            module = module.get_base_model() if hasattr(module, "get_base_model") else module.module
        return module

    @property
    def runtime(self) -> Runtime:
        """What the patched parts of the network share. It is read through the network, so that it may be swapped for a
        copy of itself."""
        runtime: Runtime = self.base.rope.runtime
        return runtime

    def forward(
        self,
        x_t: Tensor,
        sigma: Tensor,
        text: Tensor,
        context: Context | Reader | None = None,
        *,
        clean: Tensor | None = None,
        attention: str = "causal",
        output: str = "velocity",
    ) -> Tensor:
        """Denoise `x_t` `[N, F, C, H, W]` at `sigma` `[N]` or `[N, F]` in 0..1 -> velocity or x0, like `x_t`.

        text: `[N or N / group, L, D]`. context: the frozen past, its batch dividing N; None = start of the video.
        clean: the clean latents of the same frames, needed when F holds several chunks. Each chunk then attends the
        context, the clean chunks before it, and itself (teacher forcing). A student with a rolling sampler takes
        several chunks without them: they are a window, in which all frames attend each other. attention
        "bidirectional": all frames attend all frames; "block_causal": chunks attend the earlier chunks of `x_t` itself,
        at whatever noise they have (ODE initialisation of CausVid); both without context. Differentiable in `x_t`,
        `clean` and the weights; the context gets no gradient. See `VideoStudentSpec.check_causal`.
        """
        if attention != "bidirectional":
            self.spec.check_causal()
        assert attention in ("causal", "bidirectional", "block_causal"), f"unknown attention {attention!r}"
        if attention == "causal":
            raw = self._causal(x_t, sigma, text, context, clean)
        else:
            assert context is None and clean is None, f"{attention} attention takes neither context nor clean frames"
            layout = plans.bidirectional_layout(x_t.shape[1])
            if attention == "block_causal":
                layout = plans.block_causal_layout(self.spec.cache, x_t.shape[1])
            raw = self._run(x_t, levels(sigma, x_t), text, layout)
        return converted(raw, x_t, sigma, self.spec.prediction, output)

    def velocity(
        self, x_t: Tensor, sigma: Tensor, text: Tensor, context: Context | None = None, *, clean: Tensor | None = None
    ) -> Tensor:
        """Causal velocity, see `forward`."""
        return self(x_t, sigma, text, context, clean=clean)

    def predict_x0(
        self,
        x_t: Tensor,
        sigma: Tensor,
        text: Tensor,
        context: Context | Reader | None = None,
        *,
        clean: Tensor | None = None,
    ) -> Tensor:
        """Causal prediction of x0, see `forward`."""
        return self(x_t, sigma, text, context, clean=clean, output="x0")

    def bidirectional(self, x_t: Tensor, sigma: Tensor, text: Tensor, *, output: str = "velocity") -> Tensor:
        """Velocity or x0 with full attention over all frames and no cache: the teacher and fake-score role."""
        return self(x_t, sigma, text, attention="bidirectional", output=output)

    def begin(self, text: Tensor) -> Context:
        """The empty context of a batch of texts `[B, L, D]`."""
        return Context(batch=len(text))

    def reader(self, context: Context) -> Reader:
        """The context for several forwards in a row without gradient: it is read (roped, broadcast) only once."""
        return Reader(context)

    @torch.no_grad()
    def extend(self, context: Context, clean_chunk: Tensor, text: Tensor) -> Context:
        """The clean pass: the context after `clean_chunk` `[N, F_chunk, C, H, W]`, N = context.batch, at t = 0.

        F_chunk may be several chunks, taken one after the other. Frames that the policy never needs again are
        dropped.
        """
        assert len(clean_chunk) == context.batch, "one clean chunk per row of the context"
        for chunk in clean_chunk.split(self.spec.cache.chunk_frames, 1):
            context = self._clean_pass(context, chunk, text).window(self.spec.cache)
        return context

    @torch.no_grad()
    def recache(self, context: Context, latents: Tensor, text: Tensor) -> Context:
        """The context rebuilt under a new prompt (LongLive), from all clean latents so far `[N,
        context.frames, C, H, W]`.

        The frames of the last window go through one bidirectional pass at t = 0, and the first of them become the sink.
        With `global_sink`, a video that fills the window keeps its old sink instead. The pass attends it in the place
        of the window's first frames.
        """
        cache, frames = self.spec.cache, context.frames
        assert latents.shape[:2] == (context.batch, frames), "recache needs the latents of every frame so far"
        if cache.sink_decay:
            raise no_switch()
        window = cache.chunk_frames if cache.recompute else cache.window
        start = max(0, frames - window) if window else 0
        past = Context(context.batch, Past(start, first=start))
        if cache.global_sink and cache.window and frames >= cache.window:
            past = Context(context.batch, Past(start + cache.sink), tuple(context._frames(0, cache.sink)))
        latents = latents[:, past.frames :]
        layout = plans.recache_layout(cache, past, latents.shape[1])
        return self._clean_pass(past, latents, text, layout).window(cache)

    @torch.no_grad()
    def rollout(
        self,
        text: Tensor,
        plan: RolloutPlan,
        noise: Noise,
        *,
        context: Context | None = None,
        on_chunk: Callable[[int, Tensor], None] | None = None,
        clock: Clock | None = None,
        on_part: Callable[[slice, Tensor], None] | None = None,
    ) -> Rollout:
        """Generate `plan` for `text` `[B, L, D]` with `noise` for B * group_size rows; no gradient.

        noise may hold fewer frames than the plan has: the first chunk of the video is then smaller, see
        `CachePolicy.first_chunk`. context: continue after these frames (the plan then counts chunks from there).
        on_chunk(index, x0) is called as soon as a chunk is denoised, before its clean pass, for streaming decode.
        clock: measures denoising and clean passes; the device is synchronised only for it. No more than
        `rollout_batch` candidates go through the network at once, unless it is 0. on_part(rows, latents) is called with
        the whole videos of each part as soon as they are finished.
        """
        self.runtime.text = {}
        try:
            rows = 0 if on_chunk else self.rollout_batch
            return rollout(self, text, plan, noise.to(self.device), context, on_chunk, rows, clock, on_part)
        finally:
            self.runtime.text = None

    def draw_noise(self, plan: RolloutPlan, generators: list[torch.Generator], **kwargs: Any) -> Noise:
        """`Noise.draw` at this student's chunk shape and number of steps."""
        noise = Noise.draw(plan, self.chunk_shape, self.spec.sampler.max_steps, generators, **kwargs)
        return noise.to("cpu", self.latent_dtype)

    @torch.no_grad()
    def sample(self, prompts: Sequence[str], *, frames: int, seed: int = 0, on_chunk: OnChunk | None = None) -> Tensor:
        """Clips ``[B, F, 3, H, W]`` in [0, 1] of B prompts, on the device of the student.

        frames: latent frames, whole chunks unless the first may be smaller; seed: another one gives other clips, the
        same on every machine. on_chunk(index, clips): called with the pixel frames of a chunk as soon as they are
        decoded; the whole video of a bidirectional network is one chunk. Raises `UserError` for a length that is not
        whole chunks.
        """
        require_list(prompts)
        generators = [generator(seed, "sample", 0, n) for n in range(len(prompts))]
        streamed = on_chunk or (lambda index, clips: None)
        method = "teacher" if self.spec.bidirectional else "causal"
        return self.eval().sampler(frames, method, on_chunk=streamed)(prompts, generators)

    def sampler(self, frames: int, method: str = "causal", **parts: Any) -> Sample:
        """How evaluations sample it, see `clip_sampler`; other settings than those of clips do not concern it."""
        own = {key: value for key, value in parts.items() if key != "temperature"}
        return clip_sampler(self, frames, method, **own)

    @property
    def chunk_shape(self) -> tuple[int, int, int, int]:
        """(chunk_frames, C, H, W) of a chunk of latents."""
        return (self.spec.cache.chunk_frames, *self.spec.latent_shape)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.base.patch_embedding.weight.device
        return device

    @property
    def weight_dtype(self) -> torch.dtype:
        """What the network, and a codec that is built for it, computes in."""
        dtype: torch.dtype = self.base.patch_embedding.weight.dtype
        return dtype

    @property
    def latent_dtype(self) -> torch.dtype:
        """Of the latents of a rollout: fp32, or fp64 where the weights are. With `numerics: wan` it is that of the
        weights, to which the original rounds between steps."""
        dtype = self.weight_dtype
        return dtype if self.spec.numerics == "wan" else torch.promote_types(dtype, torch.float32)

    @property
    def chunk_frames(self) -> int:
        return self.spec.cache.chunk_frames

    @property
    def fps(self) -> float:
        return self.spec.fps

    @property
    def sigmas(self) -> list[float]:
        return self.spec.sampler.sigmas

    def on_pass(self, listener: Callable[[Pass], None]) -> None:
        """At every call of the diffusion transformer, into whose batch the frames are folded."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            frames = len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
            plan = self.runtime.plan
            assert plan is not None, "`_run` binds a plan to every pass"
            listener(Pass(plan.batch, frames))

        self.base.register_forward_pre_hook(hook, with_kwargs=True)

    def use_attention(self, backend: str, where: str = "student.attention") -> None:
        """See `processors.use_attention`."""
        use_attention(self.base, backend, where)

    def compile_blocks(self, **options: Any) -> None:
        """Compile the blocks of the network, see `blocks.compiled`."""
        compiled(self.base, **options)

    def gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute blocks in the backward pass (non-reentrant); results are bit-equal."""
        if enabled:
            self.base.enable_gradient_checkpointing()
        else:
            self.base.disable_gradient_checkpointing()

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        """One safetensors file: merged weights, the spec as JSON under "spec", and `metadata` (provenance)."""
        checkpoint.save(self, Path(path), metadata or {})

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        spec: VideoStudentSpec | None = None,
    ) -> VideoStudent:
        """A saved student: a file, a folder of `vidalign import`, a hub id, or a shipped name ("world/student").

        dtype: of its weights; spec: instead of the saved one. Raises `CheckpointError` when it cannot be used.
        """
        return checkpoint.load(path, spec, dtype).to(device)

    def _causal(
        self, x_t: Tensor, sigma: Tensor, text: Tensor, context: Context | Reader | None, clean: Tensor | None
    ) -> Tensor:
        reader = context if isinstance(context, Reader) else Reader(context or Context(len(x_t)))
        past, frames, size = reader.context, x_t.shape[1], self.spec.cache.chunk_frames
        sigma = levels(sigma, x_t)
        if frames <= size or (self.spec.sampler.rolling and clean is None):
            layout = plans.denoise_layout(self.spec.cache, past, frames)
            return self._run(x_t, sigma, text, layout, reader)
        if clean is None or frames % size or self.spec.cache.sink_decay:
            raise UserError(
                f"cannot denoise {frames} frames in one call with chunks of {size}",
                why="several whole chunks need `clean` latents and no EMA sink",
                fix="pass clean=, or one chunk at a time",
            )
        if self.forcing_frames and frames > self.forcing_frames:
            return self._in_parts(x_t, sigma, text, past, clean)
        layout = plans.teacher_forcing_layout(self.spec.cache, past, frames)
        head = clean[:, : frames - size].to(x_t.dtype)
        everywhere = torch.cat([torch.zeros_like(sigma[:, : frames - size]), sigma], 1)
        return self._run(torch.cat([head, x_t], 1), everywhere, text, layout, reader)[:, frames - size :]

    def _in_parts(self, x_t: Tensor, sigma: Tensor, text: Tensor, past: Context, clean: Tensor) -> Tensor:
        """`_causal` of `forcing_frames` at once."""

        def denoise(x: Tensor, frames: slice, context: Context) -> Tensor:
            return self._causal(x, sigma[:, frames], text, context, clean[:, frames])

        def extend(context: Context, frames: slice) -> Context:
            return self.extend(context, clean[:, frames], text)

        trained = [p for p in self.parameters() if p.requires_grad]
        return in_parts(denoise, extend, x_t, past, self.forcing_frames, trained)

    def _clean_pass(self, context: Context, chunk: Tensor, text: Tensor, layout: plans.Layout | None = None) -> Context:
        """`context` with the keys and values of `chunk` at t = 0 appended, nothing evicted; layout: what attends what,
        the one of the next chunk unless given."""
        frames = chunk.shape[1]
        layout = layout or plans.clean_layout(self.spec.cache, context, frames)
        collected: list[tuple[Tensor, Tensor]] = []
        zeros = chunk.new_zeros(chunk.shape[:2])
        self._run(chunk, zeros, text, layout, Reader(context), collected)
        keys, values = zip(*collected, strict=True)
        return context.append(Piece(context.frames, frames, tuple(keys), tuple(values)))

    def _run(
        self,
        x: Tensor,
        sigma: Tensor,
        text: Tensor,
        layout: Layout,
        reader: Reader | None = None,
        collected: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """The network on frames `[N, S, C, H, W]` with `sigma` `[N, S]`; frames fold into the batch."""
        base = self.base
        n, frames = x.shape[:2]
        assert n % len(text) == 0, "the number of texts must divide the batch"
        assert reader is None or n % reader.context.batch == 0, "the context's batch must divide the batch"
        _, ph, pw = base.config.patch_size
        grid = (x.shape[-2] // ph, x.shape[-1] // pw)
        self.runtime.plan = AttentionPlan(
            layout,
            n,
            grid[0] * grid[1],
            None if layout.relative else self.tables.factors(layout.positions, grid, x.device),
            self.tables,
            grid,
            reader.context if reader else None,
            collected,
            reader.read if reader else {},
            self.runtime.text,
        )
        dtype = base.patch_embedding.weight.dtype
        try:
            out = self.transformer(
                hidden_states=x.flatten(0, 1).unsqueeze(2).to(dtype),
                timestep=(1000 * sigma).to(torch.promote_types(dtype, torch.float32)).flatten(),
                encoder_hidden_states=text.to(dtype),
                return_dict=False,
            )[0]
        finally:
            self.runtime.plan = None  # it holds keys and values of the past, which shall not outlive the call
        predicted: Tensor = out.squeeze(2).unflatten(0, (n, frames))
        return predicted
