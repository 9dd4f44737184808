"""Recipes: one strict, typed YAML file a run, with inheritance and overrides; all mistakes are shown at once.

`marks` reads YAML and keeps file and line, `compose` merges parents and overrides. `typed` builds the dataclasses of
`schema` and of the chosen plugins, and `checks` tests whether the parts fit together. `load` runs these in order, and
`explain` prints a recipe with the docstring of every field. `copies` writes a recipe as a file of one's own.
"""

from vidalign.recipe.compose import recipes_root, shipped_recipes
from vidalign.recipe.load import Recipe, load_recipe, load_student_recipe, read_header, read_recipe

__all__ = [
    "Recipe",
    "load_recipe",
    "load_student_recipe",
    "read_header",
    "read_recipe",
    "recipes_root",
    "shipped_recipes",
]
