"""The promises of a student: an output is a function of weights, prompt and generator, wherever and however it runs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidalign import registry
from vidalign.data.source import open_source
from vidalign.engine import distributed
from vidalign.engine.rng import generator
from vidalign.testing.plugins import broken, lent, own_numbers
from vidalign.testing.recipes import LANGUAGE, SAMPLING, VIDEO

COUNT = 3
FRAMES = 6
INIT = {"video": VIDEO, "language": {**LANGUAGE, "sampling": SAMPLING}}
"""Specifications of the kinds that ship."""
PROMPTS = {"clips": "world:basic/train", "texts": "tokens:train"}
"""Where default prompts come from, by what a kind makes."""


def check_student(
    student: type[Any] | str,
    init: Mapping[str, Any] | None = None,
    *,
    prompts: Sequence[Any] | None = None,
    frames: int = FRAMES,
) -> None:
    """Try the promises of a kind of student; raises `AssertionError` with a sentence for the first that is broken.

    student: a kind, as it is registered among ``students`` (a class with `name`), or its name. init: the specification
    of a small network, as under ``student.init``; needed for kinds other than the built-in ones. prompts: three or more
    that differ; unless given, those of the embedded worlds. frames: length of the clips, for a kind that makes some.
    """
    with lent("students", student) as name, tempfile.TemporaryDirectory() as folder:
        kind = registry.get("students", name)
        if kind.makes not in PROMPTS:
            broken(name, f"makes {kind.makes!r}: a student makes 'clips' or 'texts'")
        asked = list(prompts) if prompts else open_source(PROMPTS[kind.makes], 0, COUNT).first(COUNT)
        spec = kind.spec_type.from_dict(dict(init if init is not None else INIT[name]))
        with own_numbers(name):
            network = kind.from_spec(spec, 1)
        _check_weights(name, network, kind.from_spec(spec, 1), kind.from_spec(spec, 2))
        outputs = _check_sampling(name, network, asked, frames)
        if kind.makes == "clips":
            _check_clips(name, network, asked, frames, outputs)
        _check_file(name, kind, network, asked, frames, Path(folder) / "student.safetensors")


def _outputs(network: Any, prompts: Sequence[Any], frames: int, numbers: Sequence[int], seed: int = 0) -> Any:
    """What a network makes of prompts; prompt k has the generator of sample ``numbers[k]``."""
    generators = [generator(seed, "testing", 0, number) for number in numbers]
    with torch.no_grad():
        return network.sampler(frames, temperature=1.0)(list(prompts), generators)


def _check_weights(name: str, first: Any, again: Any, other: Any) -> None:
    """Random weights are a function of the seed."""
    weights, repeated, others = (one.state_dict() for one in (first, again, other))
    apart = [key for key, value in weights.items() if not torch.equal(value, repeated[key])]
    if apart:
        broken(name, f"is made with other weights by the same seed: {len(apart)} of {len(weights)}, first {apart[0]}")
    if all(torch.equal(value, others[key]) for key, value in weights.items()):
        broken(name, "is made with the same weights by every seed")


def _check_sampling(name: str, network: Any, prompts: list[Any], frames: int) -> Any:
    """An output does not depend on its batch, nor on global generators, but on its own generator."""
    numbers = list(range(len(prompts)))
    with own_numbers(name):
        together = _outputs(network, prompts, frames, numbers)
    if len(together) != len(prompts):
        broken(name, f"makes {len(together)} outputs of {len(prompts)} prompts")
    for n in numbers:
        alone = _outputs(network, prompts[n : n + 1], frames, [n])
        if not _near(alone[0], together[n]):
            broken(name, f"makes another output of prompt {n} alone than in a batch{_by(alone[0], together[n])}")
    turned = _outputs(network, prompts[::-1], frames, numbers[::-1])
    for n in numbers:
        if not _near(turned[-1 - n], together[n]):
            broken(
                name, f"makes another output of prompt {n} when the batch is turned{_by(turned[-1 - n], together[n])}"
            )
    others = _outputs(network, prompts, frames, numbers, seed=1)
    if all(_near(others[n], together[n]) for n in numbers):
        broken(name, "does not use the generators that it is given: another seed makes the same outputs")
    return together


def _check_file(name: str, kind: Any, network: Any, prompts: list[Any], frames: int, file: Path) -> None:
    """What is saved is what is loaded."""
    network.save(file, {"made": "by a test"})
    loaded, numbers = kind.load(file), range(len(prompts))
    made, again = (_outputs(one, prompts, frames, list(numbers)) for one in (network, loaded))
    for n in numbers:
        if not (torch.equal(made[n], again[n]) if isinstance(made[n], Tensor) else made[n] == again[n]):
            broken(name, f"makes another output of prompt {n} after save and load{_by(again[n], made[n])}")


def _check_clips(name: str, network: Any, prompts: list[Any], frames: int, expected: Tensor) -> None:
    """Clips lie in [0, 1]; in fp64 and on the accelerator, where there is one, they are those of fp32 on the CPU."""
    if not 0 <= float(expected.min()) <= float(expected.max()) <= 1:
        broken(name, f"makes clips in [{float(expected.min()):g}, {float(expected.max()):g}]: [0, 1] is promised")
    for place, dtype in ((torch.device("cpu"), torch.float64), (distributed.device(), torch.float32)):
        clips = _outputs(network.to(place, dtype), prompts, frames, list(range(len(prompts))))
        apart = float((clips.cpu().double() - expected.cpu().double()).abs().max())
        if clips.device.type != place.type or apart > 1e-2:
            broken(name, f"makes clips on {clips.device} that differ by {apart:.2e} in {dtype} on {place}")
    network.to("cpu", torch.float32)


def _near(actual: Any, expected: Any) -> bool:
    if isinstance(actual, Tensor):
        return torch.allclose(actual, expected, rtol=0, atol=1e-4)
    return bool(actual == expected)


def _by(actual: Any, expected: Any) -> str:
    """By how much two clips differ; two texts themselves."""
    if isinstance(actual, Tensor):
        return f": pixels differ by up to {float((actual - expected).abs().max()):.2e}"
    return f": {actual!r:.60} instead of {expected!r:.60}"
