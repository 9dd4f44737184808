"""The word-level tokenizer of the embedded worlds, in transformers' own files with a chat template.

`build` makes the tokenizer and the processor of the picture world. The shipped files in `weights/tasks/` are what
`python -m vidalign.worlds.language.vocabulary` writes, and a test compares them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vidalign.worlds.language.pictures import PLACES, RELATIONS
from vidalign.worlds.language.problems import ARITHMETIC, FAMILIES, LETTERS, NODES, REORDER
from vidalign.worlds.video.constants import COLOURS, SHAPES, SIZE

PAD, UNKNOWN, END, IMAGE = "<pad>", "<unk>", "<end>", "<image>"
USER, ASSISTANT, SYSTEM = "<user>", "<assistant>", "<system>"
PATCH = 8
"""Height and width in pixels of a patch of the picture world's vision tower."""
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> "
    "{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FOLDER = Path(__file__).parents[2] / "weights" / "tasks"


def vocabulary() -> list[str]:
    """Every word of both worlds once, after the special tokens."""
    special = [PAD, UNKNOWN, END, USER, ASSISTANT, SYSTEM, IMAGE]
    marks = [":", "|", ">", "=", ",", "?"]
    numbers = [str(n) for n in range(SIZE)]
    hints = ["plan", "summary", "answer", "steps", "with"]
    tokens = [*FAMILIES, *ARITHMETIC, *REORDER, "change", *LETTERS, *NODES, *hints]
    places = sorted({word for place in PLACES for word in place})
    asked = ["what", "colour", "is", "the", "object", "objects", "at", "where", "how", "many", "are", "of", "yes", "no"]
    pictures = [*COLOURS, *SHAPES, *places, *RELATIONS, *asked, "boxes"]
    return list(dict.fromkeys([*special, *marks, *numbers, *tokens, *pictures]))


def build() -> tuple[Any, Any]:
    """The tokenizer, and the processor that puts a picture's patches into the place of its marker."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(vocabulary())}, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="left",
        additional_special_tokens=[USER, ASSISTANT, SYSTEM, IMAGE],
        chat_template=TEMPLATE,
    )
    pixels = CLIPImageProcessorPil(
        do_resize=False,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        crop_size={"height": SIZE, "width": SIZE},
    )
    processor = LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return tokenizer, processor


if __name__ == "__main__":
    build()[1].save_pretrained(sys.argv[1] if len(sys.argv) > 1 else FOLDER)
