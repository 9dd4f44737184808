"""`vidalign train` and what reads its run folder, on a tiny network: contents, resume, interruptions, mistakes."""

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
from safetensors.torch import load_file, save_file

from vidalign import cli, runs
from vidalign.engine import distributed, plain
from vidalign.recipe import load_recipe
from vidalign.students.video import checkpoint
from vidalign.tracking.jsonl import read_history, read_records
from vidalign.trainer import Trainer

RECIPE = """\
# A recipe for a test.
student:
  init:
    transformer: {patch_size: [1, 8, 8], num_attention_heads: 2, attention_head_dim: 16, in_channels: 3,
      out_channels: 3, text_dim: 64, freq_dim: 16, ffn_dim: 32, num_layers: 1, rope_max_seq_len: 64}
    prediction: x0
objective: {name: astrolabe, group_size: 2}
rewards: {text_alignment: 1.0, visual_quality: 1.0}
data: {prompts: world:basic/train, eval_prompts: world:basic/unseen, frames: 9}
trainer: {steps: 4, prompts_per_step: 2, micro_batch: 2, learning_rate: 1.0e-2, save_every: 1, schedule: cosine}
tracking: {panel: none, clips_every: 0, tensorboard: false}
evaluation: {count: 2, frames: 9}
"""
FINISHED = ("trainer.steps=2", "tracking.tensorboard=true", "tracking.clips_every=1", "trainer.eval_every=2")
SFT = ("objective={name: sft}", "rewards={}", "teacher.name=world")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


@pytest.fixture
def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the evaluation after training."""
    monkeypatch.setattr(runs, "evaluate_run", lambda folder: [])


def vidalign(*arguments: str) -> int:
    try:
        cli.main(list(arguments))
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def train(*arguments: str, run: str = "run") -> int:
    return vidalign("train", "recipe.yaml", "--run", run, *arguments)


def student(run: str) -> dict[str, torch.Tensor]:
    return load_file(f"{run}/student.safetensors")


def assert_same_student(run: str, other: str) -> None:
    found, expected = student(run), student(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the step after `step`."""
    plain_step = Trainer.train_step

    def interrupted(self: Trainer) -> dict[str, float]:
        if self.step == step:
            raise KeyboardInterrupt
        return plain_step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)


# --- a whole run ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a finished run of two steps."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert vidalign("train", str(folder / "recipe.yaml"), *FINISHED, "--run", str(folder / "run")) == 0
    return folder


def test_the_run_folder(finished: Path) -> None:
    run = finished / "run"
    assert {p.name for p in run.iterdir()} == {
        "recipe.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "student.safetensors", "evaluation.json",
        "report.html",
    }  # fmt: skip
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
        "objective/loss/mean", "objective/kl/mean", "reward/mean", "reward/group_std", "reward/text_alignment/mean",
        "health/grad_norm/mean", "health/on_policy_gap/max", "health/motion/mean", "perf/collect/seconds",
        "perf/student/seconds", "perf/step/seconds",
    ):  # fmt: skip
        assert [step for step, _ in history[name]] == [1, 2], name
    assert [step for step, _ in history["health/held_out/mean"]] == [2]
    assert all(value < 1e-4 for _, value in history["health/on_policy_gap/max"])
    assert all(value > 0 for _, value in history["health/grad_norm/mean"])
    assert all(name.split("/")[0] in ("objective", "reward", "health", "perf") for name in history)


