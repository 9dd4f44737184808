"""HPSv3 (arXiv 2508.03789) from its published file, `HPSv3.safetensors`: the whole of Qwen2-VL-7B with its head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidalign.rewards.reward_models.loading import Weights, folder_of, open_backbone, unloaded
from vidalign.rewards.reward_models.network import preference_head
from vidalign.rewards.reward_models.shared import Loaded, shared
from vidalign.students.video.importers.files import open_checkpoint

if TYPE_CHECKING:
    from vidalign.rewards.hps_v3 import HPSv3Reward

FILE = "HPSv3.safetensors"
TOKEN = "<|Reward|>"
"""Where the head is read."""
KEYS = ("model",)
"""Where a `.pth` file of the training may hold the weights."""


def load(config: HPSv3Reward.Config) -> Loaded:
    """The model, shared with all judges of the same files, precision and device.

    Raises `UserError` for files that are not HPSv3's.
    """
    return shared("hps_v3", config, lambda: _load(config))


def _load(config: HPSv3Reward.Config) -> Loaded:
    place = folder_of(config.path, [FILE], config.revision)
    weights = Weights([open_checkpoint(place / FILE if (place / FILE).is_file() else place, KEYS)])
    backbone, reader = open_backbone(config.backbone, "image", "hps_v3", [TOKEN])
    return Loaded(unloaded(backbone, reader, preference_head), reader, weights, config)
