"""Cache rules and samplers of single families, each against a twin that spells the rule out (1e-5)."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from student_reference import RecacheTwin, inputs, student
from torch import Tensor

from vidalign.errors import UserError
from vidalign.students.video import CachePolicy, Sampler, VideoStudent
from vidalign.students.video.presets import preset
from vidalign.students.video.rollout import Noise, RolloutPlan
from vidalign.students.video.streaming import Scene, stream


def made(name: str, **cache: Any) -> VideoStudent:
    """The tiny network under the policy of a preset."""
    family = preset(name)
    found = student(replace(family.cache, **cache))
    found.spec = replace(found.spec, sampler=family.sampler.plain())
    return found


def noises(network: VideoStudent, frames: int, seed: int = 0) -> Noise:
    g = torch.Generator().manual_seed(seed)
    steps = len(network.sigmas)
    shape = (16, 6, 8)
    return Noise(torch.randn(1, frames, *shape, generator=g), torch.randn(1, steps - 1, frames, *shape, generator=g))


def rolled(network: VideoStudent, text: Tensor, noise: Noise) -> Tensor:
    frames = noise.initial.shape[1]
    plan = RolloutPlan(prefix=0, branch=frames // network.chunk_frames)
    return network.rollout(text, plan, noise).latents


class Twin(RecacheTwin):
    """Every frame's keys and values in a dictionary; the caller says who attends what, and at which positions."""

    @torch.no_grad()
    def call(
        self,
        latents: Tensor,
        sigmas: list[float],
        text: Tensor,
        own: list[int],
        past: list[int],
        positions: list[int],
        keep: bool = False,
    ) -> Tensor:
        """Velocity of the frames `own`, at one level each, behind the stored frames `past`."""
        for layer, processor in enumerate(self.processors):
            processor.past = [self.stored[f][layer] for f in past]
            processor.positions = positions
        timestep = (1000 * torch.tensor([sigmas], dtype=torch.float64)).float().repeat_interleave(12, 1)
        out = self.network(latents.transpose(1, 2), timestep, text, return_dict=False)[0].transpose(1, 2)
        if keep:
            for i, f in enumerate(own):
                rows = slice(i * 12, (i + 1) * 12)
                self.stored[f] = [(p.own[0][:, rows], p.own[1][:, rows]) for p in self.processors]
        return out


