"""Layers and parameters of a network by their names: what an adapter is put on, what is not trained.

Names may come from a network on the meta device or from the header of a file: nothing is loaded to check a recipe.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from vidalign.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import nn

BLOCKS = ("blocks", "layers", "h")
"""How diffusers, transformers, and GPT-2 and its kin call the list of their blocks."""
VISION = ("visual", "vision_tower", "vision_model", "vision_encoder", "vision_embed_tokens")
"""How vision-language models call the part that sees."""
TEXT = ("language_model", "text_model", "lm_head")
"""How they call the part that writes; a plain language model is nothing else."""
WORDS = ("blocks", "text", "vision")
"""Targets that are no patterns."""


def linear_layers(network: nn.Module) -> list[str]:
    """Names of the layers that an adapter can be put on."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, whose matrix is transposed

    return [name for name, module in network.named_modules() if isinstance(module, (Linear, Conv1D))]


def match_targets(layers: list[str], targets: str | list[str]) -> list[str]:
    """The layers that `targets` names; `UserError` listing the layers that exist when a pattern matches none."""
    chosen: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets:
        found = _chosen(layers, target)
        if not found:
            kinds = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in layers})
            near = nearest(target, [*kinds, *WORDS])
            raise UserError(
                f"adapter pattern {target!r} matches no layer",
                where="student.adapter.targets",
                why="linear layers of this network: " + ", ".join(kinds),
                fix=f"did you mean {near!r}?" if near else "use 'blocks', or one of these names",
            )
        chosen |= found
    return [name for name in layers if name in chosen]


def _chosen(layers: Sequence[str], target: str) -> set[str]:
    if target not in WORDS:
        return {name for name in layers if fnmatch.fnmatchcase(f".{name}", f"*.{target.lstrip('.')}")}
    if target == "vision":
        return {name for name in layers if _is_part(name, VISION)}
    blocks = {name for name in layers if any(re.search(rf"(^|\.){kind}\.\d+\.", name) for kind in BLOCKS)}
    return blocks if target == "blocks" else {name for name in blocks if _is_text(layers)(name)}


def match_frozen(parameters: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The parameters that `student.freeze` names: parts (`text`, `vision`), layers or single parameters, by the end of
    a name or a glob. Raises `UserError` with the nearest name when one matches none, and where nothing is left."""
    frozen: set[str] = set()
    for pattern in patterns:
        found = _frozen(parameters, pattern)
        if not found:
            layers = sorted({part for name in parameters for part in _heads(re.sub(r"\.\d+\.", ".*.", name))})
            near = nearest(pattern, [*layers, *(layer.rpartition(".")[2] for layer in layers), "text", "vision"])
            raise UserError(
                f"{pattern!r} matches no parameter",
                where="student.freeze",
                why=f"the network has {len(parameters)} of them, such as {parameters[0]}",
                fix=f"did you mean {near!r}?" if near else "use text, vision, or the name of a layer",
            )
        frozen |= found
    if parameters and len(frozen) == len(parameters):
        raise UserError(
            "nothing is left to train", where="student.freeze", why="it names every parameter", fix="name fewer"
        )
    return [name for name in parameters if name in frozen]


def _frozen(parameters: Sequence[str], pattern: str) -> set[str]:
    if pattern == "vision":
        return {name for name in parameters if _is_part(name, VISION)}
    if pattern == "text":
        return {name for name in parameters if _is_text(parameters)(name)}
    tail = pattern.lstrip(".")
    return {
        name
        for name in parameters
        if fnmatch.fnmatchcase(f".{name}", f"*.{tail}") or fnmatch.fnmatchcase(f".{name}", f"*.{tail}.*")
    }


def _heads(name: str) -> Iterable[str]:
    """The name and those of all modules around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _is_part(name: str, part: Sequence[str]) -> bool:
    return not set(name.split(".")).isdisjoint(part)


def _is_text(names: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name is one of the language model: in a network with a part that sees, of the part called so."""
    if any(_is_part(name, VISION) for name in names):
        return lambda name: _is_part(name, TEXT) and not _is_part(name, VISION)
    return lambda name: True
