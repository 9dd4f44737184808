"""Weight sets: adapters and snapshots against plain networks and closed forms."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_helpers import Net, net, numbers, setup, train

from vidalign.engine.base import build_engine
from vidalign.engine.config import AdapterConfig, EngineConfig, OptimizerConfig
from vidalign.engine.layers import linear_layers, match_targets
from vidalign.engine.plain import PlainEngine
from vidalign.engine.policies import Policies
from vidalign.engine.rng import generator
from vidalign.errors import CheckpointError, UserError

LORA, FULL = AdapterConfig(rank=2, alpha=6.0), None
BOTH = pytest.mark.parametrize("adapter", [LORA, FULL], ids=["lora", "full"])
X = numbers(5, 4, 3)


def outputs(network: Net, policies: Policies, *names: str) -> dict[str, torch.Tensor]:
    result = {}
    for name in names:
        with torch.no_grad(), policies.use(name):
            result[name] = network.velocity(X)
    return result


@BOTH
def test_all_weight_sets_start_as_the_network(adapter: AdapterConfig | None) -> None:
    network, policies, _ = setup(adapter)
    with torch.no_grad():
        expected = net().velocity(X)
    names = ["current", "old", "reference", *(["base"] if adapter else [])]
    assert all(torch.equal(out, expected) for out in outputs(network, policies, *names).values())


@BOTH
def test_training_moves_current_alone_and_use_restores_it(adapter: AdapterConfig | None) -> None:
    network, policies, engine = setup(adapter)
    before = outputs(network, policies, "current")["current"]
    for step in range(2):
        train(engine, numbers(step, 4, 3))
    moved = network.velocity(X)
    assert not torch.allclose(moved, before, atol=1e-3)
    assert all(torch.equal(o, before) for o in outputs(network, policies, "old", "reference").values())
    with policies.use("old"), policies.use("current"), policies.use("reference"):
        assert torch.equal(network.velocity(X), before)
    assert torch.equal(network.velocity(X), moved)
    with pytest.raises(ZeroDivisionError), policies.use("old"):
        raise ZeroDivisionError
    assert torch.equal(network.velocity(X), moved)


@BOTH
def test_copy_and_lerp(adapter: AdapterConfig | None) -> None:
    network, policies, engine = setup(adapter)
    policies.copy("current", "reference")
    train(engine, X)
    train(engine, X)
    expected = {}
    for key in policies._named("current"):
        new, old = policies._named("current")[key], policies._named("old")[key.replace(".current.", ".old.")]
        expected[key] = 0.75 * old.clone() + 0.25 * new
    policies.ema_update("old", "current", 0.75)
    for key, value in expected.items():
        assert torch.allclose(policies._named("old")[key.replace(".current.", ".old.")], value, atol=1e-7)
    policies.copy("current", "reference")
    out = outputs(network, policies, "current", "reference", "old")
    assert torch.equal(out["current"], out["reference"])
    assert not torch.equal(out["current"], out["old"])
    train(engine, X)
    again = outputs(network, policies, "reference")["reference"]
    assert torch.equal(again, out["reference"]), "a copy shares nothing with what it was copied from"


@BOTH
def test_weights_are_those_of_a_plain_network(adapter: AdapterConfig | None) -> None:
    network, policies, engine = setup(adapter)
    for step in range(3):
        train(engine, numbers(step, 4, 3))
    policies.ema_update("old", "current", 0.5)
    names = ["current", "old", *(["base"] if adapter else [])]
    for name, out in outputs(network, policies, *names).items():
        plain = Net()
        plain.load_state_dict(policies.weights(name), strict=True)
        with torch.no_grad():
            assert torch.allclose(plain.velocity(X), out, atol=1e-6), name
    if adapter:
        assert all(torch.equal(w, net().state_dict()[key]) for key, w in policies.weights("base").items())


@BOTH
def test_snapshots_are_taken_once_and_of_full_fine_tuning_alone(adapter: AdapterConfig | None) -> None:
    network, policies, engine = setup(adapter)
    before = outputs(network, policies, "old")["old"]
    train(engine, X)
    policies.attach()
    assert torch.equal(outputs(network, policies, "old")["old"], before)
    assert len(policies._snapshots) == (0 if adapter else 2) and policies.adapted_layers == (4 if adapter else 0)


def test_deepspeed_hears_whether_weights_are_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only full fine-tuning with weight sets swaps what ZeRO divides."""
    heard: list[bool] = []

    class Engine(PlainEngine):
        def __init__(self, *arguments: Any, weights_are_swapped: bool) -> None:
            super().__init__(*arguments)
            heard.append(weights_are_swapped)

    monkeypatch.setitem(sys.modules, "vidalign.engine.deepspeed", SimpleNamespace(DeepSpeedEngine=Engine))
    for adapter in (None, LORA, FULL):
        network = net()
        policies = Policies(network, ("old",), adapter) if heard else None
        build_engine(EngineConfig(name="deepspeed"), OptimizerConfig(), network, 5, policies)
    assert heard == [False, False, True]


