"""Bad input on the command line ends in one clear message and loses nothing that is saved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import assert_same_student, damage, train, vidalign
from safetensors.torch import save_file

from vidalign import __version__ as vidalign_version
from vidalign.engine import distributed, plain
from vidalign.students.video import checkpoint
from vidalign.tracking.jsonl import read_history


def test_a_full_disk_keeps_the_older_checkpoint(
    recipe_folder: Path, unjudged: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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


@pytest.mark.parametrize(("number", "code"), [(28, 3), (13, 3), (5, None)])
def test_a_disk_that_takes_no_more_is_told_without_a_traceback(
    number: int, code: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever was to be written; a fault of another kind is no mistake of the user."""

    def full(*arguments: object, **options: object) -> None:
        raise OSError(number, "odd", "run/evaluation.json")

    monkeypatch.setattr("vidalign.workflows.opened.check_finished", lambda folder, saved: None)
    monkeypatch.setattr("vidalign.workflows.evaluate.evaluate_run", full)
    if code is None:
        with pytest.raises(OSError, match="odd"):
            vidalign("evaluate", "--run", "run")
        return
    assert vidalign("evaluate", "--run", "run") == code
    told = capsys.readouterr().err
    assert "run/evaluation.json - odd - free some space" in told and "Traceback" not in told


def test_a_run_that_is_not_there(recipe_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["evaluate"], ["sample", "--prompt", "a", "--out", "x.gif"], ["export", "--out", "x.safetensors"]):
        assert vidalign(*verb, "--run", "nowhere") == 2
        assert "nowhere is not a finished run" in capsys.readouterr().err