def rolling_twin(network: VideoStudent, text: Tensor, noise: Noise) -> Tensor:
    """Rolling-Forcing in its own words: a noisy copy of the whole video, and a window that moves over its blocks."""
    twin, sigmas, attends = Twin(network.spec.cache), network.sigmas, network.spec.cache.window
    steps, blocks = len(sigmas), noise.initial.shape[1] // 3
    noisy, output = noise.initial.clone(), torch.zeros_like(noise.initial)
    for window in range(blocks + steps - 1):
        first, last = max(0, window - steps + 1), min(blocks - 1, window)
        start, end = 3 * first, 3 * (last + 1)
        own = list(range(start, end))
        levels = [sigmas[window - f // 3] for f in own]
        past: list[int] = []
        positions = own
        if start > 0:
            room = attends - len(own) - 3
            working = list(range(max(3, start - room), start))
            past = [0, 1, 2, *working]
            anchor = start - len(working) - 3
            positions = [anchor, anchor + 1, anchor + 2, *working, *own]
        x = noisy[:, start:end]
        level = torch.tensor(levels).view(1, -1, 1, 1, 1)
        x0 = x - level * twin.call(x, levels, text, own, past, positions)
        output[:, start:end] = x0
        for f in own:
            step = window - f // 3
            if step + 1 < steps:
                s = sigmas[step + 1]
                noisy[:, f] = (1 - s) * x0[:, f - start] + s * noise.renoise[:, step, f]
        newest = list(range(start + 3))[-attends:]
        twin.call(x0[:, :3], [0.0] * 3, text, newest[-3:], newest[:-3], newest, keep=True)
    return output


@pytest.mark.parametrize("blocks", [5, 11])
def test_the_rolling_window_is_that_of_rolling_forcing(blocks: int) -> None:
    """11 blocks of 3 frames evict: the cache holds 24 frames, of which a pass attends 21."""
    network, (_, _, text) = made("rolling_forcing"), inputs(3)
    noise = noises(network, 3 * blocks)
    found = rolled(network, text, noise)
    assert (found - rolling_twin(network, text, noise)).abs().max() < 1e-4 * found.abs().max()
    worst = (found - rolling_twin(network, text, noise)).abs().max().item()
    assert worst < 1e-5 * max(1.0, found.abs().max().item())


@pytest.mark.parametrize("change", [{"rope": "absolute"}, {"window": 18}, {"window": 24}])
def test_other_rules_than_that_of_rolling_forcing_are_visibly_off(change: dict[str, Any]) -> None:
    network, (_, _, text) = made("rolling_forcing", **change), inputs(3)
    noise = noises(network, 33)
    expected = rolling_twin(made("rolling_forcing"), text, noise)
    assert (rolled(network, text, noise) - expected).abs().max() > 0.03


@torch.no_grad()
def test_a_rolling_rollout_streams_and_records_every_chunk() -> None:
    network, (_, _, text) = made("causal_forcing_long"), inputs(3)
    noise, order = noises(network, 18), []
    plan = RolloutPlan(prefix=0, branch=6, record=tuple(range(6)))
    out = network.rollout(text, plan, noise, on_chunk=lambda n, x: order.append((n, x.clone())))
    assert [n for n, _ in order] == list(range(6))
    assert torch.equal(torch.cat([x for _, x in order], 1), out.latents)
    for n, states in out.states.items():
        assert torch.equal(states.x_t[:, 0], noise.initial[:, 3 * n : 3 * n + 3])
        assert torch.equal(states.x0[:, -1], out.latents[:, 3 * n : 3 * n + 3])
    assert out.chunk_forwards == 6 * 4 + 5  # every chunk at 4 levels, and a clean pass of all but the last


@torch.no_grad()
def test_krea_computes_its_cache_anew_from_the_last_chunk() -> None:
    network, (_, _, text) = made("krea_14b"), inputs(3)
    noise = noises(network, 12)
    expected, twin = torch.zeros_like(noise.initial), Twin(network.spec.cache)
    for start in range(0, 12, 3):
        past: list[int] = []
        if start:
            past = [start - 3, start - 2, start - 1]
            twin.call(expected[:, past], [0.0] * 3, text, past, [], [0, 1, 2], keep=True)
        own, x = [start, start + 1, start + 2], noise.initial[:, start : start + 3]
        for step, sigma in enumerate(network.sigmas):
            x0 = x - sigma * twin.call(x, [sigma] * 3, text, own, past, list(range(len(past) + 3)))
            after = [*network.sigmas[1:], 0.0][step]
            x = (1 - after) * x0 + (after * noise.renoise[:, step, own] if after else 0)
        expected[:, own] = x
    found = rolled(network, text, noise)
    assert (found - expected).abs().max() < 1e-5 * max(1.0, found.abs().max().item())
    plain = rolled(made("krea_14b", recompute=False), text, noise)
    assert (plain - expected).abs().max() > 0.03


@torch.no_grad()
def test_the_losses_of_krea_see_the_recomputed_cache() -> None:
    """Teacher forcing equals the passes that the sampler makes, also across a prompt switch."""
    network, (noisy, clean, text) = made("krea_14b"), inputs(12)
    sigma = torch.linspace(0.3, 1, 12).unsqueeze(0)
    found = network.velocity(noisy, sigma, text, clean=clean)
    context = network.begin(text)
    for at in range(0, 12, 3):
        one = network.velocity(noisy[:, at : at + 3], sigma[:, at : at + 3], text, context)
        assert (found[:, at : at + 3] - one).abs().max() < 1e-5
        context = network.extend(context, clean[:, at : at + 3], text)
    other = inputs(3, seed=5)[2]
    switched = network.recache(context, clean, other)
    fresh = network.extend(replace(network.begin(other), past=switched.past.__class__(9)), clean[:, 9:], other)
    a, b = (network.velocity(noisy[:, :3], sigma[:, :3], other, c) for c in (switched, fresh))
    assert (a - b).abs().max() < 1e-5


def unipc_twin(velocity: Any, x: Tensor, sigmas: list[float]) -> Tensor:
    """UniPC of order 2 with B(h) = e^h - 1 in data prediction (arXiv 2302.04867, algorithms 1 and 2), in float64."""
    lam = [math.log((1 - s) / s) for s in sigmas] + [math.inf]
    x, models, last = x.double(), [], x.double()
    for i, sigma in enumerate(sigmas):
        model = x - sigma * velocity(x.float(), math.floor(1000 * sigma + 1e-6) / 1000).double()
        if i:
            x = _step(last, sigmas[i - 1], sigma, lam[: i + 1], models, model, min(i, 2))
        models.append(model)
        last, after = x, [*sigmas[1:], 0.0][i]
        x = _step(x, sigma, after, lam[: i + 2], models, None, min(i + 1, 2, len(sigmas) - i))
    return x.float()


def _step(
    x: Tensor, s: float, t: float, lam: list[float], models: list[Tensor], new: Tensor | None, order: int
) -> Tensor:
    """From level s to t: the predictor, or with a prediction at t the corrector. lam: up to t; models: up to s."""
    h, base = lam[-1] - lam[-2], models[-1]
    b = math.expm1(-h)
    out = (t / s) * x - (1 - t) * b * base
    ratio = (lam[-3] - lam[-2]) / h if order == 2 else 0.0
    before = (models[-2] - base) / ratio if order == 2 else None
    if new is None:
        return out if before is None else out - (1 - t) * b * 0.5 * before
    if before is None:
        return out - (1 - t) * b * 0.5 * (new - base)
    phi = b / -h - 1
    right = torch.tensor([phi / b, (phi / -h - 0.5) * 2 / b], dtype=torch.float64)
    c, d = torch.linalg.solve(torch.tensor([[1.0, 1.0], [ratio, 1.0]], dtype=torch.float64), right).tolist()
    return out - (1 - t) * b * (c * before + d * (new - base))


class Shots:
    """LongLive 2 in words: the sink, the chunk that began the shot, and the newest frames; positions jump at cuts."""

    def __init__(self, network: VideoStudent) -> None:
        self.twin, self.policy, self.sigmas = Twin(network.spec.cache), network.spec.cache, network.sigmas
        self.cuts: list[int] = []

    def chunk(self, noise: Tensor, text: Tensor, start: int, cut: bool) -> Tensor:
        size, sink = self.policy.chunk_frames, self.policy.sink
        pinned = list(range(self.cuts[-1], self.cuts[-1] + sink)) if self.cuts else []
        if cut:
            self.cuts.append(start)
        past, room = list(range(start)), self.policy.window - size
        if len(past) > room:
            kept, newest = past[:sink], past[sink:][-(room - sink) :]
            if pinned and pinned[0] < newest[0]:
                newest = pinned + newest[sink:]
            past = kept + newest
        own = list(range(start, start + size))
        positions = [f + self.policy.cut_offset * sum(c <= f for c in self.cuts) for f in past + own]

        def velocity(x: Tensor, level: float) -> Tensor:
            return self.twin.call(x, [level] * size, text, own, past, positions)

        x0 = unipc_twin(velocity, noise, self.sigmas)
        self.twin.call(x0, [0.0] * size, text, own, past, positions, keep=True)
        return x0


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(), (6,), (6, 14)], ids=["one shot", "a cut", "two cuts"])
def test_longlive_2_keeps_the_sink_of_the_video_and_of_the_shot(cuts: tuple[int, ...]) -> None:
    """With chunks of 2 instead of 8, and all else in proportion."""
    small = {"chunk_frames": 2, "window": 8, "sink": 2}
    network, noise = made("longlive2_5b", **small), None
    noise = noises(network, 24)
    texts = [inputs(2, seed=n)[2] for n in range(len(cuts) + 1)]
    bounds = [0, *cuts, 24]
    scenes = [Scene(text, (b - a) // 2, cut=a > 0) for text, (a, b) in zip(texts, pairwise(bounds), strict=True)]
    parts: list[Tensor] = []
    stream(network, scenes, noise, lambda x: x, lambda n, x: parts.append(x))
    found, twin = torch.cat(parts, 1), Shots(network)
    expected = [
        twin.chunk(noise.initial[:, at : at + 2], texts[sum(c <= at for c in cuts)], at, at in cuts)
        for at in range(0, 24, 2)
    ]
    assert (found - torch.cat(expected, 1)).abs().max() < 2e-5 * max(1.0, found.abs().max().item())
    if cuts:  # a prompt that is no cut leaves positions and pins as they are
        plain: list[Tensor] = []
        stream(network, [replace(s, cut=False) for s in scenes], noise, lambda x: x, lambda n, x: plain.append(x))
        assert torch.equal(torch.cat(plain, 1)[:, : cuts[0]], found[:, : cuts[0]])
        assert (torch.cat(plain, 1) - found).abs().max() > 0.03


def test_impossible_rules_are_refused() -> None:
    for settings, message in (
        ({"rope": "anchored"}, "anchored needs window and sink"),
        ({"recompute": True, "window": 9}, "use window: 6, sink: 0, rope: relative"),
        ({"cut_prefix": "Cut. "}, "cuts need on_switch: keep"),
        ({"cut_offset": 8, "on_switch": "keep", "window": 8, "sink": 3}, "too small for cuts"),
        ({"on_switch": "drop"}, "recache or keep"),
    ):
        with pytest.raises(UserError, match=message):
            CachePolicy(**settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="renoise or unipc"):
        Sampler(sigmas=[1.0], solver="euler")
    with pytest.raises(UserError, match="rolling needs solver: renoise"):
        Sampler(sigmas=[1.0, 0.5], solver="unipc", rolling=True)
