"""Files of a run that were damaged, emptied or replaced since: each command that reads them ends in one message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_helpers import damage, train, vidalign
from safetensors.torch import save_file

from vidalign.students.video import checkpoint

BINARY = bytes(range(256)) * 8
DEEP = "[" * 100_000


@pytest.fixture
def run(finished: Path, recipe_folder: Path) -> Path:
    shutil.copytree(finished / "run", "run")
    return Path("run")


def rewrite(name: str, content: bytes | str | None) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        for file in run.glob(name):
            file.unlink() if content is None else file.write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )

    return change


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        for file in run.glob(name):
            file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def spec(text: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        tensors, metadata = checkpoint.read(run / "student.safetensors")
        save_file(tensors, run / "student.safetensors", {**metadata, "spec": text})

    return change


def half(name: str) -> Callable[[Path], None]:
    return lambda run: damage(run / name)


MANIFESTS = "checkpoints/*/manifest.json"
RESUME = {
    "binary recipe": (rewrite("recipe.yaml", BINARY), "that the run began with cannot be read - run/recipe.yaml"),
    "half recipe": (half("recipe.yaml"), "run/recipe.yaml"),
    "empty recipe": (rewrite("recipe.yaml", ""), "run/recipe.yaml"),
    "list for a recipe": (rewrite("recipe.yaml", "- 1\n"), "run/recipe.yaml"),
    "alias in the recipe": (rewrite("recipe.yaml", "a: &a [*a]\n"), "aliases are not read"),
    "deleted recipe": (rewrite("recipe.yaml", None), "cannot read run/recipe.yaml"),
    "deleted manifests": (rewrite(MANIFESTS, None), "no readable manifest - run/checkpoints/step-00000002/manifest"),
    "binary manifests": (rewrite(MANIFESTS, BINARY), "no readable manifest - run/checkpoints/step-00000002/manifest"),
    "deep manifests": (rewrite(MANIFESTS, DEEP), "it is nested too deeply"),
    "list for a manifest": (rewrite(MANIFESTS, "[1]"), "expected an object, found list"),
    "emptied list of files": (edit(MANIFESTS, files={}), "does not name state.pt"),
    "list of files": (edit(MANIFESTS, files=["state.pt"]), "'files' must be dict"),
    "file without a size": (edit(MANIFESTS, files={"state.pt": {"sha256": "0"}}), "the entry 'size' is missing"),
    "file of another folder": (edit(MANIFESTS, files={"state.pt": {"size": 1, "sha256": ""}, "../x": {}}), "leads out"),
    "step as text": (edit(MANIFESTS, step="two"), "'step' must be int, not 'two'"),
    "score as text": (edit(MANIFESTS, score="good"), "'score' must be a number"),
    "binary log": (rewrite("metrics.jsonl", BINARY), "the log of the run cannot be read - run/metrics.jsonl:1"),
    "log of other types": (rewrite("metrics.jsonl", "[1]\n"), "run/metrics.jsonl:1 - expected an object, found list"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESUME)
def test_resume(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = RESUME[name]
    change(run)
    assert train("trainer.steps=3", "tracking.tensorboard=false", "--resume") == 3
    told = capsys.readouterr().err
    assert message in told and told.count("error:") == 1 and "Traceback" not in told


@pytest.mark.usefixtures("unjudged")
def test_what_is_no_checkpoint_is_left_alone(run: Path) -> None:
    for name in ("step-abc", "step-5", "old-step-00000009"):
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "manifest.json").write_text("{}")
    steps = ("trainer.steps=3", "trainer.eval_every=2")
    assert train(*steps, "--resume") == 0
    assert {"step-abc", "step-5", "old-step-00000009"} < {p.name for p in (run / "checkpoints").iterdir()}


@pytest.mark.usefixtures("unjudged")
def test_a_zero_checkpoint_of_another_user_is_code(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run / "checkpoints" / "step-00000002" / "student" / "deepspeed" / "mp_rank_00_model_states.pt"
    file.parent.mkdir()
    file.write_bytes(b"a pickle")
    again = ("trainer.steps=3", "trainer.eval_every=2", "--resume")
    with monkeypatch.context() as patch:
        patch.setattr("os.getuid", lambda: file.stat().st_uid + 1)
        assert train(*again) == 3
        told = capsys.readouterr().err
        assert f"{file} - loading it runs code" in told and "--trust-checkpoint" in told
        assert train(*again, "--trust-checkpoint") == 0
    assert train("trainer.steps=4", "trainer.eval_every=2", "--resume") == 0, "one's own needs no word"


READ = {
    "binary recipe": (rewrite("recipe.yaml", BINARY), "cannot read run/recipe.yaml"),
    "alias in the recipe": (rewrite("recipe.yaml", "a: &a [*a]\n"), "run/recipe.yaml:1"),
    "deleted recipe": (rewrite("recipe.yaml", None), "run/recipe.yaml - there is no such file"),
    "binary log": (rewrite("metrics.jsonl", BINARY), "run/metrics.jsonl:1"),
    "text in the log": (rewrite("metrics.jsonl", "hello\n"), "run/metrics.jsonl:1"),
    "metric as text": (
        rewrite("metrics.jsonl", '{"kind": "metrics", "step": 1, "reward/mean": "x"}\n'), "must be a number, not 'x'",
    ),
    "empty spec": (spec("{}"), "the student's spec cannot be read - run/student.safetensors"),
    "spec of no sizes": (spec('{"transformer": {}}'), "the entry 'num_layers' is missing"),
    "half spec": (spec('{"transformer": {'), "run/student.safetensors"),
    "deep spec": (spec(DEEP), "it is nested too deeply"),
    "list for a spec": (spec("[]"), "expected an object, found list"),
    "spec of other types": (
        spec('{"transformer": {"num_layers": "x", "num_attention_heads": 2, "attention_head_dim": []}}'),
        "run/student.safetensors",
    ),
    "spec of an unknown key": (
        spec('{"transformer": {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}, "x": 1}'),
        "run/student.safetensors",
    ),
}  # fmt: skip
COMMANDS = {
    "evaluate": ("evaluate",),
    "sample": ("sample", "--prompt", "a large red circle", "--out", "x.gif"),
    "export": ("export", "--out", "x.safetensors"),
}


@pytest.mark.parametrize("name", READ)
def test_commands_that_read_a_run(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = READ[name]
    change(run)
    for command in COMMANDS.values():
        assert vidalign(*command, "--run", "run") in (2, 3)
        told = capsys.readouterr().err
        assert message in told and told.count("error:") == 1 and "Traceback" not in told, command


@pytest.mark.parametrize("content", [BINARY, DEEP, "[]", '{"values": 1}', '{"values": {"after": {"a": "x"}}}'])
def test_export_reads_the_evaluation(content: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite("evaluation.json", content)(run)
    assert vidalign("export", "--run", "run", "--out", "x.safetensors") == 3
    assert "the evaluation of the run cannot be read - run/evaluation.json" in capsys.readouterr().err


@pytest.mark.parametrize("content", [BINARY, DEEP, "[]", '{"format": 1}', "groups"])
def test_buffer_headers(content: Any, recipe_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if content == "groups":
        values = {"format": 1, "student": "a", "recipe": "b", "groups": 10**12, "settings": {}}
        content = json.dumps(values)
    Path("buffer").mkdir()
    rewrite("buffer.json", None)(Path("buffer"))
    Path("buffer/buffer.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert vidalign("collect", "recipe.yaml", "objective={name: ar_copo, buffer: buffer}", "--out", "buffer") == 3
    told = capsys.readouterr().err
    assert "the buffer's header is damaged - buffer/buffer.json" in told and "Traceback" not in told


LONG = "n" * 300
PATHS = [
    ("train", "recipe.yaml", "--run", "recipe.yaml/x"),
    ("train", "recipe.yaml", "--run", LONG),
    ("train", "recipe.yaml", "--run", "recipe.yaml/x", "--resume"),
    ("train", f"{LONG}.yaml"),
    ("evaluate", "--run", "recipe.yaml/x"),
    ("evaluate", "--run", LONG),
    ("sample", "--run", LONG, "--prompt", "a", "--out", "x.gif"),
    ("export", "--run", "run", "--out", f"{LONG}.safetensors"),
    ("export", "--run", "run", "--out", "recipe.yaml/x.safetensors"),
    ("sample", "--run", "run", "--prompt", "a large red circle", "--out", f"{LONG}.gif"),
    ("collect", "recipe.yaml", "objective={name: ar_copo}", "--out", "recipe.yaml/x"),
]


@pytest.mark.parametrize("command", PATHS, ids=lambda words: " ".join(words)[:60])
def test_paths_that_cannot_be(command: tuple[str, ...], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign(*command) == (3 if command[-1] == f"{LONG}.gif" else 2)
    told = capsys.readouterr().err
    assert told.count("error:") == 1 and "Traceback" not in told
    assert "recipe.yaml" in told or "nnnnn" in told
