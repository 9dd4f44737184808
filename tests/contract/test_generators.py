"""What answers in the place of the student: it trains the same where it is the same, and is noticed where it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from language_objective_helpers import make_student

from vidalign import registry
from vidalign.errors import PluginError, UserError
from vidalign.recipe import load_recipe
from vidalign.students.base import Generator
from vidalign.students.chat import TokenBatch
from vidalign.students.language import LanguageStudent
from vidalign.testing.recipes import tiny_recipe
from vidalign.trainer import Trainer

RATE = "trainer.learning_rate=0.05"


class Beside:
    """A copy of the student with weights of its own, as a server has; `late`: it takes the first ones only."""

    def __init__(
        self, file: Path, late: bool = False, change: Callable[[TokenBatch], Any] = lambda batch: batch
    ) -> None:
        self.student, self.late, self.change, self.updates = LanguageStudent.load(file), late, change, 0

    def update(self, weights: Any) -> None:
        self.updates += 1
        if not (self.late and self.updates > 1):
            state = weights()
            assert {key: value.shape for key, value in state.items()} == {
                key: value.shape for key, value in self.student.state_dict().items()
            }, "adapters are merged"
            self.student.load_state_dict(state)

    def generate(self, prompts: TokenBatch, sampling: Any, generators: Any) -> Any:
        return self.change(self.student.generate(prompts, generators, sampling))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_student(tmp_path / "student.safetensors", 1, tied=True)
    make_student(tmp_path / "teacher.safetensors", 2, tied=False)
    return tmp_path


def trainer(folder: Path, name: str, generator: Any, run: str, *overrides: str) -> Trainer:
    content = tiny_recipe(name, registry.get("objectives", name).needs, folder)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    recipe = load_recipe(file, ["engine.precision=fp32", "trainer.steps=3", RATE, *overrides])
    return Trainer(recipe, folder / run, generator=generator)


def steps(one: Trainer, count: int = 3) -> list[dict[str, float]]:
    return [{k: v for k, v in one.train_step().items() if not k.startswith("perf/")} for _ in range(count)]


@pytest.mark.parametrize("adapter", ["null", "{rank: 2}"])
@pytest.mark.parametrize("name", ["opd", "dopd"])
def test_a_copy_that_is_kept_up_to_date_trains_the_same(name: str, adapter: str, folder: Path) -> None:
    """Up to rounding; with an adapter the copy has it merged, which rounds otherwise."""
    beside = Beside(folder / "student.safetensors")
    assert isinstance(beside, Generator)
    own = steps(trainer(folder, name, None, "own", f"student.adapter={adapter}"))
    found = steps(
        trainer(folder, name, beside, "beside", f"student.adapter={adapter}", "trainer.max_on_policy_gap=1e-5")
    )
    assert beside.updates == 3
    for a, b in zip(found, own, strict=True):
        assert a == pytest.approx(b, rel=1e-3 if adapter != "null" else 1e-6, abs=1e-6)


def test_a_stale_copy_stops_the_run(folder: Path) -> None:
    """It is right in the first step; the second is ended, and before it is saved. Without the bound it goes on."""
    late = Beside(folder / "student.safetensors", late=True)
    bounded = trainer(folder, "opd", late, "bounded", "trainer.max_on_policy_gap=0.001", "trainer.save_every=1")
    with pytest.raises(UserError, match=r"disagree by .* at step 2 - trainer\.max_on_policy_gap - at most 0\.001"):
        bounded.fit()
    assert bounded.checkpoints.steps() == [1]
    free = steps(trainer(folder, "opd", Beside(folder / "student.safetensors", late=True), "free"))
    gaps = [step["health/on_policy_gap/mean"] for step in free]
    assert gaps[0] < 1e-6 and gaps[1] > 0.001


def test_other_numbers_are_in_the_gauge_and_not_in_the_loss(folder: Path) -> None:
    """Log-probabilities that are 0.25 lower: a gap of 0.25, and the same gradient."""

    def shifted(batch: TokenBatch) -> TokenBatch:
        assert batch.logprobs is not None
        return replace(batch, logprobs=batch.logprobs - 0.25)

    own = steps(trainer(folder, "opd", None, "own"))
    found = steps(trainer(folder, "opd", Beside(folder / "student.safetensors", change=shifted), "other"))
    for a, b in zip(found, own, strict=True):
        assert a.pop("health/on_policy_gap/mean") == pytest.approx(0.25, rel=1e-4)
        assert b.pop("health/on_policy_gap/mean") < 1e-6
        assert a == b


def with_prompt(batch: TokenBatch) -> TokenBatch:
    ids = batch.ids.clone()
    ids[0, 0] += 1
    return replace(batch, ids=ids)


def with_token(batch: TokenBatch) -> TokenBatch:
    ids = batch.ids.clone()
    ids[0, batch.prompt_length] = 102
    return replace(batch, ids=ids)


def with_gap(batch: TokenBatch) -> TokenBatch:
    response = batch.response.clone()
    response[0, 0] = False
    return replace(batch, response=response)


def fails(batch: TokenBatch) -> TokenBatch:
    raise ConnectionError("the server is gone")


def logprobs(change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[TokenBatch], TokenBatch]:
    def changed(batch: TokenBatch) -> TokenBatch:
        assert batch.logprobs is not None
        return replace(batch, logprobs=change(batch.logprobs))

    return changed


MISTAKES: dict[str, tuple[Callable[[TokenBatch], Any], str]] = {
    "type": (lambda batch: batch.ids, "returned a Tensor - .* a TokenBatch is expected"),
    "rows": (lambda b: replace(b, response=b.response[:1]), r"response of shape \(1, \d+\) - .*\(32, R\) is expected"),
    "columns": (lambda b: replace(b, ids=b.ids[:, 1:]), r"ids of shape"),
    "mask": (lambda b: replace(b, mask=b.mask.long()), "mask of type torch.int64 - .*torch.bool is expected"),
    "no logprobs": (logprobs(lambda x: None), "returned no logprobs"),
    "narrow logprobs": (logprobs(lambda x: x[:, :1]), "logprobs of shape"),
    "probabilities": (logprobs(lambda x: x.exp()), "logprobs above 0, or not finite"),
    "nan": (logprobs(lambda x: x * torch.nan), "logprobs above 0, or not finite"),
    "prompts": (with_prompt, "returned other prompts"),
    "token": (with_token, "the token 102 - .*vocabulary has 102 entries"),
    "gap": (with_gap, "a response with gaps"),
    "failure": (fails, "the generator 'Beside' failed - .*ConnectionError: the server is gone"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_one_clear_error(mistake: str, folder: Path) -> None:
    change, message = MISTAKES[mistake]
    with pytest.raises(PluginError, match=message) as raised:
        trainer(folder, "opd", Beside(folder / "student.safetensors", change=change), "run").train_step()
    assert len(raised.value.problems) == 1
