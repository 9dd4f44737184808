"""Where a row of a benchmark comes from, by its recipe: paper, what it learns from, method, control or example."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vidalign import registry
from vidalign.bench.results import Results
from vidalign.errors import UserError
from vidalign.plugin_source import papers
from vidalign.recipe.load import written_sections

METHODS, CONTROLS, EXAMPLES, REFERENCES = "methods", "controls", "examples", "references"
GROUPS = (
    f"{CONTROLS.capitalize()} repeat the recipe of a row above with other settings; {EXAMPLES} run a recipe file that "
    "is not shipped with the package."
)
"""What the groups are, for the page."""
OFFERED = {
    "clips": "teacher's clips",
    "velocity": "teacher's velocities",
    "few_step": "few-step teacher",
    "logits": "teacher's logits",
}
"""What a teacher offers (`Needs.teacher`), in words."""


@dataclass(frozen=True)
class Origin:
    """Of one recipe; empty texts where its objective is a plugin that is not installed here."""

    paper: str = ""
    """arXiv numbers that the objective's source names."""
    learns_from: str = ""


def groups_of(results: Results) -> dict[str, str]:
    """The group of every row: references are not trained, controls repeat an earlier row's recipe with changes."""
    groups: dict[str, str] = {}
    seen: set[str] = set()
    for row in results.row_names():
        cell = next(cell for cell in results.cells if cell.row == row)
        name = (shlex.split(cell.recipe or "") or [""])[0]
        if cell.kind != "objective":
            groups[row] = REFERENCES
        elif name.endswith((".yaml", ".yml")):
            groups[row] = EXAMPLES
        else:
            groups[row] = CONTROLS if name in seen else METHODS
            seen.add(name)
    return groups


def origin(recipe: str | None) -> Origin:
    """Of a recipe with its changes, as `Cell.recipe` has it."""
    name, *overrides = shlex.split(recipe or "") or [""]
    with suppress(UserError):
        sections = written_sections(name, overrides)
        names = _objectives(sections)
        known = [number for one in names for number in papers("objectives", one)[:1]]
        return Origin(", ".join(dict.fromkeys(known)), ", ".join(_learns_from(sections, names)))
    return Origin()


def _objectives(sections: dict[str, Any]) -> list[str]:
    """The objective, or those of a mixture."""
    if parts := sections.get("objectives"):
        return [(part or {}).get("name", label) for label, part in parts.items()]
    return [name] if (name := (sections.get("objective") or {}).get("name")) else []


def _learns_from(sections: dict[str, Any], objectives: list[str]) -> list[str]:
    """What gives the signal: rewards with a weight, the discriminator, what the teacher offers, else examples."""
    weights = {
        key: one.get("weight", 1.0) if isinstance(one, dict) else one for key, one in _section(sections, "rewards")
    }
    found = ["rewards"] if any(weight for key, weight in weights.items() if key != "discriminator") else []
    found += ["discriminator"] if weights.get("discriminator") else []
    for name in objectives:
        with suppress(UserError):
            offer = registry.get("objectives", name).needs.teacher
            found += [OFFERED.get(offer, offer)] if offer else []
    return list(dict.fromkeys(found)) or ["examples"]


def _section(sections: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    return list((sections.get(name) or {}).items())
