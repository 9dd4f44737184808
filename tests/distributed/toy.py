"""A toy alignment run with everything that is hard on an engine: two roles that see each other frozen, weight
sets, checkpointing, several micro-batches a step, parameters outside layers, gradients that miss some."""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vidalign.engine import distributed, rng, zero3
from vidalign.engine.base import build_engine
from vidalign.engine.checkpoint import Checkpoints, verify
from vidalign.engine.config import AdapterConfig, EngineConfig, OptimizerConfig
from vidalign.engine.policies import Policies
from vidalign.engine.roles import Roles
from vidalign.errors import CheckpointError, UserError

SAMPLES, MICRO_BATCH, DIM, WIDTH = 8, 2, 6, 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.scale * self.down(torch.tanh(self.up(h)))


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(DIM, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, DIM)
        self.unused = nn.Linear(2, 2)

    def velocity(self, x_t: Tensor, sigma: float) -> Tensor:
        h = self.embed(x_t) * (1.0 + sigma)
        for block in self.blocks:
            h = checkpoint(block, h, use_reentrant=False) if torch.is_grad_enabled() else block(h)
        return self.head(h)


class Judge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DIM, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)


def seeded(network: nn.Module, seed: int) -> nn.Module:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            numbers = rng.generator(seed, name, 0)
            parameter.copy_(torch.empty(parameter.shape).uniform_(-0.4, 0.4, generator=numbers))
    return network


@dataclass
class Run:
    engine: EngineConfig
    optimizer: OptimizerConfig
    lora: bool
    total: int = 5


class Toy:
    def __init__(self, run: Run) -> None:
        self.run = run
        student, judge = seeded(Student(), 1), seeded(Judge(), 2)
        adapter = AdapterConfig(rank=4, alpha=8.0) if run.lora else None
        self.policies = Policies(student, ("old", "reference"), adapter, seed=3)
        self.roles = Roles(
            {
                "student": build_engine(run.engine, run.optimizer, student, run.total, self.policies),
                "judge": build_engine(run.engine, run.optimizer, judge, run.total),
            }
        )
        self.parts = {**self.roles.engines, "policies": self.policies}

    def micro_batches(self, step: int) -> list[Tensor]:
        """This rank's share of the step's samples; a sample's numbers do not depend on the rank."""
        share = SAMPLES // distributed.world_size()
        ids = range(distributed.rank() * share, (distributed.rank() + 1) * share)
        dtype = torch.float64 if self.run.engine.precision == "fp64" else torch.float32
        rows = [torch.randn(2, DIM, generator=rng.generator(0, "data", step, i)) for i in ids]
        return list(torch.stack(rows).to(dtype).split(MICRO_BATCH))

    def judge_loss(self, batch: Tensor) -> Tensor:
        with torch.no_grad(), self.policies.use("old"):
            fake = self.roles.module("student").velocity(batch[:, 0], 0.5)
        judge = self.roles.module("judge")
        return nn.functional.softplus(judge(fake) - judge(batch[:, 1])).mean()

    def student_loss(self, batch: Tensor) -> Tensor:
        student = self.roles.module("student")
        with torch.no_grad():
            with self.policies.use("old"):
                old = student.velocity(batch[:, 0], 0.5)
            with self.policies.use("reference"):
                reference = student.velocity(batch[:, 0], 0.5)
        new = student.velocity(batch[:, 0], 0.5)
        target = (new - batch[:, 1]).square().mean() + (new - 2 * old + reference).square().mean()
        return target - 0.3 * self.roles.module("judge")(new).mean()

    def step(self, step: int) -> dict[str, float]:
        metrics = {}
        batches = self.micro_batches(step)
        distributed.check_equal(len(batches), "number of micro-batches")
        for role, loss_of in (("judge", self.judge_loss), ("student", self.student_loss)):
            with self.roles.phase(role) as engine:
                total = torch.zeros((), dtype=batches[0].dtype)
                for batch in batches:
                    loss = loss_of(batch) / len(batches)
                    engine.backward(loss)
                    total += loss.detach()
                metrics[f"{role}/rate"] = engine.learning_rate
                metrics[f"{role}/norm"] = engine.step()
                metrics[f"{role}/loss"] = float(distributed.all_reduce_mean(total))
        self.policies.ema_update("old", "current", 0.5)
        if step % 3 == 2:
            self.policies.copy("current", "reference")
        return metrics

    def train(self, first: int, last: int) -> list[dict[str, float]]:
        return [self.step(step) for step in range(first, last)]

    def digest(self) -> dict[str, list[float]]:
        """All weights of all weight sets, whole."""
        sets = {name: self.policies.weights(name) for name in ("current", "old", "reference")}
        return {
            f"{name}/{key}": value.double().flatten().tolist() for name, w in sets.items() for key, value in w.items()
        }

    def save(self, folder: Path, step: int) -> None:
        Checkpoints(folder).save(step, {"step": step}, self.parts)

    def load(self, folder: Path) -> int:
        step, state = Checkpoints(folder).load(self.parts)
        assert state == {"step": step}
        return step


def runs(optimizer: OptimizerConfig, total: int) -> dict[str, Run]:
    """Every fp32 engine, LoRA and full."""
    engines = {"plain": EngineConfig()}
    engines |= {f"zero{s}": EngineConfig(name="deepspeed", zero_stage=s) for s in range(4)}
    return {
        f"{name}-{kind}": Run(engine, optimizer, kind == "lora", total)
        for name, engine in engines.items()
        for kind in ("lora", "full")
    }


SGD = OptimizerConfig(optimizer="sgd", learning_rate=0.05, clip=0.5, warmup_steps=2, schedule="cosine")
ADAMW = OptimizerConfig(learning_rate=0.01, weight_decay=0.01, clip=0.5, warmup_steps=2, schedule="cosine")


