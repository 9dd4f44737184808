r"""Peak memory and time of a distillation loss between hidden states and gradients, at the size of a real vocabulary.

    pip install -c constraints.txt -e '.[bench]'                            (trl, for the rows to compare with)
    python benchmarks/lm_head_memory.py --threads 1                         (4,096 tokens, hidden 2,048, V = 151,936)
    python benchmarks/lm_head_memory.py --tokens 64 --paired-tokens 32 --naive-tokens 32 64 --hidden 64 \
        --vocabulary 4096 --dry

compares, in one process and on the same tensors, with student head and hidden states trained and the teacher frozen:

- ``naive``: both full tables of logits, the textbook Jensen-Shannon divergence, nothing of vidalign in it;
- ``checkpointed``: the same on chunks of 256 rows that the backward pass makes again, seven matrix products;
- ``before`` with `--before COMMIT`: `projected_divergence` of that commit of this repository. 2d95895 is the last one
  before ``projected``: its loss was checkpointed, too, and heavier between the products than ``checkpointed``;
- ``projected``: the same divergence with its gradient computed in the forward pass (`vidalign.losses.projected`);
- ``routed``: dopd's own loss: `--high` of the rows take the full vocabulary, the others the top 128 and a tail;
- ``trl``: the chunked divergence of TRL's `DistillationTrainer`, its most frugal loss, from hidden states and heads too
  (`GKDTrainer` holds full logits); it reports the student's entropy besides;
- ``projected_autocast``, ``trl_autocast`` with `--autocast`: the two under bf16 autocast, the latter at
  `--paired-tokens` only. On a CPU TRL rounds hidden states and head to bf16 and projects in fp32; ours rounds the
  logits to bf16 as well.

In three parts: every loss at `--paired-tokens`, `--repeats` rounds of one run each, so that another load on the machine
hits all alike; ``naive`` at `--naive-tokens`, as far as memory goes; the others once at `--tokens`. A ``naive`` too
large to be run is the line through its two largest counts, and marked ``extrapolated``. ``head_gradients`` is the peak
in units of the gradient of the student's head, which every loss has to make.

``peak_gib`` is that of tensors alive between the start of the loss and the end of its backward pass, beyond the inputs
and with the gradients: the allocator's count on an accelerator, the allocations that the profiler reports on a CPU.
``resident_gib`` (Linux, CPU) is what the process's resident memory rose by meanwhile, scratch space of the kernels
included. ``cpu_seconds`` are processor time, which other processes disturb less than ``seconds``. Prints the rows and
writes them with command, seed, sizes, versions, machine and load to ``benchmarks/results/lm_head_memory.json``, or to
`--out`; `--dry` writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from vidalign.engine import distributed
from vidalign.losses.projected import Toward, chunk_rows, projected_loss
from vidalign.provenance import commit, machine

RESULT = Path(__file__).parent / "results" / "lm_head_memory.json"
FULL = ("projected", "trl", "before", "checkpointed", "routed", "projected_autocast")
"""What is run at all tokens, the comparison that is claimed first; `naive` is too large, TRL's under autocast slow."""
MISSING = "trl is left out ({}); its rows need: pip install -c constraints.txt -e '.[bench]'"
Inputs = dict[str, Tensor]
Loss = Callable[[Inputs], Tensor]
Row = dict[str, Any]


def make_inputs(args: argparse.Namespace, tokens: int, device: torch.device) -> Inputs:
    """Hidden states and heads whose logits have a standard deviation of 2, the spread of a trained model's tail."""
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    numbers = torch.Generator().manual_seed(args.seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=numbers).mul_(scale).to(device, dtype)

    spread = 2.0 / args.hidden**0.5
    inputs = {name: draw(tokens, args.hidden) for name in ("ours", "theirs")}
    return inputs | {name: draw(args.vocabulary, args.hidden, scale=spread) for name in ("student", "teacher")}


