"""Exports for VBench-Long and PhyGenBench, and what a manifest says of their making."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from suite_helpers import ONE, TWO, content, recipe_and_student, write_full_info

from vidalign.bench.suites import ExportConfig, Item, export_videos, open_suite
from vidalign.bench.suites.base import check_names
from vidalign.errors import DataError, UserError
from vidalign.recipe import Recipe
from vidalign.students.video import VideoStudent


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, VideoStudent]:
    return recipe_and_student(tmp_path_factory.mktemp("recipe"))


@pytest.fixture
def full_info(tmp_path: Path) -> Path:
    return write_full_info(tmp_path)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ("{", "x.json:1"),
        ("[]", "it is no list of prompts"),
        ('[{"prompt": "a"}]', "entry 1 has no text under 'caption'"),
        ('[{"caption": "a", "main_category": "Sound"}]', "entry 1 has the main_category 'Sound'"),
        (
            '[{"caption": "a", "main_category": "Heat"}, {"caption": "a", "main_category": "Light"}]',
            "entry 2 repeats the caption of entry 1",
        ),
    ],
)
def test_mistakes_in_prompts_of_phygenbench(tmp_path: Path, entries: str, told: str) -> None:
    (tmp_path / "x.json").write_text(entries, encoding="utf-8")
    with pytest.raises(DataError) as error:
        open_suite("phygenbench").read(tmp_path / "x.json")
    assert told in str(error.value)


def test_phygenbench(tmp_path: Path, parts: tuple[Recipe, VideoStudent]) -> None:
    """Videos by the place of their prompt in the file, one each."""
    file, out, suite = tmp_path / "prompts.json", tmp_path / "out", open_suite("phygenbench")
    file.write_text(json.dumps([{"caption": c, "main_category": "Heat"} for c in (TWO, ONE)]), encoding="utf-8")
    assert suite.read(file) == [Item(TWO, TWO, ("Heat",), 1), Item(ONE, ONE, ("Heat",), 2)]
    with pytest.raises(UserError, match="phygenbench has one video a prompt - --seeds - it is 2"):
        export_videos(suite, file, out, *parts, ExportConfig(seeds=2))
    with pytest.raises(DataError, match="did you mean 'caption'?"):
        export_videos(suite, file, out, *parts, ExportConfig(rewritten="captions"))
    assert not out.exists()
    export_videos(suite, file, out, *parts)
    assert sorted(content(out / "videos")) == ["output_video_1.mp4", "output_video_2.mp4"]
    rows = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["videos"]
    assert [(row["file"], row["prompt"], row["tags"]) for row in rows] == [
        ("videos/output_video_1.mp4", TWO, ["Heat"]),
        ("videos/output_video_2.mp4", ONE, ["Heat"]),
    ]


def test_vbench_long_cuts_names_at_an_underscore() -> None:
    check_names(open_suite("vbench"), [Item("a_cat", "")], 5)
    with pytest.raises(DataError, match="'a_cat' - the scorer cuts file names at '_'"):
        check_names(open_suite("vbench_long"), [Item("a_cat", "")], 5)


def test_vbench_long_compares_clips_of_two_seconds(
    full_info: Path, tmp_path: Path, parts: tuple[Recipe, VideoStudent]
) -> None:
    def run(fps: float) -> Path:
        config = ExportConfig(seeds=1, fps=fps)
        return export_videos(open_suite("vbench_long"), full_info, tmp_path / "out", *parts, config)

    with pytest.raises(UserError, match="rounds the frame rate down - --fps - it is 2.5"):
        run(2.5)
    with pytest.raises(UserError, match="too short for VBench-Long - --frames - .* 6 frames at 3 a second are one"):
        run(3)
    assert not (tmp_path / "out").exists()
    assert len(content(run(2) / "videos")) == 6, "6 frames are more than 4; 25 videos for flickering become 5"


def test_the_manifest_names_machine_and_run(
    full_info: Path, tmp_path: Path, parts: tuple[Recipe, VideoStudent]
) -> None:
    out, config = tmp_path / "out", ExportConfig(seeds=1)

    def made_by() -> dict[str, str]:
        about: dict[str, str] = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["made_by"]
        return about

    export_videos(open_suite("vbench"), full_info, out, *parts, config, run=tmp_path / "runs" / "one")
    assert made_by()["run"] == "../runs/one" and "torch" in made_by()["machine"]
    export_videos(open_suite("vbench"), full_info, out, *parts, config)
    assert "run" not in made_by(), "it is not compared"
