"""Divergences against closed forms, brute force over the vocabulary and finite differences, all in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from plain_divergences import between, bucket_log_probs, divergence, forward_kl, jensen_shannon, reverse_kl
from torch import Tensor

from vidalign.losses.chunks import _split
from vidalign.losses.divergences import entropy, log_probs
from vidalign.losses.projected import Projected, Toward, Written, projected_loss, projected_statistics

KINDS = ("reverse_kl", "forward_kl", "js", "jsd")
V = 11


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two(p: float, q: float) -> tuple[Tensor, Tensor]:
    """Two-token distributions as log-probabilities."""
    return torch.tensor([p, 1 - p]).double().log(), torch.tensor([q, 1 - q]).double().log()


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def written_out(student: Tensor, target: Tensor, kind: str, beta: float) -> float:
    s, t = student.softmax(-1).tolist(), target.softmax(-1).tolist()
    if kind == "reverse_kl":
        return kl(s, t)
    if kind == "forward_kl":
        return kl(t, s)
    beta = 0.5 if kind == "js" else beta
    m = [beta * b + (1 - beta) * a for a, b in zip(s, t, strict=True)]
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


def test_closed_forms_of_two_tokens() -> None:
    s, t = two(0.5, 0.25)
    assert float(reverse_kl(s, t)) == pytest.approx(0.5 * math.log(4 / 3), abs=1e-12)
    assert float(forward_kl(s, t)) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-12)
    expected = 0.5 * (kl([0.25, 0.75], [0.375, 0.625]) + kl([0.5, 0.5], [0.375, 0.625]))
    assert float(jensen_shannon(s, t)) == pytest.approx(expected, abs=1e-12)
    assert float(entropy(s)) == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_values_are_the_sums_written_out(kind: Any, beta: float) -> None:
    for seed in range(5):
        s, t = logits(V, seed=seed), logits(V, seed=seed + 50)
        expected = written_out(s, t, kind, beta)
        assert float(divergence(s, t, kind, beta=beta)) == pytest.approx(expected, rel=1e-10)


def test_ends_of_beta_are_the_two_kls_and_their_limits() -> None:
    s, t = log_probs(logits(V)), log_probs(logits(V, seed=1))
    assert torch.equal(jensen_shannon(s, t, 0.0), forward_kl(s, t))
    assert torch.equal(jensen_shannon(s, t, 1.0), reverse_kl(s, t))
    small = 1e-6
    assert float(jensen_shannon(s, t, small) / small) == pytest.approx(float(forward_kl(s, t)), rel=1e-4)
    assert float(jensen_shannon(s, t, 1 - small) / small) == pytest.approx(float(reverse_kl(s, t)), rel=1e-4)


def test_js_is_symmetric_and_at_most_ln_2() -> None:
    for scale in (0.1, 3.0, 30.0, 1000.0):
        s, t = (log_probs(logits(64, V, seed=k, scale=scale)) for k in (3, 4))
        value = jensen_shannon(s, t)
        assert value.isfinite().all() and value.min() >= 0 and value.max() <= math.log(2) + 1e-12
        torch.testing.assert_close(value, jensen_shannon(t, s))
    apart = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    disjoint = jensen_shannon(log_probs(apart[0]), log_probs(apart[1]))
    assert float(disjoint) == pytest.approx(math.log(2), abs=1e-6), "no overflow in fp32 either"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [None, 3, V - 1, V, V + 5])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
def test_gradients_are_finite_differences(kind: Any, top_k: int | None, temperature: float) -> None:
    s, t = logits(4, V, seed=7), logits(4, V, seed=8)

    def value(x: Tensor) -> Tensor:
        return divergence(x, t, kind, beta=0.3, top_k=top_k, temperature=temperature).sum()

    x = s.clone().requires_grad_(True)
    value(x).backward()
    step, found = 1e-6, torch.zeros_like(s)
    for n in range(4):
        for v in range(V):
            offset = torch.zeros_like(s)
            offset[n, v] = step
            found[n, v] = (value(s + offset) - value(s - offset)) / (2 * step)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_the_target(kind: Any) -> None:
    s, t = logits(2, V).requires_grad_(True), logits(2, V, seed=1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(divergence(s, t, kind, top_k=3).sum(), [t], allow_unused=True)
    assert gradient is None


@pytest.mark.parametrize("kind", ["reverse_kl", "js", "jsd"])
@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_policies_have_exactly_no_loss_and_no_gradient(kind: Any, top_k: int | None, dtype: torch.dtype) -> None:
    s = logits(32, V, scale=5.0).to(dtype).requires_grad_(True)
    value = divergence(s, s.detach().clone(), kind, top_k=top_k)
    (gradient,) = torch.autograd.grad(value.sum(), [s])
    assert (value == 0).all() and (gradient == 0).all()


def test_truncation_goes_negative_and_the_tail_does_not() -> None:
    """Four tokens: S = (.4, .4, .1, .1), T nearly (.5, .5, 0, 0), on the student's two likeliest."""
    p, q = [0.4, 0.4, 0.1, 0.1], [0.499, 0.499, 0.001, 0.001]
    s, t = (torch.tensor(x, dtype=torch.float64).log() for x in (p, q))
    truncated = sum(math.exp(a) * (a - b) for a, b in zip(s[:2].tolist(), t[:2].tolist(), strict=True))
    assert truncated < -0.15
    with_tail = float(divergence(s, t, top_k=2))
    assert with_tail == pytest.approx(truncated + 0.2 * math.log(0.2 / 0.002), rel=1e-9) and with_tail > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_k_with_tail_is_never_negative_and_below_the_whole(dtype: torch.dtype) -> None:
    for seed in range(20):
        scale = (0.1, 1.0, 5.0, 30.0)[seed % 4]
        s, t = logits(50, V, seed=seed, scale=scale).to(dtype), logits(50, V, seed=seed + 99, scale=scale).to(dtype)
        for kind in KINDS:
            whole = divergence(s, t, kind)
            for k in (1, 3, V - 1):
                value = divergence(s, t, kind, top_k=k)
                assert value.min() >= -1e-6 if dtype == torch.float32 else value.min() >= -1e-14
                assert (value <= whole * (1 + 1e-4) + 1e-6).all(), "merging tokens loses information, it adds none"


