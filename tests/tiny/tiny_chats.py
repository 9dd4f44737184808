"""Language students and teachers for the twins, with their tables: Qwen3, Qwen2.5, Qwen3-VL and SmolVLM.

The formats are those of the released models: weights, tokenizer, chat template, and a processor where they see
pictures. Sizes are tiny, weights random. Of a pair both have the same tokenizer; the heads of Qwen2.5 are padded
differently, as the released ones are.
"""

from __future__ import annotations

import json
from pathlib import Path

import chat_families
import numpy as np
import tiny_eyes
from PIL import Image

LONG = dict(max_position_embeddings=4096)
WIDE = dict(hidden_size=48, intermediate_size=96, head_dim=12)
"""Sizes of a teacher."""
COLOURS = ("red", "blue", "green", "yellow")
ROWS = 8


def make_chats(tiny: Path) -> None:
    """The folders and tables of all language twins."""
    words = len(chat_families.tokenizer("qwen"))
    chat_families.save("qwen", tiny / "qwen3", 0, **LONG)
    chat_families.save("qwen", tiny / "qwen3_teacher", 1, **LONG, **WIDE)
    older = dict(model_type="qwen2", **LONG)
    chat_families.save("qwen", tiny / "qwen25", 0, vocab_size=words + 4, **older)
    chat_families.save("qwen", tiny / "qwen25_teacher", 1, vocab_size=words + 12, tie_word_embeddings=False, **older)
    for family, kind in (("qwen3_vl", "qwen3_vl"), ("smolvlm", "idefics3")):
        tiny_eyes.save(kind, tiny / family)
        tiny_eyes.save(kind, tiny / f"{family}_teacher", seed=1)
    for number, name in enumerate(("", "_held_out")):
        _write(tiny / f"questions{name}.jsonl", [_question(number, row) for row in range(ROWS)])
        _write(tiny / f"maths{name}.jsonl", [_sum(number, row) for row in range(ROWS)])
        _write(tiny / f"pictures{name}.jsonl", [_picture(tiny, number, row) for row in range(ROWS)])


def _question(table: int, row: int) -> dict[str, str]:
    first, second = COLOURS[row % 4], COLOURS[(row + table + 1) % 4]
    prompt = f"Are there more {first} circles than {second} ones?"
    hints = f"count the {first} circles, then the {second} ones"
    return {"prompt": prompt, "privileged": hints, "response": "yes", "answer": "yes"}


def _sum(table: int, row: int) -> dict[str, str]:
    """As sets of mathematics are published: names of their own, answers in LaTeX."""
    one, two = row + 2 + table, row + 3
    question = f"What is $\\frac{{{one}}}{{2}} + \\frac{{{two}}}{{2}}$?"
    return {"question": question, "hints": "1. Add the numerators.", "answer": f"$\\frac{{{one + two}}}{{2}}$"}


def _picture(tiny: Path, table: int, row: int) -> dict[str, object]:
    """One picture or two, of several sizes."""
    names, numbers = [], np.random.default_rng(100 * table + row)
    for place in range(1 + row % 2):
        pixels = numbers.integers(0, 256, (32 + 16 * (row % 3), 48, 3), dtype=np.uint8)
        names.append(f"picture-{table}-{row}-{place}.png")
        Image.fromarray(pixels).save(tiny / names[-1])
    colour = COLOURS[row % 4]
    boxes = f"{colour} circle [1, 2, 10, 12]"
    prompt = "what colour is the circle"
    return {"prompt": prompt, "privileged": boxes, "response": colour, "answer": colour, "images": names}


def _write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
