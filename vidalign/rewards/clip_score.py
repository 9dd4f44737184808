"""CLIP score: how well the frames of a clip fit its prompt, by a CLIP checkpoint in the format of transformers.

Score of a frame: 100 max(cos(image, text), 0) [Hessel et al. 2021, CLIPScore, without its factor 2.5]; of a clip: the
mean over frames, as CLIPSIM [Wu et al. 2021, GODIVA] does. A mean over frames hides clips that begin well and end
badly, so the minimum and the last quarter stand beside it. Needs no world: any prompt can be judged. The embeddings of
other checkpoints have other scales: compare numbers of one checkpoint only. The metric of the same name is
`vidalign.evaluation.metrics.clip_score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from vidalign.deferred import without_gradient
from vidalign.engine import distributed
from vidalign.errors import UserError
from vidalign.quiet import no_bars
from vidalign.ranges import require
from vidalign.tracking.clips import to_frames


class ClipScoreReward:
    """Mean CLIP score over the frames of a clip, in [0, 100]; minimum and last quarter are logged."""

    name: ClassVar[str] = "clip_score"
    judges: ClassVar[str] = "clips"

    @dataclass
    class Config:
        model: str = "openai/clip-vit-base-patch32"
        """A folder written by `save_pretrained`, or a name on the Hugging Face hub."""
        revision: str = "main"
        """Commit or branch on the hub; a commit pins the numbers. A folder has none."""
        frames: int = 8
        """Frames judged of every clip, evenly spaced from the first to the last; 0 judges all."""
        batch: int = 64
        """Frames in one forward pass."""

        def __post_init__(self) -> None:
            require(self, "frames", least=0)
            require(self, "batch", least=1)

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()
        self._loaded: tuple[Any, Any] | None = None

    def score(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` under ``clip_score`` and, for the log, ``min`` and ``last_quarter``, see `parts`."""
        parts = self.parts(clips, prompts)
        return {self.name: parts.pop("mean"), **parts}

    @without_gradient
    def parts(self, clips: torch.Tensor, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """``[B]`` under ``mean``, ``min`` and ``last_quarter`` for clips ``[B, F, 3, H, W]`` in [0, 1].

        A clip with a value that is not finite gets NaN. Prompts beyond the checkpoint's context (77 tokens) are cut.
        Raises `UserError` when the checkpoint cannot be loaded.
        """
        assert clips.ndim == 5 and len(clips) == len(prompts), "one prompt a clip"
        chosen = clips[:, evenly_spaced(clips.shape[1], self.config.frames)]
        images = self._images(chosen.flatten(0, 1)).unflatten(0, chosen.shape[:2])  # (B, N, D)
        cosines = torch.einsum("bnd,bd->bn", images, self._texts(prompts))
        scores = (100 * cosines.clamp(min=0)).cpu()
        scores[~clips.isfinite().flatten(1).all(1).cpu()] = torch.nan
        quarter = -(-scores.shape[1] // 4)
        return {"mean": scores.mean(1), "min": scores.amin(1), "last_quarter": scores[:, -quarter:].mean(1)}

    def _images(self, frames: torch.Tensor) -> torch.Tensor:
        """Unit embeddings ``[N, D]`` of frames ``[N, 3, H, W]``, prepared as the checkpoint's own processor does."""
        model, processor = self._load()
        parts = []
        for part in frames.split(self.config.batch):
            pixels = processor(images=list(to_frames(part)), return_tensors="pt")["pixel_values"]
            parts.append(model.get_image_features(pixel_values=pixels.to(model.device)).pooler_output)
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)

    def _texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Unit embeddings ``[B, D]`` of prompts; equal prompts are computed once."""
        model, processor = self._load()
        rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        length = model.config.text_config.max_position_embeddings
        tokens = processor(text=list(rows), padding=True, truncation=True, max_length=length, return_tensors="pt")
        features = model.get_text_features(**tokens.to(model.device)).pooler_output
        return torch.nn.functional.normalize(features, dim=-1)[[rows[prompt] for prompt in prompts]]

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = load_clip(self.config.model, self.config.revision)
        return self._loaded


def evenly_spaced(length: int, count: int) -> list[int]:
    """`count` frame numbers from 0 to length - 1, all of them when count is 0 or larger than the clip."""
    if not 0 < count < length:
        return list(range(length))
    if count == 1:
        return [(length - 1) // 2]
    return [round(i * (length - 1) / (count - 1)) for i in range(count)]


def load_clip(name: str, revision: str = "main") -> tuple[Any, Any]:
    """Model in float32 on this process' device, and processor; `UserError` unless every weight is in the checkpoint."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, CLIPModel, CLIPProcessor

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        if config.model_type != "clip":
            raise ValueError(f"it holds a model of type {config.model_type!r}, not 'clip'")
        with no_bars("transformers"):
            model, report = CLIPModel.from_pretrained(
                name, revision=revision, dtype=torch.float32, output_loading_info=True
            )
        absent = sorted(report["missing_keys"]) or sorted(str(key) for key in report["mismatched_keys"])
        if absent:  # transformers fills them with random numbers
            raise ValueError(f"{len(absent)} weights are missing or of another shape, first {absent[0]!r}")
        processor = CLIPProcessor.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            "the CLIP checkpoint cannot be loaded",
            where=f"clip_score.model: {name}",
            why=str(error).strip().split("\n")[0],
            fix="give a folder written by save_pretrained of CLIPModel and CLIPProcessor, or a name on the hub that "
            "this machine can reach or has cached",
        ) from error
    return model.eval().requires_grad_(False).to(distributed.device()), processor
