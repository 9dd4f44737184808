"""Every cache policy against a dense masked forward (1e-5), and wrong policies visibly off (> 0.3)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from student_reference import RecacheTwin, inputs, masked_forward, student
from torch import Tensor

from vidalign.errors import UserError
from vidalign.students.video import CachePolicy, VideoStudent
from vidalign.students.video.spec import Past

FRAMES = 18
POLICIES = [
    CachePolicy(chunk_frames=3),
    CachePolicy(chunk_frames=1),
    CachePolicy(chunk_frames=3, window=6),
    CachePolicy(chunk_frames=3, window=9, sink=3),
    CachePolicy(chunk_frames=1, window=4, sink=1),
]
NAMES = [f"chunk{p.chunk_frames}-window{p.window}-sink{p.sink}" for p in POLICIES]


@torch.no_grad()
def cached(network: VideoStudent, clean: Tensor, text: Tensor, clean_pass: bool = True) -> Tensor:
    """Velocities at t = 0 of every chunk of `clean` through the cache."""
    context, out = network.begin(text), []
    for chunk in clean.split(network.spec.cache.chunk_frames, 1):
        out.append(network.velocity(chunk, torch.zeros(len(chunk)), text, context))
        if clean_pass:
            context = network.extend(context, chunk, text)
    return torch.cat(out, 1)


def worst(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_cached_chunks_equal_the_masked_full_forward(policy: CachePolicy) -> None:
    _, clean, text = inputs(FRAMES)
    expected = masked_forward(policy, clean, torch.zeros(1, FRAMES), text)
    assert worst(cached(student(policy), clean, text), expected) < 1e-5
    block_causal = student(policy)(clean, torch.zeros(1), text, attention="block_causal")
    assert worst(block_causal, expected) < 1e-5


@pytest.mark.parametrize(
    "wrong",
    [
        CachePolicy(chunk_frames=3, window=9, sink=0),
        CachePolicy(chunk_frames=3),
        CachePolicy(chunk_frames=3, window=9, sink=3, rope="relative"),
        CachePolicy(chunk_frames=3, window=12, sink=3),
    ],
    ids=["no sink", "full window", "relative rope", "window 12"],
)
def test_wrong_policies_are_visibly_off(wrong: CachePolicy) -> None:
    frames = 30  # relative and absolute positions of a sink drift apart with the length
    _, clean, text = inputs(frames)
    right = CachePolicy(chunk_frames=3, window=9, sink=3)
    expected = masked_forward(right, clean, torch.zeros(1, frames), text)
    assert worst(cached(student(right), clean, text), expected) < 1e-5
    assert worst(cached(student(wrong), clean, text), expected) > 0.3


def test_skipping_the_clean_pass_is_visibly_off() -> None:
    _, clean, text = inputs(FRAMES)
    policy = CachePolicy(chunk_frames=3, window=9, sink=3)
    expected = masked_forward(policy, clean, torch.zeros(1, FRAMES), text)
    assert worst(cached(student(policy), clean, text, clean_pass=False), expected) > 0.3


@torch.no_grad()
@pytest.mark.parametrize("policy", POLICIES, ids=NAMES)
def test_teacher_forcing_equals_all_denoising_passes(policy: CachePolicy) -> None:
    """Against the dense reference, chunk by chunk: clean frames at t = 0, then the noisy chunk."""
    noisy, clean, text = inputs(FRAMES)
    size = policy.chunk_frames
    sigma = torch.rand(1, FRAMES // size, generator=torch.Generator().manual_seed(1)).repeat_interleave(size, 1)
    found = student(policy).velocity(noisy, sigma, text, clean=clean)
    for at in range(0, FRAMES, size):
        latents = torch.cat([clean[:, :at], noisy[:, at : at + size]], 1)
        levels = torch.cat([torch.zeros(1, at), sigma[:, at : at + size]], 1)
        expected = masked_forward(policy, latents, levels, text)[:, at:]
        assert worst(found[:, at : at + size], expected) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("rope", ["absolute", "relative"])
def test_teacher_forcing_after_a_context_equals_cached_passes(rope: str) -> None:
    noisy, clean, text = inputs(FRAMES)
    network = student(CachePolicy(chunk_frames=3, window=9, sink=3, rope=rope))
    start = network.extend(network.begin(text), clean[:, :6], text)
    sigma = torch.linspace(0.3, 1, FRAMES - 6).unsqueeze(0)
    found = network.velocity(noisy[:, 6:], sigma, text, start, clean=clean[:, 6:])
    context = start
    for at in range(6, FRAMES, 3):
        frames = slice(at, at + 3)
        one = network.velocity(noisy[:, frames], sigma[:, at - 6 : at - 3], text, context)
        assert worst(found[:, at - 6 : at - 3], one) < 1e-5
        context = network.extend(context, clean[:, frames], text)


def test_the_context_is_a_value_that_shares_what_it_can() -> None:
    _, clean, text = inputs(FRAMES)
    network = student(CachePolicy(chunk_frames=3, window=9, sink=3))
    first = network.extend(network.begin(text), clean[:, :9], text)
    keys = [k.clone() for p in first.pieces for k in p.keys]
    second = network.extend(first, clean[:, 9:12], text)
    assert first.frames == 9 and first.kept == (0, 1, 2, 6, 7, 8)
    assert second.frames == 12 and second.kept == (0, 1, 2, 9, 10, 11)
    assert all(torch.equal(a, b) for a, b in zip(keys, [k for p in first.pieces for k in p.keys], strict=True))
    assert second.pieces[0].keys[0] is first.pieces[0].keys[0]
    assert second.expand(8).nbytes == second.nbytes and second.expand(8).batch == 8


def test_unequal_rows_keep_their_own_past() -> None:
    """Rows of a batch and of a micro-batch never mix."""
    noisy, clean, text = inputs(6, batch=3)
    network = student()
    context = network.extend(network.begin(text), clean[:, :3], text)
    all_rows = network.velocity(noisy[:, 3:], torch.full((3,), 0.8), text, context)
    picked = network.velocity(noisy[[2, 0], 3:], torch.full((2,), 0.8), text[[2, 0]], context.rows([2, 0]))
    assert worst(picked, all_rows[[2, 0]]) < 1e-5
    grouped = network.velocity(
        noisy[[0, 2, 2], 3:], torch.full((3,), 0.8), text[[0, 2, 2]], context.expand(2).rows([1, 4, 5])
    )
    assert worst(grouped, all_rows[[0, 2, 2]]) < 1e-5
    alone = network.extend(network.begin(text[1:2]), clean[1:2, :3], text[1:2])
    one = network.velocity(noisy[1:2, 3:], torch.full((1,), 0.8), text[1:2], alone)
    assert worst(one, all_rows[1:2]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("rope", ["absolute", "relative"])
@pytest.mark.parametrize("global_sink", [True, False], ids=["global sink", "new sink"])
@pytest.mark.parametrize("chunks", [2, 4, 6])
def test_the_recache_follows_the_rule_of_longlive(chunks: int, global_sink: bool, rope: str) -> None:
    """Against `RecacheTwin`, below, at and beyond a full window, on the chunks after one and two switches."""
    policy = CachePolicy(chunk_frames=3, window=12, sink=3, rope=rope, global_sink=global_sink)
    noisy, clean, _ = inputs(54)
    texts = [inputs(1, seed=seed)[2] for seed in (0, 7, 8)]
    network, twin, at = student(policy), RecacheTwin(policy), 0
    context = network.begin(texts[0])
    for text in texts:
        if at:
            context = network.recache(context, clean[:, :at], text)
            twin.recache(clean[:, :at], text)
        later = slice(at, at + 3 * chunks)
        forced = network.velocity(noisy[:, later], torch.ones(1), text, context, clean=clean[:, later])
        for start in range(at, at + 3 * chunks, 3):
            frames = slice(start, start + 3)
            expected = twin.chunk(noisy[:, frames], 1.0, text, start)
            assert worst(network.velocity(noisy[:, frames], torch.ones(1), text, context), expected) < 1e-5
            assert worst(forced[:, start - at : start - at + 3], expected) < 1e-5
            twin.chunk(clean[:, frames], 0.0, text, start, keep=True)
            context = network.extend(context, clean[:, frames], text)
        at += 3 * chunks


@torch.no_grad()
def test_the_sink_mode_matters_only_once_the_window_is_full() -> None:
    _, clean, text = inputs(FRAMES)
    other = inputs(1, seed=7)[2]
    for frames, same in ((9, True), (12, False), (15, False)):
        found = []
        for global_sink in (True, False):
            network = student(CachePolicy(chunk_frames=3, window=12, sink=3, global_sink=global_sink))
            old = network.extend(network.begin(text), clean[:, :frames], text)
            new = network.recache(old, clean[:, :frames], other)
            found.append(network.velocity(clean[:, -3:], torch.ones(1), other, new))
        assert (worst(*found) < 1e-5) == same


def test_an_ema_sink_refuses_a_prompt_switch() -> None:
    _, clean, text = inputs(6)
    network = student(CachePolicy(chunk_frames=3, window=9, sink=3, rope="relative", sink_decay=0.9))
    context = network.extend(network.begin(text), clean, text)
    with pytest.raises(UserError, match="EMA sink"):
        network.recache(context, clean, text)


def test_the_ema_sink_takes_up_evicted_frames() -> None:
    """Keys are un-roped, so the recurrence holds on the stored tensors: S <- a S + (1 - a) evicted."""
    _, clean, text = inputs(FRAMES)
    decay = 0.75
    plain = student(CachePolicy(chunk_frames=3, window=9, sink=3, rope="relative"))
    ema = student(CachePolicy(chunk_frames=3, window=9, sink=3, rope="relative", sink_decay=decay))
    a = plain.extend(plain.begin(text), clean[:, :6], text)
    first, second = a.pieces[0], a.pieces[1]
    b = ema.extend(ema.begin(text), clean[:, :9], text)
    for layer in range(3):
        expected = decay * first.keys[layer] + (1 - decay) * second.keys[layer]
        assert worst(b.pieces[0].keys[layer], expected) < 1e-6
    assert b.kept == (0, 1, 2, 6, 7, 8)


def test_positions_past_the_table_are_refused() -> None:
    network = student(CachePolicy(chunk_frames=3, window=6))
    _, clean, text = inputs(3)
    context = network.begin(text)
    far = replace(context, past=Past(1023))
    with pytest.raises((UserError, AssertionError), match="1024|no longer holds"):
        network.velocity(clean, torch.ones(1), text, far)


@torch.no_grad()
def test_relative_positions_have_no_end() -> None:
    """The same kept frames far beyond the rotary table give the same numbers as near its beginning."""
    network = student(CachePolicy(chunk_frames=3, window=9, sink=3, rope="relative"))
    _, clean, text = inputs(18)
    near = network.extend(network.begin(text), clean[:, :15], text)
    assert near.kept == (0, 1, 2, 12, 13, 14)
    pieces = [replace(p, start=p.start + (3000 if p.start else 0)) for p in near.pieces]
    far = replace(near, past=Past(3015), pieces=tuple(pieces))
    chunk = clean[:, 15:18]
    levels = torch.full((1,), 0.5)
    assert torch.equal(network.velocity(chunk, levels, text, far), network.velocity(chunk, levels, text, near))
    assert network.extend(far, chunk, text).kept == (0, 1, 2, 3015, 3016, 3017)


def test_impossible_policies_are_refused() -> None:
    with pytest.raises(UserError, match="cannot hold"):
        CachePolicy(chunk_frames=3, window=5, sink=3)
    with pytest.raises(UserError, match="rope"):
        CachePolicy(rope="rotary")
    with pytest.raises(UserError, match="clean"):
        network = student()
        noisy, _, text = inputs(6)
        network.velocity(noisy, torch.ones(1), text)
