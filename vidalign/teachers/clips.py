"""Clip files of a teacher, read and made like the student's: one size, one rate, one length, one range.

Whatever separates teacher and student clips without judging them (resolution, frame rate, length, value range) is a
cue that a discriminator takes first.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from vidalign.errors import DataError
from vidalign.reading import regular

if TYPE_CHECKING:
    from vidalign.students.video import VideoStudentSpec

VIDEO = (".mp4", ".webm", ".gif")
ARRAY = (".npz", ".safetensors")
EXTENSIONS = VIDEO + ARRAY


@dataclass(frozen=True)
class ClipShape:
    """What a clip of the student looks like in pixels."""

    frames: int
    height: int
    width: int

    @classmethod
    def of(cls, spec: VideoStudentSpec, frames: int) -> ClipShape:
        """Of `frames` latent frames of a student: a Wan autoencoder makes one frame of the first and four of others."""
        wan = spec.codec.get("name", "rgb") == "wan"
        return cls(4 * (frames - 1) + 1 if wan else frames, spec.height, spec.width)


@dataclass
class RawClip:
    """A clip as it is stored."""

    frames: torch.Tensor
    """``[F, 3, H, W]``, uint8."""
    times: torch.Tensor | None = None
    """``[F]`` seconds at which each frame appears; None when the file does not say."""
    end: float = 0.0
    """Seconds at which the last frame disappears."""


def read_clip(source: Path | bytes, kind: str) -> RawClip:
    """Read a file, or its bytes, of `kind` (an extension such as ``.mp4``); `DataError` when it cannot be used."""
    name = source.name if isinstance(source, Path) else f"a {kind} clip"
    try:
        source = source if isinstance(source, bytes) else regular(source)
        raw = _read_video(source) if kind in VIDEO else _read_arrays(source, kind)
    except DataError:
        raise
    except Exception as error:  # decoders raise what they like, and a broken file is the user's data
        raise DataError(f"{name} cannot be read", why=f"{type(error).__name__}: {error}") from error
    if not len(raw.frames):
        raise DataError(f"{name} holds no frame")
    return raw


def normalise(raw: RawClip, shape: ClipShape, fps: float = 0.0) -> torch.Tensor:
    """``[frames, 3, height, width]``, uint8: the beginning of the clip, cropped to the aspect ratio and resized.

    fps: rate of the student; a clip with times is resampled to it, each instant showing the frame that is visible
    then. 0 takes the frames as they are. Raises `DataError` for a clip that is too short.
    """
    frames = raw.frames
    if fps and raw.times is not None:
        instants = (torch.arange(shape.frames, dtype=torch.float64) + 0.5) / fps  # the middle of each frame's time
        instants = instants[instants < raw.end]
        frames = frames[(torch.searchsorted(raw.times, instants, right=True) - 1).clamp(min=0)]
    if len(frames) < shape.frames:
        rate = f" at {fps:g} fps" if fps else ""
        raise DataError(f"{len(frames)} frames{rate}, the student's clips have {shape.frames}")
    frames = _crop(frames[: shape.frames], shape.height / shape.width)
    if frames.shape[2:] == (shape.height, shape.width):
        return frames
    size = (shape.height, shape.width)
    resized = interpolate(frames.float(), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _crop(frames: torch.Tensor, aspect: float) -> torch.Tensor:
    """The middle of the picture with height / width = `aspect`."""
    height, width = frames.shape[2:]
    h, w = min(height, round(width * aspect)), min(width, round(height / aspect))
    top, left = (height - h) // 2, (width - w) // 2
    return frames[:, :, top : top + h, left : left + w]


def _read_video(source: Path | bytes) -> RawClip:
    import av

    pictures, times, end = [], [], 0.0
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
        stream = file.streams.video[0]
        step = float(1 / stream.average_rate) if stream.average_rate else 0.0
        for frame in file.decode(stream):
            pictures.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
            times.append(frame.time)
            length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else step
            end = (frame.time or 0.0) + length
    if not pictures:
        return RawClip(torch.empty(0))
    known = all(time is not None for time in times)
    instants = torch.tensor(times, dtype=torch.float64) if known else None
    start = float(instants[0]) if instants is not None else 0.0
    frames = torch.stack(pictures).permute(0, 3, 1, 2).contiguous()
    return RawClip(frames, None if instants is None else instants - start, end - start)


def _read_arrays(source: Path | bytes, kind: str) -> RawClip:
    """The array `clip`, or the only one; a number `fps` beside it (npz) or in the metadata (safetensors)."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    fps = 0.0
    if kind == ".npz":
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        fps = float(arrays.pop("fps", torch.tensor(0.0)))
    elif kind == ".safetensors":
        from safetensors.torch import load

        arrays = load(data)
        header = np.frombuffer(data[:8], "<u8")[0]
        fps = float(_metadata(data[8 : 8 + int(header)]).get("fps", 0))
    else:
        raise DataError(f"there is no reader for {kind!r}", why=f"known: {', '.join(EXTENSIONS)}")
    if "clip" not in arrays and len(arrays) != 1:
        raise DataError("it does not say which array is the clip", why=f"it holds {sorted(arrays)}", fix="name it clip")
    frames = _as_bytes(arrays.get("clip", next(iter(arrays.values()))))
    times = torch.arange(len(frames), dtype=torch.float64) / fps if fps else None
    return RawClip(frames, times, len(frames) / fps if fps else 0.0)


def _metadata(header: bytes) -> dict[str, Any]:
    import json

    return dict(json.loads(header).get("__metadata__") or {})


def _as_bytes(clip: torch.Tensor) -> torch.Tensor:
    """``[F, 3, H, W]`` or ``[F, H, W, 3]``, uint8 or real numbers in [0, 1], to uint8 ``[F, 3, H, W]``."""
    if clip.ndim != 4 or 3 not in (clip.shape[1], clip.shape[3]):
        raise DataError(f"a clip is [F, 3, H, W] or [F, H, W, 3], this one is {list(clip.shape)}")
    if clip.shape[1] != 3:
        clip = clip.permute(0, 3, 1, 2)
    if clip.dtype != torch.uint8:
        clip = clip.float()
        low, high = float(clip.min()), float(clip.max())
        if not (low >= 0 and high <= 1):
            raise DataError(f"real numbers of a clip lie in [0, 1], these in [{low:g}, {high:g}]")
        clip = (clip * 255).round().to(torch.uint8)
    return clip.contiguous()
