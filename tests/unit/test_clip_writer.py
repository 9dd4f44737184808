"""Clip files that grow as their frames come: read back by PyAV and Pillow."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vidalign.errors import UserError
from vidalign.tracking import clips
from vidalign.tracking.clips import ClipWriter


def parts(count: int = 4, frames: int = 12, height: int = 96, width: int = 128) -> list[torch.Tensor]:
    """Frames of noise, which do not compress to nothing; each frame has a brightness of its own."""
    torch.manual_seed(0)
    noise = torch.rand(count * frames, 3, height, width)
    ramp = torch.linspace(0, 1, count * frames).view(-1, 1, 1, 1)
    return list((0.2 * noise + 0.8 * ramp).split(frames))


def brightness(path: Path) -> list[float]:
    with av.open(str(path)) as file:
        return [float(frame.to_ndarray(format="rgb24").mean()) / 255 for frame in file.decode(video=0)]


def test_an_mp4_holds_every_frame_in_order_at_the_students_rate(tmp_path: Path) -> None:
    made = parts()
    with ClipWriter(tmp_path / "new" / "a.mp4", 16.0) as writer:
        for part in made:
            writer.add(part)
    assert writer.path == tmp_path / "new" / "a.mp4"
    found = brightness(writer.path)
    expected = torch.cat(made).mean((1, 2, 3)).tolist()
    assert np.allclose(found, expected, atol=0.02)
    with av.open(str(writer.path)) as file:
        stream = file.streams.video[0]
        assert (stream.average_rate, stream.width, stream.height) == (16, 128, 96)


def test_an_mp4_can_be_played_while_it_grows(tmp_path: Path) -> None:
    """What an interrupted command leaves is a video too."""
    writer, seen = ClipWriter(tmp_path / "a.mp4", 4.0), []
    with writer:
        for part in parts(count=10):
            writer.add(part)
            try:
                seen.append(len(brightness(writer.path)))
            except av.FFmpegError:
                seen.append(0)
    assert 0 < seen[-1] < 120 and seen == sorted(seen) and len(set(seen)) > 3
    assert len(brightness(writer.path)) == 120
    broken = ClipWriter(tmp_path / "b.mp4", 4.0)
    with pytest.raises(KeyboardInterrupt), broken:
        broken.add(parts()[0])
        raise KeyboardInterrupt
    assert len(brightness(broken.path)) == 12


def test_small_clips_of_odd_size_are_enlarged_and_even(tmp_path: Path) -> None:
    with ClipWriter(tmp_path / "a.mp4", 8) as writer:
        for part in parts(height=31, width=31):
            writer.add(part)
    with av.open(str(writer.path)) as file:
        assert (file.streams.video[0].width, file.streams.video[0].height) == (156, 156)


def test_a_gif_is_that_of_the_whole_clip(tmp_path: Path) -> None:
    made = parts(height=32, width=32)
    with ClipWriter(tmp_path / "a.gif", 8) as writer:
        for part in made:
            writer.add(part)
    clips.write_gif(tmp_path / "b.gif", torch.cat(made), fps=8)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 48
    broken = ClipWriter(tmp_path / "c.gif", 8)
    with pytest.raises(ValueError, match="stop"), broken:
        broken.add(made[0])
        raise ValueError("stop")
    assert not (tmp_path / "c.gif").exists()


def test_without_an_encoder_a_gif_is_written_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clips, "mp4_encoder", lambda: "")
    with ClipWriter(tmp_path / "a.mp4", 8) as writer:
        writer.add(parts()[0])
    assert writer.path == tmp_path / "a.gif" and writer.path.is_file() and "No MP4 encoder" in caplog.text


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_what_the_disk_refuses_is_reported_with_the_path(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the clip"), ClipWriter(tmp_path / "file" / name, 8) as writer:
        writer.add(parts()[0])
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="cannot write the clip"), ClipWriter(tmp_path / name, 8) as writer:
        writer.add(parts()[0])
    with pytest.raises(UserError, match="unknown clip format"):
        ClipWriter(tmp_path / "a.webm", 8)
