"""examples/: notebooks run from the first to the last cell, and the plugin files are those of their pages and work."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from serving_helpers import serving
from test_docs import ROOT, blocks

from vidalign import registry
from vidalign.rewards.remote import Remote
from vidalign.serving.loading import load
from vidalign.testing import check_metric, check_reward, check_student

EXAMPLES = ROOT / "examples"
PAGES = {
    "sharpness.py": ("adding_a_reward", slice(0, 1)),
    "flicker.py": ("adding_a_metric", slice(0, 1)),
    "painter.py": ("adding_a_student", slice(0, 3)),
    "redness.py": ("serving", slice(0, 1)),
}
"""The page of each file, and which of its blocks of Python it consists of."""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    monkeypatch.chdir(tmp_path)


def test_every_example_is_listed_and_has_its_page() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))
    assert [file for file in files if f"`{file}`" not in listed] == []
    assert [file for file in files if file.endswith(".py")] == sorted(PAGES)


@pytest.mark.parametrize("file", PAGES)
def test_an_example_is_the_code_of_its_page(file: str) -> None:
    page, chosen = PAGES[file]
    code = "\n\n".join(blocks(ROOT / "docs" / f"{page}.md", "python")[chosen])
    assert (EXAMPLES / file).read_text(encoding="utf-8") == code, (
        f"copy the blocks of docs/{page}.md to examples/{file}"
    )


def test_the_reward_keeps_its_promises() -> None:
    registry.load_plugin_file(EXAMPLES / "sharpness.py")
    check_reward("sharpness")


def test_the_metric_keeps_its_promises() -> None:
    registry.load_plugin_file(EXAMPLES / "flicker.py")
    check_metric("steady")


def test_the_student_keeps_its_promises() -> None:
    registry.load_plugin_file(EXAMPLES / "painter.py")
    check_student(
        "painter", yaml.safe_load(blocks(ROOT / "docs" / "adding_a_student.md", "yaml")[0])["student"]["init"]
    )


def test_the_served_reward_scores_for_a_run_elsewhere() -> None:
    reward = load(f"{EXAMPLES}/redness.py:Redness", {"factor": 2}, "cpu").reward
    clips = torch.zeros(2, 3, 3, 4, 4)
    clips[1, :, 0] = 0.25
    with serving(reward) as server:
        scores = Remote(Remote.Config(urls=[server.address], reward="redness")).score(clips, ["a", "b"])
    (values,) = scores.values()
    assert values.tolist() == pytest.approx([0.0, 0.5], abs=1e-2)


@pytest.mark.parametrize("notebook", ["video.ipynb", "language.ipynb"])
def test_a_notebook_runs(notebook: str) -> None:
    """Cell by cell, in order, as a kernel would; nothing but the source is committed."""
    document = json.loads((EXAMPLES / notebook).read_text(encoding="utf-8"))
    assert document["nbformat"] == 4 and len({cell["id"] for cell in document["cells"]}) == len(document["cells"])
    values: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in document["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            shown.append(run_cell("".join(cell["source"]), cell["id"], values))
    assert len(shown) >= 5 and shown[-1] is not None
    if notebook == "video.ipynb":
        assert torch.equal(values["before"], values["student"].sample(values["prompts"], frames=12, seed=0))
        assert not torch.equal(values["before"], values["after"]), "two steps change the student"
        assert {row.metric for row in values["rows"]} >= {"movement", "composite"}
    else:
        assert sum(dict(points)[1] for points in shares_of(values).values()) == pytest.approx(1.0)
        assert len(values["answers"]) == 3


def shares_of(values: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    return {name: values["history"][f"objective/share_{name}/mean"] for name in ("lh", "ll", "ht", "hs")}


def run_cell(source: str, name: str, values: dict[str, Any]) -> Any:
    """Run a cell; returns what its last expression gives, which a notebook shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), values)
    return eval(compile(ast.Expression(last.value), name, "eval"), values) if last is not None else None
