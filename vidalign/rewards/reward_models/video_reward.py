"""VideoReward (arXiv 2501.13918) from its published folder: settings, weights, and scores of clips."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vidalign.errors import CheckpointError
from vidalign.rewards.pretrained import finite
from vidalign.rewards.reward_models import frames
from vidalign.rewards.reward_models.loading import (
    SETTINGS,
    VIDEO_REWARD,
    Lora,
    Weights,
    folder_of,
    open_backbone,
    open_video_reward,
    settings_of,
    unloaded,
)
from vidalign.rewards.reward_models.network import linear_head
from vidalign.rewards.reward_models.reader import Reader
from vidalign.rewards.reward_models.shared import Loaded, Norms, shared

if TYPE_CHECKING:
    from vidalign.rewards.video_align import VideoRewardConfig

DIMENSIONS = ("VQ", "MQ", "TA")
TOKENS = tuple(f"<|{dimension}_reward|>" for dimension in DIMENSIONS)
"""Where the head is read, in this order."""
GREY = ("MQ",)
"""Dimensions that are judged without colour."""


@dataclass
class Published:
    """What the files say, before a network is built of it."""

    config: Any
    """Of the backbone."""
    reader: Reader
    weights: Weights
    lora: Lora | None
    norms: Norms


class VideoReward:
    """Scores of clips; the model is shared with all judges of the same files, precision and device."""

    def __init__(self, config: VideoRewardConfig) -> None:
        self.config = config
        self.model = shared("video_reward", config, lambda: _load(config))

    def score(self, clips: Tensor, prompts: Sequence[str], fps: float, dimensions: Sequence[str]) -> dict[str, Tensor]:
        """``[B]`` in fp32 on the CPU by dimension, for clips ``[B, F, 3, H, W]`` in [0, 1] at `fps` frames a second."""
        assert clips.ndim == 5 and len(clips) == len(prompts), "one prompt a clip"
        good, scores = finite(clips), {}
        for dimension in dimensions:
            mean, std = self.model.norms[dimension]
            outputs = self._outputs(clips, prompts, fps, dimension in GREY)[:, DIMENSIONS.index(dimension)]
            scores[dimension] = ((outputs - mean) / std).where(good, torch.nan)
        return scores

    def _outputs(self, clips: Tensor, prompts: Sequence[str], fps: float, grey: bool) -> Tensor:
        """What the head says ``[B, 3]``. It is kept until other clips come: of several judges of one model, all that
        see the same frames need one pass."""
        config, kept = self.config, self.model.kept
        key = None if clips.is_inference() else (clips._version, tuple(prompts), fps, config.fps, *config.pixels)
        place, known, outputs = kept.get(grey, (None, None, None))
        if key is None or known != key or place is None or place() is not clips:
            shown = clips[:, frames.by_seconds(clips.shape[1], fps, config.fps)]
            outputs = self.model.outputs(shown, prompts, config, grey=grey).squeeze(2)
            kept[grey] = (weakref.ref(clips), key, outputs)
        assert isinstance(outputs, Tensor), "kept with its key"
        return outputs


def read_published(config: VideoRewardConfig) -> Published:
    """The files that the settings name. Raises `UserError` for files that are not VideoReward's."""
    folder = folder_of(config.path, VIDEO_REWARD, config.revision)
    sections = settings_of(folder)
    where = str(folder / SETTINGS)
    _check_settings(sections, config, where)
    lora, norms = _lora(sections.get("peft_lora_config", {}), where), _norms(sections, where)
    backbone, reader = open_backbone(config.backbone, "video", "video_reward", TOKENS)
    return Published(backbone, reader, open_video_reward(folder, config.backbone), lora, norms)


def _load(config: VideoRewardConfig) -> Loaded:
    published = read_published(config)
    network = unloaded(published.config, published.reader, linear_head)
    return Loaded(network, published.reader, published.weights, config, published.lora, published.norms)


def _check_settings(sections: Mapping[str, Any], config: VideoRewardConfig, where: str) -> None:
    """The checkpoint answers the question that is asked, and was trained on frames as these settings show them."""
    data, model = sections.get("data_config", {}), sections.get("model_config", {})
    fixed = {
        "prompt_template_type": (data, "detailed_special"),
        "sample_type": (data, "uniform"),
        "output_dim": (model, 1),
    }
    for key, (section, value) in fixed.items():
        if section.get(key, value) != value:
            why = f"{key} is {section[key]!r}, the published model has {value!r}"
            raise CheckpointError("a VideoReward of another kind", where=where, why=why)
    shown = {"fps": data.get("fps"), "max_pixels": data.get("max_frame_pixels")}
    for key, trained in shown.items():
        if trained is not None and getattr(config, key) != trained:
            what = f"{key} is {getattr(config, key):g}, the checkpoint was trained with {trained:g}"
            warnings.warn(f"{what}: its scores mean something else - {where}", UserWarning, stacklevel=2)


def _lora(section: Mapping[str, Any], where: str) -> Lora | None:
    if not section.get("lora_enable", True):
        return None
    try:
        return Lora(int(section["lora_r"]), float(section["lora_alpha"]), bool(section.get("use_rslora", False)))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            "no rank and alpha in the settings", where=where, why=f"lora_r, lora_alpha: {error}"
        ) from error


def _norms(sections: Mapping[str, Any], where: str) -> Norms:
    section = sections.get("inference_config", {})
    try:
        norms = {name: (float(section[f"{name}_mean"]), float(section[f"{name}_std"])) for name in DIMENSIONS}
    except (KeyError, TypeError, ValueError) as error:
        why = f"inference_config holds VQ_mean, VQ_std and so on: {error}"
        raise CheckpointError("no mean and standard deviation in the settings", where=where, why=why) from error
    if not all(std > 0 for _, std in norms.values()):
        raise CheckpointError("a standard deviation is not positive", where=where, why=str(norms))
    return norms
