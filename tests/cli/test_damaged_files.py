"""Files of a run that were damaged, emptied or replaced since: each command that reads them ends in one message."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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
}


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
        rewrite("metrics.jsonl", '{"kind": "metrics", "step": 1, "reward/mean": "x"}\n'),
        "must be a number, not 'x'",
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
}
SIZES = {
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "patch_size": [1, 8, 8],
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": 64,
    "freq_dim": 16,
    "ffn_dim": 32,
}


def sizes(**values: Any) -> Callable[[Path], None]:
    """The spec of the run's student with other sizes of the network."""
    return spec(json.dumps({"transformer": SIZES | values, "prediction": "x0"}))


READ |= {
    f"{name} {value!r}"[:40]: (sizes(**{name: value}), "run/student.safetensors")
    for name in ("num_layers", "num_attention_heads", "attention_head_dim")
    for value in (-1, 0, 10**12, 10**7, True, "2", None, [2], 1e300, float("nan"))
}
READ |= {
    f"{name} {value!r}"[:40]: (sizes(**{name: value}), "run/student.safetensors")
    for name in ("ffn_dim", "text_dim", "in_channels", "rope_max_seq_len")
    for value in (-1, 10**12, 10**7, "2", [2])
}
READ |= {
    f"{name} {value!r}"[:40]: (spec(json.dumps({"transformer": SIZES, "prediction": "x0", name: value})), told)
    for name, value, told in (
        ("height", 10**12, "height is 1000000000000"),
        ("width", -32, "width is -32"),
        ("height", "32", "height is '32'"),
        ("cache", {"window": -3}, "window is -3"),
        ("cache", {"chunk_frames": 10**12}, "chunk_frames is 1000"),
        ("cache", {"chunk_frames": True}, "chunk_frames is True"),
        ("cache", {"sink": "3"}, "sink is '3'"),
        ("sampler", {"sigmas": ["a"]}, "run/student.safetensors"),
        ("sampler", {"sigmas": 3}, "run/student.safetensors"),
        ("sampler", {"sigmas": [1.0, float("nan")]}, "run/student.safetensors"),
        ("codec", "rgb", "run/student.safetensors"),
        ("codec", {"name": ["x"]}, "run/student.safetensors"),
        ("text", {"name": 3}, "run/student.safetensors"),
        ("prediction", 3, "run/student.safetensors"),
    )
}
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


@pytest.mark.parametrize("name", [name for name in READ if "spec" in name or name.split()[-1].strip("'").isdigit()])
def test_a_recipe_that_names_such_weights(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    READ[name][0](run)
    for command in ("validate", "train"):
        code = vidalign(
            command,
            "recipe.yaml",
            "~student.init",
            "student.path=run/student.safetensors",
            *(("--run", "new") if command == "train" else ()),
        )
        told = capsys.readouterr().err
        assert code in ((2, 3) if command == "train" else (0, 2)) and "Traceback" not in told


def test_a_spec_takes_no_memory_that_the_file_does_not_hold(run: Path) -> None:
    """Wide layers, in a file that holds a narrow network."""
    sizes(ffn_dim=10**7, num_layers=2)(run)
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert vidalign("export", "--run", "run", "--out", "x.safetensors") == 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"


def state(name: str, value: Any) -> Callable[[Path], None]:
    """A file of the newest checkpoint that holds something else, with a manifest that agrees."""

    def change(run: Path) -> None:
        folder = run / "checkpoints" / "step-00000002"
        found = torch.load(folder / name, weights_only=True)
        torch.save(value(found) if callable(value) else value, folder / name)
        manifest = json.loads((folder / "manifest.json").read_text())
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return change


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda found: {name: value for name, value in found.items() if name != key}


def instead(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda found: {**found, **values}


ENGINE, SETS = "student/engine.pt", "policies/policies.pt"
STATE = {
    "list": ("state.pt", [1, 2]),
    "no objective": ("state.pt", without("objective")),
    "objective as text": ("state.pt", instead(objective="x")),
    "objective of another kind": ("state.pt", instead(objective={"rho": 1.0, "odd": 2})),
    "signal as text": ("state.pt", instead(signal="x")),
    "norms as text": ("state.pt", instead(weight_norms={"student": "x"})),
    "norms as a list": ("state.pt", instead(weight_norms=[1])),
    "number in place of the engine": (ENGINE, 3),
    "no weights": (ENGINE, without("weights")),
    "weights as a list": (ENGINE, instead(weights=[1])),
    "optimizer of another kind": (ENGINE, instead(optimizer={"state": {}, "param_groups": []})),
    "optimizer as text": (ENGINE, instead(optimizer="x")),
    "schedule as text": (ENGINE, instead(schedule="x")),
    "steps as text": (ENGINE, instead(steps="many")),
    "list of weight sets": (SETS, [1]),
    "no reference": (SETS, without("reference")),
    "reference as text": (SETS, instead(reference="x")),
}


@pytest.mark.parametrize("name", STATE)
def test_intact_states_of_another_form(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, value = STATE[name]
    state(file, value)(run)
    assert train("trainer.steps=3", "trainer.eval_every=2", "--resume") == 3
    told = capsys.readouterr().err
    assert "run/checkpoints/step-00000002" in told and told.count("error:") == 1 and "Traceback" not in told
    if file == ENGINE and "weights" in name:
        assert vidalign("export", "--run", "run", "--out", "x.safetensors", "--step", "2") == 3
        told = capsys.readouterr().err
        assert "run/checkpoints/step-00000002" in told and "Traceback" not in told


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
