"""Video files decoded as far as they are needed, each frame as a player shows it.

A player scales pixels that are not square (`RawClip.aspect`), turns a picture as its display matrix says, and shows
transparency on what is behind it: here on white.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidalign.errors import DataError

VIDEO = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".webp")
MICROSECONDS = 1_000_000
"""The units of the length of a file in a second."""
WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read the transparency of these codecs; the usual ones do not."""


@dataclass(frozen=True)
class Wanted:
    """The beginning of a clip: so many frames, at `fps` frames a second, or as they are where it is 0."""

    frames: int
    fps: float = 0.0

    @property
    def instants(self) -> np.ndarray:
        """Seconds at which a frame is looked at: the middle of each frame's time."""
        return (np.arange(self.frames, dtype=np.float64) + 0.5) / self.fps


@dataclass
class RawClip:
    """A clip as it is stored."""

    frames: torch.Tensor
    """``[F, 3, H, W]``, uint8."""
    times: torch.Tensor | None = None
    """``[F]`` seconds at which each frame appears; None when the file does not say."""
    end: float = 0.0
    """Seconds at which the last frame disappears."""
    aspect: float = 1.0
    """Width of a pixel over its height."""


@dataclass(frozen=True)
class Header:
    """What a file says of its clip before anything is decoded; 0 where it says nothing."""

    frames: int = 0
    seconds: float = 0.0
    height: int = 0
    width: int = 0
    rate: float = 0.0
    """Frames a second."""
    aspect: float = 1.0
    """Width of a pixel over its height."""


class _Kept:
    """Frames that are shown at the instants that are looked at, or all of them."""

    def __init__(self, wanted: Wanted | None) -> None:
        self.wanted = wanted
        self.instants = wanted.instants if wanted is not None and wanted.fps else None
        self.pictures: list[torch.Tensor] = []
        self.times: list[float | None] = []
        self.end = 0.0
        self._held: tuple[Any, float | None] | None = None

    def take(self, frame: Any, time: float | None) -> bool:
        """The next frame; false when no further one is needed."""
        if self._held is not None:
            self._place(time)
        self._held = (frame, time)
        if self.wanted is None:
            return True
        if self.instants is None or time is None:
            return len(self.pictures) + 1 < self.wanted.frames
        if time > self.instants[-1]:
            self._held, self.end = None, time
        return self._held is not None

    def finish(self, length: float) -> None:
        """The last frame is shown for so many seconds."""
        if self._held is not None:
            time = self._held[1]
            self.end = (time or 0.0) + length
            self._place(None)
        self._held = None

    def _place(self, following: float | None) -> None:
        """Keep the frame that is held, unless the following one takes its place before it is looked at."""
        assert self._held is not None, "a frame is held"
        frame, time = self._held
        if self.instants is not None and time is not None and following is not None and self.pictures:
            first, last = np.searchsorted(self.instants, [time, following])
            if first == last:
                return
        self.pictures.append(torch.from_numpy(_shown(frame)))
        self.times.append(time)

    def clip(self, aspect: float) -> RawClip:
        """Everything that was kept."""
        if not self.pictures:
            return RawClip(torch.empty(0))
        known = all(time is not None for time in self.times)
        times = torch.tensor(self.times, dtype=torch.float64) if known else None
        frames = torch.stack(self.pictures).permute(0, 3, 1, 2).contiguous()
        return RawClip(frames, times, self.end, aspect)


def read_video(source: Path | bytes, kind: str, wanted: Wanted | None) -> RawClip:
    """The clip of a video file or its bytes. What no instant of `wanted` shows is not kept; what follows the last
    one is not decoded."""
    if kind == ".webp":
        return _read_webp(source, wanted)
    with _opened(source) as file:
        stream = _stream(file)
        aspect, step = _aspect(stream), float(1 / stream.average_rate) if stream.average_rate else 0.0
        kept, start, length = _Kept(wanted), None, step
        for frame in _frames(file, stream):
            if start is None:
                start = frame.time or 0.0
                aspect = 1 / aspect if frame.rotation % 180 else aspect
            length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
            if not kept.take(frame, None if frame.time is None else frame.time - start):
                break
        kept.finish(length)
    return kept.clip(aspect)


def video_header(source: Path, kind: str) -> Header:
    """See `Header`; raises what the decoders raise, `DataError` where there is no picture."""
    if kind == ".webp":
        from PIL import Image

        with Image.open(source) as image:
            return Header(int(getattr(image, "n_frames", 1)), 0.0, image.height, image.width)
    with _opened(source) as file:
        stream = _stream(file)
        whole = (file.duration or 0) / MICROSECONDS  # of the file; matroska says none of a stream
        seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else whole
        rate = float(stream.average_rate or 0)
        return Header(stream.frames or 0, seconds, stream.height, stream.width, rate, _aspect(stream))


def _opened(source: Path | bytes) -> Any:
    import av

    return av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source))


def _stream(file: Any) -> Any:
    if not file.streams.video:
        what = "only sound" if file.streams.audio else "no stream of pictures"
        raise DataError(f"it has no video, {what}", fix="leave it out")
    return file.streams.video[0]


def _aspect(stream: Any) -> float:
    ratio = stream.sample_aspect_ratio
    return float(ratio) if ratio else 1.0


def _frames(file: Any, stream: Any) -> Iterator[Any]:
    """The decoded frames, with their transparency."""
    import av

    name = WITH_ALPHA.get(stream.codec_context.name, "") if stream.metadata.get("alpha_mode") == "1" else ""
    if not name:
        yield from file.decode(stream)
        return
    decoder: Any = av.codec.Codec(name, "r").create()
    decoder.extradata = stream.codec_context.extradata
    for packet in file.demux(stream):
        yield from decoder.decode(packet)


def _shown(frame: Any) -> np.ndarray:
    """``[H, W, 3]``, uint8: upright, on white."""
    if isinstance(frame, np.ndarray):
        return frame
    format_ = frame.format
    if format_.has_palette or any(part.is_alpha for part in format_.components):
        rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
        alpha = rgba[..., 3:]
        pixels = ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    else:
        pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _read_webp(source: Path | bytes, wanted: Wanted | None) -> RawClip:
    """An animated picture, which the video decoders do not read."""
    from PIL import Image, ImageSequence

    from vidalign.data.pictures import shown

    kept, time, length = _Kept(wanted), 0, 0  # milliseconds
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()
            if not kept.take(np.array(shown(frame)), time / 1000):
                break
            length = int(frame.info.get("duration", 0))
            time += length
    kept.finish(length / 1000)
    return kept.clip(1.0)
