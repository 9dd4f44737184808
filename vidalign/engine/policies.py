"""Named weight sets of one network: current (trained), old, reference, ema, base.

With LoRA they are adapters on one base, injected by PEFT; adapters are fp32 and computed in the precision of
the engine. With full fine-tuning they are snapshots, swapped in by pointer. Under ZeRO-3 both live as this
rank's shards: copying and averaging weight sets needs no communication, because equal tensors are divided
equally.

Injecting adapters changes the network, so `Policies` is built before the engine; `build_engine` then calls
`attach`, which takes the snapshots of full fine-tuning.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidalign.deferred import without_gradient
from vidalign.engine import distributed, rng, zero3
from vidalign.engine.adapter_start import load_start
from vidalign.engine.checkpoint import check_shapes, read_tensors, write_tensors
from vidalign.engine.config import AdapterConfig
from vidalign.engine.layers import linear_layers, match_targets
from vidalign.tensor_writing import save_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

CURRENT, BASE, AVERAGE = "current", "base", "ema"


class Policies:
    """Weight sets `current` and `names` of `network`; `base` (adapters off) too when there is an adapter.

    All of them start equal: to the network's weights, which a fresh adapter does not change. Without
    `adapter` every parameter that requires a gradient is trained. Only `current` ever requires one.
    """

    def __init__(
        self,
        network: nn.Module,
        names: Iterable[str] = ("old", "reference"),
        adapter: AdapterConfig | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.network = network
        self.adapter = adapter
        self.names = tuple(names)
        assert not {CURRENT, BASE} & set(self.names), "current and base exist without being named"
        self.active = CURRENT
        self._aliases: dict[str, str] = {}
        self._snapshots: dict[str, list[Tensor]] = {}
        self._dtypes = {key: value.dtype for key, value in network.state_dict().items()}
        if adapter is not None:
            self._layers = inject_adapters(network, (CURRENT, *self.names), adapter, seed)
            if adapter.start:
                load_start(self._layers, Path(adapter.start))
            for parameter in self._parameters(CURRENT):
                parameter.requires_grad_(True)
        self._trained = {key: p for key, p in network.named_parameters() if p.requires_grad}

    def attach(self) -> None:
        """Take the snapshots of full fine-tuning where the engine keeps the weights; once."""
        if self.adapter is None and not self._snapshots:
            weights = [zero3.storage(p) for p in self._parameters(CURRENT)]
            self._snapshots = {name: [w.detach().clone() for w in weights] for name in self.names}

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Compute with the weights of `name` meanwhile; no backward and no optimiser step inside."""
        known = (CURRENT, *self.names, *([BASE] if self.adapter else []))
        name = self._aliases.get(name, name)
        assert name in known, f"no weight set {name}; there are {known}"
        before = self.active
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    @property
    def kept(self) -> str:
        """The weight set that a run keeps: the moving average, if there is one."""
        return AVERAGE if AVERAGE in self.names else CURRENT

    @contextmanager
    def aliased(self, sets: Mapping[str, str]) -> Iterator[None]:
        """Whoever asks for a name in `sets` (``{"old": "old_2"}``) gets that weight set instead meanwhile."""
        before, self._aliases = self._aliases, dict(sets)
        try:
            yield
        finally:
            self._aliases = before

    @without_gradient
    def copy(self, source: str, target: str) -> None:
        """target <- source."""
        self.ema_update(target, source, 0.0)

    @without_gradient
    def ema_update(self, target: str, source: str, decay: float) -> None:
        """target <- decay * target + (1 - decay) * source, in the dtype of the weights."""
        assert self.active == CURRENT, "weight sets are not written while one of them is swapped in"
        assert 0.0 <= decay <= 1.0, f"decay must be in [0, 1], got {decay}"
        target, source = self._aliases.get(target, target), self._aliases.get(source, source)
        for ours, theirs in zip(self._tensors(target), self._tensors(source), strict=True):
            if decay == 0.0:
                ours.copy_(theirs)
            else:
                ours.mul_(decay).add_(theirs, alpha=1.0 - decay)
        zero3.invalidate(self._parameters(target))

    @property
    def adapted_layers(self) -> int:
        """Number of layers that carry an adapter; 0 in full fine-tuning."""
        return len(self._layers) if self.adapter else 0

    def masters(self) -> list[nn.Parameter]:
        """Adapters that are kept in fp32: all of them, or those that gather small updates alone (`AdapterConfig`)."""
        low = self.adapter is not None and self.adapter.frozen_precision == "bf16"
        names = (CURRENT, *(name for name in self.names if not low or name == AVERAGE))
        return [parameter for name in names for parameter in self._parameters(name)]

    def nbytes(self, name: str) -> int:
        """Bytes that weight set `name` takes on this rank."""
        return sum(tensor.nbytes for tensor in self._tensors(name))

    def weights(self, name: str) -> dict[str, Tensor]:
        """State dict of the plain network with the weights of `name`, adapters merged in fp32, on the CPU.

        Keys and shapes are those of the network before adapters, and so are the types, but of adapted layers: those
        are at least fp32, because 16 bits would keep little of a small update. All ranks call it under ZeRO-3.
        """
        name = self._aliases.get(name, name)
        with self.use(name), torch.no_grad():
            merged = self._merged(name) if self.adapter else {}
            state = {}
            for key, value in zero3.named_full_tensors(self.network):
                if ".lora_" not in key:
                    plain = key.replace(".base_layer.", ".")
                    dtype = torch.promote_types(value.dtype, self._dtypes[plain])  # the engine may hold it in bf16
                    state[plain] = merged[plain] if plain in merged else value.to(dtype)
            return state

    def save_adapter(self, name: str, directory: Path, inside: str = "", **settings: str) -> None:
        """Write adapter `name` as PEFT does: adapter_config.json, adapter_model.safetensors; all ranks call it.

        inside: name of the network in the student that other libraries know; the adapter is written as one of it.
        settings: further ones of `LoraConfig`.
        """
        from peft import LoraConfig

        assert self.adapter is not None, "full fine-tuning has no adapter"
        mark, root = re.compile(rf"(\.lora_[AB])\.{re.escape(name)}\."), f"{inside}." if inside else ""
        weights = {
            "base_model.model." + mark.sub(r"\1.", key.removeprefix(root)): value
            for key, value in zero3.named_full_tensors(self.network)
            if mark.search(key)
        }
        if distributed.rank() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            layers = [layer.removeprefix(root) for layer in self._layers]
            transposed = any(layer.fan_in_fan_out for layer in self._layers.values())
            made = LoraConfig(
                r=self.adapter.rank,
                lora_alpha=self.adapter.alpha,
                target_modules=layers,
                fan_in_fan_out=transposed,
                **settings,
            )
            made.save_pretrained(str(directory))
            save_tensors(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})

    def save(self, directory: Path) -> None:
        """Write every weight set but `current`, which the engine stores."""
        sharded = zero3.is_sharded(self.network)
        if sharded or distributed.rank() == 0:
            state = {name: self._named(name) for name in self.names}
            write_tensors(self._file(directory, sharded), state)

    def load(self, directory: Path) -> None:
        """Restore what `save` wrote; all ranks call it, with as many processes under ZeRO-3."""
        file = self._file(directory, zero3.is_sharded(self.network))
        state = read_tensors(file)
        for name in self.names:
            expected = self._named(name)
            check_shapes(file, state.get(name, {}), expected)
            for key, tensor in expected.items():
                tensor.copy_(state[name][key])
            zero3.invalidate(self._parameters(name))

    def _switch(self, name: str) -> None:
        if name != self.active:
            if self.adapter is not None:
                switch_adapters(self._layers, name)
            else:
                self._swap(self.active)  # back to current
                self._swap(name)
            self.active = name

    def _swap(self, name: str) -> None:
        """Exchange the network's weights with the snapshot `name`, by pointer."""
        if name == CURRENT:
            return
        assert name in self._snapshots, "full fine-tuning takes its snapshots when the engine is built"
        parameters = self._parameters(CURRENT)
        zero3.invalidate(parameters)
        for parameter, snapshot in zip(parameters, self._snapshots[name], strict=True):
            weight = zero3.storage(parameter)
            weight.data, snapshot.data = snapshot.data, weight.data

    def _parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that hold weight set `name`; none for a snapshot."""
        return list(self._named_parameters(name).values())

    def _named_parameters(self, name: str) -> dict[str, nn.Parameter]:
        if self.adapter is None:
            return self._trained if name == CURRENT else {}
        mark = re.compile(rf"\.lora_[AB]\.{re.escape(name)}\.")
        return {key: p for key, p in self.network.named_parameters() if mark.search(key)}

    def _tensors(self, name: str) -> list[Tensor]:
        """This rank's storage of weight set `name`."""
        if self.adapter is None and name != CURRENT:
            return self._snapshots[name]
        return [zero3.storage(p).data for p in self._parameters(name)]

    def _named(self, name: str) -> dict[str, Tensor]:
        keys = self._trained if self.adapter is None else self._named_parameters(name)
        return dict(zip(keys, self._tensors(name), strict=True))

    def _merged(self, name: str) -> dict[str, Tensor]:
        """Weights of the adapted layers with the update of `name` added in fp32."""
        merged = {}
        for key, layer in self._layers.items():
            with zero3.gathered(layer.parameters()):
                weight = layer.base_layer.weight.detach()
                delta = 0.0 if name == BASE else layer.get_delta_weight(name)
                merged[f"{key}.weight"] = (weight + delta).to(torch.promote_types(weight.dtype, torch.float32)).cpu()
        return merged

    def _file(self, directory: Path, sharded: bool) -> Path:
        return directory / (f"policies-rank{distributed.rank()}.pt" if sharded else "policies.pt")


