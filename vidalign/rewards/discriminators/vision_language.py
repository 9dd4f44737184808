"""Any vision-language backbone of transformers as a discriminator: LoRA on its language layers, bias-free scalar head.

A clip is shown as `frames` pictures in one user turn with the prompt. The head reads the last hidden state of the last
token. The vision tower and the embeddings stay as they are. Pictures go through the processor of the backbone as 8-bit
pixels, so scores have no gradient with respect to the clips. `afd` and any reward-driven objective can use it, `gan`
cannot.

What we changed against AFD (arXiv 2605.26105), which begins from VideoReward (see `video_reward.py`): pictures instead
of the video input, which only some backbones have; the last token instead of three special ones; a new head.
Knobs that matter: learning_rate (5e-6; 5e-5 kills the signal), frames, rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from vidalign.engine.config import AdapterConfig
from vidalign.engine.policies import inject_adapters
from vidalign.engine.rng import generator
from vidalign.errors import UserError, first_line
from vidalign.quiet import no_bars
from vidalign.rewards.discriminators.base import Features
from vidalign.rewards.discriminators.kinds import VisionLanguageKind
from vidalign.rewards.discriminators.network import Discriminator, full_precision_head
from vidalign.students.processors import load_processor
from vidalign.students.video import VideoStudentSpec

ADAPTER = "current"


class VisionLanguage(Discriminator):
    """LoRA and a scalar head on any vision-language model of transformers, which sees frames and the prompt."""

    Config = VisionLanguageKind.Config

    def __init__(self, backbone: Any, processor: Any, config: VisionLanguageKind.Config, seed: int) -> None:
        super().__init__()
        assert config.rank and config.alpha and config.frames and config.question, "the settings of a new head"
        self.processor, self.frames, self.question = processor, config.frames, config.question
        self.backbone: Any = backbone.eval()
        adapter = AdapterConfig(rank=config.rank, alpha=config.alpha, targets=f"{_decoder_name(backbone)}.*")
        inject_adapters(backbone, [ADAPTER], adapter, seed)
        width = int(self.backbone.config.get_text_config().hidden_size)
        self.head = nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.head.weight, std=width**-0.5, generator=generator(seed, "discriminator head", 0))
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(".lora_" in name)

    @classmethod
    def from_recipe(cls, config: Any, spec: VideoStudentSpec, features: Features, seed: int) -> VisionLanguage:
        """The backbone without its language head, in the precision of its files, and its processor."""
        try:
            backbone = _backbone(config.path)
            processor = load_processor(config.path, backbone.config)
        except (OSError, ValueError, KeyError, ImportError) as error:
            why = first_line(error)
            raise UserError(
                f"the vision-language model {config.path!r} cannot be loaded",
                where="discriminator.path",
                why=why,
                fix="name a folder or hub model that holds a transformers vision-language model with its processor",
            ) from error
        return cls(backbone, processor, config, seed)

    def forward(self, clips: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        inputs = self.inputs(clips, prompts).to(self.head.weight.device)
        hidden = self.backbone(**inputs, use_cache=False).last_hidden_state  # [B, L, D]
        mask = inputs["attention_mask"]
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)  # the last token that is no padding, on either side
        return full_precision_head(self.head, hidden[torch.arange(len(last), device=last.device), last])

    def inputs(self, clips: torch.Tensor, prompts: Sequence[str]) -> Any:
        """What the backbone reads: tokens and pixels of clips ``[B, F, 3, H, W]`` in [0, 1]."""
        chosen = torch.linspace(0, clips.shape[1] - 1, self.frames).round().long().tolist()
        pictures = (clips[:, chosen].detach().float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()
        shown = [{"type": "image"} for _ in chosen]
        texts = []
        for prompt in prompts:
            words = {"type": "text", "text": self.question.replace("{prompt}", prompt)}
            turn = {"role": "user", "content": [*shown, words]}
            texts.append(self.processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True))
        images = [[Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames] for frames in pictures]
        return self.processor(text=texts, images=images, return_tensors="pt", padding=True)


def _decoder_name(backbone: Any) -> str:
    """Name of the language model inside the backbone."""
    decoder = backbone.get_decoder() if hasattr(backbone, "get_decoder") else None
    names = [name for name, module in backbone.named_modules() if module is decoder]
    if not names or not names[0]:
        raise UserError(
            f"{type(backbone).__name__} holds no language model beside a vision tower",
            where="discriminator.path",
            why="adapters go on its language layers",
            fix="name a vision-language model",
        )
    return str(names[0])


def _backbone(path: str) -> Any:
    """The network of `path`; on the meta device, where the memory of a step is planned, its weights are not read."""
    from transformers import AutoConfig, AutoModel

    if torch.get_default_device().type == "meta":
        return AutoModel.from_config(AutoConfig.from_pretrained(path))
    with no_bars("transformers"):
        return AutoModel.from_pretrained(path, dtype="auto")
