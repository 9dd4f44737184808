"""The CPU twins of language recipes: every one trains, and one of each family goes through every command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
from run_helpers import vidalign
from safetensors.torch import load_file
from tiny_chats import make_chats
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from vidalign import registry
from vidalign.data.graders import Math
from vidalign.data.source import open_source
from vidalign.recipe import load_recipe, shipped_recipes
from vidalign.students.language import LanguageStudent
from vidalign.tracking import read_history

FAMILIES = ("qwen3/", "qwen3_vl/", "qwen25/", "smolvlm/")
TWINS = [name for name in shipped_recipes() if name.removeprefix("twins/").startswith(FAMILIES) and "twins/" in name]
WHOLE = ("qwen3/dopd_math", "qwen25/dopd", "qwen3_vl/dopd", "smolvlm/dopd")
SEEING = ("qwen3_vl", "smolvlm")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, filled for the twins."""
    made = tmp_path_factory.mktemp("language_twins")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {kind: {} for kind in registry.KINDS})
        patch.chdir(made)
        patch.setenv("VIDALIGN_CACHE", str(made / "cache"))
        (made / "tiny").mkdir()
        make_chats(made / "tiny")
        yield made


def network_of(family: str, path: str) -> torch.nn.Module:
    """What transformers loads, without anything of ours."""
    kind = AutoModelForImageTextToText if family in SEEING else AutoModelForCausalLM
    network: torch.nn.Module = kind.from_pretrained(path)
    return network


def moved(before: torch.nn.Module, after: torch.nn.Module) -> list[str]:
    values = dict(after.named_parameters())
    return [name for name, p in before.named_parameters() if not torch.equal(p.float(), values[name].float())]


@pytest.mark.parametrize("name", [name for name in TWINS if name.removeprefix("twins/") not in WHOLE])
def test_a_twin_trains(name: str) -> None:
    assert vidalign("train", name, "--run", f"runs/{name}", "trainer.steps=1", "tracking.panel=none") == 0
    family = name.split("/")[1]
    assert moved(network_of(family, f"tiny/{family}"), network_of(family, f"runs/{name}/student"))


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_life(name: str) -> None:
    """Train, evaluate, report, sample, export, and again in transformers."""
    family, run = name.split("/")[0], f"runs/{name}"
    assert vidalign("train", f"twins/{name}", "--run", run, "tracking.panel=none") == 0
    assert vidalign("evaluate", "--run", run) == 0
    assert "exact match" in Path(run, "report.html").read_text(encoding="utf-8")
    history = read_history(Path(run, "metrics.jsonl"))
    assert all(loss > 0 for _, loss in history["objective/loss/mean"])
    assert vidalign("export", run, "--to", "transformers", "--out", f"out/{name}") == 0
    again = network_of(family, f"out/{name}")
    assert moved(network_of(family, f"tiny/{family}"), again)
    saved = load_file(f"{run}/student/model.safetensors")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in saved.items())
    reader = AutoProcessor if family == "smolvlm" else AutoTokenizer  # Qwen3-VL's needs torchvision
    assert reader.from_pretrained(f"out/{name}").chat_template


@pytest.mark.parametrize("name", ["qwen25/dopd", "smolvlm/dopd"])
def test_an_adapter_leaves_as_one(name: str) -> None:
    """What PEFT makes of base and exported adapter is the student that the run has left."""
    family, run = name.split("/")[0], f"runs/{name}_lora"
    words = ("trainer.steps=2", "tracking.panel=none", "student.adapter={rank: 4, alpha: 8}")
    assert vidalign("train", f"twins/{name}", "--run", run, *words) == 0
    assert vidalign("export", run, "--to", "peft", "--out", f"out/{name}_lora") == 0
    with_adapter = peft.PeftModel.from_pretrained(network_of(family, f"tiny/{family}"), f"out/{name}_lora")
    merged, saved = with_adapter.merge_and_unload().state_dict(), load_file(f"{run}/student/model.safetensors")
    assert all(torch.allclose(merged[key], value, atol=1e-6) for key, value in saved.items())
    assert any(
        not torch.equal(saved[key], value) for key, value in load_file(f"tiny/{family}/model.safetensors").items()
    )


def test_a_table_of_mathematics_is_graded() -> None:
    """Rows become examples with hints and an answer. The grade is that of the answers: with what the student answers at
    the start as the right answer of one row it is 1 there."""
    run, recipe = "runs/graded", load_recipe("twins/qwen3/dopd_math")
    first, second = open_source(recipe.judged_prompts, 0).first(2)
    assert first.prompt == "What is $\\frac{3}{2} + \\frac{3}{2}$?" and first.privileged == "1. Add the numerators."
    assert first.answer == "$\\frac{6}{2}$" and isinstance(first.grader, Math)
    assert [first.grader.grade(f"so \\boxed{{{n}}}", first.answer) for n in (3, 4)] == [1, 0]
    student = LanguageStudent.load("tiny/qwen3").configure(recipe.student.config.chat, recipe.student.config.sampling)
    (said,) = student.sample([second], temperature=0.0)
    rows = [{"question": one.prompt, "hints": "", "answer": answer} for one, answer in ((first, "no"), (second, said))]
    Path("said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("trainer.steps=1", "tracking.panel=none", "data.eval_prompts=said.jsonl", "data.grader=equals")
    assert vidalign("train", "twins/qwen3/dopd_math", "--run", run, *words) == 0
    values = json.loads(Path(run, "evaluation.json").read_text(encoding="utf-8"))["values"]
    assert values["before"]["exact_match/all"] == [0.0, 1.0]


def test_heads_of_the_qwen25_twin_are_padded_differently() -> None:
    student, teacher = (LanguageStudent.load(f"tiny/qwen25{which}") for which in ("", "_teacher"))
    assert student.chat.tokenizer.get_vocab() == teacher.chat.tokenizer.get_vocab()
    sizes = [len(student.chat.tokenizer), len(student.head_weight), len(teacher.head_weight)]
    assert sizes == sorted(set(sizes))
