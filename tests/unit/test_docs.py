"""README, docs/ and recipe headers: what they point to exists, and the example in them trains."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from serving_helpers import serving

import vidalign
from vidalign import registry, testing
from vidalign.cli import main
from vidalign.cli import serve as cli_serve
from vidalign.recipe import load_recipe
from vidalign.recipe.plugins import make
from vidalign.rewards.remote import Remote
from vidalign.serving import wire
from vidalign.serving.app import ABOUT
from vidalign.serving.loading import load
from vidalign.testing import check_reward
from vidalign.tracking import health
from vidalign.trainer import Trainer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
EXAMPLE = ROOT / "docs" / "adding_an_objective.md"
STUDENT = {
    "init": {
        "transformer": {
            "patch_size": [1, 8, 8],
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 3,
            "out_channels": 3,
            "text_dim": 64,
            "freq_dim": 16,
            "ffn_dim": 48,
            "num_layers": 1,
            "cross_attn_norm": True,
            "rope_max_seq_len": 64,
        },
        "prediction": "x0",
    }
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{name(page)} links to {link}, which is not there"
        assert not anchor or anchor in headings(target), f"{name(page)} links to {link}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_source_files_exist(page: Path) -> None:
    for path in re.findall(r"`(vidalign/[\w/]+\.py)`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), f"{name(page)} names {path}, which is not there"


def in_nav(entry: Any) -> list[str]:
    """The pages below an entry of the site's navigation."""
    if isinstance(entry, str):
        return [entry]
    return [page for child in (entry.values() if isinstance(entry, dict) else entry) for page in in_nav(child)]


def test_every_page_stands_once_in_the_navigation_of_the_site() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    top = ["Start here", "Guides", "Methods", "Reference", "Benchmark", "Negative results", "Glossary"]
    assert site["strict"] and [next(iter(part)) for part in site["nav"]] == top
    listed = in_nav(site["nav"])
    generated = {page for page in listed if page.startswith("reference/")}
    assert len(listed) == len(set(listed)) > 30 and len(generated) == 3
    written = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    assert set(listed) - generated - {"benchmarks/README.md"} == written


def test_the_readme_leads_into_the_site() -> None:
    readme = PAGES[0].read_text(encoding="utf-8")
    for page in ("index", "guides", "recipes", "negative_results", "benchmark", "methods/afd", "methods/dopd"):
        assert f"(docs/{page}.md)" in readme


def test_every_health_warning_has_its_section() -> None:
    source = Path(health.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r'\bHealth\(\s*"(\w+)"', source))
    assert len(names) == len(health.default_monitors()) + 1, "one name a monitor, and weights_exploded of a save"
    assert {n for n in names if n not in headings(ROOT / "docs" / "troubleshooting.md")} == set()


@pytest.mark.parametrize("kind", ["objectives", "rewards"])
def test_every_built_in_is_in_the_docs(kind: str) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [n for n, source in registry.names(kind).items() if source == "vidalign" and n not in text]
    assert missing == []


def test_every_recipe_has_a_row() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    shipped = [path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in RECIPES]
    runnable = [name for name in shipped if not name.startswith("twins/") and not name.endswith("base")]
    assert [name for name in runnable if f"`{name}`" not in page] == []