def first(x: Inputs, tokens: int) -> Inputs:
    """The first tokens of `x`, on the same memory, with no gradients yet."""
    part = {name: x[name][:tokens] for name in ("ours", "theirs")}
    part = {name: tensor.detach() for name, tensor in (x | part).items()}
    for name in ("ours", "student"):
        part[name].requires_grad_(True)
    return part


def naive(x: Inputs) -> Tensor:
    """What one writes first; as few names as possible, so that no table outlives its use."""
    return summed(x["ours"], x["student"], x["theirs"], x["teacher"]) / len(x["ours"])


def summed(ours: Tensor, student_head: Tensor, theirs: Tensor, teacher_head: Tensor) -> Tensor:
    """The textbook Jensen-Shannon divergence of all rows."""
    student = functional.linear(ours, student_head).float().log_softmax(-1)
    with torch.no_grad():
        teacher = functional.linear(theirs, teacher_head).float().log_softmax(-1)
    mixture = torch.logaddexp(student, teacher) - math.log(2)
    return sum(functional.kl_div(mixture, p, reduction="sum", log_target=True) for p in (student, teacher)) / 2


def checkpointed(x: Inputs) -> Tensor:
    """Every 256 rows by themselves, and again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    total = x["ours"].new_zeros((), dtype=torch.float32)
    for ours, theirs in zip(x["ours"].split(256), x["theirs"].split(256), strict=True):
        total = total + checkpoint(summed, ours, x["student"], theirs, x["teacher"], use_reentrant=False)
    return total / len(x["ours"])


def loss_of(revision: str) -> Loss:
    """The loss of another commit. Its modules are imported beside those of this one, which are put back."""
    root, mine = Path(__file__).parents[1], dict(sys.modules)
    with tempfile.TemporaryDirectory() as folder:
        tree = subprocess.run(["git", "-C", root, "archive", revision, "vidalign"], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", folder], input=tree.stdout, check=True)
        for name in [name for name in mine if name.partition(".")[0] == "vidalign"]:
            del sys.modules[name]
        sys.path.insert(0, folder)
        try:
            divergence = importlib.import_module("vidalign.losses.projected").projected_divergence
        finally:
            sys.path.remove(folder)
            for name in [name for name in sys.modules if name.partition(".")[0] == "vidalign"]:
                del sys.modules[name]
            sys.modules.update(mine)

    def before(x: Inputs) -> Tensor:
        heads = [partial(functional.linear, weight=x[name]) for name in ("student", "teacher")]
        total: Tensor = divergence(x["ours"], heads[0], x["theirs"], heads[1], "js").mean()
        return total

    return before


def losses(args: argparse.Namespace) -> dict[str, Loss]:
    """What is compared, by name: each a scalar to differentiate."""

    def part(x: Inputs, rows: Tensor, kind: Any, top_k: int | None = None) -> Toward:
        weights = torch.full((len(rows),), 1 / len(x["ours"]), device=rows.device)
        head = x["teacher"]
        return Toward(rows, weights, x["theirs"][rows], lambda h: functional.linear(h, head), kind, top_k=top_k)

    def projected(x: Inputs) -> Tensor:
        rows = torch.arange(len(x["ours"]), device=x["ours"].device)
        return projected_loss(x["ours"], x["student"], None, [part(x, rows, "js")], rows=args.rows).total

    def routed(x: Inputs) -> Tensor:
        rows = torch.arange(len(x["ours"]), device=x["ours"].device)
        high, low = rows[: int(args.high * len(rows))], rows[int(args.high * len(rows)) :]
        parts = [part(x, high, "js"), part(x, low, "reverse_kl", top_k=128)]
        return projected_loss(x["ours"], x["student"], None, parts, rows=args.rows).total

    found: dict[str, Loss] = {"naive": naive, "checkpointed": checkpointed, "projected": projected, "routed": routed}
    if args.before:
        found["before"] = loss_of(args.before)
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    except ImportError as error:
        print(MISSING.format(error), file=sys.stderr)
    else:

        def trl(x: Inputs) -> Tensor:
            per_token, _ = ChunkedDivergenceFunction.apply(
                x["ours"], x["student"], None, x["theirs"], x["teacher"], None, 0.5, 1.0
            )
            return per_token.mean()

        found["trl"] = trl
    if args.autocast:
        found |= {f"{name}_autocast": autocast(found[name]) for name in ("projected", "trl") if name in found}
    return found


def autocast(loss: Loss) -> Loss:
    """The loss with its products in bf16."""

    def under(x: Inputs) -> Tensor:
        with torch.autocast(x["ours"].device.type, torch.bfloat16):
            return loss(x)

    return under


def run(loss: Loss, x: Inputs) -> Row:
    """Value, times and peak memory of one loss with its backward pass. The profiler costs microseconds an operation."""
    device = x["ours"].device
    on_cpu = device.type == "cpu"
    for name in ("ours", "student"):
        x[name].grad = None
    synchronise(device)
    if not on_cpu:
        torch.accelerator.reset_peak_memory_stats(device)
        before = torch.accelerator.memory_allocated(device)
    resident = reset_resident() if on_cpu else None
    watched = profile(activities=[ProfilerActivity.CPU], profile_memory=True) if on_cpu else None
    with watched or nullcontext():
        started, processor = time.perf_counter(), time.process_time()
        value = loss(x)
        value.backward()
        synchronise(device)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - processor
    peak = peak_of(watched) if watched else torch.accelerator.max_memory_allocated(device) - before
    row = {"value": float(value.detach()), "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gib": peak / 2**30}
    if resident is not None:
        row["resident_gib"] = (status("VmHWM") - resident) / 2**30
    for name in ("ours", "student"):
        x[name].grad = None
    return row


def synchronise(device: torch.device) -> None:
    """Wait until the accelerator has finished."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_of(watched: profile) -> int:
    """Most bytes alive at a time, of those allocated while the profiler watched."""
    assert watched.profiler is not None and watched.profiler.kineto_results is not None, "the profiler has run"
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def reset_resident() -> int | None:
    """Bytes resident now, which the kernel's high-water mark is set back to; None where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS")
    except OSError:
        return None


def status(name: str) -> int:
    """An entry of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def rounds(found: dict[str, Loss], names: Iterable[str], x: Inputs, repeats: int) -> list[Row]:
    """Rows of some losses on `x`, run in turn: times of every round, the largest peak."""
    runs: dict[str, list[Row]] = {name: [] for name in names if name in found}
    for _ in range(repeats):
        for name, so_far in runs.items():
            so_far.append(run(found[name], x))
            print(f"{len(x['ours']):5} {name:20} {so_far[-1]}", flush=True)
    rows = []
    for name, several in runs.items():
        row: Row = {"loss": name, "tokens": len(x["ours"]), "extrapolated": False, "value": several[0]["value"]}
        row |= {key: [round(r[key], 3) for r in several] for key in ("seconds", "cpu_seconds")}
        row |= {k: round(max(r[k] for r in several), 4) for k in ("peak_gib", "resident_gib") if k in several[0]}
        row["head_gradients"] = round(row["peak_gib"] * 2**30 / x["student"].nbytes, 3)
        rows.append(row)
    return rows


