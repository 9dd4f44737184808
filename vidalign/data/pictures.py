"""Pictures of tables, as a viewer shows them: upright, in 8 bits, in the colours of sRGB, on white."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidalign.data.paths import inside
from vidalign.reading import regular

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""Endings of paths that are taken for pictures, in a column that nobody named."""
BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
"""First bytes of picture files."""
DEEP = ("I", "F")
"""Modes of one channel with more than 8 bits."""


def pictures_of(value: Any, folder: Path) -> tuple[Any, ...]:
    """The PIL pictures of a cell: one or a list of them, each as `picture` takes it. None is none."""
    if value is None:
        return ()
    return tuple(picture(item, folder) for item in (value if isinstance(value, list | tuple) else [value]))


def picture(value: Any, folder: Path) -> Image:
    """An RGB picture of a PIL picture, the bytes of a file, ``{bytes, path}``, or a path below `folder`.

    Raises `ValueError` saying what is wrong.
    """
    from PIL import Image

    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.strip():
        value = _read(value, folder)
    if isinstance(value, bytes | bytearray):
        value = io.BytesIO(value)
    elif not isinstance(value, Image.Image):
        raise ValueError(f"it is no picture: {str(value)[:60]!r}")
    try:
        with value if isinstance(value, Image.Image) else Image.open(value) as opened:
            return shown(opened)
    except Exception as error:  # decoders raise what they like, and a broken file is the user's data
        raise ValueError(f"a picture cannot be read: {error}") from error


def _read(name: str, folder: Path) -> bytes:
    path = inside(folder, name)
    try:
        return regular(path).read_bytes()
    except OSError as error:
        raise ValueError(f"a picture cannot be read: {error}") from error


def shown(image: Image) -> Image:
    """What a viewer shows of a picture, in RGB: turned as its metadata say, its first frame, transparency on white."""
    from PIL import Image, ImageOps

    image = _in_srgb(_in_8_bits(ImageOps.exif_transpose(image)))
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")


def _in_8_bits(image: Image) -> Image:
    """A picture of one deep channel in 8 bits: 16-bit integers, or real numbers in [0, 1]."""
    from PIL import Image

    if not image.mode.startswith(DEEP):
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    most = 1.0 if image.mode == "F" else 65535.0
    if not (low >= 0 and high <= most):
        raise ValueError(f"its values lie in [{low:g}, {high:g}], not in [0, {most:g}]")
    return Image.fromarray((values / most * 255).round().astype(np.uint8))


def _in_srgb(image: Image) -> Image:
    """Colours of another profile, such as those of CMYK for print, in sRGB; a profile that is broken is ignored."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK"):
        return image
    try:
        converted = ImageCms.profileToProfile(
            image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    assert converted is not None, "it is changed in place only when that is asked for"
    return converted


def looks_like_picture(cell: Any) -> bool:
    """Whether a cell that nobody named holds a picture, or a list that begins with one."""
    if isinstance(cell, list | tuple):
        return bool(cell) and looks_like_picture(cell[0])
    if isinstance(cell, Mapping) and {"bytes", "path"} & cell.keys():
        return any(looks_like_picture(cell.get(key)) for key in ("bytes", "path"))
    if isinstance(cell, str):
        return cell.lower().endswith(SUFFIXES) and "\n" not in cell
    return cell.startswith(BEGINNINGS) if isinstance(cell, bytes) else hasattr(cell, "getexif")
