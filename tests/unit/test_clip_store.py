"""Clips from files: read, made like the student's, keyed by prompt, broken ones named."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vidalign.errors import DataError, RecipeError
from vidalign.recipe import load_recipe
from vidalign.students.video import VideoStudentSpec
from vidalign.teachers.clips import ClipShape, normalise, read_clip
from vidalign.teachers.index import index_clips
from vidalign.teachers.store import ClipStore
from vidalign.teachers.videos import RawClip
from vidalign.worlds.video import captions

SHAPE = ClipShape(4, 16, 16)


def ramp(frames: int = 6, height: int = 16, width: int = 16, start: int = 20, step: int = 30) -> Tensor:
    """Frame k is grey of level start + step k: its mean says which frame it is. uint8 ``[F, 3, H, W]``."""
    levels = torch.arange(frames, dtype=torch.uint8) * step + start
    return levels.reshape(-1, 1, 1, 1).expand(frames, 3, height, width).contiguous()


def write(path: Path, clip: Tensor, fps: int = 10) -> Path:
    """Write a clip by the kind of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = clip.permute(0, 2, 3, 1).contiguous().numpy()
    if path.suffix == ".npz":
        np.savez(path, clip=frames, fps=fps)
    elif path.suffix == ".safetensors":
        save_file({"clip": clip}, path, {"fps": str(fps)})
    elif path.suffix == ".gif":
        images = [Image.fromarray(frame) for frame in frames]
        images[0].save(path, save_all=True, append_images=images[1:], duration=1000 // fps, loop=0)
    else:
        codec = "libvpx-vp9" if path.suffix == ".webm" else "mpeg4"
        with av.open(str(path), "w") as file:
            stream = file.add_stream(codec, rate=Fraction(fps))
            stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *frames.shape[1:3], "yuv420p", 2_000_000
            for frame in frames:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())
    return path


def levels(clip: Tensor) -> list[float]:
    return clip.float().mean((1, 2, 3)).tolist()


# --- reading ---


@pytest.mark.parametrize("kind", [".mp4", ".webm", ".gif", ".npz", ".safetensors"])
def test_every_kind_is_read_with_its_times(kind: str, tmp_path: Path) -> None:
    raw = read_clip(write(tmp_path / f"a{kind}", ramp()), kind)
    assert raw.frames.dtype == torch.uint8 and raw.frames.shape == (6, 3, 16, 16)
    assert levels(raw.frames) == pytest.approx(levels(ramp()), abs=4)
    assert raw.times is not None
    assert raw.times.tolist() == pytest.approx([0.1 * k for k in range(6)], abs=2e-3) and abs(raw.end - 0.6) < 0.02
    data = (tmp_path / f"a{kind}").read_bytes()
    assert torch.equal(read_clip(data, kind).frames, raw.frames), "bytes of a table's cell"


