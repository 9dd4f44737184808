"""Progress of work in stages: plain lines on a pipe, bars that leave nothing behind on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vidalign.tracking import stages as module
from vidalign.tracking.panel import Mode
from vidalign.tracking.stages import counted, stages


def shown(mode: Mode, *, terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal)
    with stages(mode, console) as stage:
        generate = counted(lambda prompts, noise: noise, stage("judging [x]", 3))
        assert generate(["a", "b"], 7) == 7
        generate(["c"], 7)
        stage("writing", 1)(1)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["auto", "plain"])
def test_a_pipe_gets_one_plain_line_a_stage(mode: Mode) -> None:
    assert shown(mode) == "judging [x]: 3/3\nwriting: 1/1\n"


def test_a_long_stage_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.0)
    assert shown("plain") == "judging [x]: 2/3\njudging [x]: 3/3\nwriting: 1/1\n"


def test_a_terminal_shows_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shown("auto", terminal=True)
    assert "judging" in found and "3/3" in found and "\x1b[2K" in found, "drawn, and cleared at the end"


def test_nothing_where_nothing_is_wanted() -> None:
    assert shown("none", terminal=True) == ""
