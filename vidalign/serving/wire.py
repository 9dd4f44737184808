"""The wire format of clips: a length, a JSON header and the bytes of the clips; nothing in it is ever unpickled.

A body is N as 8 bytes (little-endian), N bytes of JSON, and the payload up to the end. Keys of the header:

``prompts``   B strings
``encoding``  ``raw``, ``npz`` or ``mp4``
``dtype``     raw only: ``uint8`` (0..255), ``float16`` or ``float32`` (0..1), little-endian
``shape``     raw only: ``[B, F, 3, H, W]``
``sizes``     mp4 only: the bytes of each of the B files that follow each other
``fps``       frames a second; where it is missing, an mp4 file says it
``metadata``  B objects, what the prompts' source says beside the prompts

An npz payload holds one array ``clips`` of these types and this shape. All clips of a body have one shape.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .failure import ServeError, invalid

MEDIA_TYPE = "application/vnd.vidalign.clips"
DTYPES = {"uint8": "<u1", "float16": "<f2", "float32": "<f4"}
ENCODINGS = ("raw", "npz", "mp4")
KEYS = ("prompts", "encoding", "dtype", "shape", "sizes", "fps", "metadata")
LENGTH = 8
"""Bytes of the length of the header."""
LARGEST = 2.0
"""Above it a float clip is not in 0..1; decoders exceed 1 by less."""


@dataclass
class ScoreBody:
    """What one request asks to score."""

    clips: NDArray[Any]
    """``[B, F, 3, H, W]``, uint8 in 0..255 or floats in 0..1."""
    prompts: list[str]
    fps: float | None = None
    """Frames a second; None where nobody said."""
    metadata: list[dict[str, Any]] = field(default_factory=list)
    """One mapping a clip, or none at all."""


def encode(
    clips: NDArray[Any],
    prompts: Sequence[str],
    *,
    fps: float | None = None,
    metadata: Sequence[Mapping[str, Any]] = (),
) -> bytes:
    """The body with raw clips ``[B, F, 3, H, W]`` of one of `DTYPES`; metadata that JSON has no form for is text."""
    header: dict[str, Any] = {"prompts": list(prompts), "encoding": "raw"}
    header |= {"dtype": clips.dtype.name, "shape": list(clips.shape), "fps": fps}
    if any(metadata):
        header["metadata"] = [dict(one) for one in metadata]
    return pack(header, np.ascontiguousarray(clips, DTYPES[clips.dtype.name]).tobytes())


def pack(header: Mapping[str, Any], payload: bytes) -> bytes:
    """A body of a header and a payload."""
    text = json.dumps(header, default=str).encode()
    return len(text).to_bytes(LENGTH, "little") + text + payload


def decode(body: bytes | bytearray, limit: int) -> ScoreBody:
    """What a body asks; raises `ServeError` 422 for one that is not in the format, 413 for clips of more than `limit`
    bytes after decompression."""
    view = memoryview(body)
    size = int.from_bytes(view[:LENGTH], "little")
    if len(view) < LENGTH or size > len(view) - LENGTH:
        raise invalid("the body is shorter than its header says", "begin with the length of the JSON header, 8 bytes")
    header, payload = _header(bytes(view[LENGTH : LENGTH + size])), view[LENGTH + size :]
    fps = header.get("fps")
    encoding = header["encoding"]
    if encoding == "mp4":
        clips, read = _mp4(header, payload, limit)
        fps = read if fps is None else fps
    else:
        clips = _raw(header, payload) if encoding == "raw" else _npz(payload, limit)
    prompts = header["prompts"]
    if clips.ndim != 5 or clips.shape[2] != 3 or 0 in clips.shape:
        raise invalid(f"the clips have the shape {list(clips.shape)}", "send [B, F, 3, H, W]")
    if len(clips) != len(prompts):
        raise invalid(f"there are {len(clips)} clips and {len(prompts)} prompts", "send one prompt a clip")
    if clips.dtype.kind == "f" and float(np.nanmax(np.abs(clips), initial=0)) > LARGEST:
        raise invalid("the clips hold floats far outside 0..1", "divide them by 255, or send uint8")
    return ScoreBody(clips, prompts, fps, header.get("metadata", []))


def _header(text: bytes) -> dict[str, Any]:
    """The checked header."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise invalid("the header is no JSON object")
    for key in header:
        if key not in KEYS:
            close = get_close_matches(key, KEYS, n=1)
            raise invalid(f"unknown key {key!r} in the header", f"did you mean {close[0]!r}?" if close else "")
    prompts, fps, metadata = header.get("prompts"), header.get("fps"), header.get("metadata", [])
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise invalid("prompts must be a list of strings", "send one prompt a clip")
    if header.get("encoding") not in ENCODINGS:
        raise invalid(f"encoding is {header.get('encoding')!r}", f"one of {', '.join(ENCODINGS)}")
    number = isinstance(fps, int | float) and not isinstance(fps, bool) and math.isfinite(fps) and fps > 0
    if fps is not None and not number:
        raise invalid(f"fps is {fps!r}", "send frames a second, a positive number, or leave it out")
    objects = isinstance(metadata, list) and all(isinstance(one, dict) for one in metadata)
    if not objects or len(metadata) not in (0, len(prompts)):
        raise invalid("metadata must be a list with one object a clip")
    return header


