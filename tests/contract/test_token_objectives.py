"""opd, gkd, opsd and dopd: losses written out token by token, micro-batches, padding, exact zeros, ablations.

transformers normalises in fp32 whatever the weights are: other padding moves the seventh digit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from language_objective_helpers import NAMES, collect, examples, make, make_picture_student, make_student
from objective_helpers import accumulate, logged, network_of, nudge, whole
from plain_divergences import divergence
from torch import Tensor

from vidalign.context import TrainContext
from vidalign.data.source import open_source
from vidalign.errors import DataError, RecipeError
from vidalign.losses.routing import Regime
from vidalign.objectives.base import Experience, MicroBatch, Phase
from vidalign.objectives.parts import tokens
from vidalign.students.language import LanguageStudent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    make_student(folder / "student.safetensors", 1, tied=True)
    make_student(folder / "teacher.safetensors", 2, tied=False)
    return folder


def logits(policy: Any, data: Experience, n: int, privileged: str | None) -> Tensor:
    """``[T, V]`` of one response, scored alone: no padding anywhere."""
    keep = data["response"][n : n + 1]
    length = int(keep.sum())
    example = data.prompts[int(data.group_index[n])]
    batch = policy.compose(
        [example],
        data["response_ids"][n : n + 1, :length],
        keep[:, :length],
        None if privileged is None else [privileged],
    )
    return policy.project(policy.response_hidden(batch))[0]


def teacher_of(ctx: TrainContext) -> LanguageStudent:
    network: LanguageStudent = ctx.roles._frozen["teacher"].network
    return network


def mean_of_means(values: list[Tensor]) -> float:
    return float(torch.stack([v.mean() for v in values]).mean())


# --- all of them ---


@pytest.mark.parametrize("name", NAMES)
def test_what_is_logged_does_not_depend_on_the_micro_batch(name: str, folder: Path) -> None:
    objective, ctx = make(folder, name, "objective.group_size=2")
    data = collect(objective, ctx)
    data["logp"][0] = torch.nan  # as a response that the student did not write
    nudge(network_of(ctx))
    expected = logged(objective, ctx, data, Phase(), 64)
    assert expected["health/on_policy_gap/mean"] > 1e-3
    for size in (1, 4):
        assert logged(objective, ctx, data, Phase(), size) == pytest.approx(expected, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_not_seen(name: str, folder: Path) -> None:
    """More columns behind the responses change nothing, not even with other ids in them."""
    objective, ctx = make(folder, name, "objective.group_size=2")
    data = collect(objective, ctx)
    loss = whole(objective, ctx, data).loss.item()
    wider = {"response_ids": 7, "response": 0, "logp": 3, "regime": 1}
    tensors = {
        key: torch.nn.functional.pad(value, (0, 5), value=wider[key]) if key in wider else value
        for key, value in data.tensors.items()
    }
    assert whole(objective, ctx, replace(data, tensors=tensors)).loss.item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_sees_what_the_rollout_saw(name: str, folder: Path) -> None:
    objective, ctx = make(folder, name, *(["objective.on_policy=1"] if name == "gkd" else []))
    data = collect(objective, ctx)
    metrics = {**data.metrics, **whole(objective, ctx, data).metrics}
    assert float(metrics["health/on_policy_gap/mean"]) < 1e-6
    for key, value in metrics.items():
        assert key.split("/")[0] in ("objective", "reward", "health", "perf"), key
        assert torch.isfinite(torch.as_tensor(value)), key


@pytest.mark.parametrize("name", NAMES)
def test_only_the_student_gets_gradient_and_numbers_come_from_the_counter(name: str, folder: Path) -> None:
    losses = []
    for step in (3, 3, 4):
        objective, ctx = make(folder, name)
        ctx.step = step
        data = collect(objective, ctx)
        assert not any(t.requires_grad for t in data.tensors.values())
        with ctx.roles.phase("student") as engine:
            loss = objective.loss(ctx, MicroBatch(data, 1.0), Phase()).loss
            engine.backward(loss)
            assert all(p.grad is None for p in teacher_of(ctx).parameters()) if name != "opsd" else True
            assert all(p.grad is not None for p in network_of(ctx).parameters()), "every weight has a gradient"
        losses.append(loss.item())
        torch.randn(3)
    assert losses[0] == losses[1] != losses[2]


# --- baselines ---


@pytest.mark.parametrize(("name", "kind"), [("opd", "reverse_kl"), ("gkd", "jsd"), ("opsd", "reverse_kl")])
def test_baselines_are_the_formula(name: str, kind: Any, folder: Path) -> None:
    """Every response scored alone, one full table of logits at a time."""
    objective, ctx = make(folder, name, "objective.beta=0.3")
    data = collect(objective, ctx)
    nudge(network_of(ctx))
    student, values = network_of(ctx), []
    for n in range(len(data)):
        target = student if name == "opsd" else teacher_of(ctx)
        hint = data.prompts[int(data.group_index[n])].privileged if name == "opsd" else None
        ours, theirs = logits(student, data, n, None), logits(target, data, n, hint)
        values.append(divergence(ours, theirs, kind, beta=0.3))
    assert whole(objective, ctx, data).loss.item() == pytest.approx(mean_of_means(values), rel=1e-6)


def test_a_top_k_support_is_a_lower_bound(folder: Path) -> None:
    losses = []
    for top_k in ("2", "20", "101", "null"):
        objective, ctx = make(folder, "opd", f"objective.top_k={top_k}")
        losses.append(whole(objective, ctx, collect(objective, ctx)).loss.item())
    assert losses == sorted(losses) and losses[0] < losses[1] and losses[2] <= losses[3]


def test_the_temperature_is_the_samplers(folder: Path) -> None:
    """Student and teacher at the temperature of the rollout: both halves of the divergence change."""
    objective, ctx = make(folder, "opd", "student.sampling.temperature=0.5")
    data = collect(objective, ctx)
    values = []
    for n in range(len(data)):
        ours, theirs = logits(network_of(ctx), data, n, None), logits(teacher_of(ctx), data, n, None)
        values.append(divergence(2 * ours, 2 * theirs, "reverse_kl"))
    out = whole(objective, ctx, data)
    assert out.loss.item() == pytest.approx(mean_of_means(values), rel=1e-6)
    assert float(out.metrics["health/on_policy_gap/mean"]) < 1e-6


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 12), (0.5, None)])
def test_gkd_mixes_written_and_sampled_responses(share: float, expected: int | None, folder: Path) -> None:
    objective, ctx = make(folder, "gkd", f"objective.on_policy={share}")
    data = collect(objective, ctx)
    sampled = data["logp"].isfinite().all(1)
    assert int(sampled.sum()) == expected if expected is not None else 0 < int(sampled.sum()) < 12
    assert data.metrics["objective/on_policy/mean"] == pytest.approx(float(sampled.double().mean()))
    texts = ctx.student.chat.decode(data["response_ids"], data["response"])
    for n in range(len(data)):
        written = data.prompts[int(data.group_index[n])].response
        assert (texts[n] == written.strip()) == (not bool(sampled[n]))


def test_gkd_asks_for_written_responses(folder: Path) -> None:
    objective, ctx = make(folder, "gkd", "objective.on_policy=0")
    with pytest.raises(DataError, match="no response"):
        collect(objective, ctx, [replace(example, response="") for example in examples()])


# --- dopd ---


def dopd_by_hand(ctx: TrainContext, data: Experience, config: Any) -> tuple[float, list[list[int]]]:
    """The method token by token: one response at a time, python numbers for the routing."""
    student, teacher = network_of(ctx), teacher_of(ctx)
    rows = []
    for n in range(len(data)):
        hint = data.prompts[int(data.group_index[n])].privileged
        ids = data["response_ids"][n][data["response"][n]]
        found = [logits(student, data, n, None), logits(student, data, n, hint), logits(teacher, data, n, hint)]
        at = torch.arange(len(ids))
        rows.append((ids, *found, *(x.log_softmax(-1)[at, ids].detach() for x in found[1:])))
    gaps = sorted(abs(float(t - s)) for row in rows for s, t in zip(row[4], row[5], strict=True))
    sure = [sorted(float(one.exp()) for row in rows for one in row[k]) for k in (4, 5)]
    kept = len(gaps) - int(config.trim * len(gaps))
    mean_gap, mean_sum = sum(gaps[:kept]) / kept, sum(sum(q[:kept]) / kept for q in sure)
    total, regimes = 0.0, []
    for ids, ours, own, other, l_s, l_t in rows:
        values, chosen = [], []
        for k in range(len(ours)):
            a, q = abs(float(l_t[k] - l_s[k])), float(l_t[k].exp() + l_s[k].exp())
            if a < mean_gap:
                name = "lh" if q >= mean_sum else "ll"
            else:
                name = "ht" if l_t[k] >= l_s[k] else "hs"
            one = getattr(config, name)
            target = (other if one.source == "teacher" else own)[k]
            if one.support == "sampled":
                token = int(ids[k])
                values.append(one.weight * (ours[k].log_softmax(-1) - target.log_softmax(-1))[token])
            else:
                top_k = None if one.support == "full" else config.top_k
                by = "target" if one.support == "target_top_k" else "student"
                values.append(one.weight * divergence(ours[k], target, one.divergence, top_k=top_k, chosen_by=by))
            chosen.append(int(Regime[name.upper()]))
        total += float(torch.stack(values).mean()) / len(rows)
        regimes.append(chosen)
    return total, regimes


ABLATIONS = {
    "full": [],
    "HT only": ["lh.weight=0", "ll.weight=0", "hs.weight=0"],
    "equal weights": ["lh.weight=1", "ll.weight=1", "hs.weight=1"],
    "no student source": ["ll.source=teacher", "hs.source=teacher"],
    "no teacher source": ["lh.source=student", "ht.source=student"],
    "supports of the target": ["lh.support=target_top_k", "ll.support=target_top_k", "hs.support=target_top_k"],
    "sampled tokens": [f"{name}.support=sampled" for name in ("lh", "ll", "ht", "hs")] + ["ht.divergence=reverse_kl"],
    "other divergences": ["lh.divergence=forward_kl", "ll.support=full", "trim=0.3"],
}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_dopd_is_the_method_token_by_token(ablation: str, folder: Path) -> None:
    overrides = [f"objective.{o}" for o in ["top_k=5", *ABLATIONS[ablation]]]
    objective, ctx = make(folder, "dopd", *overrides)
    data = collect(objective, ctx)
    expected, regimes = dopd_by_hand(ctx, data, objective.config)
    for n, chosen in enumerate(regimes):
        assert data["regime"][n][data["response"][n]].tolist() == chosen
    assert {r for row in regimes for r in row} == {0, 1, 2, 3}, "all regimes occur"
    assert whole(objective, ctx, data).loss.item() == pytest.approx(expected, rel=1e-6)


def test_logged_parts_do_not_depend_on_the_micro_batch(folder: Path) -> None:
    """Each regime's part of the loss is a mean over all tokens: parts of micro-batches average to that of the batch."""
    objective, ctx = make(folder, "dopd")
    data = collect(objective, ctx)
    names = [f"objective/loss_{name}/mean" for name in ("lh", "ll", "ht", "hs")]
    found = []
    for ctx.micro_batch in (len(data), 2):
        total = dict.fromkeys(names, 0.0)
        for piece in objective.micro_batches(ctx, data, Phase()):
            out = objective.loss(ctx, piece, Phase())
            for name in names:
                total[name] += piece.weight * float(out.metrics[name])
        found.append(total)
    assert found[1] == pytest.approx(found[0], rel=1e-4) and sum(found[0].values()) > 0


