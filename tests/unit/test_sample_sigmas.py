"""Noise levels of losses: those that the sampler visits in each chunk, the first one's own list among them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vidalign.errors import UserError
from vidalign.objectives.base import Experience
from vidalign.objectives.baselines.sft import SFT
from vidalign.objectives.parts.forward_process import noise_again, sample_sigmas, sampler_levels
from vidalign.students.video.spec import Sampler

USUAL, FIRST, CHUNK, N = [1.0, 0.5, 0.25], [1.0, 0.875, 0.75], 2, 64
FLOATS = Sampler(sigmas=USUAL, first_sigmas=FIRST)


def draw(chunks: int, sampler: Sampler = FLOATS, **settings: Any) -> torch.Tensor:
    spec = SimpleNamespace(sampler=sampler)
    ctx: Any = SimpleNamespace(student=SimpleNamespace(spec=spec), chunk_frames=CHUNK, device=torch.device("cpu"))
    sigma = sample_sigmas(ctx, [torch.Generator().manual_seed(n) for n in range(N)], chunks, **settings)
    assert sigma.shape == (N, chunks * CHUNK) and torch.equal(sigma[:, ::CHUNK], sigma[:, CHUNK - 1 :: CHUNK])
    return sigma[:, ::CHUNK]


def levels(sigma: torch.Tensor) -> set[float]:
    return set(sigma.unique().tolist())


@pytest.mark.parametrize("each", [True, False])
def test_the_first_chunk_has_its_own_levels(each: bool) -> None:
    sigma = draw(3, each=each)
    assert levels(sigma[:, 0]) == set(FIRST) and levels(sigma[:, 1:]) == set(USUAL)
    assert bool((sigma[:, 1] == sigma[:, 2]).all()) is not each
    assert levels(draw(1, each=each)) == set(FIRST)


def test_a_clip_from_the_middle_has_the_usual_ones() -> None:
    assert levels(draw(2, each=True, first=False)) == set(USUAL)


def test_a_sampler_of_one_list_draws_as_ever() -> None:
    generators = [torch.Generator().manual_seed(n) for n in range(N)]
    expected = torch.tensor(USUAL)[torch.stack([torch.randint(3, (3,), generator=g) for g in generators])]
    assert torch.equal(draw(3, Sampler(sigmas=USUAL), each=True), expected)


def test_the_ends_of_a_range_belong_to_it() -> None:
    assert sampler_levels(FLOATS, 1.0, 0.25) == USUAL and sampler_levels(FLOATS, 0.5, 0.5) == [0.5]
    assert sampler_levels(FLOATS, 0.875, 0.75, first=True) == [0.875, 0.75]


def test_a_range_without_levels_in_the_first_chunk_is_refused() -> None:
    assert levels(draw(2, each=True, first=False, sigma_max=0.6)) == {0.5, 0.25}
    with pytest.raises(UserError, match="0.6 leaves no noise level to train on in the first chunk"):
        draw(2, each=True, sigma_max=0.6)


@pytest.mark.parametrize(("frames", "begins"), [(None, True), (0, True), (2, False)])
def test_candidates_in_a_row_share_noise_and_levels(frames: int | None, begins: bool) -> None:
    asked: list[Any] = []
    ctx: Any = SimpleNamespace(
        student=SimpleNamespace(spec=SimpleNamespace(sampler=FLOATS)),
        chunk_frames=CHUNK,
        device=torch.device("cpu"),
        generators=lambda purpose, ids: asked.append((purpose, ids)) or [torch.Generator().manual_seed(n) for n in ids],
        normal=lambda shape, generators: torch.stack([torch.randn(shape, generator=g) for g in generators]),
    )
    x0, sample, context = torch.full((6, 2 * CHUNK, 1, 1, 1), 3.0), torch.arange(4, 10), SimpleNamespace(frames=frames)
    data: Any = Experience({"x0": x0, "sample": sample}, sample, None, [], None if frames is None else context)  # type: ignore[arg-type]
    found = noise_again(ctx, data, each=True, shared=2)
    assert asked == [("loss", [4, 4, 6, 6, 8, 8])]
    assert torch.equal(found.noise[::2], found.noise[1::2]) and torch.equal(found.sigma[::2], found.sigma[1::2])
    assert not torch.equal(found.noise[0], found.noise[2])
    level = found.sigma.view(6, 2 * CHUNK, 1, 1, 1)
    assert torch.equal(found.x_t, (1 - level) * x0 + level * found.noise)
    alone = draw(2, each=True, first=begins)  # whose generators begin with the levels
    assert levels(found.sigma) <= levels(alone) and bool(levels(found.sigma[:, 0]) <= set(USUAL)) is not begins


def test_no_supervised_level_is_below_a_thousandth() -> None:
    ctx: Any = SimpleNamespace(chunk_frames=CHUNK, uniform=lambda shape, generators: torch.zeros(1, *shape))
    sigma = SFT(SFT.Config())._sigma(ctx, torch.zeros(1, 2 * CHUNK, 1, 1, 1), [torch.Generator()])
    assert sigma.tolist() == [[pytest.approx(1e-3)] * 2 * CHUNK]


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_supervised_clips_have_them_too(attention: Any) -> None:
    objective = SFT(SFT.Config(attention=attention, levels="sampler"))
    ctx: Any = SimpleNamespace(
        student=SimpleNamespace(spec=SimpleNamespace(sampler=FLOATS)),
        chunk_frames=CHUNK,
        uniform=lambda shape, generators: torch.stack([torch.rand(shape, generator=g) for g in generators]),
    )
    generators = [torch.Generator().manual_seed(n) for n in range(N)]
    sigma = objective._sigma(ctx, torch.zeros(N, 3 * CHUNK, 1, 1, 1), generators)
    assert levels(sigma[:, :CHUNK]) == set(FIRST) and levels(sigma[:, CHUNK:]) == set(USUAL)
