"""An export on the Hugging Face hub, with a model card: recipe, scores, deviations from the paper, licence of the
base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vidalign.errors import UsageError, UserError, before_work, first_line
from vidalign.recipe import read_header, shipped_recipes
from vidalign.students.hub import is_hub_id, is_student_folder, network_errors
from vidalign.students.weights import kind_of, kinds
from vidalign.workflows.export import made_of
from vidalign.workflows.opened import student_file

LINKS = ["vae", "text_encoder", "tokenizer", "scheduler", "model_index.json"]
"""What a folder links from its base, which has them on the hub already."""


@before_work()
def check_repository(name: str) -> None:
    """Raises `UsageError` for a name that no repository can have; '' is none."""
    if name and not is_hub_id(name):
        raise UsageError(f"{name!r} is no name of a repository", where="--push", fix="OWNER/NAME")


def push_export(source: Path, written: Path, repository: str, form: str) -> str:
    """Upload an export and its card; returns the address. Raises `UserError` when the hub refuses."""
    from huggingface_hub import HfApi

    api, card = HfApi(), model_card(source, form, repository)
    try:
        url = api.create_repo(repository, exist_ok=True)
        if written.is_dir():
            api.upload_folder(repo_id=repository, folder_path=written, ignore_patterns=[f"{n}*" for n in LINKS])
        else:
            api.upload_file(repo_id=repository, path_or_fileobj=written, path_in_repo=written.name)
        api.upload_file(repo_id=repository, path_or_fileobj=card.encode(), path_in_repo="README.md")
    except network_errors() as error:
        why = first_line(error)
        fix = f"log in with `hf auth login`, or upload {written} yourself"
        raise UserError("the export is written, and was not uploaded", where=repository, why=why, fix=fix) from error
    return str(url)


def model_card(source: Path, form: str, repository: str) -> str:
    """The card of an exported student as Markdown with the hub's header."""
    weights = source if is_student_folder(source) else student_file(source)
    kind = kinds()[kind_of(weights)]
    facts, made = kind.card(weights), made_of(source)
    recipe = made.get("recipe", "")
    terms = f"The weights it comes from: {facts.licence or 'see the page of ' + (facts.base or 'their family')}."
    lines = ["---", f"license: {facts.licence or 'other'}", "library_name: diffusers"]
    lines += [f"base_model: {facts.base}"] if facts.base else []
    lines += ["tags: [vidalign, text-to-video]", "---", "", f"# {repository}", ""]
    lines += [f"{facts.about} Exported by `vidalign export --to {form}`.", ""]
    lines += _section("Recipe", [f"{key}: {made[key]}" for key in ("recipe", "step", "seed", "commit") if key in made])
    lines += _section("Scores", _scores(made))
    lines += _section("Deviations from the paper", _deviations(recipe))
    lines += _section("Licence", [terms])
    return "\n".join(lines)


def _section(title: str, items: list[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {item}" for item in items or ["not known"]), ""]


def _scores(made: dict[str, str]) -> list[str]:
    try:
        scores: dict[str, Any] = json.loads(made.get("scores", "{}"))
    except ValueError:
        scores = {}
    return [f"{name}: {value}" for name, value in scores.items()]


def _deviations(recipe: str) -> list[str]:
    """What the recipe's header says after these words."""
    file = shipped_recipes().get(recipe) or Path(recipe)
    if not recipe or not file.is_file():
        return []
    text = " ".join(read_header(file).split()).partition("Deviations from paper:")[2].strip()
    return [text] if text else []
