"""What dopd logs of its tokens, and the responses that it shows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from language_objective_helpers import collect, make, make_student

from vidalign.engine.policies import CURRENT
from vidalign.objectives.dopd import DOPD, NAMES
from vidalign.objectives.parts import tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    make_student(folder / "student.safetensors", 1, tied=True)
    make_student(folder / "teacher.safetensors", 2, tied=False)
    return folder


@pytest.mark.parametrize(("group", "rows"), [(2, [0, 1, 2, 3, 4, 5]), (7, [0, 2, 4, 6, 8, 10, 12, 14])])
def test_responses_are_shown_with_the_regime_and_the_gap_of_every_token(
    group: int, rows: list[int], folder: Path
) -> None:
    """Eight of the step's at most, spread over all; in every second step."""
    objective, ctx = make(folder, "dopd", f"objective.group_size={group}")
    assert isinstance(objective, DOPD)
    pages: list[tuple[int, list[Any]]] = []
    ctx.tracker = SimpleNamespace(tokens=lambda step, shown: pages.append((step, shown)))  # type: ignore[assignment]
    for ctx.clips_every, ctx.step in ((0, 2), (2, 1), (2, 2)):
        data = collect(objective, ctx)
    ((step, shown),) = pages
    assert step == 2 and len(data) == 3 * group
    texts = [data.prompts[int(place)].privileged for place in range(len(data.prompts))]
    logps = [tokens.score(ctx, source, data, texts).logp for source in (tokens.TEACHER, CURRENT)]
    for row, one in zip(rows, shown, strict=True):
        keep, example = data["response"][row], data.prompts[int(data.group_index[row])]
        assert (one.prompt, one.privileged) == (example.prompt, example.privileged)
        assert one.regimes == [NAMES[r] for r in data["regime"][row][keep].tolist()]
        assert len(one.tokens) == int(keep.sum())
        assert one.gaps == pytest.approx((logps[0] - logps[1])[row][keep].tolist(), abs=1e-6)


def test_what_is_logged_of_tokens_is_a_mean_over_responses(folder: Path) -> None:
    objective, ctx = make(folder, "dopd")
    data = collect(objective, ctx)
    texts = [example.privileged for example in data.prompts]
    found, logps, mask = {}, [], data["response"]
    for name, source in (("teacher", tokens.TEACHER), ("privileged_student", CURRENT)):
        logp, spread, _ = tokens.score(ctx, source, data, texts)
        means = [values[keep].mean() for values, keep in zip(spread, mask, strict=True)]
        found[f"objective/entropy_{name}/mean"] = float(torch.stack(means).mean())
        logps.append(logp[mask])
    gaps = (logps[0] - logps[1]).abs()
    found |= {"objective/gap/mean": float(gaps.double().mean()), "objective/gap/max": float(gaps.max())}
    assert {name: data.metrics[name] for name in found} == pytest.approx(found, rel=1e-6)
