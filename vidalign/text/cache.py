"""Where features of prompts are kept: files that all runs of a user share, and the newest ones in memory.

A file holds the tokens of one prompt without padding, in the encoder's own type: 245 kB for 30 tokens of UMT5-XXL in
bf16, where 512 padded ones in fp32 take 8.4 MB. Files are written beside and renamed, so several processes may fill a
folder at once. A file that is damaged counts as missing.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidalign.owner import replacing
from vidalign.tensor_header import read_header
from vidalign.tensor_writing import save_tensors

ENVIRONMENT = "VIDALIGN_CACHE"
MEMORY = 2**30
"""Bytes of features that a process keeps in memory."""


def default_folder() -> Path:
    """``$VIDALIGN_CACHE/text``, by default ``~/.cache/vidalign/text`` (``$XDG_CACHE_HOME`` is honoured)."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named).expanduser() / "text"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vidalign" / "text"


@dataclass(frozen=True)
class Encoded:
    """A prompt as its student reads it."""

    features: Tensor
    """`[tokens, dim]` on the CPU, without padding."""
    length: int
    """Tokens to which it is padded."""


class FeatureFiles:
    """Features on disk, one safetensors file a prompt; identity: of the encoder, see `TextPlugin.identity`."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        self._warned = False

    def path(self, prompt: str) -> Path:
        digest = hashlib.sha256(f"{self.identity}\0{prompt}".encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:42]}.safetensors"

    def has(self, prompt: str) -> bool:
        """Whether there is a whole file; its numbers are not read."""
        try:
            header = read_header(self.path(prompt))
            return {"length", "crc"} <= header.metadata.keys() and list(header.entries) == ["features"]
        except (OSError, SafetensorError):
            return False

    def read(self, prompt: str) -> Encoded | None:
        """None where there is no file, or a damaged one."""
        try:
            with safe_open(self.path(prompt), "pt") as file:
                labels, features = file.metadata() or {}, file.get_tensor("features")
            whole = features.ndim == 2 and labels["crc"] == _crc(features) and int(labels["length"]) >= len(features)
            return Encoded(features, int(labels["length"])) if whole else None
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def write(self, prompt: str, encoded: Encoded) -> None:
        """Keep features; one warning where the disk refuses, after which prompts may be encoded again."""
        file = self.path(prompt)
        labels = {"prompt": prompt, "length": str(encoded.length), "crc": _crc(encoded.features)}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file, sweep=False) as partial:
                save_tensors({"features": encoded.features.contiguous()}, partial, metadata=labels)
        except (OSError, SafetensorError) as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            what = f"features of prompts cannot be kept in {self.folder}: {error}"
            fix = f"they are encoded again by every run; name another folder with ${ENVIRONMENT} or data.text_cache"
            warnings.warn(f"{what} - {fix}", UserWarning, stacklevel=3)


class FeatureMemory:
    """The features used last, up to a number of bytes."""

    def __init__(self, limit: int = MEMORY) -> None:
        self.limit, self.bytes = limit, 0
        self._entries: OrderedDict[str, Encoded] = OrderedDict()

    def get(self, prompt: str) -> Encoded | None:
        if prompt in self._entries:
            self._entries.move_to_end(prompt)
        return self._entries.get(prompt)

    def add(self, prompt: str, encoded: Encoded) -> None:
        """Keep one more; those unused for longest make room."""
        if (known := self._entries.pop(prompt, None)) is not None:
            self.bytes -= known.features.nbytes
        self._entries[prompt] = encoded
        self.bytes += encoded.features.nbytes
        while self.bytes > self.limit:
            self.bytes -= self._entries.popitem(last=False)[1].features.nbytes


def _crc(features: Tensor) -> str:
    return str(zlib.crc32(features.contiguous().flatten().view(torch.uint8).numpy().tobytes()))
