"""Peak memory and time of a distillation loss between hidden states and gradients, at the size of a real vocabulary.

    python benchmarks/lm_head_memory.py                                    (4,096 tokens, hidden 2,048, V = 151,936)
    python benchmarks/lm_head_memory.py --tokens 256 --hidden 128 --vocabulary 8192 --threads 1 --dry

compares, in one process and on the same tensors, with student head and hidden states trained and the teacher frozen:

- ``naive``: both full tables of logits, Jensen-Shannon divergence, backward;
- ``projected``: the same divergence on checkpointed chunks of rows (`vidalign.losses.projected`);
- ``routed``: dopd's own loss: `--high` of the rows take the full vocabulary, the others the top 128 and a tail;
- ``trl``: the chunked divergence of TRL's distillation trainer, where trl can be imported.

Peak memory is that of tensors alive between the start of the loss and the end of its backward pass, beyond the inputs:
the allocator's count on an accelerator, the allocations that the profiler reports on a CPU. Times are the least of
`--repeats`. Prints the table and writes it with command, sizes, versions and machine to
``benchmarks/results/lm_head_memory.json``; `--dry` writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vidalign.engine import distributed
from vidalign.losses.divergences import divergence
from vidalign.losses.projected import ROWS, projected_divergence
from vidalign.provenance import commit, machine

RESULT = Path(__file__).parent / "results" / "lm_head_memory.json"
Loss = Callable[[], Tensor]


def make_inputs(args: argparse.Namespace, device: torch.device) -> dict[str, Tensor]:
    """Hidden states and heads whose logits have a standard deviation of 2, the spread of a trained model's tail."""
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    numbers = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=numbers)).to(device, dtype)

    spread = 2.0 / args.hidden**0.5
    inputs = {name: draw(args.tokens, args.hidden) for name in ("ours", "theirs")}
    inputs |= {name: draw(args.vocabulary, args.hidden, scale=spread) for name in ("student", "teacher")}
    for name in ("ours", "student"):
        inputs[name].requires_grad_(True)
    return inputs


def losses(x: dict[str, Tensor], args: argparse.Namespace) -> dict[str, Loss]:
    """What is compared, by name: each a scalar to differentiate."""

    def student(hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden, x["student"])

    def teacher(hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden, x["teacher"])

    def naive() -> Tensor:
        with torch.no_grad():
            target = teacher(x["theirs"])
        return divergence(student(x["ours"]), target, "js").mean()

    def projected() -> Tensor:
        return projected_divergence(x["ours"], student, x["theirs"], teacher, "js", rows=args.rows).mean()

    def routed() -> Tensor:
        high = int(args.high * args.tokens)
        ours, theirs = x["ours"].split([high, args.tokens - high]), x["theirs"].split([high, args.tokens - high])
        full = projected_divergence(ours[0], student, theirs[0], teacher, "js", rows=args.rows)
        rest = projected_divergence(ours[1], student, theirs[1], teacher, "reverse_kl", top_k=128, rows=args.rows)
        return torch.cat([full, rest]).mean()

    found: dict[str, Loss] = {"naive": naive, "projected": projected, "routed": routed}
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    except ImportError as error:
        print(f"trl is left out: {error}", file=sys.stderr)
        return found

    def trl() -> Tensor:
        per_token, _ = ChunkedDivergenceFunction.apply(
            x["ours"], x["student"], None, x["theirs"], x["teacher"], None, 0.5, 1.0
        )
        return per_token.mean()

    return found | {"trl": trl}


def run(loss: Loss, x: dict[str, Tensor]) -> tuple[float, float]:
    """Value of the loss and seconds of forward and backward."""
    for name in ("ours", "student"):
        x[name].grad = None
    synchronise(x["ours"].device)
    started = time.perf_counter()
    value = loss()
    value.backward()
    synchronise(x["ours"].device)
    return float(value.detach()), time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_bytes(loss: Loss, x: dict[str, Tensor]) -> int:
    """Most bytes alive beyond the inputs while the loss and its gradients are computed."""
    device = x["ours"].device
    for name in ("ours", "student"):
        x[name].grad = None
    if device.type == "cuda":
        synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run(loss, x)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        loss().backward()
    alive = peak = 0
    for event in sorted(watched.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def measure(args: argparse.Namespace) -> dict[str, object]:
    device = distributed.device()
    inputs = make_inputs(args, device)
    rows: dict[str, dict[str, float]] = {}
    for name, loss in losses(inputs, args).items():
        run(loss, inputs)  # warm-up: kernels are chosen and compiled
        found = [run(loss, inputs) for _ in range(args.repeats)]
        peak = peak_bytes(loss, inputs)
        seconds = min(t for _, t in found)
        rows[name] = {"loss": found[0][0], "seconds": round(seconds, 4), "peak_gib": round(peak / 2**30, 4)}
        rows[name]["memory_of_naive"] = round(peak / 2**30 / rows["naive"]["peak_gib"], 4)
        print(f"{name:10} {rows[name]}", flush=True)
    sizes = {key: getattr(args, key) for key in ("tokens", "hidden", "vocabulary", "rows", "high", "dtype", "repeats")}
    return {
        "command": " ".join(["python", "benchmarks/lm_head_memory.py", *sys.argv[1:]]), "commit": commit(),
        "machine": machine(), "device": str(device), "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "trl": _version("trl")}, "sizes": sizes, "rows": rows,
    }  # fmt: skip


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a chunk")
    parser.add_argument("--high", type=float, default=0.25, help="share of rows on the full vocabulary in `routed`")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    result = measure(args)
    if not args.dry:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
