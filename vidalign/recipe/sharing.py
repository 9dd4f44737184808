"""How the prompts of a step are shared out to processes, and a prompt's candidates where there are fewer prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidalign import registry
from vidalign.errors import UsageError

if TYPE_CHECKING:
    from vidalign.recipe.load import Recipe


def processes_of_a_group(recipe: Recipe, count: int) -> int:
    """How many of `count` processes share each group of candidates; 1 = each of them has whole prompts.

    Raises `UsageError` where neither the prompts of a step nor the candidates of a prompt can be shared out equally.
    """
    prompts = recipe.trainer.prompts_per_step
    _check_warm_up(recipe, count)
    if prompts % count == 0:
        return 1
    spread, whole = divmod(count, prompts)
    why, fix = "", f"use a multiple of {count}, or other --gpus and --nodes, see docs/deepspeed.md"
    if whole == 0:
        spreads = not recipe.objectives and registry.get("objectives", recipe.objective.name).spreads
        size = recipe.objective.config.group_size if spreads else 0
        if size and size % spread == 0:
            return spread
        why = f"its objective takes whole groups, and {spread} processes would share each"
        if size:
            why = f"{spread} processes would share each group of {size} candidates"
    what = f"{prompts} prompts a step cannot be shared out to {count} processes"
    raise UsageError(what, where="trainer.prompts_per_step", why=why, fix=fix)


def _check_warm_up(recipe: Recipe, count: int) -> None:
    """Raise `UsageError` where the prompts of a discriminator's warm-up cannot be shared out equally."""
    if recipe.discriminator is None:
        return
    config = recipe.discriminator.config
    if config.warm_up_length and config.warm_up.prompts % count:
        raise UsageError(
            f"{config.warm_up.prompts} prompts of the warm-up cannot be shared out to {count} processes",
            where="discriminator.warm_up.prompts",
            fix=f"use a multiple of {count}, or other --gpus and --nodes",
        )
