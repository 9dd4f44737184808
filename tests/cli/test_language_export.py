"""A language run from a folder of transformers in bf16, as they are published, to what others load."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from run_helpers import vidalign
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from vidalign.students.language import LanguageStudent
from vidalign.students.rounding import Rounding, rounding

RATE = 5e-6
RECIPE = f"""
student: {{name: language, path: base, adapter: {{rank: 4, alpha: 4}}}}
objective: {{name: lm_sft}}
data: {{prompts: rows.jsonl, eval_prompts: rows.jsonl}}
trainer: {{steps: 2, prompts_per_step: 4, learning_rate: {RATE}, save_every: 1}}
engine: {{precision: fp32}}
tracking: {{tensorboard: false}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished run, in which commands run."""
    folder = tmp_path_factory.mktemp("language")
    config = Qwen3Config(
        vocab_size=102,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder / "base")
    LanguageStudent.load("tokens/student").chat.tokenizer.save_pretrained(folder / "base")
    rows = [{"prompt": f"{n} + 1", "answer": str(n + 1), "response": str(n + 1)} for n in range(8)]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert vidalign("train", "recipe.yaml", "--run", "run") == 0
        yield folder
    finally:
        os.chdir(before)


def test_the_folder_of_the_run_is_what_was_trained(run: Path) -> None:
    """In fp32: the update of two small steps is there, which bf16 would have rounded away."""
    start = load_file("base/model.safetensors")
    trained = load_file("run/student/model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    factors = load_file("run/adapter/adapter_model.safetensors")
    down, up = (factors[f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight"] for part in "AB")
    assert trained[name].dtype == torch.float32 and up.abs().max() > 0
    torch.testing.assert_close(trained[name] - start[name].float(), up @ down, rtol=0, atol=5e-9)


def test_bf16_on_request_with_what_it_loses(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert vidalign("export", "run", "--to", "transformers", "--dtype", "bfloat16", "--out", "half") == 0
    said = capfd.readouterr().err
    start, trained = load_file("base/model.safetensors"), load_file("run/student/model.safetensors")
    half = AutoModelForCausalLM.from_pretrained("half")
    assert half.dtype == torch.bfloat16
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(half.state_dict()[name], trained[name].bfloat16())
    found = rounding(start, trained.items(), torch.bfloat16)
    assert found is not None and found.lost > 0.5, "two steps of this size are below what bf16 resolves"
    assert f"{100 * found.lost:.1f} % of the update is lost by rounding to bfloat16" in said


def test_forms_and_their_defaults(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import peft

    assert vidalign("export", "run", "--to", "peft", "--step", "1", "--out", "first") == 0
    assert vidalign("export", "run", "--to", "peft") == 0
    assert "lost by rounding" not in capfd.readouterr().err
    base = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
    network = peft.PeftModel.from_pretrained(base, "run/export/peft", adapter_name="last")
    network.load_adapter("first", "first")
    weights = dict(network.named_parameters())
    pairs = [(weights[n], weights[n.replace("last", "first")]) for n in weights if "lora_B.last" in n]
    assert pairs and all(not torch.equal(*pair) for pair in pairs)
    assert json.loads(Path("first/adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    assert vidalign("export", "run", "--to", "diffusers") == 2
    assert "its forms are single, transformers, peft" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (2.0**-7, Rounding(0.0, 0.0)),  # one unit in the last place of 1.5: all of it stays
        (2.0**-9, Rounding(1.0, 1.0)),  # below half a unit: nothing stays
        (1.5 * 2.0**-8, Rounding(0.0, 1 / 3)),  # three quarters of a unit: a third too much
    ],
)
def test_what_rounding_does_is_exact(step: float, found: Rounding) -> None:
    start = {"weight": torch.full((5,), 1.5, dtype=torch.bfloat16), "frozen": torch.ones(2)}
    trained = {"weight": torch.full((5,), 1.5) + step, "frozen": torch.ones(2)}
    assert rounding(start, trained.items(), torch.bfloat16) == pytest.approx(found, abs=1e-12)
    assert rounding(start, trained.items(), torch.float32) == Rounding(0.0, 0.0)
    assert rounding(start, start.items(), torch.bfloat16) is None
