"""Settings that reward models share, and the files that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vidalign.ranges import require
from vidalign.rewards.pretrained import PretrainedConfig, settings_of
from vidalign.students.hub import is_hub_id

if TYPE_CHECKING:
    from vidalign.recipe.draft import Draft


@dataclass
class ModelConfig(PretrainedConfig):
    """Where the files are, how large frames are, and what the model computes in."""

    path: str = ""
    """Where the reward model's own files are."""
    backbone: str = ""
    """Folder or hub name of Qwen2-VL."""
    revision: str = "main"
    """Commit or branch of `path` on the hub; a commit pins the numbers. A folder has none."""
    min_pixels: int = 0
    """Smallest size of a frame."""
    max_pixels: int = 0
    """Largest size of a frame."""
    batch: int = 1
    """Items in one forward pass."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the backbone's weights and of its computation; the head is float32."""

    def __post_init__(self) -> None:
        for name in ("path", "backbone"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name a folder or a model on the hub")
        require(self, "min_pixels", "batch", least=1)
        if self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels must be at least min_pixels, {self.min_pixels}")

    @property
    def pixels(self) -> tuple[int, int]:
        """The fewest and the most of a frame."""
        return self.min_pixels, self.max_pixels


def check_files(draft: Draft, plugin: str, *keys: str) -> None:
    """Refuse rewards of this plugin whose files are neither on this machine nor a name of the hub."""
    for section, config in settings_of(draft, plugin):
        check_paths(draft, section, config, *keys)


def check_paths(draft: Draft, section: str, config: Any, *keys: str) -> None:
    """Refuse the settings of a section that name files which are neither on this machine nor a name of the hub."""
    for key in keys:
        path = getattr(config, key)
        if path is not None and not Path(path).exists() and not is_hub_id(path):
            why, fix = "it is neither on this machine nor a name of the hub", "give a folder, a file or OWNER/NAME"
            draft.refuse(f"there is no {path!r}", f"{section}.{key}", why, fix)
