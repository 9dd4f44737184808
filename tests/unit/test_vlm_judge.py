"""A vision-language model as judge: in this process against its own logits, behind a server against its answers."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny_llava
import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vidalign.errors import UserError
from vidalign.rewards.vlm_judge import VLMJudge
from vidalign.testing import check_reward

CHOICES = {"red": 1.0, "blue": 0.0, "large": 0.25}
QUESTION = "show a {prompt}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.save_llava(tmp_path_factory.mktemp("judge"), writes=True)


@pytest.fixture
def clips() -> torch.Tensor:
    return torch.randint(0, 256, (2, 5, 3, 32, 32), generator=torch.Generator().manual_seed(0)) / 255


def settings(folder: Path, **more: Any) -> VLMJudge.Config:
    return VLMJudge.Config(model=str(folder), dtype="float32", question=QUESTION, choices=CHOICES, frames=2, **more)


def test_the_score_is_the_mean_of_the_choices(folder: Path, clips: torch.Tensor) -> None:
    """By hand: softmax over the logits of the three words alone, after all that it is shown."""
    found = VLMJudge(settings(folder)).score(clips, ["circle", "small circle"])["vlm_judge"]
    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), LlavaProcessor.from_pretrained(folder)
    for n, words in enumerate(("circle", "small circle")):
        images = [Image.fromarray((f.permute(1, 2, 0) * 255).byte().numpy()) for f in clips[n][[0, 4]]]
        inputs = processor(text=f"user <image> <image> show a {words} ", images=images, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1, [tiny_llava.WORDS.index(w) for w in CHOICES]]
        expected = float(logits.softmax(0) @ torch.tensor(list(CHOICES.values())))
        assert float(found[n]) == pytest.approx(expected, rel=1e-5) and 0.01 < expected < 0.99
    assert found[0] != found[1]


def test_it_keeps_the_promises_of_a_reward(folder: Path, clips: torch.Tensor) -> None:
    section = {"model": str(folder), "dtype": "float32", "question": QUESTION, "choices": CHOICES}
    check_reward("vlm_judge", [f"rewards.vlm_judge={json.dumps(section)}"], items=(clips, ["circle", "small"]))


def test_written_answers(folder: Path, clips: torch.Tensor) -> None:
    class Words(VLMJudge):
        def parse(self, answer: str) -> float:
            return float(len(answer.split()))

    config = settings(folder, max_new_tokens=3)
    config.choices = {}
    found = Words(config).score(clips, ["circle"] * 2)["vlm_judge"]
    assert 0 < found.sum() <= 6, "at most three words each, special tokens left out"
    assert VLMJudge(config).score(clips, ["circle"] * 2)["vlm_judge"].isnan().all(), "there is no number in it"


@pytest.mark.parametrize(
    ("answer", "number"), [("Score: 4.5", 4.5), ("3 of 5", 5), ("-1", -1), ("good", None), ("", None)]
)
def test_numbers_in_answers(answer: str, number: float | None) -> None:
    found = VLMJudge(VLMJudge.Config(model="x")).parse(answer)
    assert found == number or (number is None and found != found)


def test_what_cannot_judge(folder: Path, clips: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the judge has no model"):
        VLMJudge()
    with pytest.raises(UserError, match="the checkpoint cannot be loaded"):
        VLMJudge(settings(tmp_path)).score(clips, ["a", "b"])
    headless = tiny_llava.save_llava(tmp_path / "headless")
    with pytest.raises(UserError, match="weights are missing"):
        VLMJudge(settings(headless)).score(clips, ["a", "b"])
    same = settings(folder)
    same.choices = {"red": 1.0, "red large": 0.0}
    with pytest.raises(UserError, match="the choices cannot be separated"):
        VLMJudge(same).score(clips, ["a", "b"])
    for wrong, message in (
        ({"question": "is it good?"}, r"question must hold \{prompt\}"),
        ({"pattern": "("}, "pattern is no regular expression"),
        ({"pattern": "[0-9]+"}, "pattern must have a group"),
        ({"choices": {"yes": 1.0}}, "choices must be two or more"),
    ):
        with pytest.raises(ValueError, match=message):
            VLMJudge.Config(**wrong)  # type: ignore[arg-type]


Answer = Callable[[dict[str, Any]], Any]


@pytest.fixture
def server() -> Iterator[tuple[str, list[Answer], list[dict[str, Any]]]]:
    """Address, a list whose last function answers, and what was asked."""
    answers: list[Answer] = []
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps(answers[-1](asked[-1])).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: Any) -> None:
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}/v1", answers, asked
    made.shutdown()
    made.server_close()


def test_a_server_judges(server: tuple[str, list[Answer], list[dict[str, Any]]], clips: torch.Tensor) -> None:
    url, answers, asked = server
    top = [{"token": " Yes", "logprob": -0.5}, {"token": "yes", "logprob": -1.0}, {"token": "No", "logprob": -1.5}]
    content = [{"top_logprobs": [*top, {"token": "maybe", "logprob": -0.1}]}]
    answers.append(lambda body: {"choices": [{"logprobs": {"content": content}}]})
    found = VLMJudge(VLMJudge.Config(model="judge", url=url, frames=2)).score(clips, ["a ball", "a box"])["vlm_judge"]
    expected = 1 / (1 + torch.tensor(-1.0).exp())
    assert found.tolist() == pytest.approx([float(expected)] * 2)
    pictures = [part for part in asked[0]["messages"][0]["content"] if part["type"] == "image_url"]
    data = base64.b64decode(pictures[1]["image_url"]["url"].partition(",")[2])
    shown = torch.tensor(list(Image.open(io.BytesIO(data)).tobytes()))
    assert torch.equal(shown, (clips[0, 4] * 255).round().permute(1, 2, 0).flatten().long()), "the last frame, as it is"
    assert '"a box"' in asked[1]["messages"][0]["content"][-1]["text"] and asked[0]["top_logprobs"] == 20


def test_frames_are_shrunk(server: tuple[str, list[Answer], list[dict[str, Any]]], clips: torch.Tensor) -> None:
    url, answers, asked = server
    answers.append(lambda body: {"choices": [{"message": {"content": "4"}}]})
    wide = clips[:1].repeat_interleave(2, 4)  # 32 x 64
    for side, size in ((0, (64, 32)), (16, (16, 8)), (640, (64, 32))):
        config = VLMJudge.Config(model="judge", url=url, frames=2, side=side, choices={})
        assert VLMJudge(config).score(wide, ["a"])["vlm_judge"].tolist() == [4]
        part = asked[-1]["messages"][0]["content"][0]["image_url"]["url"]
        assert Image.open(io.BytesIO(base64.b64decode(part.partition(",")[2]))).size == size


def test_a_server_that_fails(server: tuple[str, list[Answer], list[dict[str, Any]]], clips: torch.Tensor) -> None:
    url, answers, _ = server
    answers.append(lambda body: {"choices": []})
    config = VLMJudge.Config(model="judge", url=url)
    with pytest.warns(UserWarning, match="cannot judge: its clip is not scored - IndexError"):
        assert VLMJudge(config).score(clips, ["a", "b"])["vlm_judge"].isnan().all()
    config.on_failure = "stop"
    with pytest.raises(UserError, match="cannot judge"):
        VLMJudge(config).score(clips, ["a", "b"])
    answers.append(lambda body: {"choices": [{"message": {"content": "I say 7"}}]})
    config.choices = {}
    assert VLMJudge(config).score(clips, ["a", "b"])["vlm_judge"].tolist() == [7, 7]
