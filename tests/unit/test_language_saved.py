"""What a language run leaves opens elsewhere: a transformers folder and a PEFT folder that compute what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from language_helpers import CONFIGS as FAMILIES
from language_helpers import TEXT, make
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from vidalign.engine.config import AdapterConfig
from vidalign.engine.policies import Policies
from vidalign.errors import CheckpointError, UsageError, UserError
from vidalign.run_folder import with_weights, write_adapter
from vidalign.students.exchange import Leaving
from vidalign.students.language import LanguageStudent
from vidalign.students.language_checkpoint import WEIGHTS
from vidalign.students.language_export import export

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True, **TEXT},
    "llama": {"model_type": "llama", "tie_word_embeddings": False, **TEXT},
    "mistral": {"model_type": "mistral", "tie_word_embeddings": False, **TEXT},
    "gemma": {
        "model_type": "gemma",
        "head_dim": 8,
        "tie_word_embeddings": True,
        **TEXT,
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, **TEXT},
    "gpt2": FAMILIES["gpt2"] | {"tie_word_embeddings": False},  # its matrices are transposed
    "gpt2 tied": FAMILIES["gpt2"] | {"tie_word_embeddings": True},
}
GPT2 = {"q_proj": "c_attn", "v_proj": "c_attn", "down_proj": "mlp.c_proj"}
"""What GPT-2 calls these layers."""
TARGETS = {"blocks": "blocks", "two kinds": ["q_proj", "down_proj"], "the head too": ["v_proj", "lm_head"]}
IDS = torch.tensor([[5, 17, 44, 8, 23, 9]])


class Trained:
    """A run's student, its base as others publish it, and the folders that the run leaves."""

    def __init__(self, config: dict[str, Any], targets: Any, folder: Path) -> None:
        made = make(config=config).float()
        self.base = folder / "base"
        made.model.save_pretrained(self.base)
        made.chat.tokenizer.save_pretrained(self.base)
        self.student = LanguageStudent.load(str(self.base))
        policies = Policies(self.student, (), AdapterConfig(rank=4, alpha=8.0, targets=targets))
        numbers = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in (p for p in self.student.parameters() if p.requires_grad):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=numbers))
        self.logits = self.of(self.student.model)
        self.adapter, self.folder = folder / "adapter", folder / "student"
        write_adapter(policies, self.student, "current", self.adapter)
        with_weights(self.student, policies.weights("current")).save(self.folder / WEIGHTS, {"recipe": "own"})

    @staticmethod
    def of(model: Any) -> Tensor:
        """Logits of a few tokens."""
        with torch.no_grad():
            logits: Tensor = model.eval()(IDS).logits
        return logits

    def untrained(self) -> Any:
        """The base as transformers reads it."""
        return AutoModelForCausalLM.from_pretrained(self.base)


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("family", CONFIGS)
def test_both_folders_compute_what_was_trained(family: str, targets: Any, tmp_path: Path) -> None:
    import peft

    if family.startswith("gpt2") and isinstance(targets, list):
        targets = [GPT2.get(name, name) for name in targets]
    run = Trained(CONFIGS[family], targets, tmp_path)
    base = run.of(run.untrained())
    assert (run.logits - base).abs().max() > 0.01
    tolerance: dict[str, float] = dict(rtol=0, atol=2e-5 * float(run.logits.abs().max()))
    torch.testing.assert_close(run.of(AutoModelForCausalLM.from_pretrained(run.folder)), run.logits, **tolerance)
    adapted = peft.PeftModel.from_pretrained(run.untrained(), run.adapter)
    torch.testing.assert_close(run.of(adapted), run.logits, **tolerance)
    written = json.loads((run.adapter / "adapter_config.json").read_text())
    assert written["fan_in_fan_out"] == family.startswith("gpt2")
    if not (
        CONFIGS[family]["tie_word_embeddings"] and "lm_head" in targets
    ):  # PEFT merges such a head into the embedding as well
        torch.testing.assert_close(run.of(adapted.merge_and_unload()), run.logits, **tolerance)
    again = peft.PeftModel.from_pretrained(run.untrained(), run.adapter)
    torch.testing.assert_close(run.of(again.unload()), base, **tolerance)


