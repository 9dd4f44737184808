"""Collect, train from a buffer, train on-policy, merge, export: on a tiny network through the command line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import safetensors.torch
import torch
from run_helpers import RECIPE, damage, stop_after, student, vidalign
from safetensors import safe_open

from vidalign.bench.before import spent_before
from vidalign.errors import UserError
from vidalign.recipe import load_recipe
from vidalign.students.video import VideoStudent
from vidalign.students.video import checkpoint as weights_file
from vidalign.students.video.rollout.buffer import Buffer
from vidalign.tracking.stages import Done
from vidalign.workflows.merge import Judged, choose_scale, merge_runs
from vidalign.workflows.merge_scores import MergeScores

SMALL = RECIPE.replace("{name: astrolabe, group_size: 2}", "{name: ar_copo, group_size: 3, anchors: 1}").replace(
    "prediction: x0\n", "prediction: x0\n  adapter: {rank: 2, alpha: 4}\n"
)
SMALL = SMALL.replace("visual_quality: 1.0", "motion_quality: 1.0")  # of noise too, candidates differ in it
STEPS = ("trainer.steps=2", "trainer.learning_rate=0.05", "trainer.save_every=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, a buffer of eight groups, and a finished run of each kind, none of them judged."""
    folder = tmp_path_factory.mktemp("semi")
    (folder / "recipe.yaml").write_text(SMALL, encoding="utf-8")
    assert collect(folder, "--groups", "7") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidalign.workflows.evaluate.evaluate_run", lambda folder: [])
        assert train(folder, "semi", f"objective.buffer={folder}/buffer") == 0
        assert train(folder, "on") == 0
        assert train(folder, "full", "student.adapter=null") == 0
    return folder


def collect(folder: Path, *arguments: str, out: str = "buffer") -> int:
    return vidalign("collect", str(folder / "recipe.yaml"), "--out", str(folder / out), *arguments)


def train(folder: Path, run: str, *arguments: str) -> int:
    return vidalign("train", str(folder / "recipe.yaml"), "--run", str(folder / run), *STEPS, *arguments)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(first: Path, second: bytes) -> bool:
    """Equal files; the metadata of safetensors has no order of its own."""
    if first.suffix == ".json":
        return first.read_bytes() == second
    with safe_open(first, "pt") as file:
        labels, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    others = safetensors.torch.load(second)
    equal = tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in others)
    return equal and labels["hash"].encode() in second[:4096] and labels["prompt"].encode() in second[:4096]


# --- collect ---


def test_collection_goes_on_to_the_same_buffer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder / "buffer")
    assert len(before) == 1 + 8, "whole steps of two prompts"
    cost = spent_before([str(folder / "buffer")])
    assert cost.forwards > 0 and cost.reward_calls == 8 * 3 * 2 and cost.seconds > 0, "candidates, rewards"
    for name in ("group-000003.safetensors", "group-000006.safetensors"):
        (folder / "buffer" / name).unlink()
    assert (
        vidalign("train", str(folder / "recipe.yaml"), "--run", str(folder / "x"), f"objective.buffer={folder}/buffer")
        == 3
    )
    assert "2 of 8 groups are missing, the first is 3" in " ".join(capsys.readouterr().err.split())
    assert collect(folder, "--groups", "7") == 0
    out = capsys.readouterr().out
    assert "8 groups of student" in out
    _, verb, recipe, *overrides = shlex.split(re.findall(r"train from it with `(.*)`", " ".join(out.split()))[0])
    assert verb == "train" and load_recipe(recipe, overrides).objective.config.buffer == f"{folder}/buffer"
    assert files(folder / "buffer").keys() == before.keys()
    assert all(same(folder / "buffer" / name, content) for name, content in before.items())
    buffer = Buffer.open(folder / "buffer")
    for step in range(4):
        assert buffer.pivots()[2 * step] == buffer.pivots()[2 * step + 1], "a step's groups share their pivot"
    group = buffer.read([0, 1])
    assert group.prompts[0] != group.prompts[1] and group.x0.shape[1:3] == (3, 4)
    assert set(group.rewards) == {"text_alignment", "motion_quality"}


