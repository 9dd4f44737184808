"""What a rollout costs: per phase of a chunk, with and without a shared prefix, with and without a cache.

Run: python benchmarks/rollout.py [--student world/student | --size wan-1.3b] [--device cuda] [--dtype bfloat16]

Without --student the network has the size of the world's student, or of Wan2.1 1.3B under Self-Forcing at 480 x 832
(21 latent frames of one video; phases only), and random weights: time does not depend on them. Medians over the
repeats; one warm-up. Writes benchmarks/results/rollout.json, or --out.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vidalign.codecs import build_codec
from vidalign.losses.flow_matching import add_noise
from vidalign.students.video import VideoStudent, VideoStudentSpec
from vidalign.students.video.presets import preset
from vidalign.students.video.rollout import RolloutPlan
from vidalign.students.video.rollout.clock import Clock, measured

WORLD = {
    "patch_size": [1, 8, 8],
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": 64,
    "freq_dim": 64,
    "ffn_dim": 512,
    "num_layers": 4,
}
WAN = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
"""What Wan2.1 1.3B changes in diffusers' defaults, which are those of 14B."""
GROUP = 8
Row = dict[str, float | int | str]


def timed(fn: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of `fn` after one warm-up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        fn()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def seeds(count: int) -> list[torch.Generator]:
    """One generator a clip."""
    return [torch.Generator().manual_seed(i) for i in range(count)]


@torch.no_grad()
def phases(student: VideoStudent, text: Tensor, chunks: int, repeats: int) -> Row:
    """Milliseconds per chunk in denoising, clean pass and decode, and the latency of the first frames."""
    codec = build_codec(student.spec.codec).to(student.device, text.dtype).eval()
    plan = RolloutPlan(0, chunks, keep_final=True)
    noise = student.draw_noise(plan, seeds(len(text)))
    runs: dict[str, list[float]] = {"denoise": [], "clean": [], "decode": [], "first": []}
    for _ in range(repeats + 1):
        clock, decode, first = Clock(student.device), codec.stream(), [0.0]
        begin = clock.now()

        def on_chunk(
            index: int,
            x0: Tensor,
            begin: float = begin,
            decode: Callable = decode,
            clock: Clock = clock,
            first: list[float] = first,
        ) -> None:
            with measured(clock, "decode"):
                decode(x0).cpu()
            first[0] = first[0] or clock.now() - begin

        student.rollout(text, plan, noise, on_chunk=on_chunk, clock=clock)
        parts = {name: clock.total(name) for name in ("denoise", "clean", "decode")}
        for name, value in (*parts.items(), ("first", first[0])):
            runs[name].append(value * 1000 / (1 if name == "first" else chunks))
    median = {name: round(statistics.median(values[1:]), 2) for name, values in runs.items()}
    return {
        "batch": len(text),
        "chunks": chunks,
        "denoise_ms": median["denoise"],
        "clean_ms": median["clean"],
        "decode_ms": median["decode"],
        "first_frames_ms": median["first"],
    }


def sharing(student: VideoStudent, text: Tensor, plan: RolloutPlan, repeats: int) -> Row:
    """A group that shares its prefix against as many independent rollouts of the same length."""
    separate = RolloutPlan(0, plan.chunks, group_size=plan.group_size)
    found: list[tuple[float, int]] = []
    for each in (plan, separate):
        noise = student.draw_noise(each, seeds(len(text)))
        seconds = timed(lambda each=each, noise=noise: student.rollout(text, each, noise), student.device, repeats)  # type: ignore[misc]
        found.append((seconds, student.rollout(text, each, noise).chunk_forwards))
    (shared_s, shared_n), (separate_s, separate_n) = found
    return {
        "plan": f"{plan.prefix} shared + {plan.branch + plan.suffix} x {plan.group_size}",
        "shared_s": round(shared_s, 3),
        "independent_s": round(separate_s, 3),
        "shared_forwards": shared_n,
        "independent_forwards": separate_n,
        "time_ratio": round(shared_s / separate_s, 3),
        "forward_ratio": round(shared_n / separate_n, 3),
    }


@torch.no_grad()
def recomputed(student: VideoStudent, text: Tensor, noise: Tensor, renoise: Tensor) -> Tensor:
    """The sampler without a cache: every step runs all frames so far, the past at t = 0."""
    size, done = student.spec.cache.chunk_frames, noise[:, :0]
    for at in range(0, noise.shape[1], size):
        sigmas = student.spec.sampler.steps(first=at == 0)
        x_t = noise[:, at : at + size]
        for step, sigma in enumerate(sigmas):
            levels = torch.cat([torch.zeros(len(x_t), at), torch.full((len(x_t), size), sigma)], 1).to(x_t.device)
            frames = torch.cat([done, x_t], 1)
            x0 = student(frames, levels, text, attention="block_causal", output="x0")[:, at:]
            if step + 1 < len(sigmas):
                x_t = add_noise(x0, renoise[:, step, at : at + size], sigmas[step + 1])
        done = torch.cat([done, x0], 1)
    return done


def caching(student: VideoStudent, text: Tensor, chunks: int, repeats: int) -> Row:
    """Cached rollout against full recomputation, with the largest difference of the latents."""
    plan = RolloutPlan(0, chunks)
    noise = student.draw_noise(plan, seeds(len(text))).to(student.device)
    cached = student.rollout(text, plan, noise).latents
    full = recomputed(student, text, noise.initial, noise.renoise)
    a = timed(lambda: student.rollout(text, plan, noise), student.device, repeats)
    b = timed(lambda: recomputed(student, text, noise.initial, noise.renoise), student.device, repeats)
    return {
        "chunks": chunks,
        "cached_s": round(a, 3),
        "recomputed_s": round(b, 3),
        "speed_up": round(b / a, 2),
        "largest_difference": float(f"{(cached - full).abs().max().item():.1e}"),
    }


def network(size: str) -> VideoStudent:
    """A student of random weights."""
    if size == "world":
        return VideoStudent.from_spec(VideoStudentSpec(transformer=WORLD, prediction="x0"))
    spec = preset("self_forcing").spec(WAN)
    spec.codec = {"name": "wan", "config": {"z_dim": 16}}
    return VideoStudent.from_spec(spec)


def show(console: Console, title: str, rows: list[Row]) -> None:
    """Print rows as a table."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)


def machine(device: torch.device) -> dict[str, str | int]:
    """Where the figures come from."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    cpu = (
        next(
            (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x),
            name,
        )
        if Path("/proc/cpuinfo").exists()
        else name
    )
    return {
        "device": name if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="", help="path or shipped name; default: random weights")
    parser.add_argument("--size", choices=("world", "wan-1.3b"), default="world", help="size of random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "rollout.json"))
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    student = VideoStudent.load(args.student) if args.student else network(args.size)
    student = student.to(device, dtype)
    length = 16 if student.spec.text.get("name") == "world" else 512
    text = torch.randn(args.prompts, length, student.base.config.text_dim, device=device, dtype=dtype)
    result: dict[str, object] = {
        "command": "python " + " ".join(["benchmarks/rollout.py", *sys.argv[1:]]),
        "machine": machine(device),
    }
    if args.size == "world":
        plans = (RolloutPlan(3, 1, 0, GROUP), RolloutPlan(2, 1, 1, GROUP), RolloutPlan(1, 1, 2, GROUP))
        result["phases"] = [phases(student, text[:n], 4, args.repeats) for n in (1, args.prompts)]
        result["sharing"] = [sharing(student, text, plan, args.repeats) for plan in plans]
        result["caching"] = [caching(student, text, chunks, args.repeats) for chunks in (4, 16)]
    else:
        result["phases"] = [phases(student, text[:1], 7, args.repeats)]
    console = Console(width=140)
    for title in [name for name in ("phases", "sharing", "caching") if name in result]:
        show(console, title, result[title])  # type: ignore[arg-type]
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
