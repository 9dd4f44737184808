"""The word-level tokenizers of the embedded worlds, in transformers' own files with a chat template.

`build` makes the tokenizer of problems and pictures and the processor of the picture world, `build_rules` the
tokenizer of the rule world, `build_signs` the processor of the sign world. The shipped files in `weights/tasks/`,
`rules/` and `signs/` are what `python -m vidalign.worlds.language.vocabulary` writes, and tests compare them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidalign.worlds.language import rules, signs
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
WEIGHTS = Path(__file__).parents[2] / "weights"
FOLDER, RULES_FOLDER, SIGNS_FOLDER = WEIGHTS / "tasks", WEIGHTS / "rules", WEIGHTS / "signs"


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


def rules_vocabulary() -> list[str]:
    """Every word of the rule world once, after the special tokens."""
    special, marks = [PAD, UNKNOWN, END, USER, ASSISTANT, SYSTEM], [":", "|", ">", "="]
    hints = ["plan", "summary", "answer", "steps", "with"]
    return [*special, *marks, "rule", *rules.STATES, *rules.SYMBOLS, *rules.OPERATIONS, *hints]


def signs_vocabulary() -> list[str]:
    """Every word of the sign world once, after the special tokens."""
    special, marks = [PAD, UNKNOWN, END, USER, ASSISTANT, SYSTEM, IMAGE], [":", "|", "=", "?"]
    numbers = [str(n) for n in range(SIZE)]
    places = sorted({word for place in PLACES for word in place})
    asked = ["what", "colour", "where", "is", "are", "and", "boxes", "answer"]
    return [*special, *marks, *numbers, *signs.SIGNS, *COLOURS, *places, *asked]


def _tokenizer(words: list[str], roles: list[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="left",
        additional_special_tokens=roles,
        chat_template=TEMPLATE,
    )


def build_rules() -> Any:
    """The tokenizer of the rule world."""
    return _tokenizer(rules_vocabulary(), [USER, ASSISTANT, SYSTEM])


def build() -> tuple[Any, Any]:
    """The tokenizer, and the processor that puts a picture's patches into the place of its marker."""
    tokenizer = _tokenizer(vocabulary(), [USER, ASSISTANT, SYSTEM, IMAGE])
    return tokenizer, _processor(tokenizer, PATCH)


def build_signs() -> Any:
    """The processor of the sign world, for a tower with one patch a cell."""
    return _processor(_tokenizer(signs_vocabulary(), [USER, ASSISTANT, SYSTEM, IMAGE]), signs.CELL)


def _processor(tokenizer: Any, patch: int) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pixels = CLIPImageProcessorPil(
        do_resize=False,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        crop_size={"height": SIZE, "width": SIZE},
    )
    return LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


if __name__ == "__main__":
    build()[1].save_pretrained(FOLDER)
    build_rules().save_pretrained(RULES_FOLDER)
    build_signs().save_pretrained(SIGNS_FOLDER)
