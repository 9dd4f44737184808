"""What the hub recipes ask for, made small: models of the same architecture with random weights, and tables.

A model folder stands under its hub name in the working folder, a table under the name that the recipe gives. All of it
is transformers' own; vidalign is not imported.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch

WORDS = "how many red blue large small circles squares are there in the picture count them one two three four five six"
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<unk>",
]
TOKENS = [*SPECIAL, "user", "assistant", "Hints:", "Relevant", "regions:", "<think>", "</think>", *WORDS.split()]
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} "
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|> <|image_pad|> <|vision_end|> "
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant "
    "{% if enable_thinking is defined and not enable_thinking %}<think> </think> {% endif %}{% endif %}"
)
TEXT: dict[str, Any] = dict(
    vocab_size=len(TOKENS),
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=4096,
    pad_token_id=0,
    eos_token_id=2,
    bos_token_id=None,
)
WIDTH = {"Qwen3-1.7B": 32, "Qwen3-8B": 48, "Qwen3-VL-2B-Instruct": 32, "Qwen3-VL-8B-Instruct": 48}
"""Hidden size of each model's small twin."""
SPREAD = 4.0
"""Factor on random weights: with the usual small ones every token is about as likely as the next."""
ROWS = 8


def make_text(folder: Path) -> None:
    """Qwen3 models, and the tables of questions with hints and written answers."""
    for name in ("Qwen3-1.7B", "Qwen3-8B"):
        save(folder / "Qwen" / name, text_model(WIDTH[name]), tokenizer())
    for name in ("prompts", "held_out"):
        lines = [json.dumps(row(name, n)) for n in range(ROWS)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_pictures(folder: Path) -> None:
    """Qwen3-VL models, and the tables of questions about pictures."""
    import pyarrow
    import pyarrow.parquet

    for name in ("Qwen3-VL-2B-Instruct", "Qwen3-VL-8B-Instruct"):
        save(folder / "Qwen" / name, vision_model(WIDTH[name]), processor())
    for name in ("prompts", "held_out"):
        rows = [row(name, n) | {"images": [picture(folder, name, n)]} for n in range(ROWS)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet")


def save(folder: Path, model: Any, words: Any) -> None:
    """A model with spread-out weights of a fixed seed, and its tokenizer or processor."""
    numbers = torch.Generator().manual_seed(zlib.crc32(folder.name.encode()))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                scale = SPREAD / parameter[0].numel() ** 0.5 / 2
                parameter.copy_(torch.randn(parameter.shape, generator=numbers) * scale)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def text_model(width: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes = dict(hidden_size=width, intermediate_size=width * 3 // 2, tie_word_embeddings=True)
    return Qwen3ForCausalLM(Qwen3Config(**TEXT, **sizes))


def vision_model(width: int) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 1, 1], mrope_interleaved=True)
    sizes = dict(hidden_size=width, intermediate_size=width * 3 // 2, rope_parameters=rope)
    vision = dict(
        depth=1,
        hidden_size=32,
        intermediate_size=48,
        num_heads=4,
        patch_size=8,
        temporal_patch_size=2,
        spatial_merge_size=2,
        out_hidden_size=width,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0],
    )
    marks = ("image_pad", "video_pad", "vision_start", "vision_end")
    image, video, start, end = (TOKENS.index(f"<|{mark}|>") for mark in marks)
    config = Qwen3VLConfig(
        text_config=TEXT | sizes,
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )
    return Qwen3VLForConditionalGeneration(config)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(TOKENS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        padding_side="left",
        additional_special_tokens=SPECIAL[1:7],
        chat_template=TEMPLATE,
    )


def processor() -> Any:
    """That of Qwen3-VL without videos, for which it wants torchvision; `register` makes it known."""
    from transformers import Qwen2VLImageProcessorPil

    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    pictures = Qwen2VLImageProcessorPil(patch_size=8, temporal_patch_size=2, merge_size=2, size=size)
    return register()(pictures, tokenizer(), chat_template=TEMPLATE)


def register() -> Any:
    """Let transformers find the processor of `make_pictures` by its name; returns its class."""
    from transformers import AutoProcessor, PreTrainedConfig, ProcessorMixin, Qwen3VLProcessor

    class Pictures(Qwen3VLProcessor):
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id, self.video_token_id = (TOKENS.index(t) for t in (self.image_token, self.video_token))
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    class PicturesConfig(PreTrainedConfig):
        model_type = "golden_pictures"

    AutoProcessor.register(PicturesConfig, Pictures, exist_ok=True)
    return Pictures


def row(table: str, number: int) -> dict[str, str]:
    """A question with a hint and an answer, other words in each row."""
    words = WORDS.split()
    first = words[(number + len(table)) % 8 + 2]
    answer = words[-1 - number % 6]
    return {
        "prompt": f"how many {first} circles are there",
        "privileged": f"count the {first} circles {answer}",
        "response": f"there are {answer}",
        "answer": answer,
    }


def picture(folder: Path, table: str, number: int) -> str:
    """Name of a picture of random colours beside the tables."""
    from PIL import Image

    numbers = torch.Generator().manual_seed(100 * len(table) + number)
    pixels = torch.randint(0, 256, (32, 32, 3), generator=numbers, dtype=torch.uint8)
    name = f"{table}-{number}.png"
    Image.fromarray(pixels.numpy()).save(folder / name)
    return name
