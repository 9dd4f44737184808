"""`vidalign train`: what it leaves, going on bit by bit, Ctrl-C."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from run_helpers import FINISHED, SFT, assert_same_student, damage, stop_after, student, train, vidalign

from vidalign.engine import distributed
from vidalign.recipe import load_recipe
from vidalign.students.video import checkpoint
from vidalign.tracking.jsonl import read_history, read_records

# --- a whole run ---


def test_the_run_folder(finished: Path) -> None:
    run = finished / "run"
    assert {p.name for p in run.iterdir()} == {
        "recipe.yaml",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "student.safetensors",
        "evaluation.json",
        "evaluation-clips.json",
        "report.html",
    }
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    assert any((run / "tensorboard").iterdir())
    recipe = load_recipe(finished / "recipe.yaml", list(FINISHED))
    assert load_recipe(run / "recipe.yaml").hash == recipe.hash
    report = (run / "report.html").read_text(encoding="utf-8")
    assert "large" in report and "text_alignment" in report and not re.search(r"<(script|link)[^>]+https?://", report)


def test_the_first_line_says_what_made_the_run(finished: Path) -> None:
    header, *rest = read_records(finished / "run" / "metrics.jsonl")
    assert header["kind"] == "header" and header["step"] == 0
    for name in ("recipe_hash", "world_hash"):
        assert re.fullmatch("[0-9a-f]{8,64}", header[name]), name
    assert header["seed"] == "0" and "commit" in header and str(finished / "run") not in header["command"]
    assert [line["step"] for line in rest if line["kind"] == "metrics"] == [1, 2]


def test_the_metrics_of_a_step(finished: Path) -> None:
    history = read_history(finished / "run" / "metrics.jsonl")
    for name in (
        "objective/loss/mean",
        "objective/kl/mean",
        "reward/mean",
        "reward/group_std",
        "reward/text_alignment/mean",
        "health/grad_norm/mean",
        "health/on_policy_gap/max",
        "health/motion/mean",
        "perf/collect/seconds",
        "perf/student/seconds",
        "perf/step/seconds",
    ):
        assert [step for step, _ in history[name]] == [1, 2], name
    assert [step for step, _ in history["health/held_out/mean"]] == [2]
    assert all(value < 1e-4 for _, value in history["health/on_policy_gap/max"])
    assert all(value > 0 for _, value in history["health/grad_norm/mean"])
    assert all(name.split("/")[0] in ("objective", "reward", "health", "perf") for name in history)


def test_the_student_carries_its_provenance(finished: Path) -> None:
    tensors, metadata = checkpoint.read(finished / "run" / "student.safetensors")
    assert {"spec", "recipe_hash", "seed", "commit", "command", "world_hash"} <= metadata.keys()
    assert all(tensor.isfinite().all() for tensor in tensors.values())


CHANGES = {
    "student.sampler": "{sigmas: [1.0, 0.5]}",
    "student.cache": "{window: 6}",
    "student.codec": "{name: rgb, size: 16}",
}


@pytest.mark.parametrize("key", CHANGES)
def test_evaluate_changes_no_student(key: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The student after training would keep what the one before it changes."""
    file = finished / "run" / "evaluation.json"
    before = file.read_bytes()
    assert vidalign("evaluate", "--run", str(finished / "run"), f"{key}={CHANGES[key]}") == 2
    told = capsys.readouterr().err
    assert f"its specification cannot be changed - {key}" in told and file.read_bytes() == before


