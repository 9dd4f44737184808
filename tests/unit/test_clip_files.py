"""Clips as users have them: every container, captions beside them, shown as a player shows them, decoded as needed."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from vidalign.errors import DataError
from vidalign.recipe import load_recipe
from vidalign.teachers import videos
from vidalign.teachers.clips import ClipShape, check_clip, normalise, read_clip
from vidalign.teachers.index import index_clips, prompts_by_name
from vidalign.teachers.store import ClipStore
from vidalign.teachers.videos import Wanted

SHAPE = ClipShape(4, 16, 16)
CODECS = {".mov": "mpeg4", ".mkv": "mpeg4", ".avi": "mpeg4", ".m4v": "mpeg4", ".mp4": "mpeg4", ".webm": "libvpx-vp9"}


def grey(frames: int = 6, height: int = 16, width: int = 16, step: int = 30) -> np.ndarray:
    """``[F, H, W, 3]``: frame k is grey of level 20 + step k."""
    levels = (20 + step * np.arange(frames)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def write(path: Path, frames: np.ndarray, fps: int = 10, sar: Fraction | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".webp":
        images = [Image.fromarray(frame) for frame in frames]
        images[0].save(path, save_all=True, append_images=images[1:], duration=1000 // fps, lossless=True)
        return path
    clear = frames.shape[3] == 4
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(CODECS[path.suffix], rate=Fraction(fps))
        stream.height, stream.width, stream.bit_rate = *frames.shape[1:3], 4_000_000
        stream.pix_fmt = "yuva420p" if clear else "yuv420p"
        if sar is not None:
            stream.codec_context.sample_aspect_ratio = sar
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgba" if clear else "rgb24")
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return path


def levels(clip: torch.Tensor) -> list[float]:
    return clip.float().mean((1, 2, 3)).tolist()


def quiet(path: Path, shape: ClipShape = SHAPE, **settings: Any) -> ClipStore:
    """A store that has nothing to report but its rate."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "clips are not resampled")
        warnings.filterwarnings("ignore", ".*clips are not resampled")
        return ClipStore(path, shape, **settings)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- containers ---


@pytest.mark.parametrize("kind", [".mov", ".mkv", ".avi", ".m4v", ".webp"])
def test_every_container_is_read_with_its_times(kind: str, tmp_path: Path) -> None:
    file = write(tmp_path / f"a cat{kind}", grey())
    raw = read_clip(file, kind)
    assert levels(raw.frames) == pytest.approx([20, 50, 80, 110, 140, 170], abs=4)
    assert raw.times is not None and raw.times.tolist() == pytest.approx([0.1 * k for k in range(6)], abs=2e-3)
    assert abs(raw.end - 0.6) < 0.02
    assert torch.equal(read_clip(file.read_bytes(), kind).frames, raw.frames)
    store = quiet(tmp_path, fps=5, shape=ClipShape(3, 16, 16))
    assert levels(store.clips(["a cat"], [draw()])[0] * 255) == pytest.approx([50, 110, 170], abs=4)


# --- captions ---


