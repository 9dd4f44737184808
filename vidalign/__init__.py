"""vidalign: align causal few-step generators on-policy.

The Python side of the commands; docs/api.md lists what is stable:

    recipe = vidalign.load_recipe("world/astrolabe", ["trainer.steps=20"])
    run = vidalign.Trainer(recipe).fit()
    vidalign.evaluate(run)
    clips = vidalign.load_student(run / "student.safetensors").sample(["a large red circle falls"], frames=12)

What stands behind these names is imported at first use, so `import vidalign` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vidalign.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from vidalign.recipe import load_recipe as load_recipe
    from vidalign.students.base import Student
    from vidalign.trainer import Trainer as Trainer
    from vidalign.workflows.compare import compare as compare
    from vidalign.workflows.evaluate import evaluate_run as evaluate

__version__ = VERSION
__all__ = ["Trainer", "compare", "evaluate", "load_recipe", "load_student"]

_HOMES = {
    "Trainer": "vidalign.trainer:Trainer",
    "compare": "vidalign.workflows.compare:compare",
    "evaluate": "vidalign.workflows.evaluate:evaluate_run",
    "load_recipe": "vidalign.recipe:load_recipe",
}


def load_student(path: str | Path, **kwargs: Any) -> Student[Any]:
    """The student in a safetensors file, or the shipped one of that name. For language students also a transformers
    folder or hub name. See `VideoStudent.load` and `LanguageStudent.load`.
    """
    from vidalign.students.weights import kind_of, kinds

    student: Student[Any] = kinds()[kind_of(path)].load(path, **kwargs)
    return student


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vidalign' has no attribute {name!r}")
    module, attribute = _HOMES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
