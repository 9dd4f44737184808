"""The header of a safetensors file is what the format's own library reads, and is read of files larger than memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vidalign.students.weights import resolve
from vidalign.tensor_header import read_header

KINDS = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tensor of every type, among them an empty and a single one."""
    file = tmp_path / "all.safetensors"
    tensors = {f"of.{kind}": torch.ones(3, 2).to(kind) for kind in KINDS}
    tensors |= {"empty": torch.ones(0, 4), "single": torch.tensor(2.0), "f8": torch.ones(5).to(torch.float8_e4m3fn)}
    save_file(tensors, file, {"spec": "{}", "ü": "ö"})
    return file


def headed(file: Path, header: object, data: int) -> Path:
    """A file with this header and so many bytes, which take no place on the disk."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + data)
    return file


@pytest.mark.parametrize("name", ["saved", "world/student", "tokens/student"])
def test_it_says_what_safetensors_says(name: str, saved: Path) -> None:
    file = saved if name == "saved" else resolve(name)
    header = read_header(file)
    with safe_open(file, "np") as opened:
        pieces = {key: opened.get_slice(key) for key in opened.keys()}
        assert dict(header.metadata) == (opened.metadata() or {})
        assert {k: v.shape for k, v in header.entries.items()} == {k: tuple(p.get_shape()) for k, p in pieces.items()}
        assert {k: v.dtype for k, v in header.entries.items()} == {k: p.get_dtype() for k, p in pieces.items()}


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_a_file_that_ends_early_is_refused_by_both(size: int, saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(SafetensorError, match="truncated"):
        read_header(saved)
    with pytest.raises(SafetensorError), safe_open(saved, "np"):
        pass


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"<html>no weights</html>", 0, "not a safetensors file"),
        (b"[" * 5000, 0, "not a safetensors file"),
        ([1], 0, "not a safetensors file"),
        ({"x": TENSOR}, 9, "1 bytes behind"),
        ({"x": TENSOR}, 7, "truncated"),
        ({"x": TENSOR | {"shape": [3]}}, 8, "'x'"),
        ({"x": TENSOR | {"shape": [-2]}}, 8, "'x'"),
        ({"x": TENSOR | {"shape": [True, 2]}}, 8, "'x'"),
        ({"x": TENSOR | {"data_offsets": [8, 0]}}, 8, "'x'"),
        ({"x": TENSOR | {"data_offsets": [4, 12]}}, 12, "begins at byte 4"),
        ({"x": TENSOR, "y": TENSOR}, 8, "begins at byte 0"),
        ({"x": {"dtype": "F32"}}, 0, "'shape' is missing"),
        ({"__metadata__": {"spec": 1}, "x": TENSOR}, 8, "'spec'"),
    ],
)
def test_what_is_no_header_is_refused_by_both(header: object, data: int, message: str, tmp_path: Path) -> None:
    file = headed(tmp_path / "odd.safetensors", header, data)
    with pytest.raises(SafetensorError, match=message):
        read_header(file)
    with pytest.raises((SafetensorError, OSError)), safe_open(file, "np"):
        pass


def test_weights_larger_than_the_address_space_are_validated(tmp_path: Path) -> None:
    """64 GiB, of which the file system keeps none: mapping them fails where a process may have 8."""
    size = 1 << 36
    with safe_open(resolve("world/student"), "np") as opened:
        metadata = opened.metadata()
    tensor = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    file = headed(tmp_path / "large.safetensors", {"__metadata__": metadata, "x": tensor}, size)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    mapped = f"from safetensors import safe_open; safe_open({str(file)!r}, 'np').__enter__()"
    python = [sys.executable, "-c", mapped]
    assert b"MemoryError" in subprocess.run(python, preexec_fn=limited, capture_output=True).stderr
    for command in ("validate", "plan"):
        call = [sys.executable, "-m", "vidalign.cli", command, "world/astrolabe", f"student.path={file}"]
        done = subprocess.run(call, preexec_fn=limited, capture_output=True, text=True)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
