"""The CPU twins of the recipes at real size; those of video students train, and one of each family goes through every
command. For those of language students see `test_language_twins.py`."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch
from diffusers import WanTransformer3DModel
from run_helpers import address, started, vidalign
from safetensors.torch import load_file
from tiny_twins import make_twins

from vidalign import registry
from vidalign.recipe import load_recipe, recipes_root, shipped_recipes
from vidalign.tracking import read_history

VIDEO = ("wan_1_3b/", "longlive2_5b/")
FAMILIES = (*VIDEO, "qwen3/", "qwen3_vl/", "qwen25/", "smolvlm/")
TWINS = [name for name in shipped_recipes() if name.startswith("twins/")]
VIDEO_TWINS = [name for name in TWINS if name.removeprefix("twins/").startswith(VIDEO)]
PROTOCOL = """\
# A protocol for a test.
prompts: {source: tiny/held_out.txt, count: 2}
student: {path: tiny/STUDENT}
budget: {currency: forwards, amount: 400}
metrics: {clip_score: {model: tiny/clip}}
evaluation: {frames: FRAMES, seeds: [0], long_factor: 0, curve_points: 1, curve_prompts: 2, shown: 1}
seeds: [0]
objectives: {astrolabe: {recipe: twins/FAMILY/astrolabe}}
"""


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, filled for the twins."""
    made = tmp_path_factory.mktemp("twins")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
        patch.chdir(made)
        patch.setenv("VIDALIGN_CACHE", str(made / "cache"))
        make_twins(made)
        yield made


