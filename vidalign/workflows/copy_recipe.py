"""A shipped recipe as a file of one's own, for `vidalign new` and `vidalign cp`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vidalign.errors import Problem, RecipeError, UsageError
from vidalign.recipe import Recipe, load_recipe, read_recipe


def write_recipe(
    source: str, file: Path, write: Callable[[Recipe, str], str], overrides: list[str] | None = None
) -> list[Problem]:
    """Write the recipe `source` to `file` in the form that `write` gives it (see `vidalign.recipe.copies`).

    Returns what still has to be repaired before the file trains, such as prompt files that are not there. Raises
    `UsageError` where the file cannot be written or is there already, `RecipeError` for a mistake in the recipe.
    """
    if file.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{file} is no name for a recipe", where="FILE", fix=f"call it {file.with_suffix('.yaml')}")
    if blocking := next((parent for parent in file.parents if parent.exists() and not parent.is_dir()), None):
        raise UsageError(f"{blocking} is not a folder", where=f"FILE {file}", fix="name another file")
    text = write(read_recipe(source, overrides), str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        fix = "name another file; nothing is written over"
        raise UsageError(f"{file} is there already", where="FILE", fix=fix) from None
    try:
        load_recipe(file)
    except RecipeError as error:
        return error.problems
    return []