def test_what_dopd_logs(folder: Path) -> None:
    objective, ctx = make(folder, "dopd")
    data = collect(objective, ctx)
    counts = torch.bincount(data["regime"][data["response"]], minlength=4).double()
    shares = [data.metrics[f"objective/share_{name}/mean"] for name in ("lh", "ll", "ht", "hs")]
    assert shares == pytest.approx((counts / counts.sum()).tolist())
    assert sum(v for k, v in data.metrics.items() if "gap_from_" in k) == pytest.approx(1.0)
    out = whole(objective, ctx, data)
    assert {f"objective/loss_{name}/mean" for name in ("lh", "ll", "ht", "hs")} <= out.metrics.keys()
    assert float(out.metrics["objective/entropy/mean"]) > 0 < data.metrics["objective/entropy_teacher/mean"]


@pytest.mark.parametrize("how", ["objective.privilege=none", "data"])
def test_without_privilege_the_student_regimes_are_exactly_nothing(how: str, folder: Path) -> None:
    only = ["objective.lh.weight=0", "objective.ht.weight=0"]
    objective, ctx = make(folder, "dopd", *only, *([how] if "=" in how else []))
    data = collect(objective, ctx, examples(form="none") if how == "data" else None)
    nudge(network_of(ctx))
    out = whole(objective, ctx, data)
    assert out.loss.item() == 0 and float(out.metrics["objective/loss_hs/mean"]) == 0
    _, gradient, _ = accumulate(objective, ctx, data, Phase(), 2)
    assert all((g == 0).all() for g in gradient.values())