def test_buckets_are_the_tokens_and_the_rest() -> None:
    x = logits(3, V)
    index = x.topk(4, -1).indices
    p = (x / 0.7).softmax(-1)
    kept = p.gather(-1, index)
    expected = torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], -1)
    torch.testing.assert_close(bucket_log_probs(x, index, 0.7).exp(), expected)
    sure = torch.tensor([[60.0, 50.0, 0.0, -1.0, -2.0]])  # in fp32 1 - sum(q) is 0
    tail = bucket_log_probs(sure, torch.tensor([[0, 1]]))[0, -1]
    assert float(tail) == pytest.approx(-60 + math.log(1 + math.exp(-1) + math.exp(-2)), abs=1e-3)


def test_the_support_is_the_students() -> None:
    s, t = torch.tensor([3.0, 2.0, 0.0, 0.0]).double(), torch.tensor([0.0, 0.0, 2.0, 3.0]).double()
    expected = between(*(bucket_log_probs(x, torch.tensor([0, 1])) for x in (s, t)), "reverse_kl")
    assert torch.equal(divergence(s, t, top_k=2), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [None, 3])
def test_the_temperature_is_that_of_both(kind: Any, top_k: int | None) -> None:
    """Twice the temperature is half the logits of student *and* teacher: one without the other is another number."""
    s, t = logits(6, V), logits(6, V, seed=1)
    value = divergence(s, t, kind, top_k=top_k, temperature=2.0)
    torch.testing.assert_close(value, divergence(s / 2, t / 2, kind, top_k=top_k))
    for lopsided in (divergence(s / 2, t, kind, top_k=top_k), divergence(s, t / 2, kind, top_k=top_k)):
        assert (value - lopsided).abs().min() > 1e-3


# --- hidden states ---


def heads(hidden: int = 6) -> tuple[torch.nn.Linear, torch.nn.Linear, Tensor, Tensor]:
    student, teacher = torch.nn.Linear(hidden, V).double(), torch.nn.Linear(hidden + 2, V).double()
    with torch.no_grad():
        for n, p in enumerate([*student.parameters(), *teacher.parameters()]):
            p.copy_(logits(*p.shape, seed=n, scale=0.7))
    return student, teacher, logits(10, hidden, seed=21), logits(10, hidden + 2, seed=22)


def through(
    student: torch.nn.Linear,
    ours: Tensor,
    parts: list[Toward | Written],
    tokens: Tensor | None = None,
    **options: Any,
) -> Projected:
    return projected_loss(ours, student.weight, student.bias, parts, tokens, **options)