MISTAKES = {
    "list foo": "nothing called 'foo'",
    "list rewards --plugin nope.py": "no plugin file 'nope.py'",
    "list rewards --plugin notes.txt": "is not a Python file",
    "list rewards --plugin broken.py": "the plugin file broken.py cannot be run - broken.py:1",
    "bench run nope": "there is no protocol 'nope'",
    "bench run quickstart --objectives nope": "there is no row 'nope'",
    "bench report nope": "there is no result file",
    "bench compare nope.json:base sft": "there is no result file nope.json",
    "bench compare base sft": "'base' names no row of a result",
    "bench import-scores vbench_lnog x.json --videos out --version 1": "did you mean 'vbench_long'?",
    "bench import-scores vbench x.json --videos out --version 1": "is not an export of `vidalign bench export-videos`",
    "bench export-videos vbnch --prompts a.txt --out x --recipe recipe.yaml": "did you mean 'vbench'?",
    "bench export-videos vbench --prompts a.txt --out x --recipe recipe.yaml": "the prompt file cannot be read",
    "bench export-videos vbench --prompts a.txt --out x --recipe recipe.yaml --fps 0": "fps must be positive",
    "evaluate --run nowhere": "nowhere is not a finished run",
    "export --run nowhere --out x.safetensors": "nowhere is not a finished run",
    "merge --semi nowhere --on-policy RUN --out x --scale 1": "nowhere is not a finished run",
    "merge --semi RUN --on-policy RUN --out RUN --scale 1": "already holds a student - --out",
    "merge --semi RUN --on-policy RUN --out x --scale -1": "'--scale'",
    "sample --run nowhere --prompt a --out x.gif": "nowhere is not a finished run",
    "sample --run RUN --prompt a --out x.webm": "unknown clip format '.webm' - --out",
    "sample --run RUN --prompt a --out x": "unknown clip format 'x' - --out",
    "sample --run RUN --prompt a --out x.gif --frames 7": "a video of 7 frames is not whole chunks",
    "sample --run RUN --prompt a --out x.gif --frames 0": "'--frames'",
    "sample --run RUN --prompt a --out x.gif --seed -1": "'--seed'",
    "sample --run RUN --prompt= --out x.gif": "a prompt is empty - --prompt",
    "export --run RUN --out x.bin": "a student cannot be written as 'x.bin' - --out",
    "train recipe.yaml steps=2": "unknown key 'steps' - override 1 - did you mean 'trainer.steps'?",
    "train recipe.yaml rewards={}": "there are no rewards",
    "validate recipe.yaml evaluation.prompts=gone.txt": "check evaluation.prompts",
    "validate recipe.yaml data.prompts=tokens:train": "a video student cannot use 'tokens:train' - override 1",
    "validate recipe.yaml teacher.name=store teacher.path=gone": "'gone' holds no clips - override 2 - there is no",
    "validate recipe.yaml trainer.learning_rate=-1": "trainer.learning_rate must be at least 0 - override 1",
    "validate recipe.yaml trainer.learning_rate=.nan": "trainer.learning_rate must be a finite number, not nan",
    "validate recipe.yaml trainer.betas=[0.9,.inf]": "trainer.betas must be a finite number, not [0.9, inf]",
    "validate recipe.yaml trainer.betas=[2,3]": "trainer.betas must lie in 0..1, 1 excluded - override 1",
    "validate recipe.yaml trainer.clip=-1": "trainer.clip must be at least 0",
    "validate recipe.yaml trainer.weight_decay=-1": "trainer.weight_decay must be at least 0",
    "validate recipe.yaml trainer.warmup_steps=-1": "trainer.warmup_steps must be at least 0",
    "validate recipe.yaml trainer.ema_decay=2": "trainer.ema_decay must lie in 0..1",
    "validate recipe.yaml trainer.eval_every=-3": "trainer.eval_every must be at least 0",
    "validate recipe.yaml tracking.clips_every=-1": "tracking.clips_every must be at least 0",
    "validate tokens/opd evaluation.temperature=-1": "evaluation.temperature must be at least 0",
    "validate world/astrolabe objective.sigma_min=0.9": "objective.sigma_min must lie in 0..sigma_max",
    "validate recipe.yaml objective.clip.chunks=4": "a clip of 4 chunks does not fit into a video of 3 - override 1",
    "validate recipe.yaml objective.kl.mode=selective ~rewards.visual_quality": "a selective penalty needs two rewards",
    "validate recipe.yaml objective.kl.mode=selective objective.kl.primary=odd": "'odd' is not among the rewards - "
    "override 2",
    "validate recipe.yaml objective.sigma_min=0.9 objective.sigma_max=0.95": "leaves no noise level to train on - "
    "override 2",
    "validate tokens/dopd objective.privilege=shuffled trainer.prompts_per_step=1": "needs another prompt - override 2",
    "validate world/dopd objective.pairing=shuffled trainer.prompts_per_step=1": "needs another prompt - override 2",
    "validate tokens/dopd student.adapter={rank: 4, targets: [qproj]}": "adapter pattern 'qproj' matches no layer",
    "validate tokens/dopd teacher.path=other.safetensors": "other vocabularies - override 1 - ",
    "validate tokens/dopd data.prompts=pictures:train": "the student cannot see pictures - override 1",
    "validate tokens/dopd student.path=.": "the folder '.' holds no model of transformers - override 1",
    "validate tokens/dopd teacher.path=.": "the folder '.' holds no model of transformers - override 1",
    "validate recipe.yaml student.adapter={rank: 4, alpha: -1}": "alpha is -1",
    "validate world/ar_copo objective.pivots=5": "the pivot cannot be one of 5 chunks - override 1",
    "validate world/afd objective.sigma_max=0.1": "leaves no noise level to train on - override 1",
    "validate recipe.yaml objective={name: flow_grpo, group_size: 2} student.init.sampler={sigmas: [1.0]}": "cannot "
    "train a sampler of [1, 1, 1] steps",
    "validate tokens/opd data.prompts=gone.jsonl": "there are no examples 'gone.jsonl' - override 1",
    "validate tokens/opd rewards.motion_quality=1": "the reward 'motion_quality' cannot judge texts - override 1",
    "validate recipe.yaml data.prompts=whales.txt": "can score a prompt - override 1 (whales.txt:3)",
    "train recipe.yaml data.prompts=whales.txt": "no answer for it: 'a whale sings'",
    "validate tokens/opd data.prompts=questions.jsonl rewards.exact_match=1": "override 1 (questions.jsonl, row 1)",
    "validate tokens/opd evaluation.prompts=gone.txt": "a language student cannot use 'gone.txt' - override 1",
    "validate tokens/opd evaluation.prompts=gone.jsonl": "check evaluation.prompts",
    "bench run quickstart budget.forwads=3": "'budget.forwads' - override 1 - did you mean `currency: forwards`?",
    "bench run quickstart prompts.source=gone.txt": "override 1 - [Errno 2] No such file or directory: 'gone.txt' - "
    "check prompts.source",
    "validate recipe.yaml student.init.transformer.num_layer=2": "did you mean 'num_layers'?",
    "validate recipe.yaml data.frames=10": "a video of 10 frames is not whole chunks - override 1",
    "validate recipe.yaml evaluation.frames=8": "a video of 8 frames is not whole chunks - override 1",
    "validate recipe.yaml --gpus 3": "2 prompts a step cannot be shared out to 3 processes",
    "validate recipe.yaml ~student.init student.path=tokens/student": "the weights 'tokens/student' do not fit",
    "validate tokens/opd student.path=world/student": "they are those of a video network",
    "validate recipe.yaml rewards.exact_match=1": "the reward 'exact_match' cannot judge clips - override 1",
    "collect recipe.yaml --out x": "does not train from a buffer",
    "collect recipe.yaml --out x --groups 0": "'--groups'",
    "train recipe.yaml --resume": "no run is named to go on with - --resume",
    "train recipe.yaml --run notes.txt": "notes.txt is not a folder",
    "train recipe.yaml --run RUN": "already holds a run",
    "train recipe.yaml --gpus 2": "several processes need the name of their run folder",
    "train recipe.yaml trainer.prompts_per_step=4 --gpus 2 --nodes 2 --run x": "2 machines have no address to meet at",
    "train nope": "there is no recipe 'nope'",
    "validate recipe.yaml --nope": "No such option",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_mistakes_on_the_command_line_end_with_2_before_any_work(
    command: str, finished: Path, recipe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").write_text("no Python", encoding="utf-8")
    Path("broken.py").write_text("1 / 0\n", encoding="utf-8")
    Path("whales.txt").write_text("a large red circle falls\n\na whale sings\n", encoding="utf-8")
    spec = {"config": {"model_type": "qwen3", "vocab_size": 5}}
    save_file({"x": torch.zeros(1)}, "other.safetensors", {"format": "pt", "spec": json.dumps(spec)})
    Path("questions.jsonl").write_text('{"prompt": "1 + 1", "answer": "2"}\n{"prompt": "why?"}\n', encoding="utf-8")
    before = sorted(recipe_folder.rglob("*"))
    words = [str(finished / "run") if word == "RUN" else word for word in re.split(r" (?![^{]*})", command)]
    assert vidalign(*words) == 2
    told = capsys.readouterr().err
    assert MISTAKES[command] in told and "Traceback" not in told
    assert sorted(recipe_folder.rglob("*")) == before, "nothing was written"


def test_the_version_and_shell_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign("--version") == 0
    assert capsys.readouterr().out.strip() == f"vidalign {vidalign_version}"
    assert vidalign("--help") == 0
    assert "--install-completion" in capsys.readouterr().out


def copy_of(finished: Path, folder: Path) -> Path:
    """A run folder with recipe and student alone."""
    run = folder / "copy"
    run.mkdir()
    for name in ("recipe.yaml", "student.safetensors"):
        (run / name).write_bytes((finished / "run" / name).read_bytes())
    return run / "student.safetensors"


def test_a_half_written_student(finished: Path, recipe_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy_of(finished, recipe_folder)
    damage(file)
    assert vidalign("sample", "--run", "copy", "--prompt", "a", "--out", "x.gif") == 3
    assert "half-written" in capsys.readouterr().err
    assert train(f"student.path={file}", "~student.init") == 2
    assert "half-written" in capsys.readouterr().err and not Path("run").exists()


def test_a_student_of_wrong_shapes(finished: Path, recipe_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy_of(finished, recipe_folder)
    tensors, metadata = checkpoint.read(file)
    tensors["proj_out.weight"] = torch.zeros(5, 32)
    save_file(tensors, file, metadata)
    message = r"wrong shape of 'proj_out.weight' - .*copy/student.safetensors - found \[5, 32\], expected \[192, 32\]"
    assert vidalign("sample", "--run", "copy", "--prompt", "a", "--out", "x.gif") == 3
    assert re.search(message, capsys.readouterr().err)
    assert train(f"student.path={file}", "~student.init") == 3
    told = capsys.readouterr().err
    assert re.search(message, told) and told.count("\n") == 1


def test_weights_that_are_missing(recipe_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("student.path=gone.safetensors", "~student.init") == 2
    assert "gone.safetensors" in capsys.readouterr().err and not Path("run").exists()


def test_an_empty_prompt_file(recipe_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text("\n\n", encoding="utf-8")
    assert train("data.prompts=prompts.txt") == 2
    told = capsys.readouterr().err
    assert "prompts.txt holds no prompt" in told and not Path("run").exists()


def test_unknown_words_are_warned_about_when_training(
    recipe_folder: Path, unjudged: None, brightness: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Told by the recipe, by the encoder and by the rewards, whose clips are left out; one line each."""
    Path("prompts.txt").write_text("a large blue whale sings\na large red circle stays still\n", encoding="utf-8")
    assert train("data.prompts=prompts.txt", "trainer.steps=1", *brightness) == 0
    told = capsys.readouterr().err
    assert "warning: words outside the world's vocabulary: whale, sings" in told
    assert "read as [UNK]: sings, whale" in told and "its clips are not scored" in told and ".py:" not in told
    history = read_history("run/metrics.jsonl")
    assert history["health/reward_nan/mean"] == [(1, 0.5)]
    # the other prompt is learned from, and no NaN is in the update
    ((_, norm),) = history["health/grad_norm/mean"]
    assert history["health/low_spread_groups/mean"] == [(1, 0.5)] and norm > 0
    assert history["health/skipped_updates"] == [(1, 0.0)]


@pytest.mark.parametrize("name", ["trainer.save_every", "evaluation.count", "evaluation.seeds", "evaluation.frames"])
def test_counts_of_nothing_are_refused(name: str, recipe_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(f"{name}=0") == 2
    assert f"{name.split('.')[1]} must be at least 1" in capsys.readouterr().err and not Path("run").exists()


def test_prompts_are_shared_out_evenly(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    assert train() == 2
    assert "2 prompts a step cannot be shared out to 3 processes" in capsys.readouterr().err