def extrapolated(rows: list[Row], tokens: int) -> Row:
    """A row of `naive` at more tokens than were run: the line through the two largest counts."""
    near, far = sorted((r for r in rows if r["loss"] == "naive"), key=lambda r: int(r["tokens"]))[-2:]
    share = (tokens - near["tokens"]) / (far["tokens"] - near["tokens"])

    def line(key: str) -> Any:
        if isinstance(near[key], list):
            return [round(min(near[key]) + share * (min(far[key]) - min(near[key])), 3)]
        return round(near[key] + share * (far[key] - near[key]), 4)

    keys = [k for k in ("seconds", "cpu_seconds", "peak_gib", "resident_gib") if k in near]
    return {"loss": "naive", "tokens": tokens, "extrapolated": True, **{key: line(key) for key in keys}}


def compared(rows: list[Row], clock: str) -> list[Row]:
    """Memory as a share of `naive`'s, and time as one of other losses' in the same round, where they are there."""
    found = {(row["loss"], row["tokens"]): row for row in rows}
    for (name, tokens), row in found.items():
        if whole := found.get(("naive", tokens)):
            row["memory_of_naive"] = round(row["peak_gib"] / whole["peak_gib"], 4)
        for base in () if row["extrapolated"] else ("trl", "checkpointed", "before"):
            if other := found.get((base + "_autocast" * ("autocast" in name), tokens)):
                ratios = [a / b for a, b in zip(row[clock], other[clock], strict=False)]
                row[f"time_of_{base}"] = [round(f(ratios), 3) for f in (min, statistics.median, max)]
    return rows