def losses(_: Path) -> dict[str, Any]:
    """Five steps on every engine: fp32 SGD, bf16 with adapters, offloaded; float64 AdamW on the plain one."""
    chosen = runs(SGD, 5)
    for name in ("plain", "zero0", "zero2", "zero3"):
        bf16 = replace(chosen[f"{name}-lora"].engine, precision="bf16")
        chosen[f"{name}-bf16"] = Run(bf16, SGD, True, 5)
    for name, offload in (("zero2-lora", "optimizer"), ("zero3-full", "parameters")):
        engine = replace(chosen[name].engine, offload=offload)
        chosen[f"{name}-offload"] = Run(engine, SGD, "lora" in name, 5)
    for kind in ("lora", "full"):
        chosen[f"fp64-{kind}"] = Run(EngineConfig(precision="fp64"), ADAMW, kind == "lora", 5)
    if distributed.world_size() == 1:
        chosen = {name: run for name, run in chosen.items() if not name.startswith("zero")}
    result = {}
    for name, run in chosen.items():
        toy = Toy(run)
        result[name] = {"steps": toy.train(0, 5), "weights": toy.digest()}
    return result


def straight(folder: Path) -> dict[str, Any]:
    """2N steps with a checkpoint after N."""
    result = {}
    for name, run in runs(ADAMW, 6).items():
        toy = Toy(run)
        steps = toy.train(0, 3)
        toy.save(folder / name, 3)
        result[name] = {"steps": steps + toy.train(3, 6), "weights": toy.digest()}
    return result


def resumed(folder: Path) -> dict[str, Any]:
    """The last N steps from that checkpoint, in a new process."""
    result = {}
    for name, run in runs(ADAMW, 6).items():
        toy = Toy(run)
        first = toy.load(folder / name)
        result[name] = {"first": first, "steps": toy.train(first, 6), "weights": toy.digest()}
    return result


def behaviour(folder: Path) -> dict[str, Any]:
    """What engines must do beside training, on each of them."""
    result: dict[str, Any] = {}
    for name, run in runs(ADAMW, 6).items():
        toy = Toy(run)
        toy.train(0, 1)
        disk = full_disk(toy, folder / f"full-{name}")
        result[name] = {"gathered": gathered(toy), "nonfinite": nonfinite(toy), "full_disk": disk, "norms": norms(toy)}
    result["unequal"] = unequal()
    return result


def unequal() -> str:
    try:
        distributed.check_equal(distributed.rank(), "number of micro-batches")
    except UserError as error:
        return str(error)
    return ""


def gathered(toy: Toy) -> list[bool]:
    """Whether a rollout with gathered weights is the rollout without, before, inside and after a switch."""
    x = torch.ones(3, DIM)

    def rollout(name: str) -> Tensor:
        with torch.no_grad(), toy.policies.use(name):
            return toy.roles.module("student").velocity(x, 0.5)

    apart = {name: rollout(name) for name in ("current", "old")}
    assert not torch.equal(apart["current"], apart["old"])
    with toy.roles.engines["student"].gathered():
        inside = [torch.equal(rollout(name), apart[name]) for name in ("current", "old", "current")]
    return [*inside, torch.equal(rollout("current"), apart["current"])]


def norms(toy: Toy) -> list[float]:
    """The judge's norm of trained weights, and that of its whole weights."""
    engine = toy.roles.engines["judge"]
    whole = [value.double().square().sum() for _, value in zero3.named_full_tensors(engine.network)]
    return [engine.weight_norm(), float(sum(whole)) ** 0.5]


def nonfinite(toy: Toy) -> dict[str, Any]:
    """Whether a gradient that is not a number leaves the weights alone, and the next step works; what was counted."""
    before = toy.policies.weights("current")
    with toy.roles.phase("student") as engine:
        factor = float("nan") if distributed.rank() == 0 else 1.0
        engine.backward(toy.student_loss(toy.micro_batches(1)[0]) * factor)
        engine.step()
        counted = [engine.skipped, engine.skipped_in_row]
    after = toy.policies.weights("current")
    same = all(torch.equal(before[key], after[key]) for key in before)
    healthy = all(value == value for value in toy.step(2).values())
    return {"same": same, "healthy": healthy, "counted": [*counted, engine.skipped, engine.skipped_in_row]}


def full_disk(toy: Toy, folder: Path) -> list[Any]:
    """The error of a save on a disk that fills up on one rank, and what can be loaded afterwards."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {"step": 1}, toy.parts)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writes_itself = toy.run.engine.name == "deepspeed" and toy.run.engine.zero_stage > 0
    if distributed.rank() == (distributed.world_size() - 1 if writes_itself else 0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        checkpoints.save(2, {"step": 2}, toy.parts)
        error = "none"
    except CheckpointError as caught:
        error = str(caught)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    distributed.barrier()
    return [error, checkpoints.steps(), verify(checkpoints.path(1)), sorted(p.name for p in folder.iterdir())]


def doomed(folder: Path) -> None:
    """Save again, and die on one rank after its first file: DeepSpeed's state is half-written."""
    toy = Toy(runs(ADAMW, 6)["zero2-lora"])
    step = toy.load(folder / "zero2-lora")
    if distributed.rank() == 1:
        writer = toy.roles.engines["judge"].deepspeed.checkpoint_engine
        writer.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    toy.save(folder / "zero2-lora", step + 1)


def alone(folder: Path) -> list[str]:
    """The errors of one process that resumes checkpoints of two."""
    errors = []
    for name, run in runs(ADAMW, 6).items():
        if name.startswith("zero"):
            try:
                Toy(run).load(folder / name)
            except CheckpointError as error:
                errors.append(str(error))
    return errors
