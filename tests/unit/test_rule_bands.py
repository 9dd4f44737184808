"""The check of student and teacher of the rule world: shares by hand, and refusals that name numbers and bands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vidalign.data.examples import Example
from vidalign.errors import UserError
from vidalign.students.language import LanguageStudent
from vidalign.students.language_config import LanguageSpec, Sampling
from vidalign.worlds.language import bands, rules

CONFIG = dict(
    model_type="qwen3",
    vocab_size=48,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    pad_token_id=0,
    eos_token_id=2,
)


@dataclass
class Solver:
    """Answers every problem right whose number is in range, bare and with hints apart; greedy only."""

    bare: int
    hinted: int
    spec: Any = field(default_factory=lambda: SimpleNamespace(sampling=Sampling(temperature=1.0)))
    asked: int = 0
    hinted_asked: int = 0

    def prompts(self, examples: Sequence[Example], hints: Sequence[str] | None) -> list[str]:
        if hints is None:
            first, right = self.asked, self.bare
            self.asked += len(examples)
        else:
            assert list(hints) == [e.privileged for e in examples] and all(
                hint.startswith("plan : 1") for hint in hints
            )
            first, right = self.hinted_asked, self.hinted
            self.hinted_asked += len(examples)
        return [e.response if first + n < right else "= x" for n, e in enumerate(examples)]

    def generate(self, prompts: list[str], generators: None, sampling: Sampling) -> list[str]:
        assert sampling.temperature == 0
        return prompts

    def decode(self, batch: list[str]) -> list[str]:
        return batch


def shares(student: tuple[int, int], teacher: tuple[int, int], family: str = "F", count: int = 100) -> list[Any]:
    examples = bands.problems("rules", family, count)
    return bands.measure(Solver(*student), Solver(*teacher), examples, bands.bands_of(family))  # type: ignore[arg-type]


def test_shares_are_those_of_the_right_answers() -> None:
    found = shares((50, 92), (80, 99))
    assert {s.name: s.value for s in found} == {"S": 0.5, "S^p": 0.92, "T": 0.8, "T^p": 0.99}
    assert all(s.inside for s in found)
    bands.refuse(found)


@pytest.mark.parametrize(
    ("student", "teacher", "family", "outside"),
    [
        ((39, 92), (80, 99), "F", ["S"]),
        ((61, 89), (80, 99), "G", ["S", "S^p"]),
        ((50, 90), (74, 97), "F", ["T", "T^p"]),
        ((50, 90), (86, 98), "G_plan", ["T"]),
        ((50, 90), (80, 98), "H", ["S^p"]),
        ((30, 65), (80, 98), "H", []),
    ],
)
def test_weights_outside_a_band_are_refused(
    student: tuple[int, int], teacher: tuple[int, int], family: str, outside: list[str]
) -> None:
    found = shares(student, teacher, family)
    assert [s.name for s in found if not s.inside] == outside
    if outside:
        with pytest.raises(UserError) as caught:
            bands.refuse(found)
        assert [p.what for p in caught.value.problems] == [f"{name} is outside its band" for name in outside]


def test_the_band_of_h_holds_what_lacking_one_operation_of_eight_leaves() -> None:
    """Counted over problems: those without the operation, and a tenth of the others by chance."""
    problems = [rules.problem("held_out", 3, n) for n in range(1500)]
    able = sum(rules.UNKNOWN not in p.operations for p in problems) / len(problems)
    low, high = bands.bands_of("H")["S^p"]
    assert low < 0.9 * able < able + 0.1 * (1 - able) < high
    assert bands.bands_of("G") == bands.bands_of("F") == bands.BANDS


@pytest.fixture
def weights(tmp_path: Path) -> str:
    spec = LanguageSpec.from_dict({"config": CONFIG, "tokenizer": "rules", "sampling": {"max_new_tokens": 8}})
    path = tmp_path / "tiny.safetensors"
    LanguageStudent.from_spec(spec, 0).save(path)
    return str(path)


def test_the_command_refuses_random_weights(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bands.json"
    words = ["--student", weights, "--teacher", weights, "--family", "F", "--count", "40", "--out", str(out)]
    assert bands.main(words) == UserError.exit_code
    shown = capsys.readouterr()
    for name, band in (("S", "0.40 .. 0.60"), ("S^p", "0.90 .. 1.00"), ("T", "0.75 .. 0.85"), ("T^p", "0.98 .. 1.00")):
        (line,) = [text for text in shown.out.splitlines() if text.split()[0] == name]
        assert band in line and line.endswith("OUTSIDE")
        (why,) = [text for text in shown.err.splitlines() if f"{name} is outside its band" in text]
        assert band in why
    document = json.loads(out.read_text())
    assert document["shares"]["S^p"]["band"] == [0.9, 1.0] and not document["shares"]["S^p"]["inside"]


def test_mistakes_on_its_command_line(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bands.main(["--student", "tokens/student", "--teacher", weights]) == 2
    assert "its tokenizer has no 'rule'" in capsys.readouterr().err
    assert bands.main(["--student", "missing.safetensors", "--teacher", weights]) == UserError.exit_code
    assert "missing.safetensors" in capsys.readouterr().err
    assert bands.main(["--student", weights, "--teacher", weights, "--world", "signs"]) == 2
    assert "its tokenizer has no '<image>'" in capsys.readouterr().err
    refused = {
        ("--family", "Q"): "the world rules has no 'Q', it has F, G, G_plan, H",
        ("--world", "signs", "--family", "H"): "the world signs has no 'H'",
        ("--count", "0"): "--count must be at least 1",
        ("--world", "tokens"): "invalid choice: 'tokens'",
    }
    for words, why in refused.items():
        with pytest.raises(SystemExit):
            bands.main(["--student", weights, "--teacher", weights, *words])
        assert why in capsys.readouterr().err


SHIPPED = [
    ("rules", "F", "student", "teacher"),
    ("rules", "G", "student", "teacher_g"),
    ("rules", "H", "student_h", "teacher_g"),
    ("signs", "signs", "student", "teacher"),
]


@pytest.mark.parametrize(("world", "family", "student", "teacher"), SHIPPED)
def test_shipped_weights_are_inside_their_bands(world: str, family: str, student: str, teacher: str) -> None:
    models = [LanguageStudent.load(f"{world}/{name}") for name in (student, teacher)]
    examples = bands.problems(world, family, 240)
    bands.refuse(bands.measure(*models, examples, bands.bands_of(family)))
