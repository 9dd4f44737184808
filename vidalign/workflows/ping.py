"""Two processes meet as those of a training run do, and add up their ranks: ``torchrun -m vidalign.workflows.ping``."""

from __future__ import annotations

import torch

from vidalign.engine import distributed


def ping() -> str:
    """The backend and the world size; raises where the sum over the ranks is wrong."""
    distributed.setup(timeout_minutes=1.0)
    import torch.distributed as dist

    ranks = distributed.all_gather(torch.tensor([float(distributed.rank())], device=distributed.device()))
    expected = list(range(distributed.world_size()))
    assert ranks.tolist() == expected, f"the processes gathered {ranks.tolist()} instead of {expected}"
    return f"{dist.get_backend()}, {distributed.world_size()} processes"


if __name__ == "__main__":
    answer = ping()
    if distributed.rank() == 0:
        print(answer)
    distributed.shutdown()
