"""What `vidalign sample` asks of a kind of student, and what it gets; light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vidalign.errors import UsageError


@dataclass(frozen=True)
class SampleRequest:
    """Samples that somebody wants of a student."""

    prompts: tuple[str, ...]
    """What to show, or what to answer; one sample each."""
    out: Path
    """File to write; several prompts get numbered files."""
    latents: int = 0
    """Length in latent frames where neither `frames` nor `seconds` is given, as in training; 0 = not known."""
    frames: int | None = None
    """Length in pixel frames."""
    seconds: float | None = None
    """Length in seconds."""
    seed: int = 0
    images: tuple[Path, ...] = ()
    """Pictures that the student is shown."""
    then: tuple[tuple[float, str], ...] = ()
    """(second, prompt): prompts that follow the first one in the same video."""
    stats: bool = False
    """Measure how long the parts take."""
    attention: str = ""
    """Kernels of attention, by a name that the kind of student knows; empty = as the recipe of the run says."""
    compile: bool | None = None
    """Compile the network; None = as the recipe of the run says."""
    say: Callable[[str], None] = field(default=lambda note: None)
    """Called with what differs from what was asked, before any work."""

    @property
    def texts(self) -> list[str]:
        """Every prompt, for the text encoder."""
        return [*self.prompts, *(prompt for _, prompt in self.then)]

    @property
    def files(self) -> list[Path]:
        """A file for each prompt."""
        out, count = self.out, len(self.prompts)
        return [out] if count == 1 else [out.with_stem(f"{out.stem}-{n}") for n in range(count)]

    def refuse(self, *options: str, why: str) -> None:
        """Raise `UsageError` for the first of these fields that is given."""
        words = {"images": "--image"}
        for name in options:
            if getattr(self, name):
                raise UsageError("this option does not fit", where=words.get(name, f"--{name}"), why=why)


@dataclass(frozen=True)
class ChunkTimes:
    """Where the time of a chunk went, in seconds."""

    frames: int
    """Pixel frames."""
    parts: dict[str, float]
    """By name: ``denoise``, ``clean``, ``decode``, ``write``, and ``recache`` where the prompt changed before it."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class SampleTimes:
    """How fast a video came."""

    first_frames: float
    """Seconds from the start of the rollout to the first decoded frames; loading and text are done by then."""
    chunks: list[ChunkTimes]

    @property
    def frames_per_second(self) -> float:
        """Over the whole video."""
        return sum(chunk.frames for chunk in self.chunks) / max(sum(chunk.total for chunk in self.chunks), 1e-9)

    def lines(self) -> list[str]:
        """A table in milliseconds, the means without the first chunk, and the latency of the first frames."""
        measured = {name for chunk in self.chunks for name in chunk.parts}
        names = [name for name in ("recache", "denoise", "clean", "decode", "write") if name in measured]
        rows = [["chunk", "frames", *names, "total"]]
        for number, chunk in enumerate(self.chunks):
            cells = [f"{1000 * chunk.parts[name]:.1f}" if name in chunk.parts else "-" for name in names]
            rows.append([str(number), str(chunk.frames), *cells, f"{1000 * chunk.total:.1f}"])
        if len(self.chunks) > 1:
            rows.append(["mean of 1..", "", *(self._mean(name) for name in names), self._mean("")])
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        speed = f"{self.frames_per_second:.1f} frames a second"
        return [*lines, f"milliseconds; first frames after {1000 * self.first_frames:.0f} ms; {speed}"]

    def _mean(self, name: str) -> str:
        """Mean of a part, or of the whole where the name is empty, over the chunks after the first that have it."""
        later = self.chunks[1:]
        values = [c.parts[name] if name else c.total for c in later if not name or name in c.parts]
        return f"{1000 * sum(values) / len(values):.1f}" if values else "-"


@dataclass(frozen=True)
class Samples:
    """What was written."""

    files: list[Path]
    times: list[SampleTimes] = field(default_factory=list)
    """Of each file, where they were asked for."""