def test_a_reward_that_learns_judges_every_group_alike(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is warmed up once, at the cost of the first set; a collection that was interrupted gives the same groups."""
    network = "discriminator={name: spatiotemporal, width: 8, layers: 1, warm_up: {max_steps: 2, prompts: 2}}"
    words = ("--groups", "4", "rewards={discriminator: 1.0}", "teacher.name=world", network)
    assert collect(folder, *words, out="judged") == 0
    before = files(folder / "judged")
    costs = []
    for number in (0, 2):
        with safe_open(folder / "judged" / f"group-{number:06d}.safetensors", "pt") as file:
            costs.append(json.loads(file.metadata()["cost"])["teacher_calls"])
    assert costs[0] > costs[1] == 0, "the teacher's clips of the warm-up"
    for name in ("group-000002.safetensors", "group-000003.safetensors"):
        (folder / "judged" / name).unlink()
    assert collect(folder, *words, out="judged") == 0
    after = Buffer.open(folder / "judged").read([2])
    (folder / "judged" / "group-000002.safetensors").write_bytes(before["group-000002.safetensors"])
    expected = Buffer.open(folder / "judged").read([2])
    assert torch.equal(after.rewards["discriminator"], expected.rewards["discriminator"])


def test_a_buffer_grows(folder: Path) -> None:
    assert collect(folder, "--groups", "2", out="grown") == 0
    first = files(folder / "grown")
    assert collect(folder, "--groups", "4", out="grown") == 0
    second = files(folder / "grown")
    assert all(second[name] == content for name, content in first.items() if name != "buffer.json")
    assert len(second) == 1 + 4
    assert same(folder / "buffer" / "group-000003.safetensors", second["group-000003.safetensors"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("seed=1", "its groups come from student"),
        ("objective.group_size=4", "objective.group_size is 3 there, 4 here"),
        ("trainer.learning_rate=0.1", "the buffer was begun with another recipe"),
        ("objective={name: flow_grpo}", "does not train from a buffer"),
    ],
)
def test_a_buffer_of_another_origin_is_refused(
    change: str, told: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(folder / "buffer")
    code = 2 if "flow_grpo" in change else 3
    assert collect(folder, change, "--groups", "7") == code
    assert told in " ".join(capsys.readouterr().err.split()) and files(folder / "buffer") == before


def test_a_damaged_group_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def copy(name: str) -> Path:
        (tmp_path / name).mkdir()
        for file, content in files(folder / "buffer").items():
            (tmp_path / name / file).write_bytes(content)
        return tmp_path / name

    def refused(buffer: Path, *told: str) -> None:
        assert train(folder, "x", f"objective.buffer={buffer}", "trainer.steps=40") == 3
        found = " ".join(capsys.readouterr().err.split())
        assert all(part in found for part in told) and "Traceback" not in found

    cut = copy("cut")
    damage(cut / "group-000002.safetensors")
    refused(cut, "a group of the buffer is damaged", "group-000002", "fills the gap")
    flipped = copy("flipped")
    for n in range(8):
        file = flipped / f"group-{n:06d}.safetensors"
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    refused(flipped, "its contents are not those that were written")
    headless = copy("headless")
    damage(headless / "buffer.json")
    refused(headless, "the buffer's header is damaged", "vidalign collect")
    refused(tmp_path / "nowhere", "holds no buffer")


# --- training from it ---


def test_training_from_a_buffer_moves_the_adapter_and_resumes_exactly(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidalign.workflows.evaluate.evaluate_run", lambda folder: [])
    start = VideoStudent.from_spec(load(folder, "semi").spec, 0).state_dict()
    trained = student(str(folder / "semi"))
    moved = {key for key, value in trained.items() if not torch.equal(value, start[f"transformer.{key}"])}
    assert moved and all(".attn" in key or ".ffn." in key for key in moved)
    settings = (f"objective.buffer={folder}/buffer", "trainer.save_every=1")
    with monkeypatch.context() as interrupted:
        stop_after(1, interrupted)
        assert train(folder, "parts", *settings) == 130
    assert train(folder, "parts", *settings, "--resume") == 0
    again = student(str(folder / "parts"))
    assert all(torch.equal(value, again[key]) for key, value in trained.items())


# --- merge ---


def load(folder: Path, run: str) -> VideoStudent:
    return VideoStudent.load(folder / run / "student.safetensors")


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.0])
def test_a_merge_is_the_sum_of_the_updates(scale: float, folder: Path, tmp_path: Path) -> None:
    """W0 + (W_semi - W0) + s (W_on - W0), from the exported students."""
    both = ("--semi", str(folder / "semi"), "--on-policy", str(folder / "on"))
    assert vidalign("merge", *both, "--out", str(tmp_path / "merged"), "--scale", str(scale)) == 0
    start = {
        k.removeprefix("transformer."): v
        for k, v in VideoStudent.from_spec(load(folder, "on").spec, 0).state_dict().items()
    }
    semi, on, merged = (student(str(path)) for path in (folder / "semi", folder / "on", tmp_path / "merged"))
    assert merged.keys() == start.keys()
    for key, weight in merged.items():
        torch.testing.assert_close(weight, semi[key] + scale * (on[key] - start[key]), rtol=1e-5, atol=1e-6)
    assert max(float((on[key] - start[key]).abs().max()) for key in start) > 1e-3


def test_a_merged_run_is_judged_sampled_and_exported_like_any_other(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    both = ("--semi", str(folder / "semi"), "--on-policy", str(folder / "on"), "--out", str(out))
    assert vidalign("merge", *both, "--scale", "0.5") == 0
    assert vidalign("evaluate", "--run", str(out)) == 0
    assert vidalign("export", "--run", str(out), "--out", str(tmp_path / "one.safetensors")) == 0
    tensors, metadata = weights_file.read(tmp_path / "one.safetensors")
    assert json.loads(metadata["merge"])["scale"] == 0.5 and "world_auditor/composite" in json.loads(metadata["scores"])
    assert str(folder) not in json.dumps(metadata)
    assert all(torch.equal(value, student(str(out))[key]) for key, value in tensors.items())
    assert vidalign("merge", *both, "--scale", "0.5") == 2, "a student is not overwritten"


def test_the_sweep_judges_every_scale_and_keeps_the_rule(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A judge that likes large weights in one layer: rewards rise with s, the auditor falls beyond 0.6."""
    found: list[float] = []
    key = "transformer.blocks.0.ffn.net.2.weight"
    on = student(str(folder / "on"))[key.removeprefix("transformer.")]
    start = VideoStudent.from_spec(load(folder, "on").spec, 0).state_dict()[key]
    semi = student(str(folder / "semi"))[key.removeprefix("transformer.")]

    def scale_of(student: VideoStudent) -> float:
        """s, from what the network's layer does; -1 for W0."""
        layer, eye = student.transformer.blocks[0].ffn.net[2], torch.eye(start.shape[1])
        weight = (layer(eye) - layer(0 * eye)).T
        if torch.allclose(weight, start, atol=1e-5):
            return -1.0
        direction = on - start
        return float(((weight - semi) * direction).sum() / direction.square().sum())

    def judge(scores: MergeScores, generate: VideoStudent, done: Done) -> tuple[torch.Tensor, torch.Tensor]:
        found.append(scale_of(generate))
        done(scores.clips)
        s = torch.full((2,), found[-1])
        return s / 2, (s < 0.7).float()

    monkeypatch.setattr(MergeScores, "__call__", judge)
    monkeypatch.setattr("vidalign.workflows.merge.sampler_of", lambda recipe, student: student)
    done = merge_runs(folder / "semi", folder / "on", tmp_path / "merged", (0.2, 1.0, 0.6, 0.8))
    assert found == pytest.approx([-1, 1.0, 0.8, 0.6, 0.2], abs=1e-3) and done.scale == 0.6
    out = [line for line in capsys.readouterr().out.splitlines() if line.startswith("judging ")]
    assert [line.partition(":")[0] for line in out] == ["judging W0", *(f"judging s = {s}" for s in (1, 0.8, 0.6, 0.2))]
    assert [one.scale for one in done.judged] == [1.0, 0.8, 0.6, 0.2]
    assert done.judged[0].in_domain == pytest.approx(0.5, abs=1e-3)
    assert done.judged[0].out_of_domain_gain == -1 and done.judged[2].in_domain_gain == pytest.approx(0.8, abs=1e-3)
    saved = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert saved["scale"] == 0.6 and len(saved["judged"]) == 4
    monkeypatch.setattr("vidalign.workflows.merge.choose_scale", lambda judged: None)
    with pytest.raises(UserError, match="no scale raises"):
        merge_runs(folder / "semi", folder / "on", tmp_path / "other", (0.2, 1.0))
    assert not (tmp_path / "other").exists() and "+1.0000" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ({1.0: (0.3, -0.1), 0.8: (0.2, 0.0), 0.4: (0.1, 0.2)}, 0.8),
        ({1.0: (0.3, 0.1), 0.8: (0.4, 0.3)}, 1.0),
        ({1.0: (-0.1, 0.3), 0.8: (0.0, 0.3), 0.4: (0.01, 0.0)}, 0.4),
        ({1.0: (0.3, -0.1), 0.0: (0.0, 0.0)}, None),
        ({1.0: (float("nan"), 0.1)}, None),
    ],
)
def test_the_rule(gains: dict[float, tuple[float, float]], chosen: float | None) -> None:
    judged = [Judged(s, 0, 0, a, b, (0, 0), (0, 0)) for s, (a, b) in gains.items()]
    assert choose_scale(judged) == chosen