def test_evaluate_repeats_itself(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = finished / "run" / "evaluation.json"
    first = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    assert vidalign("evaluate", "--run", str(finished / "run"), "tracking.panel=auto") == 0
    told = capsys.readouterr().out
    stages = ("judging the ground truth: 2/2", "judging before training: 2/2", "judging after training: 2/2")
    assert told.splitlines()[:4] == [*stages, "writing the report: 1/1"]
    assert "world_auditor" in told and "trained rewards" in told and "report.html" in told
    second = json.loads(file.read_text(encoding="utf-8"))
    assert second["values"] == first["values"] and len(first["prompts"]) == 2
    values = first["values"]
    assert values["before"].keys() == values["after"].keys() == values["ground_truth"].keys()
    assert all(len(v) == 2 for v in values["after"].values())
    assert min(values["ground_truth"]["world_auditor/composite"]) > 0.9


def test_export_adds_scores(finished: Path) -> None:
    out = finished / "exported.safetensors"
    assert vidalign("export", "--run", str(finished / "run"), "--out", str(out), "--dtype", "float16") == 0
    tensors, metadata = checkpoint.read(out)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert "world_auditor/composite" in json.loads(metadata["scores"])
    assert str(finished / "run") not in json.dumps(metadata)


def test_sample_writes_a_gif(finished: Path) -> None:
    prompt, out = "a large red circle stays still", finished / "clip.gif"
    run = ("--run", str(finished / "run"))
    assert vidalign("sample", *run, "--prompt", prompt, "--out", str(out), "--frames", "12") == 0
    with Image.open(out) as image:
        assert image.format == "GIF" and image.n_frames == 12 and image.size[0] == image.size[1]
    first = out.read_bytes()
    assert vidalign("sample", *run, "--prompt", prompt, "--out", str(out), "--frames", "12") == 0
    assert out.read_bytes() == first, "the seed decides"
    assert vidalign("sample", *run, "--prompt", prompt, "--out", str(out), "--frames", "12", "--seed", "1") == 0
    assert out.read_bytes() != first
    assert vidalign("sample", *run, "--prompt", prompt, "--prompt", "a small blue square", "--out", str(out)) == 0
    for n in range(2):
        with Image.open(finished / f"clip-{n}.gif") as image:
            assert image.n_frames == 9


def test_sample_refuses_half_a_chunk(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("sample", "--run", str(finished / "run"), "--prompt", "a", "--out", str(finished / "x.gif"))
    assert vidalign(*arguments, "--frames", "7") == 2
    assert "a video of 7 frames is not whole chunks" in capsys.readouterr().err and not (finished / "x.gif").exists()


def test_unknown_words_are_warned_about_when_sampling(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = finished / "whale.gif"
    assert vidalign("sample", "--run", str(finished / "run"), "--prompt", "a blue whale sings", "--out", str(out)) == 0
    told = capsys.readouterr().err
    assert "warning: words outside" in told and "[UNK]: sings, whale" in told and ".py:" not in told
    assert out.is_file()


# --- resume ---


@pytest.mark.parametrize(
    "overrides",
    [("trainer.ema_decay=0.9",), ("student.adapter.rank=2",), (*SFT, "trainer.optimizer=muon")],
    ids=["full with average", "adapter", "sft with muon"],
)
def test_resume_is_bit_exact(
    overrides: tuple[str, ...], recipe_folder: Path, unjudged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(*overrides, run="straight") == 0
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert train(*overrides) == 130
    assert not Path("run/student.safetensors").exists()
    assert train(*overrides, "--resume") == 0
    assert_same_student("run", "straight")
    expected, found = (read_history(Path(run) / "metrics.jsonl") for run in ("straight", "run"))
    for name in expected:
        if not name.startswith("perf/"):
            assert found[name] == expected[name], name
    assert [r["step"] for r in read_records("run/metrics.jsonl") if r["kind"] == "header"] == [0, 2]


def test_training_moves_the_student(recipe_folder: Path, unjudged: None) -> None:
    assert train("trainer.steps=1", run="short") == 0 and train(run="long") == 0
    short, long = student("short"), student("long")
    assert any(not torch.equal(short[name], long[name]) for name in short)


def test_a_finished_run_can_be_lengthened(recipe_folder: Path, unjudged: None) -> None:
    constant = "trainer.schedule=constant"
    assert train(constant, run="straight") == 0
    assert train(constant, "trainer.steps=2") == 0
    assert train(constant, "--resume") == 0
    assert_same_student("run", "straight")


def test_a_run_whose_rate_falls_to_its_last_step_keeps_its_length(
    recipe_folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rate would jump from nearly 0 to half of its peak, and the recipe in the folder be one that never ran."""
    assert train("trainer.schedule=cosine", "trainer.steps=2") == 0
    assert train("trainer.schedule=cosine", "trainer.steps=4", "--resume") == 3
    assert "trainer.steps: 2 -> 4" in capsys.readouterr().err


def test_a_half_written_checkpoint_is_passed_over(
    recipe_folder: Path, unjudged: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(run="straight") == 0
    assert train() == 0
    Path("run/student.safetensors").unlink()
    damage(Path("run/checkpoints/step-00000004/student/engine.pt"))
    assert train("--resume") == 0
    assert "checkpoint of step 4 is not used" in caplog.text
    assert_same_student("run", "straight")


def test_without_any_whole_checkpoint_resume_is_refused(
    recipe_folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("trainer.steps=1") == 0
    damage(Path("run/checkpoints/step-00000001/student/engine.pt"))
    assert train("--resume") == 3
    told = capsys.readouterr().err
    assert "no checkpoint can be loaded" in told and "engine.pt" in told and "Traceback" not in told


def test_a_folder_that_holds_a_run_is_refused(
    recipe_folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("trainer.steps=1") == 0
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    assert train("seed=5") == 2
    told = capsys.readouterr().err
    assert "already holds a run, saved at step 1" in told and "--resume" in told
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before


def test_another_network_cannot_go_on(recipe_folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("trainer.steps=1", "student.adapter.rank=2") == 0
    other = load_recipe("recipe.yaml", ["trainer.steps=1", "student.adapter.rank=3"])
    Path("run/recipe.yaml").write_text(other.to_yaml(), encoding="utf-8")  # nothing tells that it began with another
    assert train("student.adapter.rank=3", "--resume") == 3
    told = capsys.readouterr().err
    assert "found (2, 32), expected (3, 32)" in told and "lora_A" in told


# --- interruption ---


def test_interrupt_tells_what_is_saved_and_how_to_go_on(
    recipe_folder: Path, unjudged: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert train("trainer.save_every=2", "trainer.schedule=cosine") == 130
    told = capsys.readouterr().err
    assert told.startswith("interrupted: stopped after step 3 of 4, step 2 is saved - run - go on with `")
    (command,) = re.findall("`vidalign (.*)`", told)
    assert vidalign(*command.split()) == 0 and Path("run/student.safetensors").is_file()


def test_interrupt_before_the_first_save(
    recipe_folder: Path, unjudged: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert train("trainer.save_every=3") == 130
    told = capsys.readouterr().err
    assert "stopped after step 1 of 4, nothing is saved yet" in told and "--resume" not in told
    (command,) = re.findall("`vidalign (.*)`", told)
    assert vidalign(*command.split()) == 0


def test_interrupt_of_the_evaluation(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidalign.workflows.evaluate.evaluate_run", interrupted)
    assert train("trainer.steps=1") == 130
    told = capsys.readouterr().err
    assert "training is done and the student is saved" in told and "`vidalign evaluate --run run`" in told


def wait_for(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_ctrl_c_in_a_process_of_its_own(
    recipe_folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "vidalign.cli", "train", "recipe.yaml", "trainer.steps=100000", "--run", "run"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: Path("run/checkpoints/step-00000002").is_dir() or process.poll() is not None, 90)
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and out == "" and told.count("\n") == 1, told
    saved = max(int(p.name.removeprefix("step-")) for p in Path("run/checkpoints").glob("step-*"))
    assert re.match(rf"interrupted: stopped after step \d+ of 100000, step {saved} is saved - run - go on with ", told)
    assert train(f"trainer.steps={saved + 1}", "--resume") == 0
    assert read_records("run/metrics.jsonl")[-1]["step"] == saved + 1


def test_a_held_out_score_belongs_to_the_weights_that_it_judged(recipe_folder: Path) -> None:
    """Judged at steps 2 and 4, saved at 3 by the recipe: step 3 carries no score of step 2."""
    assert train("trainer.eval_every=2", "trainer.save_every=3", "trainer.keep=4") == 0
    manifests = [json.loads(file.read_text()) for file in sorted(Path("run/checkpoints").glob("*/manifest.json"))]
    judged = {step: value for step, value in read_history("run/metrics.jsonl")["health/held_out/mean"]}
    assert {one["step"]: one["score"] for one in manifests} == {2: judged[2], 3: None, 4: judged[4]}


def test_what_collect_logs_is_reduced_over_ranks(recipe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, of which the other saw three times the movement and a gap of 9."""

    def two_ranks(value: Any) -> list[Any]:
        if not isinstance(value, dict) or "health/motion/mean" not in value:
            return [value]
        ((_, motion),) = value["health/motion/mean"]
        seen.append(motion)
        return [value, {"health/motion/mean": [(1.0, 3 * motion)], "health/on_policy_gap/max": [(1.0, 9.0)]}]

    seen: list[float] = []
    monkeypatch.setattr(distributed, "all_gather_object", two_ranks)
    assert train("trainer.steps=1") == 0
    history = read_history("run/metrics.jsonl")
    assert history["health/motion/mean"] == [(1, pytest.approx(2 * seen[0]))]
    assert history["health/on_policy_gap/max"] == [(1, 9.0)]


# --- prompts that nobody can judge ---


def test_a_reward_of_ones_own_judges_ordinary_prompts(
    recipe_folder: Path, brightness: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before and after, curve and plots show the recipe's rewards, those of weight 0 too, and no others."""
    Path("prompts.txt").write_text("a whale sings\ntwo dogs play\n", encoding="utf-8")
    asked = ("data.prompts=prompts.txt", "data.eval_prompts=prompts.txt", "trainer.steps=1", "trainer.eval_every=1")
    assert train(*asked, "~rewards", *brightness) == 0
    told = capsys.readouterr()
    assert "trained rewards" in told.out and "report.html" in told.out and "embedded world" not in told.err
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert "a whale sings" in report and "after against before" in report
    values = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))["values"]
    assert set(values) == {"before", "after"}
    assert set(values["after"]) == {"trained rewards/brightness", "trained rewards/composite"}
    assert read_history("run/metrics.jsonl")["health/held_out/mean"][0][1] == pytest.approx(
        sum(values["after"]["trained rewards/brightness"]) / 2, abs=1e-4
    )
    capsys.readouterr()
    assert vidalign("evaluate", "--run", "run", "rewards.brightness=0") == 2
    assert "no reward has a weight" in capsys.readouterr().err, "it is no recipe that could train"
    assert vidalign("export", "--run", "run", "--out", "x.safetensors") == 0


def test_training_on_prompts_without_judges_ends_well(recipe_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Student and clips are there, scores, a goal and the plots of both are left out, with one warning."""
    Path("prompts.txt").write_text("a whale sings\ntwo dogs play\n", encoding="utf-8")
    asked = ("evaluation.prompts=prompts.txt", "trainer.steps=1", "trainer.eval_every=1", "trainer.micro_batch=2")
    assert train("objective={name: sft}", "teacher.name=world", "rewards={}", *asked) == 0
    told = capsys.readouterr()
    assert told.err.count("nothing judges the evaluation prompts") == 1 and "report.html" in told.out
    assert Path("run/student.safetensors").is_file()
    report = Path("run/report.html").read_text(encoding="utf-8")
    assert "a whale sings" in report and "after against before" not in report
    document = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))
    assert document["values"] == {"before": {}, "after": {}} and len(document["prompts"]) == 2


def test_metrics_of_the_recipe_judge(recipe_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("trainer.steps=1", "evaluation.metrics={motion: {references: 2}}") == 0
    values = json.loads(Path("run/evaluation.json").read_text(encoding="utf-8"))["values"]["after"]
    assert {name.partition("/")[0] for name in values} == {"trained rewards", "motion"}