def test_an_example_without_privilege_among_others(folder: Path) -> None:
    """Its tokens cost nothing in LL and HS although the batch as a whole is scored with privilege."""
    given = examples()
    given[1] = replace(given[1], privileged="")
    objective, ctx = make(folder, "dopd", "objective.lh.weight=0", "objective.ht.weight=0")
    data = collect(objective, ctx, given)
    alone = whole(objective, ctx, data.candidates(4, 8))
    assert alone.loss.item() == 0 and whole(objective, ctx, data).loss.item() > 0


def test_a_teacher_equal_to_the_student_without_privilege_teaches_nothing(folder: Path) -> None:
    objective, ctx = make(folder, "dopd", "objective.privilege=none", f"teacher.path={folder}/student.safetensors")
    data = collect(objective, ctx)
    assert (data["regime"] == Regime.HT)[data["response"]].all() and data.metrics["objective/gap/max"] == 0
    assert whole(objective, ctx, data).loss.item() == 0
    _, gradient, _ = accumulate(objective, ctx, data, Phase(), 64)
    assert all((g == 0).all() for g in gradient.values())


def test_shuffled_privilege_is_that_of_another_prompt(folder: Path) -> None:
    objective, ctx = make(folder, "dopd", "objective.privilege=shuffled")
    given = examples()
    data = collect(objective, ctx, given)
    assert [e.privileged for e in data.prompts] == [given[k].privileged for k in (1, 2, 0)]
    assert [e.prompt for e in data.prompts] == [e.prompt for e in given]
    assert whole(objective, ctx, data).loss.item() == pytest.approx(dopd_by_hand(ctx, data, objective.config)[0])