def test_arrays_of_other_layouts(tmp_path: Path) -> None:
    clip = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = (clip * 255).round().to(torch.uint8)
    np.savez(tmp_path / "a.npz", movie=clip.permute(0, 2, 3, 1).numpy())
    save_file({"x": clip}, tmp_path / "b.safetensors")
    for name in ("a.npz", "b.safetensors"):
        raw = read_clip(tmp_path / name, Path(name).suffix)
        assert torch.equal(raw.frames, expected) and raw.times is None


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    np.savez(tmp_path / "range.npz", clip=np.full((4, 3, 8, 8), -1.0, np.float32))
    np.savez(tmp_path / "shape.npz", clip=np.zeros((4, 8, 8), np.uint8))
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    np.savez(tmp_path / "pickle.npz", clip=np.array([{}], dtype=object))
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    expected = {
        "range.npz": "lie in",
        "shape.npz": r"\[F, 3, H, W\]",
        "two.npz": "which array",
        "pickle.npz": "cannot be read",
        "noise.mp4": "noise.mp4 cannot be read",
        "empty.safetensors": "cannot be read",
        "gone.mp4": "cannot be read",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            read_clip(tmp_path / name, Path(name).suffix)


# --- one size, rate and length ---


def test_length_is_the_beginning_of_the_clip() -> None:
    assert levels(normalise(RawClip(ramp()), SHAPE)) == levels(ramp())[:4]
    with pytest.raises(DataError, match="3 frames, the student's clips have 4"):
        normalise(RawClip(ramp(3)), SHAPE)


@pytest.mark.parametrize(
    ("fps", "expected"), [(10, [0, 1, 2, 3]), (5, [1, 3, 5, 7]), (20, [0, 0, 1, 1]), (8, [0, 1, 3, 4])]
)
def test_rate_shows_what_is_visible_at_each_instant(fps: int, expected: list[int]) -> None:
    """Source 10 fps: at the middle (k + 1/2) / fps of frame k, source frame floor(10 (k + 1/2) / fps) is seen."""
    source = ramp(8, start=0)
    raw = RawClip(source, torch.arange(8, dtype=torch.float64) / 10, 0.8)
    assert levels(normalise(raw, SHAPE, fps)) == [levels(source)[k] for k in expected]


def test_uneven_times_are_respected() -> None:
    """A GIF stores equal neighbours once: the first frame stays for half a second."""
    raw = RawClip(ramp(3), torch.tensor([0.0, 0.5, 0.6], dtype=torch.float64), 0.8)
    assert levels(normalise(raw, ClipShape(8, 16, 16), 10)) == [20] * 5 + [50] + [80] * 2
    with pytest.raises(DataError, match="8 frames at 10 fps, the student's clips have 9"):
        normalise(raw, ClipShape(9, 16, 16), 10)


def test_size_is_cropped_to_the_aspect_and_averaged() -> None:
    """Twice as large and too wide: the middle, each pixel about the mean of its four; a picture that fits is kept."""
    picture = torch.zeros(4, 3, 32, 48, dtype=torch.uint8)
    picture[..., 8:24], picture[..., 24:40] = 200, 100
    found = normalise(RawClip(picture), SHAPE)
    assert found.shape == (4, 3, 16, 16) and found.dtype == torch.uint8
    assert found[0, 0, 8, :7].unique().tolist() == [200] and found[0, 0, 8, 9:].unique().tolist() == [100]
    noise = torch.randint(256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(normalise(RawClip(noise), SHAPE), noise)


def test_shape_of_a_student() -> None:
    spec = VideoStudentSpec(height=480, width=832, codec={"name": "wan"})
    assert ClipShape.of(spec, 21) == ClipShape(81, 480, 832)
    assert ClipShape.of(VideoStudentSpec(), 12) == ClipShape(12, 32, 32)


def test_shape_of_a_student_with_a_codec_of_ones_own() -> None:
    """The codec says how many frames a latent makes, whatever its name."""
    spec: Any = SimpleNamespace(codec={"name": "mine"}, pixel_frames=lambda n: 1 + 8 * (n - 1), height=16, width=24)
    assert ClipShape.of(spec, 3) == ClipShape(17, 16, 24)


# --- the store ---


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_folder_is_keyed_by_name(tmp_path: Path) -> None:
    for name, start in (("a cat-0.mp4", 20), ("a cat-1.npz", 60), ("sub/a dog.gif", 100)):
        write(tmp_path / name, ramp(start=start))
    (tmp_path / "notes.txt").write_text("no clip")
    store = ClipStore(tmp_path, SHAPE)
    assert sorted(store.prompts) == ["a cat", "a dog"]
    clips = store.clips(["a dog", "a cat"], [draw(0), draw(0)])
    assert clips.shape == (2, 4, 3, 16, 16) and clips.dtype == torch.float32 and clips.max() <= 1
    assert float(clips[0, 0].mean()) == pytest.approx(100 / 255, abs=0.02)
    first = {round(float(store.clips(["a cat"], [draw(seed)])[0, 0].mean() * 255 / 40)) for seed in range(12)}
    assert len(first) == 2, "every clip of a prompt has its turn"
    assert torch.equal(store.clips(["a cat"], [draw(5)]), store.clips(["a cat"], [draw(5)]))
    with pytest.raises(DataError, match="did you mean 'a cat'"):
        store.clips(["a bat"], [draw(0)])


def test_a_listed_folder(tmp_path: Path) -> None:
    write(tmp_path / "x.npz", ramp())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x.npz", "prompt": "a hen"}\n\n')
    assert ClipStore(tmp_path, SHAPE).prompts == ["a hen"]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x.npz", "prompt": "a hen"}\n{"file": "x.npz"}\n')
    with pytest.raises(DataError, match=r"metadata.jsonl:2"):
        index_clips(tmp_path)


def test_broken_clips_are_listed_and_skipped_only_if_asked(tmp_path: Path) -> None:
    write(tmp_path / "good.npz", ramp())
    write(tmp_path / "short.npz", ramp(2))
    whole = write(tmp_path / "cut.mp4", ramp(30, 64, 64, step=7)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError, match=r"2 of 3 clips cannot be used: cut\.mp4, short\.npz"):
        ClipStore(tmp_path, SHAPE)
    with pytest.warns(UserWarning, match=r"2 clips are skipped: cut\.mp4, short\.npz"):
        assert ClipStore(tmp_path, SHAPE, skip_corrupt=True).prompts == ["good"]
    (tmp_path / "good.npz").unlink()
    with pytest.raises(DataError, match="no clip is left"), pytest.warns(UserWarning):
        ClipStore(tmp_path, SHAPE, skip_corrupt=True)


def test_every_broken_clip_is_listed(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / f"short {number:02}.npz", ramp(2))
    with pytest.raises(DataError) as caught:
        ClipStore(tmp_path, SHAPE)
    assert all(f"short {number:02}.npz" in str(caught.value) for number in range(30))


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.gif", "a.mp4"])
def test_a_rate_that_is_not_used_is_told(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, ramp(), fps=20)
    with pytest.warns(UserWarning, match=r"teacher\.fps is 0; a\.\w+ has 20 frames a second"):
        ClipStore(tmp_path, SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ClipStore(tmp_path, SHAPE, fps=20)


@pytest.mark.parametrize("form", ["bytes", "path", "video"])
@pytest.mark.parametrize("place", ["disk", "parquet"])
def test_a_table(form: str, place: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    file = write(tmp_path / ("clips" if place == "parquet" else "t/clips") / "a.mp4", ramp())
    content = file.read_bytes()
    cell = {"bytes": content, "path": "clips/a.mp4", "video": {"bytes": content, "path": "/a.mp4"}}[form]
    table = datasets.Dataset.from_dict({"prompt": ["a hen"], "video": [cell]})
    target = tmp_path / ("t.parquet" if place == "parquet" else "t")
    table.to_parquet(str(target)) if place == "parquet" else table.save_to_disk(str(target))
    store = ClipStore(target, SHAPE)
    assert store.prompts == ["a hen"]
    assert levels(store.clips(["a hen"], [draw(0)])[0] * 255) == pytest.approx(levels(ramp())[:4], abs=4)


def test_a_table_without_the_columns(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["a"], "video": [b""]}).to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(DataError, match="no columns prompt and video"):
        index_clips(tmp_path / "t.parquet")


def test_places_without_clips(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone", Path(__file__)):
        with pytest.raises(DataError, match="holds no clips"):
            index_clips(path)


# --- in a recipe ---


def recipe(folder: Path, teacher: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(
        f"student: {{path: world/student}}\nobjective: {{name: sft}}\nteacher: {teacher}\n"
        f"data: {{prompts: {folder}/prompts.txt, frames: 12}}\n"
    )
    return file


def test_a_recipe_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    prompts = captions.prompts("basic/train")[:2]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    write(tmp_path / "clips" / f"{prompts[0]}.npz", ramp(12, 32, 32, step=5))
    store = recipe(tmp_path, f"{{name: store, path: {tmp_path}/clips}}")
    with pytest.raises(RecipeError, match="1 of 2 training prompts"):
        load_recipe(store)
    write(tmp_path / "clips" / f"{prompts[1]}.npz", ramp(12, 32, 32, step=5))
    assert load_recipe(store).teacher is not None
    for teacher, message in (
        (f"{{name: store, path: {tmp_path}/gone}}", "holds no clips"),
        ("{name: store}", "the teacher has no path"),
        ("{name: pipeline, path: somewhere}", "the teacher has no cache"),
        ("{name: pipeline, path: somewhere, cache: here, per_prompt: 0}", "per_prompt"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe(recipe(tmp_path, teacher))


@pytest.mark.parametrize("name", ["../x.npz", "/etc/x.npz"])
def test_a_row_of_a_table_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"prompt": ["a"], "video": [name]}).to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(DataError, match="row 0 - .*leads out of the folder"):
        index_clips(tmp_path / "t.parquet").entries[0].load()