def test_there_are_recipes() -> None:
    assert ROOT / "recipes" / "world" / "astrolabe.yaml" in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_headers_say_how_to_run(path: Path) -> None:
    header = "".join(line for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    assert path.read_text(encoding="utf-8").startswith("#"), f"{name(path)} begins with a comment"
    if path.name == "base.yaml":
        assert "A parent only" in header
        return
    shipped = str(path.relative_to(ROOT / "recipes").with_suffix(""))
    assert re.search(rf"Run: vidalign train {re.escape(shipped)}(\s|$)", header), f"{name(path)} needs a Run: line"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_imports_in_python_blocks_work(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)
            elif isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                missing = [a.name for a in node.names if node.module != "__future__" and not hasattr(module, a.name)]
                assert missing == [], f"{name(page)}: {node.module} has no {missing}"


def test_the_example_objective_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code block as a plugin file and the recipe beside it, with a network of one block and two steps."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    (tmp_path / "reward_weighted.py").write_text(blocks(EXAMPLE, "python")[0])
    registry.load_plugin_file(tmp_path / "reward_weighted.py")
    recipe = yaml.safe_load(blocks(EXAMPLE, "yaml")[0]) | {"student": STUDENT}
    recipe |= {"rewards": {"text_alignment": 1.0}, "tracking": {"panel": "none", "tensorboard": False}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    norms = []
    for micro_batch in (2, 8):
        small = ["trainer.steps=1", "trainer.prompts_per_step=2", f"trainer.micro_batch={micro_batch}"]
        trainer = Trainer(load_recipe(tmp_path / "recipe.yaml", small), tmp_path / f"run-{micro_batch}")
        before = {key: value.clone() for key, value in trainer.ctx.student.state_dict().items()}
        norms.append(trainer.train_step()["health/grad_norm/mean"])
        after = trainer.ctx.student.state_dict()
        assert any(not before[key].equal(value) for key, value in after.items()), "a step changes the weights"
        trainer.tracker.close()
    assert norms[0] > 0 and norms[0] == pytest.approx(norms[1], rel=1e-5), "micro-batches do not change the gradient"


DOORS = {
    "sharpness.py": "adding_a_reward",
    "flicker.py": "adding_a_metric",
    "numbered.py": "adding_a_prompt_source",
    "sunrise.py": "adding_a_teacher",
}
"""Plugin files in code blocks, and their pages."""


def clips_of(prompts: list[str], folder: Path) -> None:
    """A store with one clip of grey a prompt."""
    folder.mkdir()
    rows = [json.dumps({"file_name": f"{n}.npz", "prompt": prompt}) for n, prompt in enumerate(prompts)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    for n in range(len(prompts)):
        np.savez(folder / f"{n}.npz", clip=np.full((12, 32, 32, 3), 40 * n % 255, np.uint8))


def trained(recipe: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """What the evaluation after a step of the recipe says, with a network of one block."""
    recipe |= {"student": STUDENT, "data": recipe["data"] | {"frames": 12}}
    recipe |= {"tracking": {"panel": "none", "tensorboard": False}}
    recipe["evaluation"] = recipe.get("evaluation", {}) | {"count": 2}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    small = ["trainer.steps=1", "trainer.prompts_per_step=2", "trainer.micro_batch=4", "trainer.eval_every=1"]
    with pytest.raises(SystemExit) as leaving:
        main(["train", "recipe.yaml", "--run", "run", *arguments, *small])
    assert not leaving.value.code
    values: dict[str, Any] = json.loads(Path("run/evaluation.json").read_text())["values"]["after"]
    return values


@pytest.mark.parametrize("plugin", DOORS)
def test_the_example_of_a_door_trains_and_is_judged(
    plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line, as the page says, with a network of one block."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    monkeypatch.chdir(tmp_path)
    file = ROOT / "docs" / f"{DOORS[plugin]}.md"
    assert f"`{plugin}`" in file.read_text(encoding="utf-8")
    Path(plugin).write_text(blocks(file, "python")[0])
    Path("prompts.txt").write_text("a heron lands\na kite dives\na lamp swings\na cat yawns\n")
    clips_of(
        [f"{noun} moves {way}" for noun in ("a cat", "a dog", "a heron", "a whale") for way in ("left", "right")],
        Path("clips"),
    )
    values, told = trained(yaml.safe_load(blocks(file, "yaml")[0]), "--plugin", plugin), capsys.readouterr()
    expected = {
        "sharpness.py": {"trained rewards/sharpness", "trained rewards/composite"},
        "flicker.py": {"steady/all", "world_auditor/composite", "trained rewards/composite"},
        "numbered.py": set(),
        "sunrise.py": set(),
    }[plugin]
    assert expected <= set(values)
    assert ("nothing judges the evaluation prompts" in told.err) == (not values)


def test_the_example_of_a_served_plugin_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe that stands beside the command on the page."""
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "adding_a_reward.md"
    Path("sharpness.py").write_text(blocks(page, "python")[0])
    registry.load_plugin_file("sharpness.py")
    Path("prompts.txt").write_text("a heron lands\na kite dives\na lamp swings\na cat yawns\n")
    text = blocks(page, "yaml")[1]
    with serving(make("rewards", "sharpness", {"goal": 0.2}, "")) as server:
        values = trained(yaml.safe_load(text.replace("http://127.0.0.1:8000", server.address)))
    assert {"trained rewards/sharp", "trained rewards/composite"} <= set(values) and server.address not in text


def test_the_reward_in_ten_lines_keeps_its_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    block = blocks(ROOT / "docs" / "rewards.md", "python")[0]
    assert len(block.strip().splitlines()) <= 12
    (tmp_path / "bright.py").write_text(block)
    registry.load_plugin_file(tmp_path / "bright.py")
    check_reward("bright")


def test_the_example_of_servers_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = blocks(ROOT / "docs" / "serving.md", "yaml")[0]
    with (
        serving(make("rewards", "motion_quality", {}, "")) as one,
        serving(make("rewards", "motion_quality", {}, "")) as two,
    ):
        recipe = text.replace("http://127.0.0.1:8000", one.address).replace("http://127.0.0.1:8001", two.address)
        assert "trained rewards/motion" in trained(yaml.safe_load(recipe))


def test_the_example_of_an_own_environment_scores(tmp_path: Path) -> None:
    """The file that it serves, asked by the lines that write the wire format."""
    own, client = blocks(ROOT / "docs" / "serving.md", "python")
    (tmp_path / "redness.py").write_text(own)
    values: dict[str, Any] = {}
    exec(client, values)
    clips = np.random.default_rng(0).integers(0, 256, (3, 2, 3, 4, 4), np.uint8)
    with serving(load(f"{tmp_path}/redness.py:Redness", {"factor": 2}, "cpu").reward) as server:
        scores = values["ask"](server.address, clips, ["a", "b", "c"])
    assert scores["redness"] == pytest.approx(
        (2 * clips[:, :, 0].astype(float) / 255).mean((1, 2, 3)).tolist(), abs=1e-6
    )


def test_the_tables_of_the_server_are_complete() -> None:
    """Every option of the command, every setting of the client, every status of the schema."""
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    options = set(inspect.signature(cli_serve.serve).parameters) - {"reward", "settings", "plugin", "warm_up"}
    assert options and [one for one in options if f"`--{one.replace('_', '-')}`" not in page] == []
    assert [f.name for f in fields(Remote.Config) if f"`{f.name}`" not in page] == []
    assert [key for key in wire.KEYS if f"`{key}`" not in page] == []
    assert [status for status in ABOUT if not re.search(rf"^\| [\d, ]*{status}[\d, ]* \|", page, re.MULTILINE)] == []


def test_the_example_tests_of_plugins_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugins of the other pages beside the block of this one."""
    page = ROOT / "docs" / "testing_a_plugin.md"
    assert [n for n in testing.__all__ if f"`{n}(" not in page.read_text(encoding="utf-8")] == []
    monkeypatch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
    monkeypatch.chdir(tmp_path)
    files = {
        "adding_an_objective": "reward_weighted.py",
        "adding_a_reward": "sharpness.py",
        "adding_a_metric": "flicker.py",
    }
    for name_of_page, file in files.items():
        Path(file).write_text(blocks(ROOT / "docs" / f"{name_of_page}.md", "python")[0])
    values: dict[str, Any] = {}
    exec(blocks(page, "python")[0], values)
    tests = [value for key, value in values.items() if key.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test()


def test_the_python_page_runs_and_lists_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block as it stands, with the shipped student; every public name is on the page."""
    page = ROOT / "docs" / "api.md"
    text = page.read_text(encoding="utf-8")
    assert [n for n in vidalign.__all__ if f"`vidalign.{n}(" not in text] == []
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {}
    exec(blocks(page, "python")[0], values)
    assert values["clips"].shape == (1, 12, 3, 32, 32) and values["rows"][0].metric == "text_alignment"
    again = vidalign.load_student("mine.safetensors").sample(["a large red circle falls"], frames=12)
    assert torch.equal(again, values["clips"])
    assert all(getattr(vidalign, n).__doc__ for n in vidalign.__all__)
