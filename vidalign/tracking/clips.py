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
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from vidalign.errors import UserError
from vidalign.reading import regular

log = logging.getLogger(__name__)

DEFAULT_FPS = 8
VISIBLE_SIDE = 160  # clips are enlarged by a whole factor until their longer side is about this
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
    path = Path(path)
    if path.suffix.lower() == ".gif":
        return write_gif(path, clip, fps=fps, text=text)
    if path.suffix.lower() != ".mp4":
        raise UserError(
            f"unknown clip format '{path.suffix or path.name}'",
            where=str(path),
            why="clips are written as animated GIF or as MP4",
            fix="end the file name in .gif or .mp4",
        )
    if mp4_encoder():
        return write_mp4(path, clip, fps=fps, text=text)
    fallback = path.with_suffix(".gif")
    log.warning("No MP4 encoder here (pip install av): writing %s instead of %s.", fallback, path)
    return write_gif(fallback, clip, fps=fps, text=text)


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
    import av

    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # 4:2:0 needs it
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream: Any = container.add_stream(encoder, rate=rate, options=dict(options or {}))
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        regular(path).write_bytes(data)
    except OSError as error:
        raise UserError(
            "cannot write the clip",
            where=str(path),
            why=error.strerror or str(error),
            fix="choose another path, or free some space there",
        ) from error
    return path
