"""Privileged texts for video: what a policy may be given beyond the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from vidalign.errors import DataError
from vidalign.reading import read_json


@lru_cache(maxsize=4)
def _table(path: str) -> dict[str, str]:
    try:
        table = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the dense prompts {path!r} cannot be read",
            where="objective.dense_prompts",
            why=str(error),
            fix="write a JSON object from prompts to dense prompts",
        ) from error
    if not isinstance(table, dict):
        raise DataError(
            f"the dense prompts {path!r} are no table",
            where="objective.dense_prompts",
            fix="write a JSON object from prompts to dense prompts",
        )
    return table


def dense_prompts(prompts: Sequence[str], path: str) -> list[str]:
    """The denser prompt of every prompt, from a JSON object; `DataError` for a prompt that it does not hold."""
    table = _table(path)
    missing = next((prompt for prompt in prompts if prompt not in table), None)
    if missing is not None:
        raise DataError(
            "a prompt has no dense prompt",
            where=path,
            why=f"{missing[:60]!r} is not among its keys",
            fix="add it to the table",
        )
    return [str(table[prompt]) for prompt in prompts]