@pytest.mark.parametrize("rows", [1, 3, 10, 99])
@pytest.mark.parametrize(("top_k", "chosen_by"), [(None, "student"), (3, "student"), (3, "target")])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_neither_value_nor_gradient(kind: Any, top_k: int | None, chosen_by: Any, rows: int) -> None:
    """Rows in any order, several parts, one of which is a target with the student's own head."""
    student, teacher, ours, theirs = heads()
    weight, own = logits(10, seed=30), logits(10, 6, seed=33)
    ours.requires_grad_(True)
    options: dict[str, Any] = dict(beta=0.2, top_k=top_k, chosen_by=chosen_by, temperature=1.3)
    a, b = torch.tensor([7, 0, 4, 9, 2]), torch.tensor([1, 8, 3])
    plain = torch.zeros(10, dtype=torch.float64)
    plain = plain.index_add(0, a, divergence(student(ours[a]), teacher(theirs[a]), kind, **options))
    plain = plain.index_add(0, b, divergence(student(ours[b]), student(own[b]), kind, **options))
    wanted = [ours, *student.parameters()]
    expected = torch.autograd.grad(3 * (plain * weight).sum(), wanted)
    parts: list[Toward | Written] = [
        Toward(a, weight[a], theirs[a], teacher, kind, 0.2, top_k, chosen_by),
        Toward(b, weight[b], own[b], None, kind, 0.2, top_k, chosen_by),
    ]
    found = through(student, ours, parts, torch.arange(10), temperature=1.3, rows=rows)
    assert found.total.item() == pytest.approx((plain * weight).sum().item(), rel=1e-12)
    torch.testing.assert_close(found.losses, plain.detach())
    for gradient, other in zip(torch.autograd.grad(3 * found.total, wanted), expected, strict=True):
        torch.testing.assert_close(gradient, other)
    assert all(p.grad is None for p in teacher.parameters())
    expected_logp, spread = projected_statistics(ours, student, torch.arange(10), temperature=1.3)
    torch.testing.assert_close(found.logp, expected_logp)
    torch.testing.assert_close(found.entropy, spread)


def test_sampled_tokens_estimate_the_reverse_kl_and_its_gradient_without_bias() -> None:
    """Exact: the mean over all tokens, by the student's probabilities, of values and of gradients. A constant must not
    enter the gradient, and the temperature is that of both."""
    student, teacher, ours, theirs = heads()
    ours.requires_grad_(True)
    asked, temperature = [ours, *student.parameters()], 1.3
    plain = divergence(student(ours), teacher(theirs), "reverse_kl", temperature=temperature)
    expected = torch.autograd.grad(plain.sum(), asked)
    p = (student(ours) / temperature).softmax(-1).detach()
    rows, gradients, losses = torch.arange(len(ours)), [torch.zeros_like(x) for x in asked], torch.zeros_like(plain)
    for token in range(p.shape[1]):
        part = Toward(rows, p[:, token], theirs, teacher, sampled=torch.full_like(rows, token))
        found = through(student, ours, [part], temperature=temperature, rows=3)
        losses = losses + p[:, token] * found.losses
        for total, gradient in zip(gradients, torch.autograd.grad(found.total, asked), strict=True):
            total += gradient
    torch.testing.assert_close(losses, plain.detach())
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("kind", KINDS)
def test_far_apart_distributions_stay_finite(kind: Any) -> None:
    """A tail whose probability is 0 in fp32 on one side or both."""
    student, teacher, ours, theirs = (x.float() for x in heads())
    ours, index = (60 * ours).requires_grad_(True), torch.arange(10)
    for top_k in (None, 2):
        part = Toward(index, torch.ones(10), -60 * theirs, teacher, kind, 0.3, top_k)
        found = through(student, ours, [part])
        gradients = torch.autograd.grad(found.total, [ours, *student.parameters()])
        assert all(x.isfinite().all() for x in (found.losses, *gradients))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_fp32_are_those_of_fp64(kind: Any) -> None:
    """At a vocabulary of 20,000, relative to the norm of each gradient."""
    draws = torch.Generator().manual_seed(0)
    drawn = {"h": (64, 32), "t": (64, 48), "w": (20_000, 32), "u": (20_000, 48)}
    x = {name: torch.randn(shape, generator=draws, dtype=torch.float64) / 2 for name, shape in drawn.items()}
    index = torch.arange(64)
    for top_k in (None, 128):
        results = []
        for dtype in (torch.float64, torch.float32):
            hidden, weight = (x[name].to(dtype).requires_grad_() for name in "hw")
            target, head = x["t"].to(dtype), x["u"].to(dtype)
            part = Toward(index, torch.ones(64) / 64, target, lambda h, head=head: h @ head.t(), kind, 0.3, top_k)
            total = projected_loss(hidden, weight, None, [part]).total
            results.append([g.double() for g in torch.autograd.grad(total, [hidden, weight])])
        for exact, single in zip(*results, strict=True):
            assert (single - exact).norm() < 2e-6 * exact.norm()