def test_uniform_routing_is_one_divergence_for_all(folder: Path) -> None:
    objective, ctx = make(folder, "dopd", "objective.routing=uniform", "objective.privilege=none")
    plain, other = make(folder, "opd", "objective.divergence=js")
    ours, theirs = collect(objective, ctx), collect(plain, other)
    assert whole(objective, ctx, ours).loss.item() == pytest.approx(whole(plain, other, theirs).loss.item(), rel=1e-12)


def test_thresholds_are_those_of_the_whole_batch(folder: Path) -> None:
    """Regimes do not depend on how the scoring is cut."""
    found = []
    for size in (64, 1, 5):
        objective, ctx = make(folder, "dopd", f"trainer.micro_batch={size}")
        found.append(collect(objective, ctx)["regime"])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_token_weights_are_a_mean_of_means() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert tokens.token_weights(mask).tolist() == [0.25, 0.25, 0.5]


def test_gathering_tokens_of_unequal_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with three and one tokens, played by one."""
    parts = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0])]

    class Context:
        def gather(self, padded: Tensor) -> Tensor:
            assert len(padded) == 3
            return torch.cat([torch.nn.functional.pad(p, (0, 3 - len(p))) for p in parts])

    monkeypatch.setattr("vidalign.engine.distributed.all_gather_object", lambda value: [3, 1])
    context: Any = Context()
    for part in parts:
        assert tokens.gather_tokens(context, part).tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("dopd", "trim=1"),
        ("dopd", "top_k=0"),
        ("dopd", "lh.weight=-1"),
        ("dopd", "ht.source=techer"),
        ("gkd", "beta=2"),
        ("gkd", "on_policy=1.5"),
        ("opd", "top_k=0"),
        ("dopd", "privilege=mine"),
    ],
)
def test_impossible_settings_are_refused(name: str, wrong: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=wrong.split("=")[0].split(".")[-1]):
        make(folder, name, f"objective.{wrong}")


def test_dopd_on_pictures(tmp_path: Path) -> None:
    """A vision-language student of two layers: boxes as privilege, every size of micro-batch the same loss."""
    for seed, name in ((1, "student"), (2, "teacher")):
        make_picture_student(tmp_path / f"{name}.safetensors", seed)
    data = ["data.prompts=pictures:train", "data.eval_prompts=pictures:held_out"]
    objective, ctx = make(tmp_path, "dopd", "objective.group_size=2", "objective.top_k=8", *data)
    source = open_source("pictures:train", 0)
    found = collect(objective, ctx, [source[n] for n in range(3)])
    assert all(e.images and e.privileged for e in found.prompts)
    expected, gradient, _ = accumulate(objective, ctx, found, Phase(), 64)
    assert expected > 1e-6 and max(float(g.abs().max()) for g in gradient.values()) > 1e-8
    assert accumulate(objective, ctx, found, Phase(), 2)[0] == pytest.approx(expected, rel=1e-4)
    assert float(whole(objective, ctx, found).metrics["health/on_policy_gap/mean"]) < 1e-3
