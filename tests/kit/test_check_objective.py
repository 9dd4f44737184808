"""Every built-in objective keeps its promises; an objective that breaks one is refused by that very promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import broken_objectives as broken
import pytest

from vidalign import registry
from vidalign.testing import check_objective
from vidalign.testing.objectives import PROMISES

BUILT_IN = [name for name, source in registry.names("objectives").items() if source == "vidalign"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin_objective" / "vidalign_best_of_n.py"
BROKEN = [
    (broken.Undocumented, "config", "1 of 1 settings without a docstring under the field: level"),
    (broken.OutOfRange, "config", "defaults out of its own ranges: level must lie in 0..1"),
    (broken.SumLoss, "micro_batches", "depends on trainer.micro_batch: the loss of the student is"),
    (
        broken.PartialLog,
        "micro_batches",
        "logs objective/samples/mean as 1 in 4 micro-batches of at most 1, and 4 in one",
    ),
    (broken.NoGradient, "micro_batches", "gives the student no gradient: its loss is 0"),
    (broken.GlobalNoise, "random_numbers", "draws from the global generator of torch"),
    (broken.OwnBatchOnly, "ranks", "depends on the number of processes: 2 steps move the weights by"),
    (broken.Alone, "ranks", "RuntimeError: one is enough"),
    (broken.Forgetful, "resume", "cannot be resumed: stopped after step 2 of 3"),
    (broken.GlobalNoise, "resume", "cannot be resumed"),
    (broken.Cheap, "cost", "takes 30 forwards in 3 steps, but its cost() says 18"),
    (broken.Silent, "cost", "says nothing of its cost"),
    (broken.Narrow, "device", "keeps 1 tensors in another precision than fp64: noise (torch.float32)"),
    (broken.Mixing, "device", "mixes precisions at "),
]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_keeps_its_promises(name: str) -> None:
    """That of the ranks is tried beside the other tests of several processes."""
    check_objective(name, promises=[promise for promise in PROMISES if promise != "ranks"])


@pytest.mark.parametrize(("objective", "promise", "words"), BROKEN)
def test_a_broken_promise_is_named(objective: type[Any], promise: str, words: str) -> None:
    with pytest.raises(AssertionError) as refusal:
        check_objective(objective, promises=[promise])
    assert str(refusal.value).startswith(f"{objective.name} ") and words in str(refusal.value)
    assert objective.name not in registry.names("objectives"), "it was lent to the registry"


def test_a_class_of_an_author_passes() -> None:
    check_objective(broken.Sound)
    check_objective(broken.Remembering, promises=["resume"])


def test_the_example_package_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    from vidalign_best_of_n import BestOfN

    check_objective(BestOfN)


def test_a_plugin_file_passes_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `--plugin FILE` loads it: its module is not on the path of a second process."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    text = EXAMPLE.read_text(encoding="utf-8").replace("class BestOfN", "@register('objectives', 'own')\nclass BestOfN")
    file = tmp_path / "own.py"
    file.write_text(text.replace("import torch\n", "import torch\nfrom vidalign.registry import register\n", 1))
    registry.load_plugin_file(file)
    check_objective("own", ["objective.group_size=2"], promises=["config", "cost", "ranks"])


def test_an_override_reaches_the_runs_and_a_wrong_promise_is_refused() -> None:
    with pytest.raises(AssertionError, match="takes 18 forwards"):
        check_objective(broken.Cheap, ["data.frames=6"], promises=["cost"])
    with pytest.raises(AssertionError, match=r"no such promise: \['costs'\]"):
        check_objective("sft", promises=["costs"])
