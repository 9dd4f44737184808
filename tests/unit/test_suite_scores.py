"""Result files of the official scorers, in their own layouts, read back against an export."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from vidalign.bench.suites import Item, import_scores, open_suite
from vidalign.bench.suites.export import Video
from vidalign.bench.suites.folder import Folder
from vidalign.bench.suites.scores import suite_table
from vidalign.errors import DataError, UserError

VALUES = {  # in percent, of the size that models of 2024 have
    "subject_consistency": 91.41,
    "background_consistency": 97.47,
    "temporal_flickering": 98.30,
    "motion_smoothness": 96.38,
    "dynamic_degree": 49.72,
    "aesthetic_quality": 54.94,
    "imaging_quality": 61.90,
    "object_class": 91.82,
    "multiple_objects": 33.32,
    "human_action": 96.80,
    "color": 86.39,
    "spatial_relationship": 34.09,
    "scene": 52.69,
    "appearance_style": 23.56,
    "temporal_style": 25.93,
    "overall_consistency": 26.41,
}
CUP, SKY, STILL = "a red cup", "a blue sky", "a still lake"
ITEMS = [
    Item(CUP, CUP, ("color", "imaging_quality")),
    Item(SKY, SKY, ("imaging_quality", "overall_consistency")),
    Item(STILL, STILL, ("temporal_flickering",)),
]
EVERYTHING = [Item(CUP, CUP, tuple(VALUES)), Item(SKY, SKY, ("color",))]
PHYSICS = [
    ("Iron sinks.", "Force"),
    ("A ray passes through fog.", "Light"),
    ("Ice melts.", "Heat"),
    ("Red and blue paint mix.", "Physical Properties"),
    ("Iron rusts.", "Chemical Properties"),
]
Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """An export without its videos: what the reader needs is the manifest."""

    def make(name: str, items: list[Item], seeds: int = 2, complete: bool = True, **made_by: str) -> Path:
        suite = open_suite(name)
        rows = [Video(i, n, suite.file_name(i, n)).row() for i in items for n in range(suite.videos(i, seeds))]
        settings = {"suite": name, "seeds": seeds, "student": {"sha256": "5" * 64}}
        about = {"commit": "c0ffee", "machine": "one H200", "recipe_hash": "abc"}
        folder = Folder(tmp_path / name, settings, {**about, **made_by}, rows)
        folder.open()
        if complete:
            folder.close(None)
        return tmp_path / name

    return make


def write(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def rows(*scores: tuple[str, Any], folder: str = "/data/out/videos") -> list[dict[str, Any]]:
    """As VBench writes them, some dimensions with more keys."""
    return [{"video_path": f"{folder}/{name}.mp4", "video_results": score, "frame_count": 16} for name, score in scores]


def read(suite: str, export: Path, *files: Path) -> dict[str, Any]:
    places = import_scores(open_suite(suite), files, export, " 0.1.5 ")
    record: dict[str, Any] = json.loads(places[0].read_text(encoding="utf-8"))
    return record


def by_prompt(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {one["prompt"]: one["values"] for one in record["prompts"]}


# --- VBench ---


def test_vbench(made: Made, tmp_path: Path) -> None:
    export = made("vbench", ITEMS)
    one = write(
        tmp_path / "results_1_eval_results.json",
        {
            "color": [0.75, rows((f"{CUP}-1", 0.75))],  # the object was not found in video 0: VBench drops it
            "imaging_quality": [
                0.6,
                rows((f"{CUP}-0", 50.0), (f"{CUP}-1", 60.0), (f"{SKY}-0", 70.0), (f"{SKY}-1", 60.0)),
            ],
        },
    )
    two = write(
        tmp_path / "results_2_eval_results.json",
        {"temporal_flickering": [0.97, rows((f"{STILL}-0", 0.96), (f"{STILL}-7", 0.98), folder="filtered_videos")]},
    )
    record = read("vbench", export, one, two)
    assert (record["suite"], record["version"]) == ("vbench", "0.1.5")
    assert record["dimensions"] == {
        "temporal_flickering": {"value": 0.97, "videos": 2, "expected": 2},
        "imaging_quality": {"value": 0.6, "videos": 4, "expected": 4},
        "color": {"value": 0.75, "videos": 1, "expected": 2},
    }
    values = by_prompt(record)
    assert values[CUP] == {"imaging_quality": pytest.approx(0.55), "color": 0.75}
    assert values[SKY] == {"imaging_quality": pytest.approx(0.65)}
    assert values[STILL] == {"temporal_flickering": pytest.approx(0.97)}
    assert record["totals"] == {}, "13 dimensions are missing"
    assert record["export"].items() >= {"student_sha256": "5" * 64, "commit": "c0ffee", "machine": "one H200"}.items()
    assert record["export"]["manifest_sha256"] == sha256((export / "manifest.json").read_bytes()).hexdigest()
    assert record["files"] == [{"name": f.name, "sha256": sha256(f.read_bytes()).hexdigest()} for f in (one, two)]


def total_twin(percent: dict[str, float]) -> tuple[float, float, float]:
    """scripts/cal_final_score.py with its constants, written down again."""
    v = {name: value / 100 for name, value in percent.items()}
    quality = (
        (v["subject_consistency"] - 0.1462) / 0.8538
        + (v["background_consistency"] - 0.2615) / 0.7385
        + (v["temporal_flickering"] - 0.6293) / 0.3707
        + (v["motion_smoothness"] - 0.7060) / 0.2915
        + v["aesthetic_quality"]
        + v["imaging_quality"]
        + v["dynamic_degree"] * 0.5
    ) / 6.5
    plain = ("object_class", "multiple_objects", "human_action", "color", "spatial_relationship")
    semantic = (
        sum(v[name] for name in plain)
        + v["scene"] / 0.8222
        + (v["appearance_style"] - 0.0009) / 0.2846
        + (v["temporal_style"] + v["overall_consistency"]) / 0.364
    ) / 9
    return (4 * quality + semantic) / 5, quality, semantic


def test_vbench_total(made: Made, tmp_path: Path) -> None:
    export = made("vbench", EVERYTHING, seeds=1)
    result = {
        name: [value / 100, rows((f"{CUP}-0", value if name == "imaging_quality" else value / 100))]
        for name, value in VALUES.items()
    }
    record = read("vbench", export, write(tmp_path / "a_eval_results.json", result))
    totals = [record["totals"][name] for name in ("total", "quality", "semantic")]
    assert totals == pytest.approx(total_twin(VALUES), abs=1e-12)
    assert by_prompt(record)[CUP] == {name: pytest.approx(value / 100) for name, value in VALUES.items()}


def test_vbench_long(made: Made, tmp_path: Path) -> None:
    """[value, clips, videos] or [value, videos]; release 0.1.5 lists clips as videos, behind the path of the clip."""
    item = Item(CUP, CUP, ("color", "subject_consistency", "human_action"))
    export, file = made("vbench_long", [item, ITEMS[2]], seeds=6), tmp_path / "results_eval_results.json"
    folder = f"v/split_clip/{CUP}-{{}}/{CUP}-{{}}_00{{}}.mp4"
    places = [(n, c) for n in range(6) for c in (0, 1)]
    clips = [row for n, c in places for row in rows((f"{CUP}-{n}_00{c}", n / 10), folder=f"v/split_clip/{CUP}-{n}")]
    release = [row for n, c in places for row in rows((f"{CUP}-{n}", n / 10 + c), folder=folder.format(n, n, c))]
    fused = [
        row | {"inclip_score": 0.9, "clip2clip_score": 0.8} for row in rows(*((f"{CUP}-{n}", n) for n in range(6)))
    ]
    flicker = [*rows((f"{STILL}-29", 0.9)), {"long_video_cnt": 1}]
    result = {
        "human_action": [0.25, clips, release],
        "subject_consistency": [0.3, fused],
        "temporal_flickering": [0.9, clips, flicker],
    }
    record = read("vbench_long", export, write(file, result))
    assert record["dimensions"]["human_action"] == {"value": 0.25, "videos": 6, "expected": 6}
    assert record["dimensions"]["temporal_flickering"] == {"value": 0.9, "videos": 1, "expected": 6}
    assert by_prompt(record)[CUP] == {"human_action": pytest.approx(0.75), "subject_consistency": pytest.approx(2.5)}
    with pytest.raises(DataError, match=f"1 not scored: '{CUP}-5.mp4'; 1 scored twice: '{CUP}-0.mp4'"):
        read("vbench_long", export, write(file, {"human_action": [0.25, clips, [*release[:10], release[0]]]}))
    with pytest.raises(DataError, match="5 scored twice"):  # as VBench's own they would be
        read("vbench", made("vbench", [item], seeds=5), write(file, {"human_action": [0.25, release[:10]]}))


def test_vbench_of_a_text_file(made: Made, tmp_path: Path) -> None:
    """It does not say which prompts are for which dimension, so those that are scored must be complete."""
    export = made("vbench", [Item(CUP, CUP), Item(SKY, SKY)])
    file = tmp_path / "a_eval_results.json"
    record = read("vbench", export, write(file, {"scene": [0.5, rows((f"{CUP}-0", 0.4), (f"{CUP}-1", 0.6))]}))
    assert record["dimensions"]["scene"] == {"value": 0.5, "videos": 2, "expected": 2}
    with pytest.raises(DataError, match=f"1 not scored: '{SKY}-1.mp4'"):
        read("vbench", export, write(file, {"scene": [0.5, rows((f"{CUP}-0", 0), (f"{CUP}-1", 0), (f"{SKY}-0", 0))]}))


FULL = [(f"{CUP}-0", 50), (f"{CUP}-1", 60), (f"{SKY}-0", 70), (f"{SKY}-1", 60)]


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"imaging_quality": [0.6, rows(*FULL[:3])]}, f"imaging_quality - 1 not scored: '{SKY}-1.mp4'"),
        ({"imaging_quality": [0.6, rows(*FULL, FULL[0])]}, f"1 scored twice: '{CUP}-0.mp4'"),
        ({"imaging_quality": [0.6, rows(*FULL, ("a dog-0", 1))]}, "1 not of this export: 'a dog-0.mp4'"),
        ({"imaging_quality": [0.6, rows(*FULL, (f"{STILL}-0", 1))]}, "1 not judged by this dimension"),
        (
            {"imaging_quality": [0.6, rows(*[(f"a dog-{n}", 1) for n in range(5)])]},
            f"4 not scored: '{SKY}-0.mp4', '{SKY}-1.mp4', '{CUP}-0.mp4' and 1 more; 5 not of this export: 'a dog-0",
        ),
        ({"imaging_quality": [60.0, rows(*FULL)]}, "'60.0' is no score"),
        ({"imaging_quality": [0.6, rows(*FULL[:3], (f"{SKY}-1", None))]}, f"{SKY}-1.mp4 - expected a number"),
        ({"imaging_quality": [0.6, rows(*FULL[:3], (f"{SKY}-1", float("nan")))]}, "'nan' is no score"),
        ({"color": [0.6, []]}, "it scores no video"),
        ({"colour": [0.6, []]}, "did you mean 'color'?"),
        ({"color": 0.6}, "a dimension is not [value, videos]"),
        ({"color": [0.6, [{"path": "x"}]]}, "no path under 'video_path'"),
        ({}, "hold no dimension"),
        ([], "expected an object, found list"),
    ],
)
def test_strange_results_of_vbench(made: Made, tmp_path: Path, result: Any, told: str) -> None:
    export = made("vbench", sorted(ITEMS, key=lambda item: item.prompt))
    with pytest.raises(DataError) as error:
        read("vbench", export, write(tmp_path / "x_eval_results.json", result))
    assert told in str(error.value)
    assert not (export / "scores.json").exists()


# --- VideoPhy-2 ---


def videophy(tmp_path: Path, task: str, scores: Iterable[Any], captions: tuple[str, ...] = (CUP, SKY, STILL)) -> Path:
    suite, file = open_suite("videophy2"), tmp_path / f"output_{task}.csv"
    with file.open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["", "caption", "videopath", "score"])
        for number, (caption, score) in enumerate(zip(captions, scores, strict=True)):
            writer.writerow([number, caption, f"videos/{suite.file_name(Item(caption, caption), 0)}", score])
    return file


def test_videophy2(made: Made, tmp_path: Path) -> None:
    items = [Item(CUP, CUP, ("hard",)), Item(SKY, SKY, ("hard",)), Item(STILL, STILL)]
    export = made("videophy2", items, seeds=1)
    files = [videophy(tmp_path, "pc", (4.0, 5.0, 5.0)), videophy(tmp_path, "sa", (4.0, 3.0, 0.0))]
    record = read("videophy2", export, *files)
    assert record["totals"] == {"joint": pytest.approx(1 / 3)}, "both at least 4; what could not be parsed is not"
    assert record["dimensions"] == {
        "sa": {"value": 3.5, "videos": 2, "expected": 3},
        "pc": {"value": pytest.approx(14 / 3), "videos": 3, "expected": 3},
        "joint_hard": {"value": 0.5, "videos": 2, "expected": 2},
    }
    assert by_prompt(record)[STILL] == {"pc": 5.0, "joint": 0.0}


def test_strange_results_of_videophy2(made: Made, tmp_path: Path) -> None:
    export = made("videophy2", [Item(p, p) for p in (CUP, SKY, STILL)], seeds=1)
    good = videophy(tmp_path, "sa", (4.0, 3.0, 5.0))

    def refused(told: str, *files: Path) -> None:
        with pytest.raises(DataError) as error:
            read("videophy2", export, *files)
        assert told in str(error.value)

    refused("given: sa", good)
    refused("'6.0' is no score", good, videophy(tmp_path, "pc", (4.0, 6.0, 5.0)))
    refused("expected a number from 0 to 5", good, videophy(tmp_path, "pc", (4.0, "five", 5.0)))
    refused("1 not scored: 'a_still_lake_0.mp4'", good, videophy(tmp_path, "pc", (4.0, 5.0), (CUP, SKY)))
    pc = videophy(tmp_path, "pc", (4.0, 5.0, 5.0))
    refused("does not say whether", good, pc.rename(tmp_path / "output.csv"))
    text = videophy(tmp_path, "pc", (4.0, 5.0, 5.0)).read_text(encoding="utf-8")
    pc.write_text(text.replace(f",{SKY},", ",another sky,"), encoding="utf-8")
    refused(f"it was made for '{SKY}'", good, pc)
    pc.write_text("caption,videopath\n", encoding="utf-8")
    refused("holds no rows", good, pc)


# --- PhyGenBench ---


def phygen(stages: list[tuple[int, ...]], averages: list[int], model: str = "ours") -> list[dict[str, Any]]:
    names = ("single", "multi_gpt", "multi_llava", "video_gpt", "video_intern")
    return [
        {"caption": caption, "physical_laws": "...", "sub_category": "...", "main_category": category}
        | dict(zip(names, stages[n], strict=True))
        | {f"{model}_average": averages[n], f"{model}_closed": 1, f"{model}_open": 2}
        | {"video": f"/PhyGenBench/PhyVideos/{model}/output_video_{n + 1}.mp4"}
        for n, (caption, category) in enumerate(PHYSICS)
    ]


def test_phygenbench(made: Made, tmp_path: Path) -> None:
    prompts = [{"caption": caption, "main_category": category, "explicit": "x"} for caption, category in PHYSICS]
    suite, file = open_suite("phygenbench"), tmp_path / "prompts.json"
    items = suite.read(write(file, prompts))
    assert [suite.file_name(item, 0) for item in items] == [f"output_video_{n}.mp4" for n in range(1, 6)]
    assert [item.text for item in suite.read(file, "explicit")] == ["x"] * 5
    export = made("phygenbench", items, seeds=1)
    stages = [(3, 0, 3, 1, 0), (2, 0, 1, 1, 1), (2, 1, 3, 1, 3), (2, 2, 3, 1, 1), (1, 0, 1, 1, 0)]
    record = read("phygenbench", export, write(tmp_path / "ours.json", phygen(stages, [1, 3, 2, 2, 1])))
    assert record["totals"] == {"average": pytest.approx(9 / 15)}
    values = {name: one["value"] for name, one in record["dimensions"].items()}
    assert values == {
        "single": 2.0,
        "multi_gpt": pytest.approx(0.6),
        "multi_llava": pytest.approx(2.2),
        "video_gpt": 1.0,
        "video_intern": 1.0,
        "mechanics": pytest.approx(1 / 3),
        "optics": 1.0,
        "thermal": pytest.approx(2 / 3),
        "material": pytest.approx(0.5),
    }
    assert by_prompt(record)["Ice melts."]["average"] == pytest.approx(2 / 3)


def test_strange_results_of_phygenbench(made: Made, tmp_path: Path) -> None:
    export = made("phygenbench", [Item(c, c, (a,), n) for n, (c, a) in enumerate(PHYSICS, 1)], seeds=1)
    good = phygen([(1,) * 5] * 5, [1] * 5)

    def refused(told: str, entries: Any) -> None:
        with pytest.raises(DataError) as error:
            read("phygenbench", export, write(tmp_path / "ours.json", entries))
        assert told in str(error.value)

    refused("1 not scored: 'output_video_5.mp4'", good[:4])
    refused("1 scored twice: 'output_video_5.mp4'", [*good, good[4]])
    refused("output_video_1.mp4 has another prompt", [good[0] | {"caption": "x"}, *good[1:]])
    refused("entry 2, single - expected a number from 0 to 3", [good[0], good[1] | {"single": 4}, *good[2:]])
    refused("entry 1, video_gpt", [{k: v for k, v in good[0].items() if k != "video_gpt"}, *good[1:]])
    refused("0 keys MODEL_average", [{k: v for k, v in good[0].items() if k != "ours_average"}, *good[1:]])
    refused("no path under 'video'", [{"caption": "x"}])
    with pytest.raises(DataError, match="2 result files"):
        read("phygenbench", export, tmp_path / "ours.json", tmp_path / "ours.json")


# --- exports and reports ---


def test_exports_that_cannot_be_used(made: Made, tmp_path: Path) -> None:
    file = write(tmp_path / "x_eval_results.json", {})
    with pytest.raises(UserError, match="not an export"):
        read("vbench", tmp_path / "gone", file)
    with pytest.raises(UserError, match="it is of 'vbench'"):
        read("vbench_long", made("vbench", ITEMS), file)
    with pytest.raises(UserError, match="is not complete"):
        read("vbench", made("vbench", ITEMS, complete=False), file)
    manifest = tmp_path / "vbench" / "manifest.json"
    write(manifest, json.loads(manifest.read_text(encoding="utf-8")) | {"videos": [{"file": 3}]})
    with pytest.raises(UserError, match="'file' must be str"):
        read("vbench", manifest.parent, file)
    with pytest.raises(DataError, match="two files"):
        read("vbench", made("vbench", ITEMS), *[write(tmp_path / name, COLOR) for name in ("a.json", "b.json")])
    with pytest.raises(DataError, match="version is empty"):
        import_scores(open_suite("vbench"), [file], tmp_path / "vbench", " ")


COLOR = {"color": [0.5, rows((f"{CUP}-0", 0.5))]}


def test_scores_land_in_the_run_and_its_table(made: Made, tmp_path: Path) -> None:
    run, file = tmp_path / "runs" / "a run", write(tmp_path / "x_eval_results.json", COLOR)
    run.mkdir(parents=True)
    export = made("vbench", ITEMS, run="../runs/a run")
    assert import_scores(open_suite("vbench"), [file], export, "0.1.5") == [export / "scores.json"], "no run is there"
    assert suite_table(run, "5" * 64) is None
    (run / "recipe.yaml").touch()
    beside, landed = import_scores(open_suite("vbench"), [file], export, "0.1.5")
    assert landed.samefile(run / "scores" / "vbench.json") and landed.read_bytes() == beside.read_bytes()
    assert import_scores(open_suite("vbench"), [file], export, "0.1.5", tmp_path / "s.json") == [tmp_path / "s.json"]
    record = json.loads(landed.read_text(encoding="utf-8"))
    assert "run" not in record["export"], "no local path"
    table = suite_table(run, "5" * 64)
    assert table is not None and table.columns == ["version", "dimension", "value", "videos", "date", "student"]
    assert table.rows == [("vbench", ["0.1.5", "color", 0.5, "1 of 2", record["date"], "this one"])]
    other = suite_table(run, "6" * 64)
    assert other is not None and other.rows[0][1][-1] == "another one"
    write(run / "scores" / "videophy2.json", {"suite": "videophy2"})
    with pytest.warns(UserWarning, match="videophy2.json: the entry 'version' is missing"):
        assert suite_table(run, "5" * 64) == table
    write(run / "scores" / "videophy2.json", record | {"totals": {"joint": None}})
    with pytest.warns(UserWarning, match="videophy2.json: 'joint' must be int or float, not 'None'"):
        assert suite_table(run, "5" * 64) == table


def test_scores_that_cannot_be_written(made: Made, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = write(tmp_path / "x_eval_results.json", COLOR)
    with pytest.raises(UserError, match="cannot write the scores"):
        import_scores(open_suite("vbench"), [file], made("vbench", ITEMS), "0.1.5", tmp_path / "file" / "s.json")
