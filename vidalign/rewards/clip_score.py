"""CLIP score: how well the frames of a clip fit its prompt, by a CLIP checkpoint in the format of transformers.

Score of a frame: 100 max(cos(image, text), 0) [Hessel et al. 2021, CLIPScore, without its factor 2.5]; of a clip: the
mean over frames, as CLIPSIM [Wu et al. 2021, GODIVA] does, or another pooling. Needs no world: any prompt can be
judged. The embeddings of other checkpoints have other scales: compare numbers of one checkpoint only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from vidalign.rewards.framewise import FrameConfig, FrameReward
from vidalign.rewards.pretrained import load_checked, load_processor
from vidalign.tracking.clips import to_frames


@dataclass
class ClipConfig(FrameConfig):
    """Settings of rewards that stand on a CLIP model."""

    model: str = "openai/clip-vit-base-patch32"
    """A folder written by `save_pretrained`, or a name on the Hugging Face hub."""


class ClipReward(FrameReward):
    """Base of rewards that stand on the embeddings of a CLIP model."""

    Config: ClassVar[type[ClipConfig]] = ClipConfig

    @property
    def processor_name(self) -> str:
        """Where the processor is."""
        return str(self.config.model)

    def load(self) -> torch.nn.Module:
        from transformers import CLIPModel, CLIPProcessor

        config, key = self.config, f"{self.name}.model"
        model: torch.nn.Module = load_checked(CLIPModel, config.model, config, key, "clip")
        self.processor = load_processor(CLIPProcessor, self.processor_name, config.revision, key)
        return model

    def images(self, frames: torch.Tensor) -> torch.Tensor:
        """Unit embeddings ``[N, D]`` of frames ``[N, 3, H, W]``, prepared as the checkpoint's own processor does."""
        model, device, parts = self.judging.network, self.judging.device, []
        for part in frames.split(self.config.batch):
            pixels = self.processor(images=list(to_frames(part)), return_tensors="pt")["pixel_values"]
            parts.append(model.get_image_features(pixel_values=pixels.to(device, model.dtype)).pooler_output)
        return torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1)

    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit embeddings ``[B, D]`` of prompts, cut at the checkpoint's context (77 tokens); equal ones are computed
        once."""
        model = self.judging.network
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        length = model.config.text_config.max_position_embeddings
        tokens = self.processor(text=list(rows), padding=True, truncation=True, max_length=length, return_tensors="pt")
        features = model.get_text_features(**tokens.to(self.judging.device)).pooler_output.float()
        return torch.nn.functional.normalize(features, dim=-1)[[rows[prompt] for prompt in prompts]]

    def cosines(self, frames: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Cosines ``[B, N]`` between N frames ``[B, N, 3, H, W]`` and the prompt of each clip."""
        images = self.images(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return torch.einsum("bnd,bd->bn", images, self.texts(prompts))


class ClipScoreReward(ClipReward):
    """CLIP score in [0, 100]."""

    name: ClassVar[str] = "clip_score"

    def judge(self, frames: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """``[B, N]``, see `FrameReward.judge`."""
        return 100 * self.cosines(frames, prompts).clamp(min=0)
