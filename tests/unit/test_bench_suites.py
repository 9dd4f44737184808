"""Prompt files of VBench and VideoPhy-2 in their own formats, and videos where their scorers look for them."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from suite_helpers import FULL_INFO, ONE, TWO, content, recipe_and_student, write_full_info

from vidalign.bench.suites import ExportConfig, Item, export_videos, open_suite
from vidalign.bench.suites import base as suites_base
from vidalign.bench.suites import export as export_module
from vidalign.bench.suites.folder import Folder, first_difference
from vidalign.errors import DataError, UserError
from vidalign.recipe import Recipe
from vidalign.students.video import VideoStudent
from vidalign.tracking.clips import mp4_bytes


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, VideoStudent]:
    return recipe_and_student(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def full_info(tmp_path: Path) -> Path:
    return write_full_info(tmp_path)


def found_by_vbench(folder: Path, prompts: list[str]) -> dict[str, list[int]]:
    """What the lookup of VBench 0.1.5 finds: the suffix of the first listed file, then the prompt and 0 to 4."""
    names = os.listdir(folder)
    suffix = Path(names[0]).suffix
    return {p: [i for i in range(5) if f"{p}-{i}{suffix}" in names] for p in prompts}


def decode(file: Path) -> tuple[np.ndarray, float]:
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
        return frames, float(stream.average_rate or 0)


def assert_same_videos(names: Iterable[str], *folders: Path) -> None:
    """Up to the last bits of a float, which depend on the batch and even on where memory lies, and to what an encoder
    makes of one pixel that is rounded up instead of down."""
    for name in names:
        first, second = (decode(folder / "videos" / name)[0].astype(int) for folder in folders)
        assert np.abs(first - second).mean() < 4, "8-bit levels; other noise differs by tens"


# --- prompt files ---


def test_vbench_full_info(full_info: Path) -> None:
    suite = open_suite("vbench")
    items = suite.read(full_info)
    assert items == [
        Item(ONE, ONE, ("color", "overall_consistency", "aesthetic_quality")),
        Item(TWO, TWO, ("temporal_flickering",)),
    ]
    assert [suite.videos(item, 5) for item in items] == [5, 25]
    assert suite.file_name(items[0], 4) == f"{ONE}-4.mp4"


def test_vbench_text_files(tmp_path: Path) -> None:
    suite = open_suite("vbench")
    everything, flicker = tmp_path / "all_dimension.txt", tmp_path / "temporal_flickering.txt"
    everything.write_bytes("a cat \r\n\r\na fa\u00e7ade\u2028in rain\r\na cat\r\n".encode())
    flicker.write_text("a still cat\n", encoding="utf-8")
    assert [item.prompt for item in suite.read(everything)] == ["a cat", "a fa\u00e7ade\u2028in rain"]
    assert suite.videos(suite.read(flicker)[0], 5) == 25
    longer = tmp_path / "all_dimension_longer.txt"
    longer.write_text("A tabby cat sits.\nAn old facade.\nAnother cat.\n", encoding="utf-8")
    items = suite.read(everything, str(longer))
    assert [item.text for item in items] == ["A tabby cat sits.", "An old facade."]
    assert suite.file_name(items[0], 0) == "a cat-0.mp4", "rewritten prompts keep the names of the original ones"
    longer.write_text("A tabby cat sits.\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 rewritten prompts for 3 prompts"):
        suite.read(everything, str(longer))


def test_videophy2_files(tmp_path: Path) -> None:
    suite = open_suite("videophy2")
    table, lines = tmp_path / "videophy2_test.csv", tmp_path / "videophy2_test.jsonl"
    rows = [
        ('A "big" wheel, turning.', "u1", "1", "A huge wheel."),
        ("Hands fold a map", "u2", "0", "Two hands."),
        ('A "big" wheel, turning.', "u3", "1", "A huge wheel."),
    ]
    with table.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("caption", "video_url", "is_hard", "upsampled_caption"), *rows])
    records = [{"caption": c, "is_hard": int(h), "upsampled_caption": u} for c, _, h, u in rows]
    lines.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    expected = [Item(rows[0][0], rows[0][0], ("hard",)), Item("Hands fold a map", "Hands fold a map")]
    assert suite.read(table) == suite.read(lines) == expected
    assert [item.text for item in suite.read(table, "upsampled_caption")] == ["A huge wheel.", "Two hands."]
    assert suite.file_name(expected[1], 2) == "Hands_fold_a_map_2.mp4"
    odd = [suite.file_name(Item(p, p), 0) for p in ("a/b " * 60, "a/b " * 61, "\u98ce" * 90)]
    assert len(set(odd)) == 3 and all(re.fullmatch(r"[\w,;'()-]{,120}_0\.mp4", name, re.ASCII) for name in odd)


@pytest.mark.parametrize(
    ("suite", "name", "text", "told"),
    [
        ("vbench", "x.json", "{", "x.json:1"),
        ("vbench", "x.json", "{}", "it is no list"),
        ("vbench", "x.json", '[{"prompt_en": "a", "dimension": ["colour"]}]', "entry 0 has no list of VBench's dim"),
        ("vbench", "x.json", '[{"prompt": "a"}]', "entry 0 has no text under 'prompt_en'"),
        ("vbench", "x.txt", "\n\n", "holds no prompt"),
        ("vbench", "gone.txt", None, "No such file"),
        ("videophy2", "x.csv", "captions,videopath\na,b\n", "did you mean 'captions'?"),
        ("videophy2", "x.csv", 'caption,x\na,1\n"",2\n', "x.csv:3"),
        ("videophy2", "x.jsonl", '{"caption": "a"}\n{\n', "x.jsonl:2"),
        ("videophy2", "x.jsonl", "[1]\n", "x.jsonl:1"),
        ("videophy2", "x.parquet", "", "unknown format '.parquet'"),
    ],
)
def test_mistakes_in_prompt_files(tmp_path: Path, suite: str, name: str, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        open_suite(suite).read(tmp_path / name)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [("a cat/dog", "cannot hold '/'"), ("a" * 250, "256 bytes"), ("\u732b" * 84, "258 bytes")],
)
def test_prompts_that_cannot_be_file_names(prompt: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        suites_base.check_names(open_suite("vbench"), [Item("a cat", "a cat"), Item(prompt, prompt)], 5)
    suites_base.check_names(open_suite("vbench"), [Item("a" * 249, "")], 5)  # 255 bytes


def test_unknown_suite() -> None:
    with pytest.raises(UserError, match="did you mean 'vbench'?"):
        open_suite("vbnch")


# --- videos ---


def test_vbench_finds_its_videos(full_info: Path, tmp_path: Path, parts: tuple[Recipe, VideoStudent]) -> None:
    out, told = tmp_path / "out", []
    config = ExportConfig(seeds=2, fps=16, batch=3)
    export_videos(open_suite("vbench"), full_info, out, *parts, config, lambda done, total: told.append((done, total)))
    assert found_by_vbench(out / "videos", [ONE, TWO]) == {ONE: [0, 1], TWO: [0, 1, 2, 3, 4]}
    assert told == [(0, 12), (3, 12), (6, 12), (9, 12), (12, 12)]
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "videos"] and manifest["complete"]
    settings = manifest["settings"]
    assert settings["prompt_file"]["sha256"] == hashlib.sha256(full_info.read_bytes()).hexdigest()
    assert (settings["seeds"], settings["fps"], settings["latent_frames"]) == (2, 16.0, 6)
    frames, rate = decode(out / "videos" / f"{ONE}-0.mp4")
    size = {"frames": 6, "height": 32, "width": 32}
    assert manifest["video"] == size and frames.shape == (6, 32, 32, 3) and rate == 16
    assert len({row["seed"] for row in manifest["videos"]}) == 12, "every video has a seed of its own"
    assert {row["file"] for row in manifest["videos"]} == {f"videos/{name}" for name in content(out / "videos")}


def test_videos_are_those_of_the_student(full_info: Path, tmp_path: Path, parts: tuple[Recipe, VideoStudent]) -> None:
    """Sampled again by hand from the seed in the manifest; batch and prompt file do not matter."""
    recipe, student = parts
    export_videos(open_suite("vbench"), full_info, tmp_path / "a", recipe, student, ExportConfig(seeds=1, batch=8))
    lines = tmp_path / "all_dimension.txt"
    lines.write_text(f"{TWO}\n{ONE}\n", encoding="utf-8")
    export_videos(open_suite("vbench"), lines, tmp_path / "b", recipe, student, ExportConfig(seeds=1, batch=1))
    names = content(tmp_path / "b" / "videos").keys()
    assert names == {f"{prompt}-0.mp4" for prompt in (ONE, TWO)}
    assert_same_videos(names, tmp_path / "a", tmp_path / "b")
    rows = json.loads((tmp_path / "b" / "manifest.json").read_text(encoding="utf-8"))["videos"]
    noise = torch.Generator().manual_seed(rows[0]["seed"])
    clip = export_module.sampler_of(recipe, student)([TWO], [noise])[0]
    expected = (clip.permute(0, 2, 3, 1) * 255).round().numpy()
    found, _ = decode(tmp_path / "b" / rows[0]["file"])
    luma = np.array([0.299, 0.587, 0.114])
    assert np.abs(found @ luma - expected @ luma).mean() < 2, "8-bit levels of brightness, after compression"


def test_the_student_reads_the_rewritten_prompts(
    full_info: Path, tmp_path: Path, parts: tuple[Recipe, VideoStudent], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, int]] = []

    def generate(texts: list[str], noise: list[torch.Generator]) -> torch.Tensor:
        read.extend((text, generator.initial_seed()) for text, generator in zip(texts, noise, strict=True))
        return torch.zeros(len(texts), 3, 3, 15, 16)

    monkeypatch.setattr(export_module, "sampler_of", lambda recipe, student: generate)
    longer = tmp_path / "longer.txt"
    longer.write_text("first, longer\nsecond, longer\nfirst again, longer\n", encoding="utf-8")
    config = ExportConfig(seeds=1, rewritten=str(longer), batch=4)
    out = export_videos(open_suite("vbench"), full_info, tmp_path / "out", *parts, config)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    rows = manifest["videos"]
    assert [(row["text"], row["seed"]) for row in rows] == read
    assert [text for text, _ in read] == ["first, longer"] + ["second, longer"] * 5
    assert rows[1]["file"] == f"videos/{TWO}-0.mp4" and rows[1]["tags"] == ["temporal_flickering"]
    told = {"name": "longer.txt", "sha256": hashlib.sha256(longer.read_bytes()).hexdigest()}
    assert manifest["settings"]["rewritten"] == told
    assert manifest["video"] == {"frames": 3, "height": 16, "width": 16}, "4:2:0 needs even sides"
    assert decode(out / rows[0]["file"])[0].shape == (3, 16, 16, 3)


def test_an_interrupted_export_goes_on(
    full_info: Path, tmp_path: Path, parts: tuple[Recipe, VideoStudent], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, report: Callable[[int, int], None] = lambda done, total: None) -> Path:
        config = ExportConfig(seeds=1, batch=1)
        return export_videos(open_suite("vbench"), full_info, tmp_path / name, *parts, config, report)

    whole = content(run("whole") / "videos").keys()

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop)
    videos = tmp_path / "stopped" / "videos"
    assert len(content(videos)) == 2
    assert not json.loads((tmp_path / "stopped" / "manifest.json").read_text(encoding="utf-8"))["complete"]
    times = {file.name: file.stat().st_mtime_ns for file in videos.iterdir()}
    calls: list[int] = []
    real = export_module.mp4_bytes
    monkeypatch.setattr(export_module, "mp4_bytes", lambda *a, **k: calls.append(1) or real(*a, **k))
    run("stopped")
    assert content(videos).keys() == whole and len(calls) == len(whole) - 2
    assert_same_videos(whole, tmp_path / "whole", tmp_path / "stopped")
    assert {name: (videos / name).stat().st_mtime_ns for name in times} == times, "what was there is kept"
    assert run("stopped") and len(calls) == len(whole) - 2, "a finished export makes nothing"


def test_a_folder_of_other_videos_is_refused(
    full_info: Path, tmp_path: Path, parts: tuple[Recipe, VideoStudent]
) -> None:
    recipe, student = parts

    def refused(told: str, model: VideoStudent = student, **changes: Any) -> None:
        before, config = content(tmp_path / "out" / "videos"), ExportConfig(**{"seeds": 1, **changes})
        with pytest.raises(UserError, match=re.escape(told)):
            export_videos(open_suite("vbench"), full_info, tmp_path / "out", recipe, model, config)
        assert content(tmp_path / "out" / "videos") == before

    export_videos(open_suite("vbench"), full_info, tmp_path / "out", recipe, student, ExportConfig(seeds=1))
    refused("fps was 8.0 and is now 16.0", fps=16)
    refused("latent_frames was 6 and is now 3", frames=3)
    other = VideoStudent.from_spec(student.spec, seed=1)
    refused("student.sha256 was", model=other)
    (tmp_path / "out" / "videos" / ".DS_Store").write_bytes(b"")
    refused("may mislead the scorer")
    (tmp_path / "out" / "videos" / ".DS_Store").unlink()
    full_info.write_text(json.dumps(FULL_INFO[:2]), encoding="utf-8")
    refused("prompt_file.sha256 was")
    (tmp_path / "out" / "manifest.json").unlink()
    refused("no manifest.json that says what made it")


def test_videophy2_list(tmp_path: Path, parts: tuple[Recipe, VideoStudent]) -> None:
    prompts = tmp_path / "captions.csv"
    prompts.write_text(f'caption\n"{ONE}, slowly"\n{TWO}\n', encoding="utf-8")
    with pytest.warns(UserWarning, match="slowly"):
        out = export_videos(open_suite("videophy2"), prompts, tmp_path / "out", *parts)
    with (out / "sa_pc.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [["caption", "videopath"]] * 2
    assert [row["caption"] for row in rows] == [f"{ONE}, slowly", TWO], "one video a caption, unless asked for more"
    assert all(decode(out / row["videopath"])[0].shape == (6, 32, 32, 3) for row in rows)


def test_nothing_is_made_without_an_encoder(
    full_info: Path, tmp_path: Path, parts: tuple[Recipe, VideoStudent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "mp4_encoder", lambda: "")
    with pytest.raises(UserError, match="no MP4 encoder"):
        export_videos(open_suite("vbench"), full_info, tmp_path / "out", *parts)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told(
    full_info: Path, tmp_path: Path, parts: tuple[Recipe, VideoStudent], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = iter(range(4))  # the manifest, again with the size of the videos, and two videos

    def full(descriptor: int) -> None:
        if next(room, None) is None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=f"{ONE}-2.mp4 - No space left on device"):
        export_videos(open_suite("vbench"), full_info, tmp_path / "out", *parts)
    videos = tmp_path / "out" / "videos"
    assert content(videos).keys() == {f"{ONE}-0.mp4", f"{ONE}-1.mp4"}, "no half-written video"
    assert all(decode(file)[0].shape == (6, 32, 32, 3) for file in videos.iterdir())


@pytest.mark.parametrize("setting", ["seeds", "frames", "fps", "batch"])
def test_settings_are_positive(setting: str) -> None:
    with pytest.raises(UserError, match=f"{setting} must be positive - --{setting}"):
        ExportConfig(**{setting: 0})


def test_names_that_differ_by_case_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """VBench has 'A fantasy landscape' and 'a fantasy landscape'."""
    rows: list[dict[str, Any]] = [{"file": f"videos/{x} fantasy landscape-0.mp4"} for x in "Aa"]
    Folder(tmp_path, {}, {}, rows).open()
    (tmp_path / "MANIFEST.JSON").touch()  # as a file system that ignores case answers
    with pytest.raises(UserError, match="'A fantasy landscape-0.mp4' for 'a fantasy landscape-0.mp4'"):
        Folder(tmp_path, {}, {}, rows).open()


def test_first_difference() -> None:
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 2}}) == ""
    assert first_difference({"a": {"b": 1}, "z": 0}, {"a": {"b": 1, "c": 2}, "z": 1}) == "a.c was None and is now 2"


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_compression_cannot_be_seen(encoder: str, tmp_path: Path) -> None:
    """Moving colours on a still texture: at least 39 dB in brightness, which the encoders' own settings miss."""
    y, x = np.mgrid[0:96, 0:96] / 96
    waves = [np.stack([np.sin(6 * x + t), np.cos(5 * y - t), np.sin(4 * (x + y))], -1) for t in np.arange(8) / 3]
    texture = np.random.default_rng(0).integers(0, 60, (96, 96, 1))
    frames = ((np.stack(waves) + 1) * 95 + texture).astype(np.uint8)
    luma = np.array([0.299, 0.587, 0.114])

    def decibels(options: dict[str, str]) -> float:
        file = tmp_path / "x.mp4"
        file.write_bytes(mp4_bytes(frames, encoder, 8, options))
        return float(10 * np.log10(255**2 / ((decode(file)[0] @ luma - frames @ luma) ** 2).mean()))

    try:
        plain = decibels({})
    except av.FFmpegError:
        pytest.skip(f"PyAV has no {encoder} here")
    assert plain < 39 < decibels(export_module._quality(encoder))
