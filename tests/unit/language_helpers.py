"""Language students of one or two layers, built from stock configurations."""

from __future__ import annotations

from typing import Any

import torch

from vidalign.engine.rng import generator
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import LanguageSpec

VOCAB = 102
TEXT: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=0,
    eos_token_id=2,
    bos_token_id=None,
)
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True, **TEXT},
    "llama": {"model_type": "llama", "tie_word_embeddings": False, **TEXT},
    "gpt2": dict(  # learned absolute positions: wrong position ids show
        model_type="gpt2",
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        bos_token_id=2,
        eos_token_id=2,
        resid_pdrop=0.1,
        embd_pdrop=0.1,
        attn_pdrop=0.1,
    ),
    "llava": dict(
        model_type="llava",
        image_token_index=6,
        image_seq_length=16,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        text_config={"model_type": "llama", **TEXT},
        vision_config=dict(
            model_type="clip_vision_model",
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            projection_dim=32,
        ),
    ),
}


def make(name: str = "qwen3", seed: int = 0, scale: float = 4.0, **spec: Any) -> LanguageStudent:
    """A random student in fp64 whose logits are spread out."""
    values = {"config": CONFIGS[name], "sampling": {"max_new_tokens": 12}, **spec}
    student = LanguageStudent.from_spec(LanguageSpec.from_dict(values), seed).double()
    with torch.no_grad():
        student.head_weight.mul_(scale)
        for key, parameter in student.named_parameters():
            if (parameter.ndim > 1 and "layers" in key) or ".h." in key:
                parameter.mul_(3.0)
    return student.requires_grad_(False)


def generators(*samples: int, seed: int = 0) -> list[torch.Generator]:
    return [generator(seed, "test", 0, sample) for sample in samples]


def qwen3_vl() -> LanguageStudent:
    """A random Qwen3-VL with the words of the embedded worlds; patches of 8 pixels, four of them to a token."""
    from vidalign.students.language_checkpoint import new_model, tokenizer_and_processor

    text = {k: v for k, v in TEXT.items() if k != "bos_token_id"}
    rope = dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 1, 1], mrope_interleaved=True)
    vision = dict(
        depth=1,
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        patch_size=8,
        temporal_patch_size=2,
        spatial_merge_size=2,
        out_hidden_size=32,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0],
    )
    spec = LanguageSpec(
        dict(
            model_type="qwen3_vl",
            image_token_id=6,
            video_token_id=7,
            vision_start_token_id=8,
            vision_end_token_id=9,
            tie_word_embeddings=True,
            vision_config=vision,
            text_config={**text, "head_dim": 8, "rope_parameters": rope},
        )
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_model(spec.config)
    tokenizer, _ = tokenizer_and_processor("tasks", model.config.get_text_config())
    return LanguageStudent(spec, model, tokenizer).double().requires_grad_(False)
