"""`vidalign play` through the command line, and the options of `sample` that its commands name."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from run_helpers import RECIPE, vidalign

from vidalign import load_recipe, load_student
from vidalign.build import build_student
from vidalign.play.panes import open_stage
from vidalign.play.session import Session, Start

PROMPT, THEN = "a large red circle falls", "a small blue square bounces"
ADAPTER = RECIPE.replace("prediction: x0\n", "prediction: x0\n  adapter: {rank: 2, alpha: 4}\n")
WEIGHTS = "student.safetensors"
STEPS = ("trainer.steps=1", "trainer.learning_rate=0.05", "trainer.save_every=1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs that began with the same weights: two with an adapter, one without, and one of another start."""
    folder = tmp_path_factory.mktemp("play")
    (folder / "recipe.yaml").write_text(ADAPTER, encoding="utf-8")
    more = {
        "on": (),
        "semi": ("trainer.learning_rate=0.1",),
        "full": ("student.adapter=null",),
        "rounded": ("trainer.save_dtype=bfloat16",),
        "other": ("student.init.transformer.ffn_dim=64",),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidalign.workflows.evaluate.evaluate_run", lambda folder: [])
        for name, settings in more.items():
            command = ("train", str(folder / "recipe.yaml"), "--run", str(folder / name), *STEPS, *settings)
            assert vidalign(*command) == 0
    return folder


@pytest.mark.parametrize(
    ("names", "scale"),
    [
        (("on",), 1.0),
        (("on",), 0.35),
        (("full",), 1.0),
        (("on", "--semi", "semi"), 0.6),
        (("on", "--compare", "full"), 1),
    ],
    ids=str,
)
def test_the_command_on_the_page_makes_the_same_file(
    names: tuple[str, ...], scale: float, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte by byte, for every pane, with a prompt change."""
    monkeypatch.chdir(folder)
    words = dict(zip(names[1::2], names[2::2], strict=True))
    stage = open_stage(names[0], words.get("--compare", ""), Path(words["--semi"]) if "--semi" in words else None)
    assert [metric.name for metric in stage.metrics] == ["world_auditor"] and len(stage.prompts) == 8
    session = Session(stage)
    session.start(Start(PROMPT, seed=3, seconds=1.1, scale=scale))
    session.next()
    session.switch(THEN)
    while session.next() is not None:
        assert session.scores().keys() == {"world_auditor/composite", "world_auditor/pass"}
    films = set()
    for pane in range(2):
        threads, *command = shlex.split(session.command(pane))
        assert threads == f"OMP_NUM_THREADS={torch.get_num_threads()}" and command[:2] == ["vidalign", "sample"]
        assert vidalign(*command[1:-1], str(tmp_path / f"{pane}.mp4")) == 0
        name, film = session.film(pane)
        assert name == command[-1] == "clip.mp4" and film == (tmp_path / f"{pane}.mp4").read_bytes()
        films.add(film)
    assert len(films) == 2, "the panes show different students"


def test_before_is_the_start_and_after_the_run(folder: Path) -> None:
    before, after = (pane.streamer.student.state_dict() for pane in open_stage(str(folder / "on")).panes)  # type: ignore[attr-defined]
    recipe = load_recipe(folder / "on" / "recipe.yaml")
    for found, expected in ((before, build_student(recipe)), (after, load_student(folder / "on" / WEIGHTS))):
        values = expected.state_dict()
        assert found.keys() == values.keys()
        assert all(torch.equal(value, values[name].to(value.dtype)) for name, value in found.items())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_a_run_is_played_without_the_prompts_that_it_was_judged_on(folder: Path, tmp_path: Path) -> None:
    """They are proposals: the run may have been copied here alone."""
    shutil.copytree(folder / "on", tmp_path / "copied")
    recipe = tmp_path / "copied" / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    assert text.count("world:basic/unseen") == 1
    recipe.write_text(text.replace("world:basic/unseen", "elsewhere/held_out.txt"), encoding="utf-8")
    stage = open_stage(str(tmp_path / "copied"))
    assert stage.prompts == [] and stage.metrics == [] and len(stage.panes) == 2


def sampled(folder: Path, run: str, out: Path, *more: str) -> bytes:
    """A clip of a run, in fp32."""
    words = ("--prompt", PROMPT, "--frames", "6", "--precision", "fp32", "--out", str(out))
    assert vidalign("sample", "--run", str(folder / run), *words, *more) == 0
    return out.read_bytes()


def test_a_scale_of_zero_is_the_start_and_one_the_run(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.mp4"
    zero, half, one, plain = (
        sampled(folder, "on", out, *words) for words in (("--scale", "0"), ("--scale", "0.5"), ("--scale", "1"), ())
    )
    assert one == plain and len({zero, half, one}) == 3
    for run in ("full", "rounded"):
        assert sampled(folder, run, out, "--scale", "0") == zero, "all began with the same weights"
    assert sampled(folder, "rounded", out, "--scale", "1") == sampled(folder, "rounded", out)


def test_a_scale_onto_another_run_is_the_merge(folder: Path) -> None:
    """To rounding what `vidalign merge` writes, which adds the adapters up by PEFT."""
    merged = folder / "merged"
    both = ("--semi", str(folder / "semi"), "--on-policy", str(folder / "on"))
    assert vidalign("merge", *both, "--scale", "0.6", "--out", str(merged)) == 0
    pane = open_stage(str(folder / "on"), semi=folder / "semi").panes[-1]
    network = pane.at(0.6).student.double()  # type: ignore[attr-defined]
    expected, semi = (load_student(run / WEIGHTS).state_dict() for run in (merged, folder / "semi"))
    assert any(not torch.allclose(semi[name], value, atol=1e-3) for name, value in expected.items())
    for name, value in network.state_dict().items():  # in the precision of sampling, bf16 where the CPU has it
        torch.testing.assert_close(value, expected[name].double(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (2, ("no/such/student",), "no/such/student"),
        (2, ("tokens/student",), "cannot be streamed"),
        (2, ("world/student", "--semi", "on"), "--semi needs a run"),
        (2, ("world/student", "--compare", "tokens/student"), "cannot be streamed"),
        (2, ("world/student", "--metric", "world_auditer"), "did you mean 'world_auditor'?"),
        (2, ("world/student", "--metric", "diversity"), "judges seeds"),
        (2, ("world/student", "--seconds", "0"), "the length is 0.0"),
        (2, ("world/student", "--port", "99999"), "choose another --port"),
        (3, ("on", "--semi", "other"), "began with different weights"),
    ],
)
def test_what_cannot_be_played(
    code: int,
    words: tuple[str, ...],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert vidalign("play", *words, *(() if "--port" in words else ("--port", "0"))) == code
    errors = capsys.readouterr().err
    assert message in errors and errors.count("error:") == 1, errors


@pytest.mark.parametrize("words", [("world/student", "--scale", "0.5"), ("world/student", "--semi", "on")])
def test_weights_have_no_scale(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert vidalign("sample", *words, "--prompt", PROMPT, "--frames", "6", "--out", "x.mp4") == 2
    assert "weights were not changed by a run" in capsys.readouterr().err


def test_a_taken_port_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vidalign.play.panes.open_stage", lambda *words: pytest.fail("it was loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert vidalign("play", "world/student", "--port", str(taken.getsockname()[1])) == 2
    assert "cannot be used" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)
    assert vidalign("play", "world/student") == 2
    assert "pip install 'vidalign[serve]'" in capsys.readouterr().err


SLOW = "import time\nfrom vidalign.play.session import Session\nSession._next = lambda self: time.sleep(60)\n"
"""A plugin file that makes every chunk take a minute."""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_at_once(sent: signal.Signals, tmp_path: Path) -> None:
    """Also while a chunk is made; the link works until then."""
    from websockets.sync.client import connect

    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, "-m", "vidalign.cli", "play", "world/student", "--port", "0"]
    plugin = ["--plugin", str(tmp_path / "slow.py")]
    process = subprocess.Popen([*command, *plugin], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=\S{30,}", process.stdout.readline())
        assert found, process.stderr.read()
        cookies = urllib.request.HTTPCookieProcessor()
        with urllib.request.build_opener(cookies).open(found[0]) as answer:
            assert b"vidalign play" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(found[0])
        (cookie,) = cookies.cookiejar
        origin = f"http://127.0.0.1:{found[1]}"
        with connect(
            f"ws://127.0.0.1:{found[1]}/stream",
            origin=origin,  # type: ignore[arg-type]
            additional_headers={"Cookie": f"{cookie.name}={cookie.value}"},
        ) as page:
            assert '"hello"' in str(page.recv())
            page.send('{"type": "start", "prompt": "a large red circle falls", "seed": 0, "seconds": 60, "scale": 1}')
            assert '"started"' in str(page.recv())
            page.send('{"type": "next"}')
            time.sleep(0.5)
            process.send_signal(sent)
            _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0 and not errors, errors
