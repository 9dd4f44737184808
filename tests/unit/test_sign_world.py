"""The sign world: answers worked out from boxes and pixels alone, families and splits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from vidalign.data.source import open_source
from vidalign.errors import DataError, RecipeError
from vidalign.recipe.load import load_recipe
from vidalign.worlds.language import signs, vocabulary
from vidalign.worlds.language.grader import AfterEquals
from vidalign.worlds.video.constants import PALETTE

COUNT = 360
NAMED = {tuple(round(255 * value) for value in rgb): name for name, rgb in PALETTE.items()}


def examples(split: str = "train", form: str = "hints", share: float = 1.0) -> list[Any]:
    return [signs.example(split, 0, n, form, share) for n in range(COUNT)]


def seen(image: Any, box: list[int]) -> tuple[str, str]:
    """Letter and colour of what a picture shows in a box, by its pixels."""
    left, top, right, bottom = box
    pixels = np.asarray(image)[top : bottom + 1, left : right + 1].reshape(-1, 3).astype(int)
    lit = pixels.max(1) > 100
    (letter,) = [name for name, pattern in signs.patterns().items() if tuple(lit.tolist()) == pattern]
    (rgb,) = {tuple(one) for one in pixels[lit].tolist()}
    return letter, NAMED[rgb]


def solved(example: Any) -> str:
    """The answer by boxes and pixels."""
    places = {}
    for text in example.privileged.removeprefix("boxes : ").split(" | "):
        letter, *numbers = text.split()
        box = [int(number) for number in numbers]
        shown, colour = seen(example.images[0], box)
        assert shown == letter
        places[letter] = ("bottom" if box[1] >= 16 else "top", "right" if box[0] >= 16 else "left", colour)
    words = example.prompt.split()
    if words[0] == "where":
        return " ".join(places[words[2]][:2])
    return " ".join(places[letter][2] for letter in words[3:-1] if letter != "and")


@pytest.mark.parametrize("split", signs.SPLITS)
def test_boxes_and_pixels_give_the_answer(split: str) -> None:
    for example in examples(split):
        assert solved(example) == example.answer and example.response.endswith(f"= {example.answer}")


def test_signs_are_apart() -> None:
    found = list(signs.patterns().values())
    assert len(set(found)) == 16 and all(sum(one) == 8 for one in found)
    assert min(sum(a != b for a, b in zip(x, y, strict=True)) for x in found for y in found if x != y) >= 6


def test_a_block_of_four_cells_holds_one_sign_and_a_quadrant_one_of_four() -> None:
    for split, most in (("train", 1), ("crowded", 4)):
        for n in range(100):
            shown = signs.scene(split, 0, n)
            assert len({(s.row // 2, s.column // 2) for s in shown}) == len(shown)
            assert max(Counter(s.where for s in shown).values()) <= most
            assert signs.SPLITS[split][0] <= len(shown) <= signs.SPLITS[split][1]


def test_families_take_turns_and_splits_do_not_share_scenes() -> None:
    assert Counter(e.family for e in examples()) == dict.fromkeys(signs.FAMILIES, COUNT // 3)
    scenes = {split: {str(signs.scene(split, 0, n)) for n in range(COUNT)} for split in ("train", "held_out")}
    assert not scenes["train"] & scenes["held_out"] and len(scenes["train"]) == COUNT
    assert all((signs._bucket(signs.scene(split, 3, 5)) == 0) == (split == "held_out") for split in scenes)


def test_questions_for_all_signs_are_answered_by_the_pixels() -> None:
    source = open_source({"name": "signs", "split": "train", "privileged_share": 0.5, "naming_share": 0.4}, 1)
    asked = [source[n] for n in range(COUNT)]
    naming = [e for e in asked if e.family == signs.NAMING]
    others = [e for e in asked if e.family != signs.NAMING]
    assert len(naming) / COUNT == pytest.approx(0.4, abs=0.09) and not any(e.privileged for e in naming)
    assert sum(bool(e.privileged) for e in others) / len(others) == pytest.approx(0.5, abs=0.12)
    assert signs.NAMING not in {e.family for e in examples()}
    for example in naming:
        shown = []
        for top in range(0, 32, signs.CELL):
            for left in range(0, 32, signs.CELL):
                box = [left, top, left + signs.CELL - 1, top + signs.CELL - 1]
                if np.asarray(example.images[0])[top : box[3] + 1, left : box[2] + 1].max() > 100:
                    place = f"{'bottom' if top >= 16 else 'top'} {'right' if left >= 16 else 'left'}"
                    shown.append((top // 8, left, f"{place} {' '.join(seen(example.images[0], box))}", box))
        said = example.response.split(" | ")
        assert said[:-1] == [text for _, _, text, _ in sorted(shown)]
        assert example.answer.split() == [text.split()[2] for text in said[:-1]]


def test_a_source_is_a_function_of_seed_and_sample() -> None:
    chosen = {"name": "signs", "split": "train", "privileged_share": 0.4}
    first = open_source(chosen, 5)
    samples = [first[n] for n in range(300)]
    assert sum(bool(e.privileged) for e in samples) / 300 == pytest.approx(0.4, abs=0.09)
    again = open_source(chosen, 5)[7]
    assert (samples[7].prompt, samples[7].privileged) == (again.prompt, again.privileged)
    assert samples[7].images[0].tobytes() == again.images[0].tobytes()
    assert isinstance(samples[0].grader, AfterEquals)
    assert (
        open_source({"name": "signs", "split": "held_out", "privilege": "answer"}, 0)[0].privileged == "answer : purple"
    )


def test_mistakes_are_refused() -> None:
    with pytest.raises(DataError, match="did you mean 'held_out'"):
        open_source("signs:heldout", 0)
    with pytest.raises(RecipeError, match="privileged_share must lie in 0..1"):
        load_recipe("signs/pretrain/teacher", ["data.prompts.privileged_share=2"])


def test_every_word_is_a_token_and_every_cell_has_a_place(tmp_path: Any) -> None:
    processor = vocabulary.build_signs()
    tokenizer = processor.tokenizer
    assert len(tokenizer) == len(set(vocabulary.signs_vocabulary())) == 77
    naming = open_source({"name": "signs", "split": "train", "naming_share": 1.0}, 0)[0]
    for example in [*examples("crowded")[:60], naming]:
        for text in (example.prompt, example.privileged, example.response):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text
    laid = processor(images=naming.images[0], text="<image> where", return_tensors="pt")
    assert int((laid.input_ids == tokenizer.convert_tokens_to_ids("<image>")).sum()) == 64
    processor.save_pretrained(tmp_path)
    for file in tmp_path.iterdir():
        written = (vocabulary.SIGNS_FOLDER / file.name).read_text()
        assert file.read_text() == written, "run vidalign.worlds.language.vocabulary"
