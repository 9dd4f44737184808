"""Counter RNG: reproducible, and independent between keys."""

from __future__ import annotations

import itertools

import torch

from vidalign.engine.rng import generator, key


def draw(*arguments: object) -> torch.Tensor:
    return torch.randn(2000, generator=generator(*arguments))  # type: ignore[arg-type]


def test_same_key_same_numbers() -> None:
    assert torch.equal(draw(1, "noise", 2, 3), draw(1, "noise", 2, 3))


def test_the_numbers_are_pinned() -> None:
    """Changing them would change every run: blake2b of the key, 63 bits, torch's CPU generator."""
    assert key(0, "noise", 0) == 7048583295545803562


def test_keys_are_independent() -> None:
    keys = list(itertools.product((0, 1), ("noise", "pivot"), (0, 1, 11), (0, 1, 11)))
    assert len({key(*k) for k in keys}) == len(keys)
    draws = torch.stack([draw(*k) for k in keys])
    correlation = torch.corrcoef(draws) - torch.eye(len(keys))
    assert correlation.abs().max() < 5 / 2000**0.5


def test_fields_do_not_run_into_each_other() -> None:
    assert len({key(1, "a", 11, 1), key(1, "a", 1, 11), key(11, "a", 1, 1), key(1, "a1", 1, 1)}) == 4


def test_global_state_is_untouched() -> None:
    state = torch.get_rng_state()
    draw(0, "noise", 0)
    assert torch.equal(state, torch.get_rng_state())
