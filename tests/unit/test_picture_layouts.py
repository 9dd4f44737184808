"""Pictures of different sizes and numbers in one batch, for every way in which processors lay them out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from language_helpers import generators
from PIL import Image
from tiny_eyes import CLASSES, save
from transformers import AutoModelForImageTextToText
from transformers.models.smolvlm import processing_smolvlm

from vidalign.data.examples import Example
from vidalign.errors import CheckpointError
from vidalign.rewards.discriminators.vision_language import VisionLanguage
from vidalign.students.language import LanguageStudent
from vidalign.students.language_stand_in import stand_in
from vidalign.students.video import VideoStudentSpec

RESPONSES = torch.tensor([[50, 60, 70, 80], [90, 55, 65, 75], [52, 62, 72, 82], [53, 63, 73, 83]])
LENGTHS = torch.tensor([4, 3, 2, 4])


def picture(width: int, height: int, seed: int) -> Image.Image:
    numbers = np.random.default_rng(seed)
    return Image.fromarray(numbers.integers(0, 256, (height, width, 3), dtype=np.uint8))


EXAMPLES = [
    Example("what colour is the circle", images=(picture(40, 30, 0),)),
    Example("how many", images=(picture(64, 20, 1), picture(30, 90, 2))),
    Example("what is there"),
    Example("circle", images=(picture(50, 50, 3),)),
]
ROWS = {"llava": 4, "gemma3": 4, "llava_next": 4, "llava_onevision": 4, "idefics3": 3, "smolvlm": 3}
"""First dimension of the pixels: pictures of the batch, or rows that have some."""


@pytest.fixture(params=CLASSES)
def student(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageStudent:
    monkeypatch.setattr(processing_smolvlm, "num2words", object())  # which it uses for videos alone
    student = LanguageStudent.load(save(request.param, tmp_path / request.param)).double()
    return student.requires_grad_(False)


def test_a_row_of_a_batch_is_the_row_alone(student: LanguageStudent) -> None:
    """Padding of tiles, pictures and texts is masked, whatever stands beside a row."""
    mask = torch.arange(4) < LENGTHS[:, None]
    batch = student.compose(EXAMPLES, RESPONSES, mask)
    kind = student.model.config.model_type
    if kind in ROWS:
        assert len(batch.inputs["pixel_values"]) == ROWS[kind]
    together = student.logprobs(batch)
    for n, example in enumerate(EXAMPLES):
        alone = student.logprobs(student.compose([example], RESPONSES[n : n + 1], mask[n : n + 1]))
        torch.testing.assert_close(together[n], alone[0], rtol=0, atol=1e-6)
    for rows in (slice(0, 2), slice(1, 4)):  # as micro-batches are composed
        part = student.logprobs(student.compose(EXAMPLES[rows], RESPONSES[rows], mask[rows]))
        torch.testing.assert_close(part, together[rows], rtol=0, atol=1e-6)
    swapped = [EXAMPLES[0], Example("how many", images=EXAMPLES[1].images[::-1]), *EXAMPLES[2:]]
    other = student.logprobs(student.compose(swapped, RESPONSES, mask))
    assert (other[1] - together[1]).abs().max() > 1e-3, "pictures reach their own row in their order"
    torch.testing.assert_close(other[[0, 2, 3]], together[[0, 2, 3]], rtol=0, atol=1e-6)


def test_the_processor_of_the_library_lays_out_a_row_in_the_same_way(student: LanguageStudent) -> None:
    """One row, tokenised and seen by transformers alone."""
    example = EXAMPLES[1]
    ids = student.chat.processor(
        text=[student.chat.text(example)], images=[list(example.images)], return_tensors="pt", add_special_tokens=False
    )
    ids = {name: value.double() if value.is_floating_point() else value for name, value in ids.items()}
    logits = student.model(**ids).logits[0, -1].log_softmax(-1)
    mine = student.logprobs(student.compose([EXAMPLES[1]], RESPONSES[1:2, :1], torch.ones(1, 1, dtype=torch.bool)))
    torch.testing.assert_close(mine[0, 0], logits[RESPONSES[1, 0]], rtol=0, atol=1e-6, check_dtype=False)


def test_rollouts_are_scored_as_they_were_drawn(student: LanguageStudent) -> None:
    rollout = student.generate(student.prompts(EXAMPLES), generators(0, 1, 2, 3), None)
    assert rollout.logprobs is not None
    composed = student.compose(EXAMPLES, rollout.response_ids, rollout.response)
    torch.testing.assert_close(student.logprobs(composed), rollout.logprobs, rtol=0, atol=1e-5, check_dtype=False)


def test_what_is_saved_opens_and_sees_the_same(student: LanguageStudent, tmp_path: Path) -> None:
    """No torchvision here: the settings of the video part are kept for machines that have it."""
    base = Path(student.spec.tokenizer)
    student.save(tmp_path / "left" / "model.safetensors")
    again = LanguageStudent.load(tmp_path / "left")
    expected, actual = (one.prompts(EXAMPLES[:2]) for one in (student, again))
    assert torch.equal(expected.ids, actual.ids) and expected.inputs.keys() == actual.inputs.keys()
    assert all(
        torch.equal(expected.inputs[name], actual.inputs[name].to(expected.inputs[name])) for name in actual.inputs
    )
    AutoModelForImageTextToText.from_pretrained(tmp_path / "left")
    left = json.loads((tmp_path / "left" / "processor_config.json").read_text())
    assert left["processor_class"] == CLASSES[student.model.config.model_type]
    if (base / "video_preprocessor_config.json").is_file():
        assert left["video_processor"] == json.loads((base / "video_preprocessor_config.json").read_text())
    assert stand_in(student.spec).prompts(EXAMPLES).ids.shape == student.prompts(EXAMPLES).ids.shape


def test_videos_without_torchvision_end_in_a_clear_line(tmp_path: Path) -> None:
    student = LanguageStudent.load(save("qwen3_vl", tmp_path / "qwen"))
    processor = student.chat.processor
    assert type(processor.image_processor).__name__ == "Qwen2VLImageProcessorPil"
    with pytest.raises(CheckpointError, match="needs torchvision"):
        processor(text=["<|vision_start|><|video_pad|><|vision_end|>"], videos=[np.zeros((2, 32, 32, 3), np.uint8)])


@pytest.mark.parametrize("kind", ["qwen3_vl", "llava_onevision"])
def test_a_discriminator_reads_such_a_processor_too(kind: str, tmp_path: Path) -> None:
    config = VisionLanguage.Config(path=str(save(kind, tmp_path / kind)), rank=2, frames=2, question="show {prompt}")
    network = VisionLanguage.from_recipe(config, VideoStudentSpec(), lambda prompts: torch.empty(0), 0)
    clips = torch.rand(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = network(clips, ["a circle", "a large red circle"])
        alone = network(clips[:1], ["a circle"])
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(CheckpointError, match="processor cannot be built .* num2words"):
        LanguageStudent.load(save("smolvlm", tmp_path / "smolvlm"))
    assert "torchvision" not in sys.modules
