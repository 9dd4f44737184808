"""What made a file: command, seed, commit, hashes. Goes into run headers, weights and result files."""

from __future__ import annotations

import hashlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vidalign.data.source import find_source
from vidalign.errors import UsageError

if TYPE_CHECKING:
    import torch

    from vidalign.recipe import Recipe


def commit() -> str:
    """Commit of the checkout that the package runs from, with ``+changes`` if it is dirty; '' outside of one."""
    folder = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+changes"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def refuse_unclean(out: Path) -> None:
    """Raise `UsageError` for a published result (below this checkout's `benchmarks`) of code that no commit holds."""
    published = Path(__file__).parents[1] / "benchmarks"
    if out.resolve().is_relative_to(published) and commit().endswith("+changes"):
        raise UsageError(
            "published results are measured from a clean checkout",
            where=f"--out {out}",
            why="files of this checkout differ from its commit",
            fix="commit or stash them, or write elsewhere",
        )


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """First 12 hex digits of SHA-256 over the names, dtypes, shapes and bytes of tensors, whatever their order."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def machine() -> str:
    """Processor, threads and torch version in one line."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {platform.system()}"


def command() -> str:
    """The command line of this process without the folders of the program and of the run."""
    program = Path(sys.argv[0]).name
    names = {"__main__.py": ["vidalign"], "cell.py": ["python", "-m", "vidalign.bench.cell"]}
    return without_run_folder(shlex.join([*names.get(program, [program]), *sys.argv[1:]]))


def without_run_folder(line: str) -> str:
    """A command line without the folders of runs: local paths are stripped."""
    return re.sub(r"\s--(?:run|semi|on-policy|out)[ =]\S+", "", line)


def describe_run(recipe: Recipe) -> dict[str, str]:
    """What the first line of a run and the metadata of its weights say."""
    from vidalign.engine import distributed

    return {
        "recipe": Path(recipe.name).name if Path(recipe.name).is_absolute() else recipe.name,
        "recipe_hash": recipe.hash,
        "seed": str(recipe.seed),
        "commit": commit(),
        "world_hash": find_source(recipe.training_prompts)[0].version,
        "command": command(),
        "machine": machine(),
        "precision": distributed.resolve_precision(recipe.engine.precision),
    }
