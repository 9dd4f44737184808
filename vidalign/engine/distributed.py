"""The few collectives that vidalign needs; each is the identity in a run of one process.

torch.distributed is touched only after `setup`, so a plain run neither opens a port nor needs a launcher.
Every function but `rank`, `world_size`, `device` and `free_memory` must be called by all ranks in the same order.
"""

from __future__ import annotations

import datetime
import gc
import os
from typing import Any, TypeVar

import torch

from vidalign.engine.config import Precision
from vidalign.errors import UserError

T = TypeVar("T")


def _dist() -> Any:
    """torch.distributed if a process group exists, else None."""
    import torch.distributed as dist

    return dist if dist.is_available() and dist.is_initialized() else None


def rank() -> int:
    """Rank of this process, 0 without a process group."""
    dist = _dist()
    return dist.get_rank() if dist else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    dist = _dist()
    return dist.get_world_size() if dist else 1


def device() -> torch.device:
    """The accelerator of this process by LOCAL_RANK, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def free_memory(place: torch.device) -> None:
    """Give the memory of what was deleted back to the device."""
    if place.type != "cpu":
        gc.collect()
        torch.accelerator.empty_cache()


def resolve_precision(precision: Precision) -> Precision:
    """``auto`` as ``bf16`` where this process' device computes it natively, else ``fp32``; others as they are.

    A CPU without bf16 instructions emulates them at a fraction of its fp32 speed, and mkldnn's own flag says yes there.
    """
    if precision != "auto":
        return precision
    if device().type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def setup(*, single: bool = False, timeout_minutes: float = 30.0) -> None:
    """Join the process group that the launcher's environment (RANK, WORLD_SIZE, MASTER_*) describes.

    Does nothing in a run of one process, unless `single` asks for a group of one (DeepSpeed needs it).
    """
    import torch.distributed as dist

    size = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_initialized() or (size == 1 and not single):
        return
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", str(size))
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"] if size > 1 else "0")
    place = device()
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    timeout = datetime.timedelta(minutes=timeout_minutes)
    if size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch does not list it
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)


def shutdown() -> None:
    """Leave the process group, if there is one."""
    dist = _dist()
    if dist:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    dist = _dist()
    if dist:
        dist.barrier()


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """`[n, ...]` of every rank, in rank order: `[world_size * n, ...]`. Equal shapes; no gradient."""
    dist = _dist()
    if not dist:
        return tensor
    pieces = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, tensor.detach().contiguous())
    return torch.cat(pieces)


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over ranks as a new tensor, same shape; no gradient."""
    dist = _dist()
    if not dist:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    mean: torch.Tensor = total / dist.get_world_size()
    return mean


def all_gather_object(value: T) -> list[T]:
    """`value` of every rank, in rank order; picklable, small."""
    dist = _dist()
    if not dist:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T, source: int = 0) -> T:
    """Rank `source`'s `value` on every rank; picklable, small."""
    dist = _dist()
    if not dist:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def next_prompt_index(count: int) -> list[int]:
    """Where the next prompt of the step lies, for each of this rank's `count`, in what `all_gather` concatenates.

    The prompts of a step are dealt out in turn, so the answer does not depend on the number of ranks; after the last
    comes the first. Raises `UserError` when the step has one prompt only.
    """
    ranks = world_size()
    check_others(count * ranks)
    following = [(place * ranks + rank() + 1) % (count * ranks) for place in range(count)]
    return [number % ranks * count + number // ranks for number in following]


def check_others(prompts: int) -> None:
    """Raises `UserError` when a step of `prompts` holds no other prompt, whose privilege a control could take."""
    if prompts < 2:
        raise UserError(
            "another prompt's privilege needs another prompt",
            where="trainer.prompts_per_step",
            why="the step has one",
            fix="use at least 2",
        )


def check_equal(value: int, what: str) -> None:
    """Raise `UserError` on every rank when `value` differs between ranks.

    Unequal counts of micro-batches would leave ranks waiting in different collectives for ever.
    """
    values = all_gather_object(value)
    if len(set(values)) > 1:
        raise UserError(
            f"{what} differs between processes: {values}",
            why="every process must take part in the same collectives",
            fix="make the number of samples a step a multiple of processes x micro-batch",
        )
