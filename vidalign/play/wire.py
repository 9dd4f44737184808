"""What page and server say to each other over the websocket.

The page sends JSON texts: ``start`` (prompt, seed, seconds, scale), ``next``, ``switch`` (prompt), ``save`` (pane). The
server answers each with JSON texts, and with one binary message for a chunk or a file: the length of a JSON header as
4 bytes (big-endian), the header, and the bytes of its parts, whose sizes the header gives.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vidalign.errors import UsageError, nearest
from vidalign.play.session import Start

FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "start": {"prompt": (str,), "seed": (int,), "seconds": (int, float), "scale": (int, float)},
    "next": {},
    "switch": {"prompt": (str,)},
    "save": {"pane": (int,)},
}
"""Types of the fields of every message; all are needed."""
WORDS = {str: "a text", int: "a whole number", float: "a number"}
LARGEST = 64 * 1024
"""Bytes of a message of the page."""
LOSSLESS = 256 * 256
"""Pixels of a frame up to which it is sent as PNG; larger ones as JPEG. A saved clip has the frames themselves."""


def read(text: str) -> tuple[str, dict[str, Any]]:
    """Type and fields of a message; `UsageError` for one that does not keep the form."""
    try:
        message = json.loads(text)
    except ValueError as error:
        raise UsageError("the message is no JSON", where="message", why=str(error)) from error
    if not isinstance(message, dict):
        raise UsageError(f"the message is a {type(message).__name__}", where="message", fix="send an object")
    kind = message.pop("type", None)
    if not isinstance(kind, str) or kind not in FIELDS:
        near = nearest(str(kind), FIELDS)
        fix = f"did you mean {near!r}?" if near else f"use {', '.join(FIELDS)}"
        raise UsageError(f"unknown message {str(kind)[:40]!r}", where="type", fix=fix)
    known = FIELDS[kind]
    for name in message.keys() ^ known.keys():
        what = f"{kind} has no field {name!r}" if name in message else f"{kind} needs the field {name!r}"
        raise UsageError(what, where=name, fix=f"its fields: {', '.join(known) or 'none'}")
    for name, types in known.items():
        if isinstance(message[name], bool) or not isinstance(message[name], types):
            found = json.dumps(message[name])[:60]
            raise UsageError(f"{name} is {found}", where=name, why=f"it is {WORDS[types[-1]]}")
    return kind, message


def started(fields: dict[str, Any]) -> Start:
    """The clip that a ``start`` asks for; raises `UsageError` as `Start` does."""
    return Start(fields["prompt"], fields["seed"], float(fields["seconds"]), float(fields["scale"]))


def packed(header: dict[str, Any], parts: Sequence[bytes]) -> bytes:
    """A binary message."""
    text = json.dumps({**header, "sizes": [len(part) for part in parts]}).encode()
    return b"".join([struct.pack(">I", len(text)), text, *parts])


def pictures(frames: np.ndarray) -> tuple[str, list[bytes]]:
    """Frames uint8 ``[F, H, W, 3]`` as pictures that a browser shows: media type and one file each."""
    small = frames.shape[1] * frames.shape[2] <= LOSSLESS
    form, options = ("PNG", {"compress_level": 1}) if small else ("JPEG", {"quality": 92})
    files = []
    for frame in frames:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, form, **options)
        files.append(buffer.getvalue())
    return f"image/{form.lower()}", files