def test_captions_beside_the_clips(tmp_path: Path) -> None:
    write(tmp_path / "0001.mp4", grey())
    write(tmp_path / "sub" / "0002.mkv", grey())
    (tmp_path / "0001.txt").write_bytes(b"\xef\xbb\xbfa red ball\r\nglides\r\n")
    (tmp_path / "sub" / "0002.txt").write_text("a blue box falls")
    assert sorted(quiet(tmp_path).prompts) == ["a blue box falls", "a red ball glides"]
    (tmp_path / "0001.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"a caption is empty - .*0001\.txt"):
        index_clips(tmp_path)


@pytest.mark.parametrize("column", ["prompt", "caption", "text"])
def test_a_csv_of_captions(column: str, tmp_path: Path) -> None:
    write(tmp_path / "c" / "0001.mp4", grey())
    (tmp_path / "metadata.csv").write_text(f'file_name,{column}\nc/0001.mp4,"a ball, red"\n')
    assert quiet(tmp_path).prompts == ["a ball, red"]
    for content, message in (
        (f"file_name,{column}\nc/0001.mp4,\n", r"metadata\.csv:2 - it has no file_name or no prompt"),
        (f"file_name,{column}\n../0001.mp4,a\n", r"metadata\.csv:2 - .*leads out"),
        (f"file,{column}\n0001.mp4,a\n", r"metadata\.csv:2 - it has no file_name"),
        (f"file_name,{column}\n0001.mp4,a,b\n", r"metadata\.csv:2 - 3 and 2"),
    ):
        (tmp_path / "metadata.csv").write_text(content)
        with pytest.raises(DataError, match=message):
            index_clips(tmp_path)


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_a_webdataset(tmp_path: Path) -> None:
    clip = write(tmp_path / "x" / "a.mp4", grey()).read_bytes()
    array = io.BytesIO()
    np.savez(array, clip=grey())
    members = {
        "000.mp4": clip,
        "000.txt": b"a red ball glides",
        "d/001.npz": array.getvalue(),
        "d/001.json": json.dumps({"caption": "a blue box falls"}).encode(),
        "a hen-0.mp4": clip,
        "a hen-1.mp4": clip,
        "a hen-1.png": b"thumbnail",
        "002.txt": b"a caption alone",
    }
    (tmp_path / "shards").mkdir()
    file = pack(tmp_path / "shards" / "0.tar", members)
    for path, name in ((file, "0.tar"), (tmp_path / "shards", "0.tar")):
        with pytest.warns(
            UserWarning, match=rf"2 files are not used: {name}/a hen-1\.png \(\.png is no kind of clip\), "
        ):
            store = ClipStore(path, SHAPE, fps=10)
        assert sorted(store.prompts) == ["a blue box falls", "a hen", "a red ball glides"]
        for prompt in store.prompts:
            assert levels(store.clips([prompt], [draw()])[0] * 255) == pytest.approx([20, 50, 80, 110], abs=4)
    (tmp_path / "shards" / "1.tar").write_bytes(file.read_bytes()[:700])
    with pytest.raises(DataError, match=r"a tar file cannot be read - .*1\.tar"):
        index_clips(tmp_path / "shards")
    pack(tmp_path / "2.tar", {"a.mp4": clip, "a.json": b"{oops"})
    with pytest.raises(DataError, match=r"a caption cannot be read - 2\.tar: a\.json"):
        index_clips(tmp_path / "2.tar")


@pytest.mark.parametrize(
    ("stems", "expected"),
    [
        (["model t-1000"], ["model t-1000"]),
        (["a cat-0"], ["a cat"]),
        (["a cat-0", "a cat-1", "a cat-4"], ["a cat"] * 3),
        (["a cat-1", "a cat-2"], ["a cat"] * 2),
        (["a cat", "a cat-1"], ["a cat"] * 2),
        (["formula-1"], ["formula-1"]),
        (["apollo-11", "apollo-13"], ["apollo-11", "apollo-13"]),
        (["a cat-01", "a cat-02"], ["a cat-01", "a cat-02"]),
        (["a-b-0", "a-b-1"], ["a-b", "a-b"]),
        (["-0"], ["-0"]),
    ],
)
def test_only_numbers_of_clips_are_no_part_of_a_prompt(stems: list[str], expected: list[str]) -> None:
    named = prompts_by_name(stems)
    assert [named[stem] for stem in stems] == expected


# --- what is not used ---


def test_files_that_are_not_used_are_reported_with_their_reasons(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", grey())
    for name in ("notes.txt", "list.parquet", "README", "sub/b.flv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert index_clips(tmp_path).unused == {
        "README": "it is no kind of clip",
        "list.parquet": ".parquet is no kind of clip",
        "notes.txt": "there is no clip of its name",
        "sub/b.flv": ".flv is no kind of clip",
    }
    with pytest.warns(UserWarning, match=r"4 files are not used: README \(it is no kind of clip\), list\.parquet"):
        ClipStore(tmp_path, SHAPE, fps=10)
    write(tmp_path / "b.mp4", grey())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "prompt": "a hen"}\n')
    (tmp_path / "metadata.csv").write_text("file_name,prompt\n")
    unused = index_clips(tmp_path).unused
    assert (
        unused["b.mp4"] == "metadata.jsonl does not name it"
        and unused["metadata.csv"] == "metadata.jsonl names the clips"
    )


def test_validate_reports_them_too(tmp_path: Path) -> None:
    write(tmp_path / "clips" / "a red ball.mp4", grey())
    (tmp_path / "clips" / "notes.md").write_text("x")
    (tmp_path / "p.txt").write_text("a red ball\n")
    teacher = f"teacher={{name: store, path: {tmp_path}/clips}}"
    recipe = load_recipe("world/sft", [teacher, f"data.prompts={tmp_path}/p.txt"])
    (warning,) = [str(one) for one in recipe.warnings if "not used" in one.what]
    assert "1 files" in warning and "notes.md (.md is no kind of clip)" in warning


def test_an_empty_store_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.flv").write_text("x")
    with pytest.raises(DataError, match=r"holds no clips - not used: a\.flv \(\.flv is no kind of clip\)"):
        index_clips(tmp_path)


def test_sound_alone_is_no_clip(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream: Any = file.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    for call in (lambda: read_clip(tmp_path / "a.mp4", ".mp4"), lambda: check_clip(tmp_path / "a.mp4", ".mp4", SHAPE)):
        with pytest.raises(DataError, match=r"a\.mp4 cannot be used: it has no video, only sound") as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="1 of 1 clips cannot be used"):
        ClipStore(tmp_path, SHAPE)


# --- as a player shows it ---


def corners(frames: torch.Tensor) -> list[int]:
    """Grey of the four quarters of the first frame: above left and right, below left and right."""
    height, width = frames.shape[2] // 2, frames.shape[3] // 2
    first = frames[0].float().mean(0)
    parts = (first[:height, :width], first[:height, width:], first[height:, :width], first[height:, width:])
    return [round(float(part.mean())) for part in parts]


def quarters(height: int = 32, width: int = 32) -> np.ndarray:
    frames = np.zeros((5, height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    frames[:, :h, :w], frames[:, :h, w:], frames[:, h:, :w], frames[:, h:, w:] = 40, 90, 140, 190
    return frames


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [((0, 1, -1, 0), [140, 40, 190, 90]), ((0, -1, 1, 0), [90, 190, 40, 140]), ((-1, 0, 0, -1), [190, 140, 90, 40])],
)
def test_a_turned_clip_stands_upright(matrix: tuple[int, ...], expected: list[int], tmp_path: Path) -> None:
    """The display matrix of a telephone: the first is a quarter turn clockwise."""
    data = write(tmp_path / "a.mp4", quarters(32, 64)).read_bytes()
    plain, turned = (
        (b"".join((x % 2**32).to_bytes(4, "big") for x in (a, b, 0, c, d, 0, 0, 0, 0x40000000)))
        for a, b, c, d in (((0x10000, 0, 0, 0x10000)), tuple(x * 0x10000 for x in matrix))
    )
    at = data.index(plain, data.index(b"tkhd"))
    raw = read_clip(data[:at] + turned + data[at + 36 :], ".mp4")
    assert corners(raw.frames) == pytest.approx(expected, abs=8)
    assert raw.frames.shape[2:] == ((32, 64) if matrix[0] else (64, 32))


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    """16 x 32 pixels twice as wide as high are a square picture: nothing is cropped."""
    raw = read_clip(write(tmp_path / "a.mp4", quarters(32, 16), sar=Fraction(2, 1)), ".mp4")
    assert raw.aspect == 2 and raw.frames.shape[2:] == (32, 16)
    found = normalise(raw, ClipShape(4, 32, 32))
    assert corners(found) == pytest.approx([40, 90, 140, 190], abs=8)
    edge = quarters(32, 16)
    edge[:, :6] = 250
    kept = normalise(read_clip(write(tmp_path / "b.mp4", edge, sar=Fraction(2, 1)), ".mp4"), ClipShape(4, 32, 32))
    assert float(kept[0, :, :4].float().mean()) > 200, "the upper edge is seen"


@pytest.mark.parametrize("kind", [".webm", ".webp", ".gif"])
def test_transparency_stands_on_white(kind: str, tmp_path: Path) -> None:
    frames = np.zeros((5, 32, 32, 4), np.uint8)
    frames[..., 0] = np.arange(5)[:, None, None] * 4 + 80
    frames[:, :16, :, 3] = 255
    if kind == ".gif":
        images = [Image.fromarray(frame) for frame in frames]
        images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=100, disposal=2)
    else:
        write(tmp_path / f"a{kind}", frames)
    first = read_clip(tmp_path / f"a{kind}", kind).frames[0].float()
    assert first[:, 20:].mean() > 245, "below it is clear"
    assert first[0, :12].mean() == pytest.approx(80, abs=12) and first[1:, :12].mean() < 12, "above it is dark red"


def test_a_picture_that_is_far_too_narrow_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "narrow.npz", clip=np.zeros((4, 4000, 1, 3), np.uint8))
    with pytest.raises(
        DataError, match=r"1 of 1 clips .*a picture of 1 x 4000 is too narrow for the student's 16 x 16"
    ):
        ClipStore(tmp_path, SHAPE)
    with pytest.raises(DataError, match="too narrow"):
        normalise(read_clip(tmp_path / "narrow.npz", ".npz"), SHAPE)
    upright = np.zeros((4, 1280, 720, 3), np.uint8)
    assert normalise(videos.RawClip(torch.from_numpy(upright).permute(0, 3, 1, 2)), ClipShape(4, 9, 16)).shape[2:] == (
        9,
        16,
    )


