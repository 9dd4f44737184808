"""Memory of a step: the trace agrees with real runs, and a step at real size stays in its bounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tae import published
from torch.profiler import ProfilerActivity, profile

from vidalign.codecs import build_codec
from vidalign.codecs.base import describe_codec
from vidalign.codecs.tiny_wan import TinyWanDecoder
from vidalign.engine.base import build_engine
from vidalign.engine.config import AdapterConfig, EngineConfig, OptimizerConfig
from vidalign.engine.meter import metered
from vidalign.engine.policies import Policies
from vidalign.engine.traced import DEVICE, traced
from vidalign.recipe import Recipe, load_recipe
from vidalign.students.video import CachePolicy, VideoStudent, VideoStudentSpec
from vidalign.students.video.presets import preset
from vidalign.students.video.rollout import RolloutPlan
from vidalign.workflows.plan import trace_step

SMALL = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 64,
    "freq_dim": 64,
    "ffn_dim": 256,
    "num_layers": 3,
    "rope_max_seq_len": 1024,
}
WAN_1_3B = SMALL | {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
}


def real_peak(work: Callable[[], Any]) -> int:
    """The most bytes above those at entry, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    held = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def rolled(network: VideoStudent) -> Callable[[], Any]:
    """A rollout of three chunks, two of them shared by a group of four."""
    text = torch.zeros(1, 16, 64, device=network.device)
    plan = RolloutPlan(prefix=2, branch=1, group_size=4, record=(2,))
    noise = network.draw_noise(plan, [torch.Generator().manual_seed(0)]).to(network.device)
    return lambda: network.rollout(text, plan, noise)


def learnt(network: VideoStudent) -> Callable[[], Any]:
    """Forward and backward of a chunk behind two others, with adapters and checkpointing."""
    network.gradient_checkpointing()
    policies = Policies(network, ("old",), AdapterConfig(rank=4))
    engine = build_engine(EngineConfig(), OptimizerConfig(), network, 5, policies)
    engine.unfreeze()
    text = torch.zeros(1, 16, 64, device=network.device)
    clips = torch.zeros(2, 3, *network.chunk_shape[1:], device=network.device)
    past = network.extend(network.begin(text), clips[:1].repeat(1, 2, 1, 1, 1), text)
    level = torch.full((2,), 0.5, device=network.device)
    view = engine.view(own_phase=True)
    return lambda: engine.backward(view.velocity(clips, level, text, past.expand(2)).square().mean())


def in_parts(network: VideoStudent) -> Callable[[], Any]:
    """Forward and backward of four chunks, two at a time, which the backward pass makes again."""
    network.gradient_checkpointing()
    network.forcing_frames = 6
    policies = Policies(network, ("old",), AdapterConfig(rank=4))
    engine = build_engine(EngineConfig(), OptimizerConfig(), network, 5, policies)
    engine.unfreeze()
    text = torch.zeros(1, 16, 64, device=network.device)
    clips = torch.zeros(1, 12, *network.chunk_shape[1:], device=network.device)
    level = torch.full((1,), 0.5, device=network.device)
    view = engine.view(own_phase=True)
    return lambda: engine.backward(view.velocity(clips, level, text, clean=clips).square().mean())


@pytest.mark.parametrize("prepare", [rolled, learnt, in_parts])
def test_the_trace_counts_what_a_real_run_allocates(prepare: Callable[[VideoStudent], Callable[[], Any]]) -> None:
    spec = VideoStudentSpec(
        transformer=SMALL, cache=CachePolicy(chunk_frames=3), height=128, width=128, codec={"name": "wan"}
    )
    real = real_peak(prepare(VideoStudent.from_spec(spec)))
    with traced() as live:
        with torch.device(DEVICE):
            network = VideoStudent.from_spec(spec)
        work = prepare(network)
        before = live.held
        live.restart()
        work()
        counted = live.restart() - before
    assert counted == pytest.approx(real, rel=0.05)


def test_casts_are_switched_off_where_a_network_says_so() -> None:
    """As heads of discriminators do."""
    with traced(), torch.device(DEVICE):
        layer, x = torch.nn.Linear(4, 4), torch.zeros(2, 4)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
            with torch.autocast(DEVICE.type, enabled=False):
                assert layer(x).dtype == torch.float32
            assert layer(x).dtype == torch.bfloat16
        with torch.device("cpu"), torch.autocast("cpu", torch.bfloat16):
            assert torch.nn.Linear(4, 4)(torch.zeros(2, 4)).dtype == torch.bfloat16, "elsewhere torch decides"


