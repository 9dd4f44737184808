"""Compiled blocks: one graph serves all layers and chunks, and computes what the blocks compute."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from student_reference import student
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from vidalign.build import build_student
from vidalign.engine.base import build_engine
from vidalign.engine.config import AdapterConfig, EngineConfig, OptimizerConfig, Precision
from vidalign.engine.policies import Policies
from vidalign.errors import RecipeError, UserError
from vidalign.recipe import load_recipe
from vidalign.students.video import CachePolicy, VideoStudent
from vidalign.students.video.blocks import check_compiler
from vidalign.students.video.presets import preset
from vidalign.students.video.rollout import RolloutPlan
from vidalign.students.video.rope import RotaryTables, rotate

POLICIES = {
    "full": CachePolicy(chunk_frames=3),
    "window": CachePolicy(chunk_frames=3, window=9, sink=3),
    "relative": CachePolicy(chunk_frames=3, window=9, sink=3, rope="relative"),
}
TEXT = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(0))
LEVEL = torch.full((2,), 0.5)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def pair(policy: str, numerics: str = "diffusers", backend: str = "eager") -> tuple[list[VideoStudent], Any]:
    """A student, the same one compiled, and the counter of its graphs."""
    plain, compiled = (student(POLICIES[policy], numerics=numerics) for _ in range(2))
    counter = CompileCounterWithBackend(backend)
    compiled.compile_blocks(backend=counter)
    return [plain, compiled], counter


def roll(network: VideoStudent, chunks: int, group: int = 1) -> Any:
    plan = RolloutPlan(prefix=1, branch=chunks - 1, group_size=group, keep_final=True)
    return network.rollout(TEXT, plan, network.draw_noise(plan, [torch.Generator().manual_seed(1)]))


def learnt(network: VideoStudent, out: Tensor) -> list[Tensor]:
    """The output, and the gradient of every weight."""
    network.zero_grad()
    out.square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("numerics", ["diffusers", "wan"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_rollout_takes_four_graphs_however_long_it_is(policy: str, numerics: str) -> None:
    """Denoising and clean pass, each with and without a past; the same for all three layers."""
    networks, counter = pair(policy, numerics)
    plain, compiled = (roll(network, 5) for network in networks)
    assert torch.equal(plain.latents, compiled.latents)
    for one, other in zip(plain.final.pieces, compiled.final.pieces, strict=True):
        assert same([*one.keys, *one.values], [*other.keys, *other.values]), "what clean passes collect"
    assert counter.frame_count == 4 and not counters["graph_break"]
    roll(networks[1], 7)
    assert counter.frame_count == 4


@pytest.mark.parametrize(("name", "graphs"), [("longlive2_5b", 4), ("krea_14b", 3), ("rolling_forcing", 14)])
def test_families_take_as_many_graphs_for_a_long_video(name: str, graphs: int) -> None:
    """A rolling window has more chunks in it from pass to pass where a video begins, and fewer where it ends."""
    family, counter = preset(name), CompileCounterWithBackend("eager")
    plain, compiled = (student(family.cache) for _ in range(2))
    for network in (plain, compiled):
        network.spec = replace(network.spec, sampler=family.sampler.plain())
    compiled.compile_blocks(backend=counter)
    for chunks in (9, 14):
        plan = RolloutPlan(prefix=0, branch=chunks)
        noise = plain.draw_noise(plan, [torch.Generator().manual_seed(1)])
        first, second = (network.rollout(TEXT, plan, noise).latents for network in (plain, compiled))
        assert torch.equal(first, second) and counter.frame_count == graphs


def test_a_group_takes_two_graphs_more() -> None:
    """Those behind the shared past, beside those behind chunks of its own."""
    networks, counter = pair("full")
    plain, compiled = (roll(network, 4, group=2).latents for network in networks)
    assert torch.equal(plain, compiled) and counter.frame_count == 6


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_losses_and_gradients_are_the_same(policy: str, checkpointing: bool) -> None:
    """Of a chunk behind a context, and of several chunks at once behind their clean latents."""
    networks, counter = pair(policy)
    rolled, generator = roll(networks[0], 3), torch.Generator().manual_seed(2)
    context, x = rolled.final.expand(2), torch.randn(2, 9, *networks[0].chunk_shape[1:], generator=generator)
    found = []
    for network in networks:
        network.gradient_checkpointing(checkpointing)
        behind = learnt(network, network.velocity(x[:, :3], LEVEL, TEXT, context))
        clean = rolled.latents.expand(2, -1, -1, -1, -1)
        forced = learnt(network, network.velocity(x, LEVEL, TEXT, clean=clean))
        found.append([*behind, *forced])
    assert same(*found) and len(found[0]) > 60
    assert counter.frame_count == 2 and not counters["graph_break"]


def test_other_attention_and_recached_contexts_are_the_same() -> None:
    networks, counter = pair("window")
    latents = roll(networks[0], 4).latents
    x, level = latents[:, :6], torch.full((1, 6), 0.5)
    found = []
    for network in networks:
        context = network.recache(network.extend(network.begin(TEXT), latents, TEXT), latents, TEXT + 1)
        both = [network(x, level, TEXT, attention=name).detach() for name in ("bidirectional", "block_causal")]
        found.append([*both, *context.pieces[-1].keys])
    assert same(*found) and not counters["graph_break"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_train_in_compiled_blocks(precision: Precision) -> None:
    """Names of the weights stay, and so does what three steps make of them; weight sets take a graph each."""
    networks, counter = pair("full")
    found = []
    for network in networks:
        network.gradient_checkpointing()
        policies = Policies(network, ("old",), AdapterConfig(rank=4))
        engine = build_engine(EngineConfig(precision=precision), OptimizerConfig(), network, 3, policies)
        for _ in range(3):
            learn(network, policies, engine)
        found.append(policies.weights("current"))
        assert not any("_orig_mod" in name for name in network.state_dict())
    assert list(found[0]) == list(found[1]) and same(list(found[0].values()), list(found[1].values()))
    assert counter.frame_count <= 8 and not counters["graph_break"]


def learn(network: VideoStudent, policies: Policies, engine: Any) -> None:
    """A rollout, a target by the old weights, and one update."""
    engine.freeze()
    with torch.no_grad():
        rolled = roll(engine.view(own_phase=False), 2)
        engine.unfreeze()
        view, x = engine.view(own_phase=True), rolled.latents[:, 3:].repeat(2, 1, 1, 1, 1)
        with policies.use("old"):
            target = view.velocity(x, LEVEL, TEXT, rolled.context)
    engine.backward((view.velocity(x + 1, LEVEL, TEXT, rolled.context) - target).square().mean())
    engine.step()


def test_a_graph_that_must_break_is_an_error() -> None:
    """`fullgraph` is what the other tests rest on."""
    networks, _ = pair("full")
    block = networks[1].base.blocks[1]
    norm = block.norm1.forward
    block.norm1.forward = lambda x: (torch._dynamo.graph_break(), norm(x))[1]  # type: ignore[method-assign]
    with pytest.raises(torch._dynamo.exc.Unsupported):
        roll(networks[1], 2)


def test_one_graph_too_many_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidalign.students.video.blocks.GRAPHS", 1)
    with torch._dynamo.config.patch(recompile_limit=1):
        networks, _ = pair("full")
        with pytest.raises(UserError, match=r"blocks were compiled 1 times - student\.compile"):
            roll(networks[1], 2)


def test_a_copy_is_not_compiled_and_computes_the_same() -> None:
    networks, counter = pair("full")
    copied, x = copy.deepcopy(networks[1]), torch.zeros(1, 3, *networks[0].chunk_shape[1:])
    assert all(block._compiled_call_impl is None for block in copied.base.blocks)
    assert torch.equal(copied.velocity(x, LEVEL[:1], TEXT), networks[0].velocity(x, LEVEL[:1], TEXT))
    assert counter.frame_count == 0


def test_split_factors_rotate_as_complex_ones_do() -> None:
    """They are what a compiler reads."""
    for numerics, dtype in (("diffusers", torch.float32), ("wan", torch.float64), ("diffusers", torch.bfloat16)):
        factors = RotaryTables(32, numerics).factors((4, 7), (3, 4), torch.device("cpu"))
        x = torch.randn(2, 24, 2, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
        turned = rotate(x, torch.view_as_real(factors))
        assert turned.dtype == dtype
        torch.testing.assert_close(turned, rotate(x, factors), rtol=0, atol=1e-6)


def test_a_recipe_compiles_its_student() -> None:
    compiled, plain = (
        build_student(load_recipe("world/astrolabe", [f"student.compile={on}"])) for on in ("true", "false")
    )
    assert all(block._compiled_call_impl is not None for block in compiled.base.blocks)
    assert all(block._compiled_call_impl is None for block in plain.base.blocks)
    with pytest.raises(RecipeError, match=r"ZeRO-3 does not run compiled blocks"):
        load_recipe("world/astrolabe", ["student.compile=true", "engine.name=deepspeed", "engine.zero_stage=3"])


def test_without_a_compiler_the_student_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def missing() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(UserError, match=r"cannot be compiled - --compile - torch finds no C\+\+ compiler"):
        check_compiler("--compile")
    monkeypatch.setattr("vidalign.engine.distributed.device", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(UserError, match="torch finds no Triton"):
        check_compiler("--compile")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["full", "relative"])
def test_the_usual_compiler_agrees_to_rounding(policy: str) -> None:
    """Inductor makes C++ of the graphs, with as many as above."""
    try:
        check_compiler("student.compile")
    except UserError as error:
        pytest.skip(str(error))
    networks, counter = pair(policy, backend="inductor")
    plain, compiled = (roll(network, 4) for network in networks)
    torch.testing.assert_close(compiled.latents, plain.latents, rtol=0, atol=1e-5)
    assert counter.frame_count == 4
    x = plain.latents[:, 3:6]
    found = []
    for network in networks:
        network.gradient_checkpointing()
        found.append(learnt(network, network.velocity(x, LEVEL[:1], TEXT, plain.context)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