@BOTH
def test_the_ends_of_a_moving_average(adapter: AdapterConfig | None) -> None:
    """Decay 0 is a copy even over what is not finite, decay 1 changes nothing."""
    network, policies, engine = setup(adapter)
    train(engine, X)
    before = outputs(network, policies, "old")["old"]
    policies.ema_update("old", "current", 1.0)
    assert torch.equal(outputs(network, policies, "old")["old"], before)
    for tensor in policies._named("old").values():
        tensor.fill_(torch.nan)
    policies.ema_update("old", "current", 0.0)
    assert len({str(out) for out in outputs(network, policies, "old", "current").values()}) == 1


def test_peft_reads_a_saved_adapter(tmp_path: Path) -> None:
    import peft

    network, policies, engine = setup(LORA)
    for step in range(2):
        train(engine, numbers(step, 4, 3))
    for name in ("current", "old", "current"):
        policies.save_adapter(name, tmp_path / "exports" / name)
    for name, out in outputs(network, policies, "current", "old").items():
        files = {"adapter_config.json", "adapter_model.safetensors"}
        assert files <= {file.name for file in (tmp_path / "exports" / name).iterdir()}, "PEFT asks the network for one"
        found = peft.PeftModel.from_pretrained(net(), str(tmp_path / "exports" / name))  # type: ignore[arg-type]
        with torch.no_grad():
            assert torch.allclose(found.base_model.model.velocity(X), out, atol=1e-6), name


def test_adapters_are_on_again_after_they_were_off() -> None:
    network, policies, engine = setup(LORA)
    train(engine, X)
    train(engine, X)
    trained = outputs(network, policies, "current")["current"]
    assert not torch.equal(outputs(network, policies, "base")["base"], trained)
    assert torch.equal(outputs(network, policies, "current")["current"], trained)


@BOTH
def test_switching_between_forward_and_backward_does_not_matter(adapter: AdapterConfig | None) -> None:
    def gradients(switch: bool) -> list[torch.Tensor]:
        network, policies, engine = setup(adapter)
        train(engine, numbers(0, 4, 3))
        engine.unfreeze()
        loss = network.velocity(X).square().mean()
        flags = [p.requires_grad for p in network.parameters()]
        if switch:
            outputs(network, policies, "old", "reference", *(["base"] if adapter else []))
        assert flags == [p.requires_grad for p in network.parameters()]
        loss.backward()
        return [p.grad for p in engine.trainable if p.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(gradients(True), gradients(False), strict=True))


@BOTH
def test_switching_thaws_nothing(adapter: AdapterConfig | None) -> None:
    """Frozen outside its phase, a network stays frozen whatever weight set it computes with."""
    network, policies, _ = setup(adapter)
    for name in ("old", "reference", *(["base"] if adapter else [])):
        with policies.use(name):
            assert not any(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in network.parameters())


def test_only_the_current_adapter_is_trained() -> None:
    network, _, engine = setup(LORA)
    assert all(".lora_" in name and ".current." in name for name in engine.named_trainable())
    assert len(engine.trainable) == 2 * 4
    engine.unfreeze()
    network.velocity(X).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in network.parameters())


def test_the_scale_of_an_adapter_is_alpha_over_rank() -> None:
    network, policies, _ = setup(LORA)
    layer = network.blocks[0].up
    with torch.no_grad():
        layer.lora_B["current"].weight.copy_(numbers(1, 12, 2))
    update = policies.weights("current")["blocks.0.up.weight"] - net().state_dict()["blocks.0.up.weight"]
    expected = 3.0 * layer.lora_B["current"].weight @ layer.lora_A["current"].weight
    assert torch.allclose(update, expected, atol=1e-6)