def test_what_cannot_be_merged(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(code: int, told: str, semi: str, on: str, *scale: str) -> None:
        runs = ("--semi", str(folder / semi), "--on-policy", str(folder / on), "--out", str(tmp_path / "out"))
        assert vidalign("merge", *runs, *scale) == code
        assert told in " ".join(capsys.readouterr().err.split())

    refused(3, "has no adapter", "semi", "full", "--scale", "1")
    refused(2, "is not a finished run", "buffer", "on", "--scale", "1")
    refused(2, "'--scale'", "semi", "on", "--scale", "-1")
    assert load_recipe(folder / "on" / "recipe.yaml").student.adapter is not None
    assert not (tmp_path / "out").exists()


def test_runs_of_different_students_are_not_merged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "on"
    copied.mkdir()
    for name in ("recipe.yaml", "student.safetensors"):
        (copied / name).write_bytes((folder / "on" / name).read_bytes())
    text = (copied / "recipe.yaml").read_text()
    (copied / "recipe.yaml").write_text(text.replace("seed: 0", "seed: 5", 1))
    both = ("--semi", str(folder / "semi"), "--on-policy", str(copied), "--out", str(tmp_path / "out"), "--scale", "1")
    assert vidalign("merge", *both) == 3
    assert "began with different weights" in capsys.readouterr().err