def test_the_student_carries_its_provenance(finished: Path) -> None:
    tensors, metadata = checkpoint.read(finished / "run" / "student.safetensors")
    assert {"spec", "recipe_hash", "seed", "commit", "command", "world_hash"} <= metadata.keys()
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_evaluate_repeats_itself(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = finished / "run" / "evaluation.json"
    first = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    assert vidalign("evaluate", "--run", str(finished / "run")) == 0
    told = capsys.readouterr().out
    assert "held-out auditor" in told and "trained rewards" in told and "report.html" in told
    second = json.loads(file.read_text(encoding="utf-8"))
    assert second["values"] == first["values"] and len(first["prompts"]) == 2
    values = first["values"]
    assert values["before"].keys() == values["after"].keys() == values["ground_truth"].keys()
    assert all(len(v) == 2 for v in values["after"].values())
    assert min(values["ground_truth"]["held-out auditor/composite"]) > 0.9


def test_export_adds_scores(finished: Path) -> None:
    out = finished / "exported.safetensors"
    assert vidalign("export", "--run", str(finished / "run"), "--out", str(out), "--dtype", "float16") == 0
    tensors, metadata = checkpoint.read(out)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert "held-out auditor/composite" in json.loads(metadata["scores"])
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
    assert vidalign(*arguments, "--frames", "7") == 3
    assert "cannot make 7 frames" in capsys.readouterr().err and not (finished / "x.gif").exists()


def test_unknown_words_are_warned_about_when_sampling(finished: Path) -> None:
    out = finished / "whale.gif"
    with pytest.warns(UserWarning, match=r"\[UNK\]: sings, whale"):
        assert (
            vidalign("sample", "--run", str(finished / "run"), "--prompt", "a blue whale sings", "--out", str(out)) == 0
        )
    assert out.is_file()


# --- resume ---


@pytest.mark.parametrize(
    "overrides",
    [("trainer.ema_decay=0.9",), ("student.adapter.rank=2",), (*SFT, "trainer.optimizer=muon")],
    ids=["full with average", "adapter", "sft with muon"],
)
def test_resume_is_bit_exact(
    overrides: tuple[str, ...], folder: Path, unjudged: None, monkeypatch: pytest.MonkeyPatch
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


def test_training_moves_the_student(folder: Path, unjudged: None) -> None:
    assert train("trainer.steps=1", run="short") == 0 and train(run="long") == 0
    short, long = student("short"), student("long")
    assert any(not torch.equal(short[name], long[name]) for name in short)


def test_a_finished_run_can_be_lengthened(folder: Path, unjudged: None) -> None:
    constant = "trainer.schedule=constant"
    assert train(constant, run="straight") == 0
    assert train(constant, "trainer.steps=2") == 0
    assert train(constant, "--resume") == 0
    assert_same_student("run", "straight")


def damage(file: Path) -> None:
    """Cut a file in half, as a killed copy would."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def test_a_half_written_checkpoint_is_passed_over(
    folder: Path, unjudged: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(run="straight") == 0
    assert train() == 0
    Path("run/student.safetensors").unlink()
    damage(Path("run/checkpoints/step-00000004/student/engine.pt"))
    assert train("--resume") == 0
    assert "checkpoint of step 4 is not used" in caplog.text
    assert_same_student("run", "straight")


def test_without_any_whole_checkpoint_resume_is_refused(
    folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("trainer.steps=1") == 0
    damage(Path("run/checkpoints/step-00000001/student/engine.pt"))
    assert train("--resume") == 3
    told = capsys.readouterr().err
    assert "no checkpoint can be loaded" in told and "engine.pt" in told and "Traceback" not in told


def test_a_folder_that_holds_a_run_is_refused(folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("trainer.steps=1") == 0
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    assert train("seed=5") == 3
    told = capsys.readouterr().err
    assert "already holds a run, saved at step 1" in told and "--resume" in told
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before


def test_another_network_cannot_go_on(folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("trainer.steps=1", "student.adapter.rank=2") == 0
    assert train("student.adapter.rank=3", "--resume") == 3
    told = capsys.readouterr().err
    assert "found (2, 32), expected (3, 32)" in told and "lora_A" in told


# --- interruption ---


def test_interrupt_tells_what_is_saved_and_how_to_go_on(
    folder: Path, unjudged: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        assert train("trainer.save_every=2") == 130
    told = capsys.readouterr().err
    assert told.startswith("interrupted: stopped after step 3 of 4, step 2 is saved - run - go on with `")
    (command,) = re.findall("`vidalign (.*)`", told)
    assert vidalign(*command.split()) == 0 and Path("run/student.safetensors").is_file()


def test_interrupt_before_the_first_save(
    folder: Path, unjudged: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert train("trainer.save_every=3") == 130
    told = capsys.readouterr().err
    assert "stopped after step 1 of 4, nothing is saved yet" in told and "--resume" not in told
    (command,) = re.findall("`vidalign (.*)`", told)
    assert vidalign(*command.split()) == 0


def test_interrupt_of_the_evaluation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "evaluate_run", interrupted)
    assert train("trainer.steps=1") == 130
    told = capsys.readouterr().err
    assert "training is done and the student is saved" in told and "`vidalign evaluate --run run`" in told


def wait_for(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_ctrl_c_in_a_process_of_its_own(folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]) -> None:
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


# --- mistakes ---


def test_a_full_disk_keeps_the_older_checkpoint(
    folder: Path, unjudged: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(run="straight") == 0
    write = plain.write_tensors

    def full(path: Path, state: Any) -> None:
        if "step-00000002" in str(path):
            raise OSError(28, "No space left on device")
        write(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(plain, "write_tensors", full)
        assert train() == 3
    told = capsys.readouterr().err
    assert "checkpoint of step 2 was not saved; the older ones are intact" in told and "No space left" in told
    assert told.count("error:") == 1 and "Traceback" not in told
    assert train("--resume") == 0
    assert_same_student("run", "straight")


def test_a_run_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["evaluate"], ["sample", "--prompt", "a", "--out", "x.gif"], ["export", "--out", "x.safetensors"]):
        assert vidalign(*verb, "--run", "nowhere") == 3
        assert "nowhere is not a finished run" in capsys.readouterr().err


def copy_of(finished: Path, folder: Path) -> Path:
    """A run folder with recipe and student alone."""
    run = folder / "copy"
    run.mkdir()
    for name in ("recipe.yaml", "student.safetensors"):
        (run / name).write_bytes((finished / "run" / name).read_bytes())
    return run / "student.safetensors"


def test_a_half_written_student(finished: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy_of(finished, folder)
    damage(file)
    assert vidalign("sample", "--run", "copy", "--prompt", "a", "--out", "x.gif") == 3
    assert "half-written" in capsys.readouterr().err
    assert train(f"student.path={file}", "~student.init") == 2
    assert "half-written" in capsys.readouterr().err and not Path("run").exists()


def test_a_student_of_wrong_shapes(finished: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy_of(finished, folder)
    tensors, metadata = checkpoint.read(file)
    tensors["proj_out.weight"] = torch.zeros(5, 32)
    save_file(tensors, file, metadata)
    message = r"wrong shape of 'proj_out.weight' - .*copy/student.safetensors - found \[5, 32\], expected \[192, 32\]"
    assert vidalign("sample", "--run", "copy", "--prompt", "a", "--out", "x.gif") == 3
    assert re.search(message, capsys.readouterr().err)
    assert train(f"student.path={file}", "~student.init") == 3
    told = capsys.readouterr().err
    assert re.search(message, told) and told.count("\n") == 1


def test_weights_that_are_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("student.path=gone.safetensors", "~student.init") == 2
    assert "gone.safetensors" in capsys.readouterr().err and not Path("run").exists()


def test_an_empty_prompt_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text("\n\n", encoding="utf-8")
    assert train("data.prompts=prompts.txt") == 2
    told = capsys.readouterr().err
    assert "prompts.txt holds no prompt" in told and not Path("run").exists()


def test_unknown_words_are_warned_about_when_training(
    folder: Path, unjudged: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two warnings from Python too: the encoder's and the rewards', whose clips are left out."""
    Path("prompts.txt").write_text("a large blue whale sings\na large red circle stays still\n", encoding="utf-8")
    with pytest.warns(UserWarning):
        assert train("data.prompts=prompts.txt", "trainer.steps=1") == 0
    told = capsys.readouterr().err
    assert "warning: words outside the world's vocabulary: whale, sings" in told
    history = read_history("run/metrics.jsonl")
    assert history["health/reward_nan/mean"] == [(1, 0.5)] and history["health/grad_norm/mean"][0][1] > 0


@pytest.mark.parametrize("name", ["trainer.save_every", "evaluation.count", "evaluation.seeds", "evaluation.frames"])
def test_counts_of_nothing_are_refused(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(f"{name}=0") == 2
    assert f"{name.split('.')[1]} must be at least 1" in capsys.readouterr().err and not Path("run").exists()


def test_prompts_are_shared_out_evenly(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    assert train() == 3
    assert "2 prompts a step cannot be shared out to 3 processes" in capsys.readouterr().err
