"""Runs shipped recipes on a tiny budget through the command line, and reads what each run wrote.

    python runner.py FOLDER ENGINE RECIPE...

FOLDER holds what the recipes ask for (see tests/tiny/tiny_twins.py); the trajectory of each goes to FOLDER/results.
With the variables of a launcher (RANK, WORLD_SIZE, ...) several processes train together. Of vidalign nothing is
imported but its command line, so that the same file runs against any other commit.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

CAPS = {
    "steps": 3,
    "prompts_per_step": 2,
    "micro_batch": 4,
    "save_every": 1,
    "eval_every": 2,
    "warmup_steps": 2,
    "group_size": 4,
    "anchors": 2,
    "updates": 2,
    "max_steps": 2,
    "prompts": 2,
    "rollouts": 2,
    "start": 1,
    "reset_every": 2,
    "top_k": 16,
    "max_new_tokens": 12,
    "frames": 24,
    "count": 1,
    "seeds": 1,
    "clips_every": 2,
}
"""Largest value of a setting by its last name, in whatever section it stands; smaller ones stay."""
QUIET = ["tracking.panel=none", "tracking.tensorboard=false"]
ENGINES = {
    "plain": ["engine.name=plain"],
    "zero2": ["engine.name=deepspeed", "engine.zero_stage=2"],
}
FIRST = re.compile(r"(?:# First: |\(after `)vidalign (\w+) (\S+) (--\w+ [\w/]+)")
"""How the header of a recipe names the command to be run before it."""
BUFFER = ["--groups", "4"]
PREPARED: set[tuple[str, ...]] = set()
"""Commands that this process has run for the recipes before: several may name the same one."""


def vidalign(*arguments: str) -> str:
    """Standard output of one command; `RuntimeError` with its words when it fails."""
    from vidalign.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(arguments))
        except SystemExit as leaving:
            code = leaving.code
    if code:
        raise RuntimeError(f"vidalign {' '.join(arguments)}: exit code {code}\n{err.getvalue()}")
    return out.getvalue()


def overrides(recipe: str, engine: str) -> list[str]:
    """What makes a recipe tiny: every number beyond its cap, the engine, and no panel."""
    values = yaml.safe_load(vidalign("show", recipe))
    capped = [f"{key}={CAPS[key.rpartition('.')[2]]}" for key, value in numbers(values) if value > cap(key)]
    return [*capped, *ENGINES[engine], f"engine.precision={precision(recipe, engine)}", *QUIET]


def precision(recipe: str, engine: str) -> str:
    """fp64 wherever it can be had, because processors differ in the last bits of fp32."""
    return "fp32" if engine != "plain" else "fp64"


def numbers(values: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Every integer of a tree with the path to it."""
    for key, value in values.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict):
            yield from numbers(value, where)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield where, value


def cap(key: str) -> float:
    return CAPS.get(key.rpartition(".")[2], math.inf)