def test_the_folder_needs_nothing_of_the_base(tmp_path: Path) -> None:
    run = Trained(CONFIGS["qwen3"], "blocks", tmp_path)
    expected = AutoTokenizer.from_pretrained(run.base)("red circle").input_ids
    run.base.rename(tmp_path / "gone")
    moved = run.folder.rename(tmp_path / "elsewhere")
    assert AutoTokenizer.from_pretrained(moved)("red circle").input_ids == expected
    assert pipeline("text-generation", str(moved))("red", max_new_tokens=2)[0]["generated_text"].startswith("red")
    student = LanguageStudent.load(str(moved))
    torch.testing.assert_close(run.of(student.model), run.logits, rtol=0, atol=1e-4)
    assert student.spec.sampling == run.student.spec.sampling


@pytest.mark.parametrize("dtype", ["", "bfloat16"])
def test_exports_load_elsewhere(dtype: str, tmp_path: Path) -> None:
    import peft

    run = Trained(CONFIGS["llama"], "blocks", tmp_path)
    leaving = Leaving(run.folder / WEIGHTS, {"recipe": "own"}, run.adapter, str(run.base))
    whole = AutoModelForCausalLM.from_pretrained(export(leaving, "transformers", tmp_path / "whole", dtype))
    assert whole.dtype == (torch.bfloat16 if dtype else torch.float32)
    atol = 0.05 * float(run.logits.abs().max()) if dtype else 1e-4
    torch.testing.assert_close(run.of(whole).float(), run.logits, rtol=0, atol=atol)
    adapted = peft.PeftModel.from_pretrained(run.untrained(), export(leaving, "peft", tmp_path / "peft", dtype))
    torch.testing.assert_close(run.of(adapted).float(), run.logits, rtol=0, atol=atol)
    single = export(leaving, "single", tmp_path / "one.safetensors", dtype)
    run.folder.rename(tmp_path / "gone")
    found = LanguageStudent.load(str(single))
    assert found.spec.tokenizer == "tasks"
    torch.testing.assert_close(run.of(found.model).float(), run.logits, rtol=0, atol=atol)


def test_one_file_names_no_folder_of_a_tokenizer(tmp_path: Path) -> None:
    """Seen by running: an export of a checkpoint named the temporary folder that it was written from."""
    run = Trained(CONFIGS["llama"], "blocks", tmp_path)
    template = run.folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another one #}")
    with pytest.raises(UsageError, match="one file has no place for the student's tokenizer"):
        export(Leaving(run.folder / WEIGHTS), "single", tmp_path / "one.safetensors", "")
    assert not (tmp_path / "one.safetensors").exists()


@pytest.mark.parametrize("shipped", ["tasks", "signs"])
def test_one_file_names_the_processor_of_its_own_patches(shipped: str, tmp_path: Path) -> None:
    """Seen by running: the tokenizer of a world without pictures ended the export of a student that sees them, and
    processors differ in the patches of a picture."""
    config = FAMILIES["llava"] | {"image_seq_length": 64 if shipped == "signs" else 16}
    student = make(config=config, tokenizer=shipped).float()
    student.save(tmp_path / "whole" / WEIGHTS, {})
    export(Leaving(tmp_path / "whole" / WEIGHTS), "single", tmp_path / "one.safetensors", "")
    (tmp_path / "whole").rename(tmp_path / "gone")
    found = LanguageStudent.load(str(tmp_path / "one.safetensors"))
    assert found.spec.tokenizer == shipped
    assert found.chat.processor.patch_size == student.chat.processor.patch_size


def test_a_tokenizer_without_the_processor_of_a_student_that_sees_is_refused() -> None:
    with pytest.raises(CheckpointError, match="there is only a tokenizer") as refused:
        make("llava", tokenizer="rules")
    assert refused.value.exit_code == UserError.exit_code and "rules" in str(refused.value)
