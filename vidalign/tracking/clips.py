"""Clips to things people can look at: captions burnt in, GIF, MP4, and one sprite sheet per clip.

A clip here is a float tensor `[F, 3, H, W]` in [0, 1]; *frames* are its uint8 array `[F, H, W, 3]`.
Small clips (the embedded world is 32x32) are enlarged by a whole factor with nearest neighbour, so that
each pixel stays a sharp square. GIFs share one palette over all frames: a palette per frame flickers.
"""

from __future__ import annotations

import io
import logging
import math
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from vidalign.errors import UserError
from vidalign.reading import regular

log = logging.getLogger(__name__)

DEFAULT_FPS = 8
VISIBLE_SIDE = 160  # clips are enlarged by a whole factor until their longer side is about this
LOGGED_SIDE, LOGGED_FRAMES = 320, 40  # what a tracker keeps of a clip; GIFs of that size take up to a few megabytes
MP4_ENCODERS = ("libx264", "h264", "libopenh264", "mpeg4")  # in order of preference


def to_frames(clip: torch.Tensor) -> np.ndarray:
    """`[F, 3, H, W]` in [0, 1] -> uint8 `[F, H, W, 3]`; values outside are clamped, NaN becomes 0."""
    assert clip.ndim == 4 and clip.shape[1] == 3, f"a clip is [F, 3, H, W], this one is {tuple(clip.shape)}"
    values = clip.detach().float().cpu().nan_to_num(0.0).clamp(0, 1)
    return (values * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def upscale(frames: np.ndarray, side: int = VISIBLE_SIDE) -> np.ndarray:
    """Enlarge by the largest whole factor that keeps the longer side within `side`; never shrinks."""
    factor = max(1, side // max(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def shrink(frames: np.ndarray, side: int) -> np.ndarray:
    """Shrink so that the longer side is `side`; smaller frames stay as they are."""
    height, width = frames.shape[1:3]
    scale = side / max(height, width)
    if scale >= 1:
        return frames
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    images = [Image.fromarray(frame).resize(size, Image.Resampling.BOX) for frame in frames]
    return np.stack([np.asarray(image) for image in images])


def logged(frames: np.ndarray, fps: float) -> tuple[np.ndarray, float]:
    """What a tracker keeps of a clip: every k-th frame, `LOGGED_FRAMES` at most, shrunk to `LOGGED_SIDE`, and their
    rate, at which they last as long."""
    every = -(-len(frames) // LOGGED_FRAMES)
    return upscale(shrink(frames[::every], LOGGED_SIDE)), fps / every


def burn_text(frames: np.ndarray, text: str) -> np.ndarray:
    """Add a band with `text` (wrapped, newlines kept) under the frames; the picture itself is not covered.

    uint8 `[F, H, W, 3]` -> uint8 `[F, H + band, W, 3]`.
    """
    band = _text_band(text, frames.shape[2])
    return np.concatenate([frames, np.broadcast_to(band, (len(frames), *band.shape))], axis=1)


def _text_band(text: str, width: int, size: int = 12) -> np.ndarray:
    font = ImageFont.load_default(size)
    columns = max(8, int((width - 6) / font.getlength("n")))
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, columns) or [""]]
    image = Image.new("RGB", (width, (size + 3) * max(1, len(lines)) + 6), "black")
    ImageDraw.Draw(image).multiline_text((3, 2), "\n".join(lines), fill="white", font=font, spacing=2)
    return np.asarray(image)


def gif_bytes(frames: np.ndarray, fps: float = DEFAULT_FPS) -> bytes:
    """An endlessly looping GIF. Equal neighbouring frames are stored once and shown for longer."""
    images = [Image.fromarray(frame) for frame in frames]
    strip = Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
    palette = strip.quantize(256, method=Image.Quantize.MEDIANCUT)
    paletted = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    buffer = io.BytesIO()
    paletted[0].save(buffer, "GIF", save_all=True, append_images=paletted[1:], loop=0, duration=round(1000 / fps))
    return buffer.getvalue()


def write_gif(path: str | Path, clip: torch.Tensor, *, fps: float = DEFAULT_FPS, text: str = "") -> Path:
    """Write `[F, 3, H, W]` in [0, 1] as an animated GIF, enlarged, with `text` under it."""
    return _write(Path(path), gif_bytes(_visible(clip, text), fps))


def write_mp4(path: str | Path, clip: torch.Tensor, *, fps: float = DEFAULT_FPS, text: str = "") -> Path:
    """Write `[F, 3, H, W]` in [0, 1] as an MP4, enlarged, with `text` under it.

    Raises UserError when PyAV is not installed or was built without an MP4 encoder.
    """
    encoder = mp4_encoder()
    if not encoder:
        raise UserError(
            "cannot write an MP4",
            where=str(path),
            why="PyAV with an H.264 or MPEG-4 encoder is not installed",
            fix="choose a file name ending in .gif, or install it: pip install av",
        )
    return _write(Path(path), mp4_bytes(_visible(clip, text), encoder, fps))


def write_clip(path: str | Path, clip: torch.Tensor, *, fps: float = DEFAULT_FPS, text: str = "") -> Path:
    """Write a GIF or MP4 by suffix and return the path written.

    Where no MP4 encoder is installed, a GIF is written beside the requested name, with a warning.
    """
    path = _clip_path(Path(path))
    write = write_gif if path.suffix.lower() == ".gif" else write_mp4
    return write(path, clip, fps=fps, text=text)


def _clip_path(path: Path) -> Path:
    """The path itself, or that of a GIF where an MP4 cannot be written; `UserError` for another format."""
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise UserError(
            f"unknown clip format '{path.suffix or path.name}'",
            where=str(path),
            why="clips are written as animated GIF or as MP4",
            fix="end the file name in .gif or .mp4",
        )
    if path.suffix.lower() == ".gif" or mp4_encoder():
        return path
    fallback = path.with_suffix(".gif")
    log.warning("No MP4 encoder here (pip install av): writing %s instead of %s.", fallback, path)
    return fallback


class ClipWriter:
    """A clip file that grows as its frames come: ``with ClipWriter(path, fps) as writer: writer.add(frames)``.

    An MP4 is written in fragments of about a second, so it can be played while it grows, and what there is of it after
    an interruption. A GIF, whose frames share a palette, is written at the end. Frames of small clips are enlarged.
    Where no MP4 encoder is installed, a GIF is written beside the asked name and a warning says so.
    """

    def __init__(self, path: str | Path, fps: float = DEFAULT_FPS) -> None:
        self.path, self.fps = _clip_path(Path(path)), fps
        """The file that is written."""
        self._frames: list[np.ndarray] = []
        self._video: _Mp4 | None = None

    def __enter__(self) -> Self:
        return self

    def add(self, clip: torch.Tensor) -> None:
        """Append frames `[F, 3, H, W]` in [0, 1]."""
        frames = _visible(clip, "")
        if self.path.suffix.lower() == ".gif":
            self._frames.append(frames)
            return
        with _writing(self.path):
            if self._video is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._video = _Mp4(str(regular(self.path)), mp4_encoder(), self.fps, frames, fragments=True)
            self._video.add(frames)

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if self._video is not None:
            with _writing(self.path):
                self._video.close()
        elif kind is None and self._frames:
            _write(self.path, gif_bytes(np.concatenate(self._frames), self.fps))


def mp4_encoder() -> str:
    """Name of the best MP4 video encoder that PyAV offers here, '' where there is none."""
    try:
        import av
        from av.codec import Codec
    except ImportError:
        return ""
    for name in MP4_ENCODERS:
        try:
            Codec(name, "w")
        except av.FFmpegError:
            continue
        return name
    return ""


def sprite(frames: np.ndarray) -> Image.Image:
    """All frames on one near-square sheet, row by row: `columns = ceil(sqrt(F))`."""
    count, height, width, _ = frames.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:count] = frames
    grid = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(rows * height, columns * width, 3))


