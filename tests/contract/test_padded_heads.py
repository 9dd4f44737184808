"""Student and teacher with heads of different sizes over one tokenizer: all is normalised over the common entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from language_objective_helpers import collect, examples, make
from objective_helpers import network_of, nudge, whole
from plain_divergences import divergence
from torch import Tensor

from vidalign.context import TrainContext
from vidalign.errors import RecipeError, UserError
from vidalign.objectives.base import Experience, MicroBatch, Phase
from vidalign.recipe import load_recipe
from vidalign.students.common_tokens import common_entries
from vidalign.students.language import LanguageStudent
from vidalign.testing.recipes import LANGUAGE, save_language_network
from vidalign.workflows.plan import plan_step

WORDS = LANGUAGE["config"]["vocab_size"]
PADS = {"a larger teacher": (0, 16), "a larger student": (16, 0), "both padded": (8, 24)}
KINDS = {"opd": "reverse_kl", "gkd": "jsd"}


def folder_of(tmp_path: Path, pads: tuple[int, int], *, tied: bool = False) -> Path:
    for seed, (name, pad) in enumerate(zip(("student", "teacher"), pads, strict=True), 1):
        config = {**LANGUAGE["config"], "vocab_size": WORDS + pad, "tie_word_embeddings": tied}
        save_language_network(tmp_path / f"{name}.safetensors", seed, config)
    return tmp_path


def teacher_of(ctx: TrainContext) -> LanguageStudent:
    network: LanguageStudent = ctx.roles._frozen["teacher"].network
    return network


def logits(policy: LanguageStudent, data: Experience, n: int, entries: int, hint: str | None = None) -> Tensor:
    """``[T, entries]`` of one response, from the weights as they are stored."""
    keep = data["response"][n : n + 1]
    length = int(keep.sum())
    example = data.prompts[int(data.group_index[n])]
    texts = None if hint is None else [hint]
    batch = policy.compose([example], data["response_ids"][n : n + 1, :length], keep[:, :length], texts)
    states = policy.model.base_model(input_ids=batch.ids).last_hidden_state[0, -length - 1 : -1]
    return states @ policy.model.get_output_embeddings().weight.detach()[:entries].T


def reference(objective: str, ctx: TrainContext, data: Experience, entries: int) -> Tensor:
    """Mean over responses of the mean over tokens."""
    values = []
    for n in range(len(data)):
        ours, theirs = (logits(one, data, n, entries) for one in (network_of(ctx), teacher_of(ctx)))
        kind: Any = KINDS[objective]
        values.append(divergence(ours, theirs, kind, beta=0.5).mean())
    return torch.stack(values).mean()


@pytest.mark.parametrize("pads", PADS.values(), ids=PADS)
@pytest.mark.parametrize("name", KINDS)
def test_the_loss_is_that_over_the_common_entries(name: str, pads: tuple[int, int], tmp_path: Path) -> None:
    objective, ctx = make(folder_of(tmp_path, pads), name)
    data = collect(objective, ctx)
    nudge(network_of(ctx))
    loss = whole(objective, ctx, data).loss
    entries = WORDS + min(pads)
    assert loss.item() == pytest.approx(reference(name, ctx, data, entries).item(), rel=1e-6)
    if pads[1] > 0 == pads[0]:
        with torch.no_grad():  # rows that belong to no token
            teacher_of(ctx).head_weight[entries:] *= 100.0
        assert whole(objective, ctx, data).loss.item() == loss.item()


@pytest.mark.parametrize("name", ["opd", "dopd"])
def test_rows_of_no_token_get_no_gradient(name: str, tmp_path: Path) -> None:
    objective, ctx = make(folder_of(tmp_path, (16, 0)), name)
    data = collect(objective, ctx)
    with ctx.roles.phase("student") as engine:
        engine.backward(objective.loss(ctx, MicroBatch(data, 1.0), Phase()).loss)
        gradient = network_of(ctx).head_weight.grad
        assert gradient.shape[0] == WORDS + 16 and not gradient[WORDS:].any() and gradient[:WORDS].any(1).all()


@pytest.mark.parametrize("pads", PADS.values(), ids=PADS)
def test_padding_is_never_drawn_and_rollouts_are_what_the_loss_sees(pads: tuple[int, int], tmp_path: Path) -> None:
    objective, ctx = make(folder_of(tmp_path, pads), "opd")
    data = collect(objective, ctx, examples(8))
    assert int(data["response_ids"].max()) < WORDS + min(pads)
    for n in range(4):
        length = int(data["response"][n].sum())
        expected = logits(network_of(ctx), data, n, WORDS + min(pads)).log_softmax(-1)
        chosen = expected.gather(1, data["response_ids"][n, :length, None])[:, 0]
        torch.testing.assert_close(data["logp"][n, :length].double(), chosen, rtol=0, atol=1e-5)
    assert float(whole(objective, ctx, data).metrics["health/on_policy_gap/mean"]) < 1e-5


@pytest.mark.parametrize("pads", PADS.values(), ids=PADS)
@pytest.mark.parametrize("name", ["opd", "gkd", "dopd"])
def test_the_same_model_with_another_padding_is_exactly_equal(name: str, pads: tuple[int, int], tmp_path: Path) -> None:
    """Value and gradient are 0, not small; dopd without hints."""
    folder = folder_of(tmp_path, pads)
    copy, entries = LanguageStudent.load(folder / "student.safetensors"), WORDS + min(pads)
    teacher = LanguageStudent.load(folder / "teacher.safetensors")
    own = {key: value for key, value in copy.model.state_dict().items()}
    with torch.no_grad():
        for key, value in teacher.model.state_dict().items():
            value[: len(own[key][:entries])] = (
                own[key][: len(value)][:entries] if "embed" in key or "head" in key else own[key]
            )
    teacher.save(folder / "teacher.safetensors")
    more = ["objective.privilege=none"] if name == "dopd" else []
    objective, ctx = make(folder, name, *more)
    data = collect(objective, ctx)
    with ctx.roles.phase("student") as engine:
        loss = objective.loss(ctx, MicroBatch(data, 1.0), Phase()).loss
        assert loss.item() == 0
        engine.backward(loss)
        assert all(not p.grad.any() for p in network_of(ctx).parameters() if p.grad is not None)


def test_dopd_scores_both_over_the_common_entries(tmp_path: Path) -> None:
    objective, ctx = make(folder_of(tmp_path, (0, 16)), "dopd")
    data, gaps = collect(objective, ctx), []
    for n in range(len(data)):
        length = int(data["response"][n].sum())
        hint, chosen = data.prompts[int(data.group_index[n])].privileged, data["response_ids"][n, :length, None]
        one, two = (logits(p, data, n, WORDS, hint).log_softmax(-1) for p in (network_of(ctx), teacher_of(ctx)))
        gaps.append((one - two).gather(1, chosen).abs())
    assert data.metrics["objective/gap/mean"] == pytest.approx(float(torch.cat(gaps).mean()), rel=1e-5)


def test_an_adapter_on_a_padded_head(tmp_path: Path) -> None:
    """The loss is that of the merged head, and rows of no token are not trained through it either."""
    folder = folder_of(tmp_path, (16, 0))
    LanguageStudent.load(folder / "student.safetensors").save(folder / "student" / "model.safetensors")
    adapter = "student.adapter={rank: 2, targets: [q_proj, lm_head]}"
    objective, ctx = make(folder, "opd", adapter, f"student.path={folder}/student")
    data, network = collect(objective, ctx), network_of(ctx)
    layer = network.lm_head
    with torch.no_grad():
        for name, part in layer.named_parameters():
            if "lora" in name:
                part.normal_(generator=torch.Generator().manual_seed(0))
    merged = layer.base_layer.weight + layer.get_delta_weight(layer.active_adapters[0])
    values = []
    for n in range(len(data)):
        length = int(data["response"][n].sum())
        batch = network.compose(
            [data.prompts[int(data.group_index[n])]],
            data["response_ids"][n : n + 1, :length],
            data["response"][n : n + 1, :length],
        )
        states = network.model.base_model(input_ids=batch.ids).last_hidden_state[0, -length - 1 : -1]
        theirs = logits(teacher_of(ctx), data, n, WORDS)
        values.append(divergence(states @ merged[:WORDS].T, theirs, "reverse_kl").mean())
    with ctx.roles.phase("student") as engine:
        loss = objective.loss(ctx, MicroBatch(data, 1.0), Phase()).loss
        assert loss.item() == pytest.approx(torch.stack(values).mean().item(), rel=1e-6)
        engine.backward(loss)
        rows = next(p.grad for name, p in layer.named_parameters() if "lora_B" in name)
        assert not rows[WORDS:].any() and rows[:WORDS].any(1).all()


# --- which tokens ---


def test_tokens_must_be_the_same_below_the_common_size() -> None:
    own = {"a": 0, "b": 1, "c": 2}
    assert common_entries(own, own, 8, 5) == 5
    assert common_entries(own, own | {"tool": 5}, 5, 8) == 5, "the student never writes what only the teacher has"
    for other, why in (
        ({"a": 1, "b": 0, "c": 2}, "2 tokens differ: of 'a' the student has id 0, the teacher has id 1"),
        ({"a": 0, "b": 1}, "1 tokens differ: of 'c' the student has id 2, the teacher has none"),
        (own | {"tool": 3}, "1 tokens differ: of 'tool' the student has none, the teacher has id 3"),
    ):
        with pytest.raises(UserError, match="other vocabularies") as error:
            common_entries(own, other, 8, 5)
        assert why in str(error.value)
    with pytest.raises(UserError, match="ends at 5 entries, and the student's 'tool' is token 6"):
        common_entries(own | {"tool": 6}, own, 8, 5)


def test_other_tokens_at_hand_are_refused_before_any_work(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, (0, 16))
    make(folder, "opd")  # valid
    teacher = LanguageStudent.load(folder / "teacher.safetensors")
    teacher.save(folder / "other" / "model.safetensors")
    load_recipe(folder / "opd.yaml", [f"teacher.path={folder}/other"])
    words = folder / "other" / "tokenizer.json"
    words.write_text(words.read_text(encoding="utf-8").replace('"plus":', '"added":'), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"other vocabularies - override 1 - 2 tokens differ"):
        load_recipe(folder / "opd.yaml", [f"teacher.path={folder}/other"])


@pytest.mark.parametrize("name", ["opd", "gkd", "dopd"])
@pytest.mark.parametrize("pads", [(0, 16), (16, 0)])
def test_they_are_planned(name: str, pads: tuple[int, int], tmp_path: Path) -> None:
    folder = folder_of(tmp_path, pads)
    make(folder, name)
    plan = plan_step(load_recipe(folder / f"{name}.yaml", ["engine.precision=fp32"]))
    away = plan_step(load_recipe(folder / f"{name}.yaml", ["engine.precision=fp32", "teacher.device=cuda:1"]))
    low = plan_step(load_recipe(folder / f"{name}.yaml", ["engine.precision=fp32", "teacher.dtype=bfloat16"]))
    size = plan.held["network of `teacher`"]
    assert low.held["network of `teacher`"] == pytest.approx(size / 2, rel=0.01)
    assert size > 0 and "network of `teacher`" not in away.held and plan.peak - away.peak == size