# --- only what is needed ---


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of all frames that are decoded."""
    times: list[float] = []
    plain = videos._frames

    def counted(file: Any, stream: Any) -> Any:
        for frame in plain(file, stream):
            times.append(frame.time)
            yield frame

    monkeypatch.setattr(videos, "_frames", counted)
    return times


@pytest.mark.parametrize(("fps", "frames"), [(10, 22), (5, 42), (20, 12)])
def test_only_the_needed_seconds_are_decoded_when_a_clip_is_drawn(
    fps: int, frames: int, decoded: list[float], tmp_path: Path
) -> None:
    write(tmp_path / "a.mp4", grey(200, step=1), fps=10)
    store = quiet(tmp_path, ClipShape(20, 16, 16), fps=fps)
    assert not decoded, "nothing is decoded at the start"
    found = store.clips(["a"], [draw()])
    assert 0 < len(decoded) <= frames
    whole = normalise(read_clip(tmp_path / "a.mp4", ".mp4"), ClipShape(20, 16, 16), fps)
    assert torch.equal((found[0] * 255).round().to(torch.uint8), whole)
    store.clips(["a"], [draw(1)])
    assert len(decoded) <= frames + 200, "it is kept"


def test_frames_that_are_never_seen_are_not_kept(tmp_path: Path) -> None:
    file = write(tmp_path / "a.mp4", grey(100, step=2), fps=50)
    assert len(read_clip(file, ".mp4", Wanted(4, 5)).frames) <= 6 < len(read_clip(file, ".mp4").frames)
    assert len(read_clip(file, ".mp4", Wanted(4)).frames) == 4


@pytest.mark.parametrize("fps", [3, 5, 8, 10, 24, 60])
@pytest.mark.parametrize("source", [7, 10, 30])
def test_a_part_of_a_clip_is_that_of_the_whole(fps: int, source: int, tmp_path: Path) -> None:
    for kind in (".mp4", ".webp"):
        file = write(tmp_path / f"a{kind}", grey(90, step=2), fps=source)
        part = normalise(read_clip(file, kind, Wanted(8, fps)), ClipShape(8, 16, 16), fps)
        assert torch.equal(part, normalise(read_clip(file, kind), ClipShape(8, 16, 16), fps))


def test_a_clip_that_breaks_later_is_named_or_left_out(decoded: list[float], tmp_path: Path) -> None:
    """Its header is that of a whole clip: what is wrong is found when it is drawn."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), np.uint8)
    whole = write(tmp_path / "a hen-0.mkv", noise).read_bytes()
    (tmp_path / "a hen-0.mkv").write_bytes(whole[: len(whole) // 2])
    shape = ClipShape(50, 16, 16)
    store = quiet(tmp_path, shape, fps=10)
    assert not decoded
    with pytest.raises(DataError, match=r"a clip cannot be used - .*a hen-0\.mkv - .* set teacher.skip_corrupt: true"):
        store.clips(["a hen"], [draw()])
    store = quiet(tmp_path, shape, fps=10, skip_corrupt=True)
    with (
        pytest.warns(UserWarning, match=r"a hen-0\.mkv is skipped"),
        pytest.raises(DataError, match="no clip of 'a hen'"),
    ):
        store.clips(["a hen"], [draw()])
    write(tmp_path / "a hen-1.mkv", grey(60, step=1))
    store = quiet(tmp_path, shape, fps=10, skip_corrupt=True)
    with pytest.warns(UserWarning, match=r"a hen-0\.mkv is skipped") as caught:
        found = [levels(store.clips(["a hen"], [draw(seed)])[0] * 255)[0] for seed in range(6)]
    assert found == pytest.approx([20] * 6, abs=4) and len(caught) == 1, "it is not read again"


@pytest.mark.parametrize("kind", [".mp4", ".avi"])
def test_a_clip_that_is_too_short_is_found_by_its_header(kind: str, decoded: list[float], tmp_path: Path) -> None:
    write(tmp_path / f"a{kind}", grey(6), fps=10)
    for fps, message in (
        (0, "6 frames, the student's clips have 20"),
        (10, "frames at 10 fps, the student's clips have 20"),
    ):
        with pytest.raises(DataError, match=message):
            ClipStore(tmp_path, ClipShape(20, 16, 16), fps=fps)
    assert not decoded
    quiet(tmp_path, ClipShape(6, 16, 16), fps=10).clips(["a"], [draw()])


@pytest.mark.parametrize("form", ["bytes", "path", "struct"])
def test_empty_clips_and_prompts_of_a_table_are_refused_by_row(form: str, tmp_path: Path) -> None:
    data = write(tmp_path / "a.mp4", grey()).read_bytes()
    good, none = {
        "bytes": (data, b""),
        "path": ("a.mp4", None),
        "struct": ({"bytes": data, "path": "a.mp4"}, {"bytes": None, "path": None}),
    }[form]
    table = datasets.Dataset.from_dict({"prompt": ["a hen", "a cat"], "video": [good, none]})
    table.to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(DataError, match="1 of 2 clips cannot be used: row 1 - .* row 1 - its clip is empty"):
        ClipStore(tmp_path / "t.parquet", SHAPE, fps=10)
    with pytest.warns(UserWarning, match="1 clips are skipped: row 1"):
        store = ClipStore(tmp_path / "t.parquet", SHAPE, fps=10, skip_corrupt=True)
    assert store.prompts == ["a hen"] and store.clips(["a hen"], [draw()]).shape[1] == 4
    datasets.Dataset.from_dict({"prompt": ["a", None], "video": [good, good]}).to_parquet(str(tmp_path / "p.parquet"))
    with pytest.raises(DataError, match="row 1 - its prompt is None"):
        index_clips(tmp_path / "p.parquet")


def test_a_container_without_the_length_of_its_stream(decoded: list[float], tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", grey(6), fps=10)
    with pytest.raises(DataError, match="frames at 10 fps, the student's clips have 20"):
        ClipStore(tmp_path, ClipShape(20, 16, 16), fps=10)
    assert not decoded
    quiet(tmp_path, ClipShape(6, 16, 16), fps=10).clips(["a"], [draw()])
