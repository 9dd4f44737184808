"""The engine rule: one door to every network, and gradients only where the phase wants them."""

from __future__ import annotations

import pytest
import torch
from engine_helpers import net, numbers, setup
from torch import nn

from vidalign.engine.base import build_engine
from vidalign.engine.config import AdapterConfig, EngineConfig, OptimizerConfig
from vidalign.engine.roles import Roles

X = numbers(5, 4, 3)


def roles() -> Roles:
    judge = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    engines = {
        "student": setup(AdapterConfig(rank=2))[2],
        "judge": build_engine(EngineConfig(), OptimizerConfig(), judge, 5),
    }
    return Roles(engines, {"teacher": net(3)})


def through_engine(roles: Roles, role: str) -> bool:
    """Whether a call of the role's network goes through its engine now."""
    engine, calls = roles.engines[role], []
    entry, engine._entry = engine._entry, lambda *args, **kw: calls.append(args[0]) or entry(*args, **kw)  # type: ignore[method-assign]
    module = roles.module(role)
    module.velocity(X) if role == "student" else module(X)
    del engine._entry
    return bool(calls)


def test_engines_only_in_their_own_phase() -> None:
    r = roles()
    seen = {None: (through_engine(r, "student"), through_engine(r, "judge"))}
    for role in ("student", "judge"):
        with r.phase(role):
            seen[role] = (through_engine(r, "student"), through_engine(r, "judge"))
    assert seen == {None: (False, False), "student": (True, False), "judge": (False, True)}


def test_gradients_flow_through_a_frozen_judge_into_the_student() -> None:
    r = roles()
    with r.phase("student") as engine:
        r.module("judge")(r.module("student").velocity(X)).mean().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in engine.trainable)
        assert all(p.grad is None for p in r.engines["judge"].trainable)
    assert all(p.grad is None for p in engine.trainable), "a phase leaves no gradient behind"


def test_nothing_requires_a_gradient_outside_phases() -> None:
    r = roles()
    assert not r.module("judge")(r.module("student").velocity(X)).requires_grad
    with pytest.raises(ZeroDivisionError), r.phase("judge"):
        assert r.module("judge")(X).requires_grad and not r.module("student").velocity(X).requires_grad
        raise ZeroDivisionError
    assert r.active is None and not r.module("judge")(X).requires_grad


def test_frozen_networks_stay_frozen_but_let_gradients_through() -> None:
    r = roles()
    with r.phase("student"):
        x = X.clone().requires_grad_()
        r.module("teacher").velocity(x).sum().backward()
        assert x.grad is not None and not any(p.requires_grad for p in r.module("teacher").parameters())
        assert not r.module("teacher").training


def test_an_engine_that_was_left_open_is_frozen() -> None:
    engine = setup()[2]
    engine.unfreeze()
    Roles({"student": engine})
    assert not any(p.requires_grad for p in engine.trainable)


def test_frozen_weights_that_are_not_finite_are_named() -> None:
    r = roles()
    assert r.not_finite() == {"teacher": []}
    with torch.no_grad():
        r.module("teacher").head.weight[0, 0] = torch.inf
    assert r.not_finite() == {"teacher": ["head.weight"]}


def test_misuse_is_caught() -> None:
    r = roles()
    with pytest.raises(AssertionError, match="own phase"):
        r.engine("student")
    with pytest.raises(AssertionError, match="no role referee"):
        r.module("referee")
    with r.phase("student"):
        assert r.engine("student") is r.engines["student"]
        with pytest.raises(AssertionError, match="has not ended"), r.phase("judge"):
            pass


def test_frozen_networks_compute_in_the_precision_of_the_run() -> None:
    teacher = net(3)
    low = Roles({}, {"teacher": teacher}, precision="bf16").module("teacher").velocity(X)
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), teacher.velocity(X), atol=0.05)
