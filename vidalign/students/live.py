"""What `vidalign play` asks of a loaded student: clips that are made chunk by chunk while somebody watches; light."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class LiveClip(ABC):
    """One clip, of which `vidalign sample` makes the same frames with the same prompts, length and seed."""

    frames: int
    """Length in pixel frames."""
    chunks: int
    """Chunks that it is made of."""
    made: int = 0
    """Pixel frames so far."""

    @abstractmethod
    def __next__(self) -> Tensor:
        """The next chunk ``[F, 3, H, W]`` in [0, 1]; `StopIteration` at the end."""

    @abstractmethod
    def check_switch(self, prompt: str) -> None:
        """Raises `UsageError` where the prompt cannot change now: the student cannot, or nothing or everything is
        made."""

    @abstractmethod
    def switch(self, prompt: str) -> None:
        """Go on under another prompt from the next chunk on, where `check_switch` lets it."""


class Streamer(ABC):
    """A loaded student that streams clips. Several clips may be open; one chunk is made at a time."""

    fps: float
    """Frames of a clip a second."""
    size: tuple[int, int]
    """Pixel height and width."""
    noise: tuple[int, ...]
    """What the noise of a seed depends on besides the length; students that agree in it begin with the same noise."""

    @abstractmethod
    def length(self, seconds: float) -> int:
        """Pixel frames of the clip of whole chunks that is nearest to so many seconds, above 0."""

    @abstractmethod
    def open(self, prompt: str, frames: int, seed: int) -> LiveClip:
        """A clip of `frames` pixel frames. Raises `UsageError` for a length that the student does not make."""