def test_every_recipe_at_real_size_has_a_twin() -> None:
    real = {name for name in shipped_recipes() if name.startswith(FAMILIES)}
    assert {f"twins/{name}" for name in real} == set(TWINS)
    for name in real:
        assert f"CPU twin: twins/{name}" in shipped_recipes()[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_is_the_same_recipe(name: str) -> None:
    """It changes where things lie, how large they are and in which type they are computed, and nothing else."""
    text = (recipes_root() / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"base: {name.removeprefix('twins/')}\n" in text
    twin, sizes = (
        load_recipe(name).plain(),
        re.compile(
            r"path|backbone|min_pixels|max_pixels|rank|alpha|frames|group_size|anchors|steps|max_steps|prompts\w*|micro_batch|learning_rate|save_every|eval_every|"
            r"count|rollouts|max_new_tokens|model|buffer|block|checkpointing|precision|frozen_precision|dtype|tensorboard|clips_every|start"
        ),
    )
    real = load_recipe(name.removeprefix("twins/"), written(twin)).plain()
    changed = [key for key in different(twin, real) if not sizes.fullmatch(key.rpartition(".")[2])]
    assert changed in ([], ["engine.name"]), "a language student's twin needs no DeepSpeed"


def written(twin: dict) -> list[str]:
    """What makes the real recipe valid in this folder: where its files lie."""
    files = [
        f"student.path={twin['student']['path']}",
        *(f"data.{k}={twin['data'][k]}" for k in ("prompts", "eval_prompts")),
    ]
    return files + ([f"teacher.path={twin['teacher']['path']}"] if twin["teacher"] else [])


def different(one: object, other: object, path: str = "") -> Iterator[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            yield from different(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
    elif one != other:
        yield path


@pytest.mark.parametrize(
    "name", [name for name in VIDEO_TWINS if name.rpartition("/")[2] not in ("astrolabe", "ar_copo_semi")]
)
def test_a_twin_trains(name: str) -> None:
    assert vidalign("train", name, "--run", f"runs/{name}", "trainer.steps=1", "tracking.panel=none") == 0
    before, after = (load_file(file) for file in (start(name), f"runs/{name}/student.safetensors"))
    assert any(not torch.equal(before[key], after[key]) for key in before)


def start(name: str) -> str:
    (file,) = Path(load_recipe(name).student.path, "transformer").glob("*.safetensors")
    return str(file)


@pytest.mark.parametrize(
    ("family", "student", "frames"), [("wan_1_3b", "self_forcing", 6), ("longlive2_5b", "longlive2", 16)]
)
def test_a_whole_life(family: str, student: str, frames: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Prepare, train, sample, evaluate, report, bench, export."""
    recipe, run = f"twins/{family}/astrolabe", f"runs/{family}"
    assert vidalign("prepare", recipe) == 0
    assert vidalign("train", recipe, "--run", run, "tracking.panel=none") == 0
    assert vidalign("sample", "--run", run, "--prompt", "red ball falls", "--out", f"{family}.mp4") == 0
    with av.open(f"{family}.mp4") as file:
        assert sum(1 for _ in file.decode(video=0)) == 4 * frames - 3
    assert vidalign("evaluate", "--run", run) == 0
    assert "clip_score" in Path(run, "report.html").read_text(encoding="utf-8")
    Path(f"{family}.yaml").write_text(
        PROTOCOL.replace("STUDENT", student).replace("FRAMES", str(frames)).replace("FAMILY", family), encoding="utf-8"
    )
    assert vidalign("bench", "run", f"{family}.yaml", "--out", f"bench/{family}.json") == 0
    assert vidalign("bench", "report", f"bench/{family}.json", "--out", f"bench/{family}.html") == 0
    assert "clip_score" in Path(f"bench/{family}.html").read_text(encoding="utf-8")
    assert vidalign("export", run, "--to", "diffusers", "--out", f"out/{family}") == 0
    merged = WanTransformer3DModel.from_pretrained(f"out/{family}/transformer").state_dict()
    saved = load_file(f"{run}/student.safetensors")
    assert all(torch.equal(merged[key], saved[key]) for key in saved)
    assert vidalign("export", run, "--to", "lora", "--out", f"out/{family}-lora") == 0
    assert json.loads(Path(f"out/{family}-lora/adapter_config.json").read_text())["r"] == 4


def test_rewards_see_what_a_tiny_decoder_makes() -> None:
    """And evaluations what the codec makes: before training the two runs are equal, their rewards are not."""
    for name, more in (("own", ()), ("tiny", ("student.decoder=tiny/tae.pth",))):
        words = ("twins/wan_1_3b/astrolabe", "--run", f"runs/{name}_decoder", "trainer.steps=1", "tracking.panel=none")
        assert vidalign("train", *words, *more) == 0
    own, tiny = (Path(f"runs/{name}_decoder") for name in ("own", "tiny"))
    before = [json.loads((run / "evaluation.json").read_text())["values"]["before"] for run in (own, tiny)]
    assert before[0] == before[1]
    rewards = [read_history(run / "metrics.jsonl")["reward/hps_v3/mean"] for run in (own, tiny)]
    assert rewards[0] != rewards[1]


def test_a_twin_learns_the_same_from_a_served_reward() -> None:
    """HPSv3 in a process of its own, started and stopped here: every weight and every score, bit for bit."""
    hps = load_recipe("twins/wan_1_3b/astrolabe").plain()["rewards"]["hps_v3"]
    settings = {key: hps[key] for key in ("path", "backbone", "frames", "min_pixels", "max_pixels", "dtype")}
    process = started("--reward", "hps_v3", *(f"{key}={value}" for key, value in settings.items()), "--port", "0")
    try:
        pinned = {"frames": 3, "dtype": "float32"}
        remote = {"name": "remote", "urls": [address(process)], "reward": "hps_v3", "dtype": "float32"}
        words = ("twins/wan_1_3b/astrolabe", "trainer.steps=2", "trainer.rollout_batch=2", "tracking.panel=none")
        assert vidalign("train", *words, "--run", "runs/alone") == 0
        served = json.dumps({**remote, "settings": pinned, "weight": 1.0})
        assert vidalign("train", *words, f"rewards.hps_v3={served}", "--run", "runs/served") == 0
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in errors, errors
    alone, other = (load_file(f"runs/{name}/student.safetensors") for name in ("alone", "served"))
    assert all(torch.equal(alone[key], other[key]) for key in alone)
    scores = [read_history(Path(f"runs/{name}/metrics.jsonl"))["reward/hps_v3/mean"] for name in ("alone", "served")]
    assert scores[0] == scores[1] and len(scores[0]) == 2


def test_the_adapters_of_ar_copo_are_collected_and_merged() -> None:
    semi, own = "twins/wan_1_3b/ar_copo_semi", "twins/wan_1_3b/ar_copo"
    assert vidalign("collect", semi, "--out", "buffers/twin", "--groups", "4") == 0
    assert vidalign("train", semi, "--run", "runs/semi", "tracking.panel=none") == 0
    assert vidalign("train", own, "--run", "runs/own", "tracking.panel=none") == 0
    words = ("--semi", "runs/semi", "--on-policy", "runs/own", "--scale", "0.8", "--out", "runs/merged")
    assert vidalign("merge", *words) == 0
    first, found = load_file(start(own)), load_file("runs/merged/student.safetensors")
    parts = [load_file(f"runs/{name}/student.safetensors") for name in ("semi", "own")]
    for key, value in found.items():
        expected = first[key] + (parts[0][key] - first[key]) + 0.8 * (parts[1][key] - first[key])
        assert torch.allclose(value, expected, atol=1e-5), key