def measure(args: argparse.Namespace, save: Callable[[Row], None] = lambda _: None) -> Row:
    """All parts; `save` is called with the document after each, as the whole takes long."""
    device = distributed.device()
    counts = sorted(set(args.naive_tokens))
    inputs = make_inputs(args, max(args.tokens, args.paired_tokens, *counts), device)
    found = losses(args)
    for loss in found.values():  # warm-up: kernels are chosen and compiled
        run(loss, first(inputs, 8))
    sizes = ("tokens", "paired_tokens", "naive_tokens", "hidden", "vocabulary", "rows", "high", "dtype", "repeats")
    document: Row = {
        "command": shlex.join(["python", "benchmarks/lm_head_memory.py", *sys.argv[1:]]),
        "seed": args.seed,
        "commit": commit(),
        "machine": machine(),
        "device": str(device),
        "cores": os.cpu_count(),
        "versions": {"torch": torch.__version__, "trl": _version("trl")},
        "clock": "cpu_seconds" if device.type == "cpu" else "seconds",
        "sizes": {key: getattr(args, key) for key in sizes} | {"chunk": args.rows or chunk_rows(inputs["student"])},
        "load": [round(os.getloadavg()[0], 2)],
        "rows": [],
    }

    def add(rows: list[Row]) -> None:
        document["rows"] = compared([*document["rows"], *rows], document["clock"])
        document["load"].append(round(os.getloadavg()[0], 2))
        save(document)

    add(rounds(found, found, first(inputs, args.paired_tokens), args.repeats))
    for tokens in counts:
        if tokens != args.paired_tokens:
            add(rounds(found, ["naive"], first(inputs, tokens), 1))
    if args.tokens not in {args.paired_tokens, *counts}:
        add([extrapolated(document["rows"], args.tokens)])
    if args.tokens != args.paired_tokens:
        for name in FULL:
            add(rounds(found, [name], first(inputs, args.tokens), 1))
    return document


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--paired-tokens", type=int, default=512, help="tokens of the repeated rounds of all losses")
    parser.add_argument("--naive-tokens", type=int, nargs="+", default=[1024, 2048], help="where `naive` is run too")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--rows", type=int, default=0, help="rows of a chunk, 0 = vidalign's choice")
    parser.add_argument("--high", type=float, default=0.25, help="share of rows on the full vocabulary in `routed`")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--autocast", action="store_true", help="rows under bf16 autocast besides")
    parser.add_argument("--before", default="", metavar="COMMIT", help="the loss of that commit besides, see above")
    parser.add_argument("--repeats", type=int, default=3, help="rounds at --paired-tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0 leaves torch's choice")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure every loss and write the result after each."""
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)

    def save(document: Row) -> None:
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    measure(args) if args.dry else measure(args, save)


if __name__ == "__main__":
    main()
