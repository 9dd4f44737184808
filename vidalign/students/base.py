"""The contract of a student: a network that answers prompts, whatever it makes of them.

`Student` is the network; `vidalign.students.kind.StudentKind` is what the registry holds of it, which is light. How to
write both is in docs/adding_a_student.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, runtime_checkable

import torch
from torch import nn

from vidalign.engine.rng import generator
from vidalign.errors import UserError
from vidalign.students.spec import SpecT

if TYPE_CHECKING:
    from torch import Tensor

    from vidalign.students.chat import TokenBatch
    from vidalign.students.language_config import Sampling

Generate = Callable[[Sequence[Any], Sequence[torch.Generator]], Any]
"""B prompts and one generator each to clips ``[B, F, 3, H, W]`` in [0, 1], or to B texts."""


Weights = Callable[[], Mapping[str, "Tensor"]]
"""Makes the state dict of a whole plain student on the CPU."""


@runtime_checkable
class Generator(Protocol):
    """Answers prompts in the place of the student, see `vidalign.students.generation`."""

    def update(self, weights: Weights) -> None:
        """Answer with these weights from now on; called before the rollout of every step, a resumed one included.

        weights: makes the whole state dict of the plain student on the CPU, adapters merged. Either all processes call
        it or none does.
        """
        ...

    def generate(self, prompts: TokenBatch, sampling: Sampling, generators: Sequence[torch.Generator]) -> TokenBatch:
        """Responses to N prompts (R = 0), as `LanguageStudent.generate` gives them.

        generators: one a row, on the CPU; draw from them, or take seeds from them, so that a step can be repeated.
        Returns the prompts' columns unchanged and R of responses, with `TokenBatch.logprobs` at the sampling
        temperature, before top-p and top-k.
        """
        ...


@dataclass(frozen=True)
class Pass:
    """One pass through a student's network, for the cost of a step."""

    rows: int
    """Clips or responses in it."""
    amount: float
    """What it computes: latent frames of all rows, or rows where there are no frames."""
    responses: int = 0
    """Responses whose generation begins with it."""


class Student(nn.Module, ABC, Generic[SpecT]):
    """A network that is trained; a subclass gives `from_spec` and `sampler`, and the methods that its objectives call.

    An objective may call any method of it: in the phase of its role the call goes through the engine.
    """

    spec_type: ClassVar[type[Any]]
    """Class of `spec`."""
    spec: SpecT
    """All of it but the weights; written into the header of its file."""
    rollout_batch: int = 0
    """Most candidates that a rollout generates at once; 0 = all. A student that cannot slice ignores it."""
    __call__: Callable[..., Any]
    if TYPE_CHECKING:
        # torch says that a module has every attribute: then no misspelt method would ever be found
        __getattr__: None  # type: ignore[assignment, misc]

    inside: ClassVar[str] = ""
    """Name of the network in it that other libraries know, whose adapters are written without it; empty = it itself."""

    @classmethod
    @abstractmethod
    def from_spec(cls, spec: SpecT, seed: int = 0) -> Self:
        """A network with random weights that depend on `seed` only, in fp32 on the CPU."""

    @abstractmethod
    def sampler(self, frames: int, method: str = "causal", **parts: Any) -> Generate:
        """How evaluations sample it: a function of prompts and one generator each.

        frames: length of a clip, latent frames. method: ``causal``, or ``teacher`` for the sampler of a bidirectional
        network. parts: ``features`` and ``codec`` of its kind where they are built already, ``temperature``, and
        settings of the method; what does not concern it is ignored.
        """

    @torch.no_grad()
    def sample(self, prompts: Sequence[Any], *, frames: int, seed: int = 0) -> Any:
        """What it makes of B prompts, one each; another seed gives others."""
        generators = [generator(seed, "sample", 0, n) for n in range(len(prompts))]
        return self.eval().sampler(frames)(prompts, generators)

    def adapter_settings(self) -> dict[str, str]:
        """What stands in the configuration of its adapters besides their sizes and layers, see `peft.LoraConfig`."""
        return {}

    def spec_of(self, weights: Mapping[str, Tensor]) -> SpecT:
        """The specification of a student like it with other weights, by their names in its state dict."""
        return self.spec

    def save(self, path: str | Path, metadata: dict[str, str] | None = None) -> None:
        """One safetensors file: the weights, the spec as JSON under "spec", and `metadata` (provenance)."""
        from vidalign.students.weights import write

        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self.state_dict().items()}
        write(tensors, self.spec.to_dict(), Path(path), metadata or {})

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """A saved one, by path or shipped name; `CheckpointError` when it cannot be used."""
        from vidalign.students.weights import load_strict, read, reading_spec, resolve, spec_in

        file = resolve(path)
        tensors, metadata = read(file)
        with reading_spec(str(file)):
            student = cls.from_spec(cls.spec_type.from_dict(spec_in(metadata, str(file))))
        load_strict(student, tensors, str(file))
        return student.to(device)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def latent_dtype(self) -> torch.dtype:
        """Of what it makes before it is decoded: fp32, or fp64 where the weights are."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)

    @property
    def chunk_frames(self) -> int:
        """Latent frames made together; also how much of `Pass.amount` counts as one forward."""
        return 1

    @property
    def fps(self) -> float:
        """Frames of a clip a second."""
        return 8.0

    @property
    def sigmas(self) -> list[float]:
        """Noise levels that its sampler visits, descending from 1."""
        return [1.0]

    def gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute activations in the backward pass; a student that cannot ignores it."""

    def on_pass(self, listener: Callable[[Pass], None]) -> None:
        """Call `listener` at every pass through the network from now on. By default that is every call of `forward`,
        whose first argument has a row for each clip."""
        plain = self.forward

        def counted(first: Tensor, *args: Any, **kwargs: Any) -> Any:
            listener(Pass(len(first), len(first)))
            return plain(first, *args, **kwargs)

        self.forward = counted


def require_list(prompts: Sequence[Any]) -> None:
    """Raise `UserError` for no prompt at all, and for one text in the place of a list: its letters are no prompts."""
    if isinstance(prompts, str) or not len(prompts):
        raise UserError(f"prompts is {prompts!r}", where="sample", fix="give a list of at least one prompt")
