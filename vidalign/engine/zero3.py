"""Weights that ZeRO-3 has divided among ranks, treated like whole ones; works on ordinary weights too.

A divided parameter keeps this rank's part in `ds_tensor`, the authority, and now and then the whole tensor in
`data`. DeepSpeed is imported only by code that meets such a parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from vidalign.engine import distributed

if TYPE_CHECKING:
    from torch import Tensor, nn


KEPT = "kept"
"""Stands for a module that still uses a divided parameter: DeepSpeed does not release it then."""


def is_divided(parameter: Any) -> bool:
    """Whether ZeRO-3 divides this parameter."""
    return hasattr(parameter, "ds_tensor")


def is_sharded(network: nn.Module) -> bool:
    """Whether ZeRO-3 divides this network."""
    return any(is_divided(p) for p in network.parameters())


def storage(parameter: Any) -> Tensor:
    """This rank's authoritative values: its part of a divided parameter, else the parameter."""
    own: Tensor = parameter.ds_tensor if is_divided(parameter) else parameter
    return own


def own_part(parameter: Any) -> Tensor:
    """`storage` without the padding of the last rank's part, which holds no value of the parameter."""
    part = storage(parameter)
    if not is_divided(parameter):
        return part
    begin = distributed.rank() * part.numel()
    return part.flatten()[: max(0, min(part.numel(), parameter.ds_numel - begin))]


def invalidate(parameters: Iterable[Any]) -> None:
    """Forget whole copies of divided parameters, after or before their parts change."""
    for parameter in parameters:
        if is_divided(parameter):
            kept = {KEPT} & parameter.ds_active_sub_modules  # made whole again by the next module that uses it
            parameter.ds_active_sub_modules -= kept
            parameter.partition(param_list=[parameter])
            parameter.ds_active_sub_modules |= kept


def gathered(parameters: Iterable[Any]) -> AbstractContextManager[Any]:
    """Whole parameters on every rank meanwhile, read-only; all ranks enter together."""
    divided = [p for p in parameters if is_divided(p)]
    if not divided:
        return nullcontext()
    import deepspeed

    whole: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(divided)
    return whole


def named_full_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Whole parameters and persistent buffers on the CPU, one at a time, by state-dict name."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, value in network.state_dict().items():
        parameter = parameters.get(name)
        with gathered([] if parameter is None else [parameter]):
            yield name, (value if parameter is None else parameter).detach().cpu().clone()