def inject_adapters(network: nn.Module, names: Iterable[str], config: AdapterConfig, seed: int) -> dict[str, Any]:
    """Put one frozen LoRA adapter a name on the targeted layers; returns the adapted layers by name.

    B is zero and A is the same in every adapter, drawn from `seed`; fp32, or fp64 in an fp64 network.
    """
    import peft
    from peft.tuners.lora import LoraLayer

    targets = match_targets(linear_layers(network), config.targets)
    pattern = "|".join(re.escape(name) for name in targets)
    for name in names:
        lora = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=pattern)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are the point
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # PEFT sees which layers are transposed
            peft.inject_adapter_in_model(lora, network, adapter_name=name)
    layers = {key: module for key, module in network.named_modules() if isinstance(module, LoraLayer)}
    for key, layer in layers.items():
        _reset(layer, rng.generator(seed, f"adapter {key}", 0))
    network.requires_grad_(False)
    switch_adapters(layers, CURRENT)
    return layers


def _reset(layer: Any, numbers: torch.Generator) -> None:
    """PEFT's initial values, but from our generator, and fp32."""
    base = layer.base_layer.weight
    dtype = torch.promote_types(base.dtype, torch.float32)
    first = next(iter(layer.lora_A.values())).weight
    values = torch.empty(first.shape).uniform_(-1.0, 1.0, generator=numbers) / math.sqrt(first.shape[1])
    for down, up in zip(layer.lora_A.values(), layer.lora_B.values(), strict=True):
        down.to(device=base.device, dtype=dtype)
        up.to(device=base.device, dtype=dtype)
        with torch.no_grad():
            down.weight.copy_(values)


def switch_adapters(layers: dict[str, Any], name: str) -> None:
    """Make adapter `name` (or none: `base`) the active one, leaving every requires_grad as it was."""
    for layer in layers.values():
        flags = [(p, p.requires_grad) for p in layer.parameters()]
        if name == BASE:
            layer.enable_adapters(False)
        else:
            layer.set_adapter(name)
            layer.enable_adapters(True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
