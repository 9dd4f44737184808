"""Clip files of a teacher, read and made like the student's: one size, one rate, one length, one range.

Whatever separates teacher and student clips without judging them (resolution, frame rate, length, value range) is a
cue that a discriminator takes first.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from vidalign.errors import DataError
from vidalign.reading import regular
from vidalign.teachers.videos import VIDEO, Header, RawClip, Wanted, read_video, video_header
from vidalign.tensor_header import read_header

if TYPE_CHECKING:
    from vidalign.students.video import VideoStudentSpec

ARRAY = (".npz", ".safetensors")
EXTENSIONS = VIDEO + ARRAY
LEAST_KEPT = 0.25
"""Share of a picture that cropping to the student's aspect ratio must leave: 9:16 for 16:9 leaves 0.32."""


@dataclass(frozen=True)
class ClipShape:
    """What a clip of the student looks like in pixels."""

    frames: int
    height: int
    width: int

    @classmethod
    def of(cls, spec: VideoStudentSpec, frames: int) -> ClipShape:
        """Of `frames` latent frames of a student: its codec says how many frames a latent makes."""
        return cls(spec.pixel_frames(frames), spec.height, spec.width)


@dataclass(frozen=True)
class Entry:
    """A clip that has not been read yet."""

    prompt: str
    name: str
    kind: str
    """Its extension, ``.mp4`` and the like."""
    load: Callable[[], Path | bytes]
    packed: bool = False
    """Whether its bytes lie inside another file, so that its header is not looked at before it is needed."""


def read_clip(source: Path | bytes, kind: str, wanted: Wanted | None = None) -> RawClip:
    """Read a file, or its bytes, of `kind` (an extension such as ``.mp4``); `DataError` when it cannot be used.

    wanted: what of it is needed; nothing behind that is decoded. None needs all.
    """
    with _named(source.name if isinstance(source, Path) else f"a {kind} clip"):
        source = source if isinstance(source, bytes) else regular(source)
        raw = read_video(source, kind, wanted) if kind in VIDEO else _read_arrays(source, kind)
        if not len(raw.frames):
            raise DataError("it holds no frame")
    return raw


def check_clip(source: Path, kind: str, shape: ClipShape, fps: float = 0.0) -> Header:
    """The header of a file; `DataError` when it says that the clip cannot be used. Nothing is decoded."""
    with _named(source.name):
        header = video_header(regular(source), kind) if kind in VIDEO else _array_header(regular(source), kind)
        seconds = header.seconds or (header.frames / header.rate if header.rate else 0.0)
        step = 1 / header.rate if header.rate else 0.0
        if fps and seconds and (shape.frames - 0.5) / fps > seconds + step:
            raise _short(int(seconds * fps), fps, shape)
        if not fps and 0 < header.frames < shape.frames:
            raise _short(header.frames, fps, shape)
        if header.height and header.width:
            _check_aspect(header.height, header.width * header.aspect, shape, turned=True)
    return header


@contextmanager
def _named(name: str) -> Iterator[None]:
    """What is wrong with a clip is reported with its name."""
    try:
        yield
    except DataError as error:
        for problem in error.problems:
            problem.what = f"{name} cannot be used: {problem.what}"
        raise
    except Exception as error:  # decoders raise what they like, and a broken file is the user's data
        raise DataError(f"{name} cannot be read", why=f"{type(error).__name__}: {error}") from error


def normalise(raw: RawClip, shape: ClipShape, fps: float = 0.0) -> torch.Tensor:
    """``[frames, 3, height, width]``, uint8: the beginning of the clip, cropped to the aspect ratio and resized.

    fps: rate of the student; a clip with times is resampled to it, each instant showing the frame that is visible
    then. 0 takes the frames as they are. Raises `DataError` for a clip that is too short or too narrow.
    """
    frames = raw.frames
    if fps and raw.times is not None:
        instants = torch.from_numpy(Wanted(shape.frames, fps).instants)
        instants = instants[instants < raw.end]
        frames = frames[(torch.searchsorted(raw.times, instants, right=True) - 1).clamp(min=0)]
    if len(frames) < shape.frames:
        raise _short(len(frames), fps, shape)
    _check_aspect(frames.shape[2], frames.shape[3] * raw.aspect, shape)
    frames = _crop(frames[: shape.frames], shape.height / shape.width * raw.aspect)
    if frames.shape[2:] == (shape.height, shape.width):
        return frames
    size = (shape.height, shape.width)
    resized = interpolate(frames.float(), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _short(frames: int, fps: float, shape: ClipShape) -> DataError:
    rate = f" at {fps:g} fps" if fps else ""
    return DataError(f"{frames} frames{rate}, the student's clips have {shape.frames}")


def _check_aspect(height: float, width: float, shape: ClipShape, turned: bool = False) -> None:
    """Cropping leaves enough of the picture. turned: it may yet be turned by a right angle."""
    kept = [_kept(height, width, shape)] + ([_kept(width, height, shape)] if turned else [])
    if max(kept) < LEAST_KEPT:
        raise DataError(
            f"a picture of {width:g} x {height:g} is too narrow for the student's {shape.width} x {shape.height}",
            why=f"cropping would leave {max(kept):.2%} of it",
            fix="leave it out, or crop it by hand",
        )


def _kept(height: float, width: float, shape: ClipShape) -> float:
    """Share of the picture that cropping leaves."""
    ratio = (height / width) / (shape.height / shape.width)
    return min(ratio, 1 / ratio)


def _crop(frames: torch.Tensor, aspect: float) -> torch.Tensor:
    """The middle of the picture with height / width = `aspect`, in pixels."""
    height, width = frames.shape[2:]
    h, w = min(height, round(width * aspect)), min(width, round(height / aspect))
    top, left = (height - h) // 2, (width - w) // 2
    return frames[:, :, top : top + h, left : left + w]


def _array_header(source: Path, kind: str) -> Header:
    """The shape of an array, and its rate where the file says it."""
    if kind == ".npz":
        with zipfile.ZipFile(source) as file:
            shapes = {name.removesuffix(".npy"): _npy_shape(file, name) for name in file.namelist()}
        rate = 0.0
        if shapes.pop("fps", None) is not None:
            with np.load(source, allow_pickle=False) as arrays:
                rate = float(arrays["fps"])
    else:
        found = read_header(source)
        shapes = {name: entry.shape for name, entry in found.entries.items()}
        rate = float(found.metadata.get("fps", 0))
    shape = shapes.get("clip", next(iter(shapes.values()), ()))
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        return Header(rate=rate)  # reading it will say why
    height, width = shape[2:] if shape[1] == 3 else shape[1:3]
    return Header(shape[0], 0.0, height, width, rate)


def _npy_shape(file: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with file.open(name) as array:
        version = np.lib.format.read_magic(array)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return tuple(read(array)[0])


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