def prepare(recipe: str, engine: str, root: Path) -> None:
    """Run the command that the header names, if it names one: it makes weights or a buffer."""
    found = FIRST.search((root / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8"))
    if found and found.groups() not in PREPARED:
        PREPARED.add(found.groups())
        verb, name, target = found.groups()
        more = BUFFER if verb == "collect" else []
        vidalign(verb, name, *target.split(), *more, *overrides(name, engine))
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # the first process writes what the others are about to read


def run(recipe: str, engine: str, root: Path) -> dict[str, Any]:
    """The trajectory of one recipe in the working folder."""
    prepare(recipe, engine, root)
    folder = Path("golden") / recipe
    vidalign("train", recipe, *overrides(recipe, engine), "--run", str(folder))
    if os.environ.get("RANK", "0") != "0":
        return {}
    result = read_run(folder)
    shutil.rmtree(folder)
    return result


# --- the only part that knows the files of a run ---


def read_run(folder: Path) -> dict[str, Any]:
    """Metrics of each step, warnings, weight norms by role, saved files. Nothing that depends on time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = {f"step {one['step']}": metrics_of(one) for one in lines if one["kind"] == "metrics"}
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    warnings = [f"step {one['step']}: {one['name']}" for one in lines if one["kind"] == "health"]
    return {**steps, "weights": weights_of(folder), "warnings": warnings, "files": files}


TIMES = ("seconds", "hidden")
"""What ends the name of a metric that says how long something took."""


def metrics_of(line: dict[str, Any]) -> dict[str, float]:
    """The metrics of a line but for durations."""
    return {key: float(x) for key, x in line.items() if key not in ("kind", "step") and not key.endswith(TIMES)}


def weights_of(folder: Path) -> dict[str, float]:
    """Norm of every set of weights in the last checkpoint, and of its change over the last step."""
    *_, before, last = sorted((folder / "checkpoints").glob("step-*"))
    sets = weight_sets(last)
    norms = {f"{name} norm": norm(tensors) for name, tensors in sets.items()}
    for name, tensors in weight_sets(before).items():
        norms[f"{name} change"] = norm({key: sets[name][key].double() - old.double() for key, old in tensors.items()})
    files = ("student.safetensors", "student/model.safetensors", "adapter/adapter_model.safetensors")
    return norms | {Path(file).name: norm(load_file(folder / file)) for file in files if (folder / file).is_file()}


def weight_sets(checkpoint: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by role for what is trained, by name for the policies beside it."""
    sets = {}
    for file in sorted(checkpoint.glob("*/engine.pt")):
        sets[file.parent.name] = torch.load(file)["weights"]
    for file in sorted(checkpoint.glob("*/deepspeed/**/*model_states.pt")):
        sets[file.relative_to(checkpoint).parts[0]] = torch.load(file, weights_only=False)["module"]
    policies = torch.load(checkpoint / "policies" / "policies.pt")
    return sets | {f"policy {name}": tensors for name, tensors in policies.items()}


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(math.fsum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def keep_doubles() -> None:
    """Compute in float64 what is float32 whatever the engine: norms, modulation and the features of noise levels in the
    Wan network of diffusers, and the text encoder of the embedded worlds. The last bits depend on the processor; those
    of float32 would reach the compared digits."""
    from diffusers.models.embeddings import Timesteps
    from diffusers.models.normalization import FP32LayerNorm
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel, WanTransformerBlock
    from transformers import BertModel

    rounding, features, encode = torch.Tensor.float, Timesteps.forward, BertModel.forward
    network = threading.local()  # rewards are computed by other threads meanwhile

    def kept(self: torch.Tensor) -> torch.Tensor:
        return self if self.dtype == torch.float64 and getattr(network, "depth", 0) else rounding(self)

    def keeping(forward: Callable[..., Any]) -> Callable[..., Any]:
        def inside(*args: Any, **kwargs: Any) -> Any:
            network.depth = getattr(network, "depth", 0) + 1
            try:
                return forward(*args, **kwargs)
            finally:
                network.depth -= 1

        return inside

    def exact(self: Timesteps, timesteps: torch.Tensor) -> torch.Tensor:
        if timesteps.dtype != torch.float64:
            return features(self, timesteps)
        powers = torch.arange(self.num_channels // 2, dtype=torch.float64) / (self.num_channels // 2)
        angles = torch.outer(timesteps, 10000**-powers)
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    def encoded(self: BertModel, **inputs: Any) -> Any:
        out = encode(self.double(), **inputs)
        out.last_hidden_state = out.last_hidden_state.float()
        return out

    for kind in (FP32LayerNorm, WanTransformerBlock, WanTransformer3DModel):
        kind.forward = keeping(kind.forward)
    Timesteps.forward, BertModel.forward, torch.Tensor.float = exact, encoded, kept


def main() -> None:
    folder, engine, *recipes = sys.argv[1:]
    import vidalign as package

    root = Path(package.__file__).parents[1]
    os.chdir(folder)
    torch.backends.mkldnn.set_flags(False)  # it chooses kernels and blocks by the processor
    if engine == "plain":
        keep_doubles()
    for recipe in recipes:
        started = time.monotonic()
        try:
            result = run(recipe, engine, root)
        except (Exception, SystemExit):
            result = {"failed": traceback.format_exc()}
            if "RANK" in os.environ:  # the other processes would wait for this one
                print(result["failed"], file=sys.stderr)
                os._exit(1)
        if result:
            file = Path("results") / f"{recipe.replace('/', '.')}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(result), encoding="utf-8")
        print(f"{recipe}: {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