def test_two_parts_of_equal_distributions_are_exactly_nothing() -> None:
    student, _, ours, _ = heads()
    ours.requires_grad_(True)
    index = torch.arange(10)
    for kind, top_k in itertools.product(KINDS, (None, 3)):
        part = Toward(index, torch.ones(10, dtype=torch.float64), ours.detach(), None, kind, 0.3, top_k)
        found = through(student, ours, [part])
        assert found.losses.abs().max() == 0
        assert all(g.abs().max() == 0 for g in torch.autograd.grad(found.total, [ours, *student.parameters()]))


def test_no_row_of_the_vocabulary_lives_between_the_passes() -> None:
    """What autograd keeps are gradients of hidden states and head."""
    student, teacher, ours, theirs = heads()
    ours.requires_grad_(True)
    kept: list[tuple[int, ...]] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        through(student, ours, [Toward(torch.arange(10), logits(10, seed=1), theirs, teacher)])
    assert kept and set(kept) <= {tuple(ours.shape), *(tuple(p.shape) for p in student.parameters())}


def test_a_frozen_head_gets_no_gradient_and_a_second_backward_is_refused() -> None:
    student, teacher, ours, theirs = heads()
    ours.requires_grad_(True)
    student.requires_grad_(False)
    found = through(student, ours, [Toward(torch.arange(10), logits(10, seed=1), theirs, teacher)])
    found.total.backward(retain_graph=True)
    assert ours.grad is not None and student.weight.grad is None
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.total.backward()


def test_sampled_tokens_and_entropy() -> None:
    student, _, ours, _ = heads()
    tokens = torch.arange(10) % V
    expected = (student(ours) / 1.5).log_softmax(-1)
    logp, spread = projected_statistics(ours, student, tokens, temperature=1.5, rows=3)
    torch.testing.assert_close(logp, expected[torch.arange(10), tokens].detach())
    torch.testing.assert_close(spread, entropy(expected).detach())


def test_cross_entropy_in_chunks_is_that_of_torch() -> None:
    student, _, ours, _ = heads()
    ours.requires_grad_(True)
    tokens, weight = torch.arange(10) % V, torch.linspace(0.1, 1, 10, dtype=torch.float64)
    plain = torch.nn.functional.cross_entropy(student(ours), tokens, reduction="none")
    expected = torch.autograd.grad((plain * weight).sum(), [ours, *student.parameters()])
    found = through(student, ours, [Written(torch.arange(10), weight, tokens)], rows=3)
    torch.testing.assert_close(found.losses, plain.detach())
    assert torch.equal(found.right.bool(), student(ours).argmax(-1) == tokens)
    gradients = torch.autograd.grad(found.total, [ours, *student.parameters()])
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_no_rows_are_no_loss() -> None:
    """And every weight still gets a gradient, of zeros."""
    student, teacher, ours, theirs = heads()
    ours.requires_grad_(True)
    nothing = torch.arange(0)
    parts: list[Toward | Written] = [
        Toward(nothing, ours.detach()[:0, 0], theirs[:0], teacher),
        Written(nothing, ours.detach()[:0, 0], nothing),
    ]
    found = through(student, ours, parts)
    assert found.total.item() == 0 and found.losses.dtype == torch.float64
    gradients = torch.autograd.grad(found.total, [ours, *student.parameters()])
    assert all(g.abs().max() == 0 for g in gradients)


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (3, [3]), (16, [16]), (19, [19]), (20, [16, 4]), (35, [16, 19]), (36, [16, 16, 4])]
)
def test_a_small_rest_joins_the_last_chunk(count: int, expected: list[int]) -> None:
    part = Written(torch.arange(count), torch.rand(count), torch.arange(count))
    pieces = list(_split(part, 16))
    assert [len(piece.rows) for piece in pieces] == expected
    for name in ("rows", "weights", "tokens") if pieces else ():
        assert torch.equal(torch.cat([getattr(piece, name) for piece in pieces]), getattr(part, name))
