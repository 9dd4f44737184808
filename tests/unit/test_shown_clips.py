"""Which clips of an evaluation are kept, how they are chosen for the page, and their file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vidalign.data.prompts import GroupedPrompts
from vidalign.errors import DataError
from vidalign.evaluation.comparison import read_evaluation, save_evaluation
from vidalign.evaluation.evaluator import SHOWN, Evaluation, Evaluator
from vidalign.evaluation.metrics.base import Metric
from vidalign.report import Pane, ShownPrompt
from vidalign.report.kept import read_clips, write_clips
from vidalign.workflows.shown_clips import kept_clips

NAN = float("nan")


def evaluation(scores: Sequence[float], judge: str = "auditor") -> Evaluation:
    """Clip n is plain grey n / 100."""
    count = len(scores)
    clips = (torch.arange(count) / 100).view(-1, 1, 1, 1, 1).expand(count, 2, 3, 4, 4)
    below = [{judge: score} for score in scores]
    prompts = [f"prompt {n}" for n in range(count)]
    return Evaluation(prompts, {(judge, "composite"): torch.tensor(scores)}, clips, below)


def chosen(before: Sequence[float], after: Sequence[float]) -> list[tuple[int, str]]:
    """Number and label of the prompts that the page shows."""
    kept = kept_clips({"before": evaluation(before), "after": evaluation(after)})
    return [(int(one.prompt.split()[1]), one.label) for one in kept if np.isfinite(one.change)]


def test_the_largest_changes_come_first_and_three_have_labels() -> None:
    changes = [0.0, 0.1, -0.5, 0.3, 0.02, -0.01, 0.4, -0.03, 0.06]
    ranked = sorted(range(9), key=lambda n: changes[n])
    assert (ranked[0], ranked[4], ranked[8]) == (2, 4, 6)
    assert chosen([0.5] * 9, [0.5 + c for c in changes]) == [
        (2, "worst"),
        (6, "best"),
        (3, ""),
        (1, ""),
        (8, ""),
        (4, "median"),
    ]


def test_few_clips_and_clips_without_a_score() -> None:
    assert chosen([0.5], [0.7]) == [(0, "")]
    assert chosen([0.5, 0.5], [0.7, 0.4]) == [(0, "best"), (1, "worst")]
    assert chosen([0.5, NAN, 0.5], [0.7, 0.9, NAN]) == [(0, "")]
    assert chosen([NAN], [NAN]) == []


def test_the_first_prompts_are_kept_for_other_runs() -> None:
    after = [0.0] * 10 + [1.0] * 10
    kept = kept_clips({"before": evaluation([0.0] * 20), "after": evaluation(after)})
    numbers = {int(one.prompt.split()[1]) for one in kept}
    assert set(range(SHOWN)) <= numbers and len(kept) == len(numbers) <= 2 * SHOWN
    assert all((one.panes[0].frames == round(2.55 * int(one.prompt.split()[1]))).all() for one in kept)


def test_clips_that_nothing_judged_are_kept_in_their_order() -> None:
    unjudged = Evaluation(["a", "b"], {}, torch.zeros(2, 2, 3, 4, 4), [{}, {}])
    assert [one.prompt for one in kept_clips({"before": unjudged, "after": unjudged})] == ["a", "b"]


def test_the_file_gives_back_what_was_shown(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (7, 20, 24, 3), np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, 200)[None, None, :, None], (5, 120, 200, 3)).astype(np.uint8)
    shown = [
        ShownPrompt('"><b>odd</b>', [Pane("before", noise), Pane("after", noise[:3], {"auditor": 0.25})], "best", 0.5),
        ShownPrompt("large", [Pane("before", ramp, {"auditor": NAN})]),
    ]
    write_clips(tmp_path / "clips.json", shown, 16)
    (first, second), fps = read_clips(tmp_path / "clips.json")
    assert fps == 16 and (first.prompt, first.label, first.change) == ('"><b>odd</b>', "best", 0.5)
    assert (first.panes[0].frames == noise).all() and (first.panes[1].frames == noise[:3]).all()
    assert first.panes[1].scores == {"auditor": 0.25} and second.panes[0].scores == {}
    assert second.panes[0].frames.shape == ramp.shape and np.isnan(second.change)
    assert np.abs(second.panes[0].frames.astype(int) - ramp).mean() < 2  # a JPEG


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"frames": 99}, "is no sheet of 99 frames"),
        ({"columns": 0}, "is no sheet"),
        ({"src": "data:image/png;base64,%%%"}, "a picture is no base64"),
        ({"src": "data:image/png;base64,AAAA"}, "cannot identify image"),
        ({"scores": 3}, "'scores' must be dict"),
        ({"row": 1}, "'row' must be str"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, object], why: str) -> None:
    path = tmp_path / "clips.json"
    write_clips(path, [ShownPrompt("a", [Pane("before", np.zeros((4, 8, 8, 3), np.uint8))])], 8)
    document = json.loads(path.read_text())
    document["prompts"][0]["panes"][0] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=why):
        read_clips(path)


class Constant(Metric):
    """One for every clip."""

    name = "constant"

    def score(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"one": torch.ones(len(clips))}


class Numbered(GroupedPrompts):
    """The prompts in their own order."""

    def __getitem__(self, sample: int) -> str:
        return self.groups[0][sample]


@pytest.mark.parametrize(("clips", "kept"), [(0, SHOWN), (9, 9), (40, 40), (1000, 50)])
def test_clips_are_kept_while_they_take_little_memory(clips: int, kept: int) -> None:
    def generate(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        return torch.tensor([float(p) for p in prompts]).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4)

    judge = Evaluator(Numbered([[str(n / 100) for n in range(50)]], 0), [Constant()], count=50, seeds=2)
    size = 2 * 3 * 4 * 4 * 4  # float32
    found = judge(generate, memory=clips * size + size // 2)
    assert found.clips[:, 0, 0, 0, 0].tolist() == pytest.approx([n / 100 for n in range(kept)])
    assert len(found.output_scores) == kept


def test_an_evaluation_is_read_back(tmp_path: Path) -> None:
    before, after, truth = evaluation([0.123456789, NAN]), evaluation([1.5e-7, 2.0]), evaluation([1.0, 1.0])
    after.trained = frozenset({"aesthetic"})
    save_evaluation(tmp_path / "e.json", before, after, truth, {"seed": "3"}, seeds=4, student_sha256="ab")
    found = read_evaluation(tmp_path / "e.json")
    assert (found.header, found.seeds, found.texts, found.student_sha256) == ({"seed": "3"}, 4, False, "ab")
    assert list(found.judged) == ["before", "after", "ground truth"]
    first, second = (found.judged[name].metrics["auditor", "composite"] for name in ("before", "after"))
    assert first[0].item() == pytest.approx(0.123457) and first[1].isnan() and second[0].item() == pytest.approx(1.5e-7)
    assert found.judged["after"].trained == {"aesthetic"} and found.judged["after"].headline == ("auditor", "composite")