def _raw(header: Mapping[str, Any], payload: memoryview) -> NDArray[Any]:
    """A view of the payload."""
    dtype, shape = header.get("dtype"), header.get("shape")
    if dtype not in DTYPES:
        raise invalid(f"dtype is {dtype!r}", f"one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(type(one) is int and one > 0 for one in shape) or len(shape) != 5:
        raise invalid(f"shape is {shape!r}", "send [B, F, 3, H, W]")
    expected = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if expected != len(payload):
        raise invalid(f"the payload has {len(payload)} bytes, shape and dtype say {expected}")
    return np.frombuffer(payload, DTYPES[dtype]).reshape(shape)


def _npz(payload: memoryview, limit: int) -> NDArray[Any]:
    """The array ``clips``; its size is looked up before anything is decompressed, and Python objects are refused."""
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive, archive.open("clips.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if dtype.name not in DTYPES:
                raise invalid(f"the array clips holds {dtype}", f"one of {', '.join(DTYPES)}")
            size = math.prod(shape) * dtype.itemsize
            if size > limit:
                raise too_large(size, limit)
            data = file.read(size)
    except ServeError:
        raise
    except Exception as error:  # zlib.error, BadZipFile and others: a damaged file is a mistake of the client
        raise invalid(f"the payload is no npz file with an array clips: {error}") from error
    if len(data) != size:
        raise invalid("the array clips is shorter than its header says")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _mp4(header: Mapping[str, Any], payload: memoryview, limit: int) -> tuple[NDArray[Any], float | None]:
    """Clips of uint8 from files of video, and the frame rate where all files have one."""
    sizes = header.get("sizes")
    if not isinstance(sizes, list) or not all(type(one) is int and one > 0 for one in sizes):
        raise invalid("sizes must be a list of the bytes of each file")
    if sum(sizes) != len(payload):
        raise invalid(f"the payload has {len(payload)} bytes, sizes say {sum(sizes)}")
    clips: list[NDArray[Any]] = []
    rates, start = set(), 0
    for size in sizes:
        clip, rate = _video(bytes(payload[start : start + size]), limit - sum(one.nbytes for one in clips), limit)
        clips.append(clip)
        rates.add(rate)
        start += size
    if len({clip.shape for clip in clips}) > 1:
        raise invalid("the files have several lengths or sizes", "send clips of one shape in a request")
    return np.stack(clips).transpose(0, 1, 4, 2, 3), rates.pop() if len(rates) == 1 else None


def _video(data: bytes, left: int, limit: int) -> tuple[NDArray[Any], float | None]:
    """Frames ``[F, H, W, 3]`` of one file, of at most `left` bytes, and their rate."""
    try:
        import av
    except ImportError as error:
        raise ServeError(415, "unsupported_encoding", "this server reads no mp4", "install PyAV there: av") from error
    frames: list[NDArray[Any]] = []
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate) if stream.average_rate else None
            for frame in container.decode(stream):
                left -= 3 * frame.width * frame.height
                if left < 0:
                    raise too_large(limit + 1, limit)
                frames.append(frame.to_ndarray(format="rgb24"))
    except ServeError:
        raise
    except Exception as error:  # FFmpeg's, and what damaged texts inside the file cause
        raise invalid(f"a file is no video: {error}") from error
    if len({frame.shape for frame in frames}) != 1:
        raise invalid("a file has no frames, or frames of several sizes")
    return np.stack(frames), rate


def too_large(size: int, limit: int) -> ServeError:
    """The failure of a request beyond the limit."""
    what = f"the clips have {size / 2**20:.1f} MiB, the limit is {limit / 2**20:g}"
    return ServeError(
        413, "too_large", what, "send fewer clips in a request, or start the server with a larger --max-mb"
    )