@pytest.mark.parametrize(("last", "ends"), [(True, (4, 6)), (False, (0, 2))])
def test_a_number_that_is_drawn_alone_is_at_its_end(last: bool, ends: tuple[int, int]) -> None:
    """Traced and measured; others are drawn."""
    for where in (traced(last=last), metered(torch.device("cpu"), last=last)):
        with where as meter:
            several = torch.randint(1000, (8,), generator=torch.Generator().manual_seed(0))
            assert len(several.unique()) > 1 and not meter.drawn
            assert (int(torch.randint(5, ())), int(torch.randint(2, 7, ()))) == ends and meter.drawn


def test_bytes_of_a_cpu_are_those_of_its_living_tensors() -> None:
    with metered(torch.device("cpu"), last=True) as meter:
        kept = torch.zeros(1000)
        view, before = kept[10:], meter.held
        meter.restart()
        _ = torch.ones(500) + 1
        assert before == 4000 and meter.held == 6000 and meter.restart() == 8000
        del kept, view
        assert meter.held == 2000


def test_what_the_tiny_decoder_says_that_it_holds_is_what_it_holds(tmp_path: Path) -> None:
    for file, (channels, patch), frame in (("a.pth", (16, 1), (16, 60, 104)), ("b.pth", (48, 2), (48, 44, 80))):
        torch.save(published(channels, patch), tmp_path / file)
        with traced() as live, torch.no_grad():
            with torch.device(DEVICE):
                decoder = TinyWanDecoder(TinyWanDecoder.Config(str(tmp_path / file)))
            latents = torch.zeros(1, 21, *frame, device=DEVICE)
            live.restart()
            before = live.held
            decoder.decode(latents)
            assert decoder.decode_bytes(frame, 21) == pytest.approx(live.restart() - before, rel=0.15)


def self_forcing(group_size: int) -> Recipe:
    """Astrolabe on Self-Forcing 1.3B: LoRA of rank 256, 21 latent frames at 480x832, one prompt a rank."""
    init = preset("self_forcing").spec(WAN_1_3B, height=480, width=832).to_dict()
    student = {"init": init, "adapter": {"rank": 256, "alpha": 256.0}, "checkpointing": True}
    changes = [
        "~student.path",
        f"student={json.dumps(student)}",
        "data.frames=21",
        "evaluation.frames=21",
        f"objective.group_size={group_size}",
        "objective.clip={chunks: 1, score: clip}",
        "trainer={prompts_per_step: 1, micro_batch: 1}",
        "engine.precision=bf16",
    ]
    return load_recipe("world/astrolabe", changes)


@pytest.mark.parametrize(("group_size", "bound"), [pytest.param(8, 48e9, marks=pytest.mark.slow), (24, 80e9)])
def test_a_step_at_real_size_stays_below_its_bound(group_size: int, bound: float) -> None:
    """The fork that costs most is the last one: 18 frames of context, and one clip behind them."""
    plan, drawn = trace_step(self_forcing(group_size), last=True)
    assert drawn and plan.peak < bound, plan
    assert sum(p for name, p in plan.held.items() if name == "frozen weights") == pytest.approx(2.84e9, rel=0.01)
    assert plan.contexts["context"] == 18 * 1560 * 30 * 2 * 1536 * 2, "held once for the group, in bf16"


def test_a_decoder_of_its_own_is_an_item_and_decodes(tmp_path: Path) -> None:
    torch.save(published(16, 1), tmp_path / "tiny.pth")
    init = preset("self_forcing").spec(SMALL, height=128, width=128).to_dict()
    student = {"init": init, "adapter": {"rank": 4, "alpha": 4.0}}
    own = ["~student.path", "data.frames=12", "evaluation.frames=12", "objective.group_size=4"]
    own += ["trainer={prompts_per_step: 1, micro_batch: 2}", "objective.clip={chunks: 1, score: clip}"]
    whole, tiny = (
        trace_step(load_recipe("world/astrolabe", [*own, f"student={json.dumps(student | more)}"]))[0]
        for more in ({}, {"decoder": str(tmp_path / "tiny.pth")})
    )
    assert tiny.held["decoder"] > 0 and "decoder" not in whole.held
    assert tiny.phases["decode"] < whole.phases["decode"]


@pytest.mark.parametrize("name", ["self_forcing", "longlive2_5b"])
def test_what_a_decoder_says_that_it_holds_is_what_it_holds(name: str) -> None:
    family = preset(name)
    spec = family.spec(WAN_1_3B | {"in_channels": family.latent_channels})
    for dtype in ("fp32", "bf16"):
        with traced() as live, torch.no_grad():
            with torch.device(DEVICE):
                codec = build_codec({**describe_codec(spec.codec), "dtype": dtype})
            latents = torch.zeros(1, 21, *spec.latent_shape, device=DEVICE)
            live.restart()
            before = live.held
            codec.decode(latents)
            assert codec.decode_bytes(spec.latent_shape, 21) == pytest.approx(live.restart() - before, rel=0.1)
