"""`vidalign prepare`, and `train` where it was not run: prompts are encoded once, before there is a student."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import RECIPE, SFT, train, vidalign
from test_launch import ENVIRONMENT

from vidalign import build
from vidalign.callbacks import Callback
from vidalign.recipe import load_recipe
from vidalign.students.video import VideoStudent
from vidalign.text.encoder import TextEncoder
from vidalign.trainer import Trainer
from vidalign.workflows.prepare import prepare
from vidalign.worlds.video.text import WorldText


@pytest.fixture
def folder(recipe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a recipe, and a cache of its own."""
    monkeypatch.setenv("VIDALIGN_CACHE", str(recipe_folder / "cache"))
    return recipe_folder


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each time that the encoder is built: the students alive then."""
    plain, calls = WorldText.build, []

    def counted(self: WorldText) -> TextEncoder:
        calls.append(len(alive(VideoStudent)))
        return plain(self)

    monkeypatch.setattr(WorldText, "build", counted)
    return calls


def alive(kind: type) -> list[object]:
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]


def files(folder: Path) -> int:
    return len(list(folder.rglob("*.safetensors")))


def test_a_second_prepare_encodes_nothing(folder: Path, built: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign("prepare", "recipe.yaml") == 0
    place = folder / "cache" / "text"
    assert capsys.readouterr().out == f"10 prompts, 10 of them encoded now, in {place}\n" and len(built) == 1
    assert vidalign("prepare", "recipe.yaml") == 0
    assert capsys.readouterr().out == f"10 prompts, 0 of them encoded now, in {place}\n" and len(built) == 1
    assert vidalign("prepare", "recipe.yaml", "trainer.steps=6") == 0
    assert "14 prompts, 4 of them encoded now" in capsys.readouterr().out, "what is new alone"
    assert files(place) == 14


def test_training_after_prepare_builds_no_encoder(folder: Path, built: list[int]) -> None:
    assert vidalign("prepare", "recipe.yaml") == 0
    assert train(*SFT) == 0, "evaluation included"
    assert len(built) == 1


class Watch(Callback):
    """Counts the encoders in memory during training, at every hook."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_experience(self, trainer: Trainer, experience: object) -> None:
        self.seen.append(len(alive(TextEncoder)))

    def on_step_end(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.seen.append(len(alive(TextEncoder)))


def test_training_encodes_first_and_holds_no_encoder(folder: Path, built: list[int]) -> None:
    before, students = len(alive(TextEncoder)), len(alive(VideoStudent))
    watch = Watch()
    trainer = Trainer(load_recipe("recipe.yaml", ["trainer.steps=2"]), "run", callbacks=[watch])
    assert built == [students], "one encoder, and gone before the student arrives"
    trainer.fit()
    assert watch.seen == [before] * 4 and len(built) == 1


def test_prompts_that_appear_later_are_encoded_on_demand(folder: Path, built: list[int]) -> None:
    assert train(*SFT, "trainer.steps=1") == 0 and len(built) == 1
    before, prompt = len(alive(TextEncoder)), "a small blue square"
    assert vidalign("sample", "--run", "run", "--prompt", prompt, "--out", "x.gif") == 0
    assert len(built) == 2 and len(alive(TextEncoder)) == before
    assert vidalign("sample", "--run", "run", "--prompt", prompt, "--out", "x.gif") == 0
    assert len(built) == 2, "and kept"


def test_the_recipe_may_name_the_folder_and_its_hash_does_not_change(folder: Path) -> None:
    plain, own = load_recipe("recipe.yaml"), load_recipe("recipe.yaml", ["data.text_cache=here"])
    assert prepare(own).folder == Path("here") and files(Path("here")) == 10 and not Path("cache").exists()
    assert plain.hash == own.hash and plain.to_yaml() != own.to_yaml()
    assert train("data.text_cache=here", "trainer.steps=1", *SFT) == 0 and not Path("cache").exists()
    assert train("data.text_cache=there", "trainer.steps=2", *SFT, "--resume") == 0, "it may change"


def test_the_same_numbers_with_and_without_prepare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    for name in ("a", "b"):
        monkeypatch.setenv("VIDALIGN_CACHE", name)
        if name == "a":
            assert vidalign("prepare", "recipe.yaml") == 0
        assert train("trainer.steps=2", run=f"run-{name}") == 0
        lines = Path(f"run-{name}/metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        values = [{k: v for k, v in s.items() if k.startswith(("reward/", "objective/"))} for s in steps]
        rows.append([v for v in values if v])
    assert rows[0] == rows[1]


def test_a_language_student_reads_its_prompts_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign("prepare", "tokens/opd") == 0
    assert "reads its prompts itself: there is nothing to encode" in capsys.readouterr().out


def test_mistakes_of_the_recipe_are_reported_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign("prepare", "recipe.yaml", "data.text_cash=x") == 2
    assert "unknown key 'data.text_cash' - override 1 - did you mean 'text_cache'?" in capsys.readouterr().err
    assert not Path("cache").exists()


def test_processes_share_the_prompts(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    command = [sys.executable, "-m", "vidalign.cli", "prepare", "recipe.yaml", "--gpus", "2"]
    place = {"OMP_NUM_THREADS": "1", "VIDALIGN_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT | place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "10 prompts, 10 of them encoded now" in done.stdout and files(tmp_path) == 10


def test_each_process_encodes_its_share(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two ranks that see one disk; the other one's prompts are there when both have passed the barrier."""
    recipe = load_recipe("recipe.yaml")
    prompts = build.asked_prompts(recipe, build.build_prompts(recipe))
    first, second = build.prompt_features(recipe), build.prompt_features(recipe)
    assert first is not None and second is not None
    monkeypatch.setattr("vidalign.engine.distributed.world_size", lambda: 2)
    monkeypatch.setattr("vidalign.engine.distributed.rank", lambda: 1)

    def other() -> None:
        monkeypatch.setattr("vidalign.engine.distributed.rank", lambda: 0)
        monkeypatch.setattr("vidalign.engine.distributed.barrier", lambda: None)
        for _ in first._encode(prompts[0::2]):
            pass

    monkeypatch.setattr("vidalign.engine.distributed.barrier", other)
    assert second.prepare(prompts) == 10
    assert (first.encoded, second.encoded) == (5, 5)


def test_a_rank_with_a_disk_of_its_own_encodes_what_it_lacks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank lacks two prompts, which this one has, and never writes to this disk."""
    recipe = load_recipe("recipe.yaml")
    prompts = build.asked_prompts(recipe, build.build_prompts(recipe))
    here = build.prompt_features(recipe)
    assert here is not None and here.prepare(prompts[:4]) == 4
    monkeypatch.setattr("vidalign.engine.distributed.all_gather_object", lambda own: [prompts[2:], own])
    monkeypatch.setattr("vidalign.engine.distributed.world_size", lambda: 2)
    monkeypatch.setattr("vidalign.engine.distributed.rank", lambda: 1)
    monkeypatch.setattr("vidalign.engine.distributed.barrier", lambda: None)
    fresh = build.prompt_features(recipe)
    assert fresh is not None and fresh.prepare(prompts) == 8 and all(fresh.files.has(prompt) for prompt in prompts)
    assert fresh.encoded == 4 + 3, "its half of the eight, and those of the other half that it lacks"
