"""Published results belong to the worlds that are shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vidalign.bench.protocol import load_protocol
from vidalign.bench.results import read_results
from vidalign.worlds import golden

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PUBLISHED = sorted(file for file in RESULTS.glob("*.json") if '"protocol"' in file.read_text()[:4000])


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, one in items for key, leaf in leaves(one, f"{path}/{name}").items()}
    return {path: value}


@pytest.mark.parametrize("world", ["first", "events"])
def test_the_worlds_do_what_is_recorded(world: str) -> None:
    file, behaviour = {"first": (golden.FILE, golden.behaviour), "events": (golden.EVENTS, golden.events_behaviour)}[
        world
    ]
    recorded, now = leaves(json.loads(file.read_text())), leaves(behaviour())
    assert recorded.keys() == now.keys()
    for name, value in recorded.items():
        expected = pytest.approx(value, abs=2e-3) if isinstance(value, float) else value
        assert now[name] == expected, f"{name}: a world changed; see the docstring of vidalign.worlds.golden"


def test_a_changed_score_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vidalign.worlds.video import scorer

    plain = scorer.score
    monkeypatch.setattr(scorer, "score", lambda clips, prompts: {k: 0.99 * v for k, v in plain(clips, prompts).items()})
    with pytest.raises(AssertionError, match="a world changed"):
        test_the_worlds_do_what_is_recorded("first")


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_published_results_are_those_of_the_shipped_code_or_say_that_they_are_not(file: Path) -> None:
    results = read_results(file)
    if results.outdated_since:
        return
    protocol = load_protocol(results.protocol.name)
    assert results.world_hash == protocol.source.version and results.protocol.hash == protocol.hash
    assert not [cell.row for cell in results.cells if cell.commit.endswith("+changes")]
