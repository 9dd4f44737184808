"""Names of weights in published reward models, as those of the network that `network.py` builds.

The files come from trainings under transformers 4.45, with or without a PEFT wrapper:

    base_model.model.visual.blocks.0.attn.qkv.weight              backbone.visual.blocks.0.attn.qkv.weight
    base_model.model.model.embed_tokens.weight                    backbone.language_model.embed_tokens.weight
    base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight       ...layers.0.self_attn.q_proj.weight
    base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight   ...layers.0.self_attn.q_proj.lora_A
    base_model.model.rm_head.weight                               head.weight

Without the wrapper the names have no prefix. An adapter file leaves out ``default``. Files that were saved under
transformers 5 say ``model.visual`` and ``model.language_model``. ``lm_head`` is in every file and nothing reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vidalign.errors import CheckpointError

WRAPPER = "base_model.model."
PREFIXES = (
    ("model.language_model.", "backbone.language_model."),
    ("model.visual.", "backbone.visual."),
    ("model.", "backbone.language_model."),
    ("visual.", "backbone.visual."),
    ("rm_head.", "head."),
)
"""Beginning of a published name and of ours, the longest first."""
UNREAD = "lm_head.weight"
SHOWN = 3
Shape = tuple[int, ...]


def our_name(published: str) -> str | None:
    """The name of a published weight in our network; None for one that nothing reads."""
    name = published.removeprefix(WRAPPER)
    if name == UNREAD:
        return None
    for before, after in PREFIXES:
        if name.startswith(before):
            name = after + name.removeprefix(before)
            break
    name = name.replace(".base_layer.", ".")
    for factor in ("lora_A", "lora_B"):
        name = name.removesuffix(".weight") if f".{factor}." in name else name
        name = name.replace(f".{factor}.default", f".{factor}")
    return name


def renamed(published: Iterable[str], where: str) -> dict[str, str]:
    """Our name to the published one; raises `CheckpointError` where two weights are one."""
    names: dict[str, str] = {}
    for name in published:
        ours = our_name(name)
        if ours is not None and names.setdefault(ours, name) != name:
            why = f"{names[ours]!r} and {name!r} are the same weight"
            raise CheckpointError("the checkpoint names a weight twice", where=where, why=why)
    return names


def with_factors(shapes: Mapping[str, Shape], layers: Iterable[str], rank: int) -> dict[str, Shape]:
    """The shapes of a network together with those of LoRA factors on some of its linear layers."""
    whole = dict(shapes)
    for layer in layers:
        out, into = shapes[f"{layer}.weight"]
        whole |= {f"{layer}.lora_A": (rank, into), f"{layer}.lora_B": (out, rank)}
    return whole


def compare(found: Mapping[str, Shape], expected: Mapping[str, Shape], where: str) -> None:
    """Raise `CheckpointError`, with the first differences of each kind, unless names and shapes agree."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    other = sorted(name for name in expected.keys() & found.keys() if tuple(found[name]) != tuple(expected[name]))
    wrong_keys = [
        *_first("missing", missing, missing),
        *_first("unexpected", unexpected, unexpected),
        *_first(
            "of another shape", other, [f"{name} {_said(found[name])}, not {_said(expected[name])}" for name in other]
        ),
    ]
    if wrong_keys:
        raise CheckpointError(
            "the checkpoint is not that of this reward model",
            where=where,
            why="; ".join(wrong_keys),
            fix="name the published checkpoint, and the backbone that it was trained on",
        )


def _first(what: str, names: list[str], said: list[str]) -> list[str]:
    more = ", ..." if len(names) > SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(said[:SHOWN])}{more}"] if names else []


def _said(shape: Shape) -> str:
    return "x".join(map(str, shape))