def _visible(clip: torch.Tensor, text: str) -> np.ndarray:
    frames = upscale(to_frames(clip))
    return burn_text(frames, text) if text else frames


def mp4_bytes(frames: np.ndarray, encoder: str, fps: float, options: Mapping[str, str] | None = None) -> bytes:
    """uint8 `[F, H, W, 3]` as MP4 (4:2:0); odd sizes grow by one pixel. options: those of the encoder."""
    buffer = io.BytesIO()
    video = _Mp4(buffer, encoder, fps, frames, options)
    video.add(frames)
    video.close()
    return buffer.getvalue()


class _Mp4:
    """An open MP4 for frames like uint8 `[F, H, W, 3]`; fragments: one begins about every second."""

    def __init__(
        self,
        file: str | io.BytesIO,
        encoder: str,
        fps: float,
        like: np.ndarray,
        options: Mapping[str, str] | None = None,
        *,
        fragments: bool = False,
    ) -> None:
        import av

        flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"} if fragments else {}
        own = {"tune": "zerolatency"} if fragments and encoder == "libx264" else {}  # it holds back 40 frames otherwise
        self.container = av.open(file, "w", format="mp4", options=flags)
        rate = Fraction(fps).limit_denominator(1000)
        self.stream: Any = self.container.add_stream(encoder, rate=rate, options=own | dict(options or {}))
        height, width = like.shape[1:3]
        self.stream.height, self.stream.width = height + height % 2, width + width % 2
        self.stream.pix_fmt = "yuv420p"
        if fragments:
            self.stream.gop_size = max(1, round(fps))

    def add(self, frames: np.ndarray) -> None:
        import av

        height, width = frames.shape[1:3]
        even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # 4:2:0 needs it
        for frame in even:
            self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def close(self) -> None:
        """Write what the encoder still holds."""
        self.container.mux(self.stream.encode(None))
        self.container.close()


def _write(path: Path, data: bytes) -> Path:
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        regular(path).write_bytes(data)
    return path


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What the disk refuses inside is reported with the path."""
    try:
        yield
    except OSError as error:
        raise UserError(
            "cannot write the clip",
            where=str(path),
            why=error.strerror or str(error),
            fix="choose another path, or free some space there",
        ) from error