def test_fresh_adapters_depend_on_the_seed_alone() -> None:
    def first(seed: int, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        network = net()
        policies = Policies(network, names, LORA, seed=seed)
        return {key: t.clone() for key, t in policies._named("current").items()}

    state = torch.get_rng_state()
    one, same, other = first(1, ("old",)), first(1, ("old", "reference", "ema")), first(2, ("old",))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    downs = [key for key in one if "lora_A" in key]
    assert not any(torch.equal(one[key], other[key]) for key in downs)
    assert not torch.equal(one["blocks.0.up.lora_A.current.weight"], one["blocks.1.up.lora_A.current.weight"])
    drawn = torch.empty(2, 6).uniform_(-1, 1, generator=generator(1, "adapter blocks.0.up", 0)) / 6**0.5
    assert torch.equal(one["blocks.0.up.lora_A.current.weight"], drawn)
    bound = 1.0 / 6**0.5
    assert all(0.5 * bound < one[key].abs().max() <= bound for key in downs if ".up." in key)


def test_adapters_are_fp32_on_a_bf16_base() -> None:
    network = net().to(torch.bfloat16)
    policies = Policies(network, ("old",), LORA)
    engine = build_engine(EngineConfig(precision="bf16"), OptimizerConfig(), network, 5, policies)
    assert {p.dtype for n, p in network.named_parameters() if ".lora_" in n} == {torch.float32}
    assert {p.dtype for n, p in network.named_parameters() if ".lora_" not in n} == {torch.bfloat16}
    train(engine, X)  # type: ignore[arg-type]
    merged = policies.weights("current")
    assert {merged[f"{name}.weight"].dtype for name in policies._layers} == {torch.float32}
    rest = merged.keys() - {f"{name}.weight" for name in policies._layers}
    assert {merged[name].dtype for name in rest} == {torch.bfloat16}


@BOTH
def test_save_and_load(adapter: AdapterConfig | None, tmp_path: Path) -> None:
    network, policies, engine = setup(adapter)
    train(engine, X)
    train(engine, X)
    policies.ema_update("old", "current", 0.5)
    policies.save(tmp_path)
    other, others, _ = setup(adapter)
    others.load(tmp_path)
    expected = outputs(network, policies, "old", "reference")
    assert all(torch.equal(o, expected[name]) for name, o in outputs(other, others, "old", "reference").items())


def test_load_of_another_rank_names_the_weight(tmp_path: Path) -> None:
    setup(LORA)[1].save(tmp_path)
    message = r"blocks\.0\.down\.lora_A\.old\.weight: found \(2, 12\), expected \(3, 12\)"
    with pytest.raises(CheckpointError, match=message):
        setup(AdapterConfig(rank=3))[1].load(tmp_path)


def test_unknown_names_and_swapped_writes_are_refused() -> None:
    _, policies, _ = setup(FULL)
    with pytest.raises(AssertionError, match="no weight set base"), policies.use("base"):
        pass
    with policies.use("old"), pytest.raises(AssertionError, match="swapped in"):
        policies.copy("current", "old")


LAYERS = ["embed", "head", *(f"blocks.{i}.{n}" for i in range(2) for n in ("down", "up"))]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("blocks", [n for n in LAYERS if n.startswith("blocks")]),
        (["up"], ["blocks.0.up", "blocks.1.up"]),
        (["blocks.1.*", "head"], ["head", "blocks.1.down", "blocks.1.up"]),
        ("0.up", ["blocks.0.up"]),
    ],
)
def test_targets(targets: str | list[str], expected: list[str]) -> None:
    assert sorted(linear_layers(net())) == sorted(LAYERS)
    assert match_targets(LAYERS, targets) == expected
    policies = Policies(net(), (), AdapterConfig(rank=1, targets=targets))
    assert policies.adapted_layers == len(expected)


def test_blocks_are_those_of_transformers_too() -> None:
    layers = ["lm_head", "model.layers.0.up", "model.layers.11.down"]
    assert match_targets(layers, "blocks") == layers[1:]


def test_several_adapters_make_peft_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        setup(LORA)


def test_a_pattern_that_matches_no_layer_lists_those_that_exist() -> None:
    with pytest.raises(UserError) as error:
        match_targets(LAYERS, ["up", "blocks.*.upp", "p"])
    text = str(error.value)
    assert "'blocks.*.upp' matches no layer" in text
    assert "blocks.*.down, blocks.*.up, embed, head" in text
    assert "did you mean 'blocks.*.up'?" in text
