"""Objects that training scripts save beside their weights, read without their classes.

A checkpoint may hold an argparse Namespace or an OmegaConf configuration. torch's safe loader refuses both. Here every
name of an allow-list stands for an empty shell that takes a state and does nothing: the classes themselves are neither
imported nor run, and what a shell holds is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OMEGACONF = {
    "omegaconf.dictconfig": ("DictConfig",),
    "omegaconf.listconfig": ("ListConfig",),
    "omegaconf.base": ("ContainerMetadata", "Metadata", "SCMode"),
    "omegaconf.nodes": (
        "AnyNode",
        "StringNode",
        "IntegerNode",
        "FloatNode",
        "BooleanNode",
        "BytesNode",
        "PathNode",
        "EnumNode",
        "InterpolationResultNode",
        "UnionNode",
    ),
}
NAMES = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.Path",
    "pathlib._local.PosixPath",
    "collections.defaultdict",
    "typing.Any",
    *(f"{module}.{name}" for module, names in OMEGACONF.items() for name in names),
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "set", "int", "float", "str", "bool", "object")),
)
"""What may stand beside the weights."""


class Shell(dict[Any, Any]):
    """Stands for an object of an allowed class; its state is thrown away."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Nothing is kept."""


def allow_list() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """The names as `torch.serialization.safe_globals` takes them, each a class of its own."""
    return [(type("Shell", (Shell,), {}), name) for name in NAMES]
